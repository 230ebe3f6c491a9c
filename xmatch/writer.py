"""Building the folder of a catalogue in stages of small tasks, each bounded in memory and noted when it is finished.

1. *Read*: each part of the inputs becomes pieces, sorted by declination zone.
2. *Sort*: zones are divided into bands of bounded size; the order of each band's rows is found, without repetitions.
3. *Write*: each band's rows go to their places in the arrays of the catalogue.
4. *Check*: identifiers are counted in buckets of hashes.
5. *Partition*: the rows of each HEALPix pixel are written as Parquet.
6. *Checksum*: of all files and inputs.

What a task writes depends on its arguments alone, so that neither their number nor their order shows in the result.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmatch import hats_writer, identifier_check
from xmatch.cells import take_columns
from xmatch.hats import HEALPIX_COLUMN, Pixel
from xmatch.jobs import Entry, Ledger, Progress, Task, Workers, run_stage, write_whole
from xmatch.layout import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_FOLDER,
    MANIFEST,
    ROWS_PER_CELL,
    ZONES_PER_DEGREE,
    CatalogError,
    Column,
    Section,
    create_array,
    save_array,
    sha256_of,
    write_rows,
)
from xmatch.pieces import (
    IDENTIFIERS,
    POSITIONS,
    ZONES,
    Piece,
    Refused,
    accepted,
    arrays_of,
    join_sections,
    place_columns,
    read_section,
    write_piece,
)
from xmatch.search import cells_of, zones_of
from xmatch.sources import Inputs, Reading, Unit, input_file, iter_loaders, local_copy, plan_units

_CELL_ROWS = "cell_rows.npy"
_ROWS_PER_PARTITION = 1_000_000
_BYTES_PER_PARTITION = 160 << 20


@dataclass(frozen=True)
class Build:
    """What is to be built, and in what portions.

    Attributes
    ----------
    inputs : Inputs
    reading : Reading
    name, version, created : str
        `created` is when the build began, ISO 8601 in UTC.
    block_bytes : int
        Size of the rows that a task holds.
    with_hats : bool
        Whether the HATS part is written.
    partition_rows : int
        Largest number of rows of a partition.
    """

    inputs: Inputs
    reading: Reading
    name: str
    version: str
    block_bytes: int
    with_hats: bool
    created: str
    partition_rows: int = _ROWS_PER_PARTITION

    @property
    def columns(self) -> list[Column]:
        """Columns of the catalogue."""
        return place_columns(self.reading)

    @property
    def hats_columns(self) -> tuple[list[Column], dict[str, str]]:
        """Columns of the HATS part, and the names of those that hold `ra`, `dec`, `identifier`.

        Position and identifier are always among them.
        """
        columns = self.columns
        names: dict[str, str] = {}
        keys = {"ra": (POSITIONS, 0), "dec": (POSITIONS, 1), "identifier": (IDENTIFIERS, 0)}
        for key, (file, index) in keys.items():
            present = next((c.name for c in columns if (c.file, c.index) == (file, index)), None)
            source = getattr(self.reading, key)
            if present is None:
                columns.append(Column(source.source, source.type, source.unit, file, index))
            names[key] = present or source.source
        return columns, names


class _Plan(NamedTuple):
    """How the rows of the pieces are divided into bands of zones.

    `first_rows` [pieces, bands + 1] are the first rows of each band in each piece, `zones` [bands + 1] its first zones.
    """

    pieces: tuple[Piece, ...]
    sections: tuple[Section, ...]
    first_rows: NDArray[np.int64]
    zones: NDArray[np.int64]

    def ranges(self, band: int) -> NDArray[np.int64]:
        return np.ascontiguousarray(self.first_rows[:, band : band + 2])

    def read(self, band: int, number: int) -> NDArray:
        """Rows of one section of a band, as the pieces have them."""
        return read_section(self.pieces, self.ranges(band), number, self.sections[number])


class _Paths:
    """Files of a folder in which a catalogue is built."""

    def __init__(self, folder: Path):
        self.ledger = folder / "ledger"
        self.spill = folder / "spill"
        self.bands = folder / "bands"
        self.plan = folder / "plan.json"
        self.catalog = folder / "catalog"
        self.index = self.catalog / INDEX_FOLDER

    def band(self, band: int, what: str) -> Path:
        return self.bands / f"{band:06d}.{what}"


def write_folder(folder: Path, build: Build, workers: Workers, report: Callable[[Progress], None]) -> Path:
    """Build the catalogue within `folder`, from where an earlier call was interrupted; gives its folder.

    Raises
    ------
    CatalogError
        If the inputs cannot be used.
    OSError
        If a disk, a server or a process gave way; the same call goes on.
    """
    paths = _Paths(folder)
    for path in (paths.ledger, paths.spill, paths.bands, paths.index):
        path.mkdir(parents=True, exist_ok=True)

    def run(stage: str, function: Callable[..., Entry], tasks: list[Task], unit: str) -> list[Entry]:
        return list(run_stage(workers, paths.ledger, stage, function, tasks, unit, report).values())

    units = plan_units(build.inputs, build.reading, build.block_bytes)
    reads = run(
        "read",
        _read_unit,
        [
            Task(f"{k:06d}", (folder, k, unit, build.reading, build.block_bytes), unit.weight)
            for k, unit in enumerate(units)
        ],
        "bytes",
    )
    if not paths.plan.exists():
        _write_plan(folder, reads, build)
    plan = _read_plan(folder, paths.plan.stat().st_mtime_ns)
    sizes = np.diff(plan.first_rows.sum(axis=0)).tolist()
    sorts = run("sort", _sort_band, [Task(f"{b:06d}", (folder, b), n) for b, n in enumerate(sizes)], "rows")
    rows = sum(entry["rows"] for entry in sorts)
    first_rows = np.concatenate([[0], np.cumsum([entry["rows"] for entry in sorts])]).astype(np.int64)
    first_entries = _create_arrays(paths, plan, rows)
    bits = identifier_check.count_bucket_bits(rows, build.block_bytes)
    writes = [
        Task(f"{b:06d}", (folder, b, int(first_rows[b]), int(first_entries[b]), bits, build.with_hats), n)
        for b, n in enumerate(sizes)
    ]
    run("write", _write_band, writes, "rows")
    shutil.rmtree(paths.spill)
    bands = len(sizes)
    checks = run(
        "check identifiers",
        _check_bucket,
        [Task(f"{k:05d}", (folder, bands, k), 1) for k in range(1 << bits)],
        "buckets",
    )
    partitions = _write_hats(folder, build, bands, run) if build.with_hats else []
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": build.name,
        "version": build.version,
        "created": build.created,
        "rows": rows,
        "refused": _add_up([entry["refused"] for entry in reads]),
        "duplicates": sum(entry["repeated"] for entry in sorts),
        "repeated_identifiers": {
            "rows": sum(entry["repeated"] for entry in checks),
            "examples": identifier_check.first_examples([each for entry in checks for each in entry["examples"]]),
        },
        "columns": [asdict(column) for column in build.columns],
        "index": {"zones_per_degree": ZONES_PER_DEGREE, "rows_per_cell": ROWS_PER_CELL},
        "hats": _describe_hats(partitions) if build.with_hats else None,
    }
    if build.with_hats:
        _write_hats_description(paths, build, partitions, manifest)
    manifest |= _checksums(folder, build, units, reads, partitions, run)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_whole(paths.catalog / MANIFEST, text)
    return paths.catalog


def _read_unit(folder: Path, number: int, unit: Unit, reading: Reading, block_bytes: int) -> Entry:
    """Write the pieces of a part of the inputs."""
    paths = _Paths(folder)
    pieces, refused, source = [], [], {}
    ledger = Ledger(paths.ledger)
    with local_copy(unit.file, folder / f"download.{number:06d}") as path:
        if path != unit.file.path:
            source = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for k, load in enumerate(iter_loaders(unit, path, reading, block_bytes)):
            name = f"{number:06d}-{k:06d}"
            note = ledger.read("piece", name)
            if note is None:
                note = _read_piece(paths.spill / name, load(), reading)
                ledger.write("piece", name, note)
            refused.append(note["refused"])
            if note["rows"]:
                pieces.append({"name": name, "rows": note["rows"], "sections": note["sections"]})
    return {"pieces": pieces, "refused": _add_up(refused), "source": source}


def _read_piece(path: Path, block: pa.Table, reading: Reading) -> Entry:
    rows, refused = accepted(block)
    if rows.num_rows == 0:
        return {"rows": 0, "refused": refused._asdict()}
    piece, zone_rows = write_piece(path, arrays_of(rows, reading))
    save_array(path.with_suffix(".zones.npy"), zone_rows)
    return {"rows": piece.rows, "refused": refused._asdict(), "sections": [asdict(s) for s in piece.sections]}


def _write_plan(folder: Path, reads: Sequence[Entry], build: Build) -> None:
    """Divide the zones into bands of about `block_bytes`."""
    paths = _Paths(folder)
    pieces = [piece for entry in reads for piece in entry["pieces"]]
    if not pieces:
        pieces = [_read_piece_of_nothing(paths.spill / "empty", build.reading)]
    sections = join_sections([_piece(paths, piece) for piece in pieces])
    zone_rows = np.zeros(ZONES, np.int64)
    for piece in pieces:
        zone_rows += np.load(paths.spill / f"{piece['name']}.zones.npy")
    row_bytes = sum(section.row_bytes for section in sections)
    band_of_zone = (np.cumsum(zone_rows) - zone_rows) * row_bytes // build.block_bytes
    zones = np.append(np.flatnonzero(np.diff(band_of_zone, prepend=-1)), ZONES)
    first_rows = np.zeros((len(pieces), len(zones)), np.int64)
    for k, piece in enumerate(pieces):
        ends = np.cumsum(np.load(paths.spill / f"{piece['name']}.zones.npy"), dtype=np.int64)
        first_rows[k] = np.concatenate([[0], ends])[zones]
    save_array(folder / "plan.first_rows.npy", first_rows)
    save_array(folder / "plan.zones.npy", zones)
    write_whole(paths.plan, json.dumps({"pieces": pieces}))


def _read_piece_of_nothing(path: Path, reading: Reading) -> Entry:
    types = {"double": pa.float64(), "int64": pa.int64(), "string": pa.string()}
    names = ["ra", "dec", "identifier", *(f"value_{i}" for i in range(len(reading.values)))]
    kinds = [types[column.type] for column in (reading.ra, reading.dec, reading.identifier, *reading.values)]
    nothing = pa.schema(list(zip(names, kinds, strict=True))).empty_table()
    piece, zone_rows = write_piece(path, arrays_of(nothing, reading))
    save_array(path.with_suffix(".zones.npy"), zone_rows)
    return {"name": path.name, "rows": 0, "sections": [asdict(section) for section in piece.sections]}


def _piece(paths: _Paths, piece: Entry) -> Piece:
    sections = tuple(Section(**section) for section in piece["sections"])
    return Piece(str(paths.spill / piece["name"]), piece["rows"], sections)


@lru_cache(maxsize=1)
def _read_plan(folder: Path, _: int) -> _Plan:
    paths = _Paths(folder)
    pieces = tuple(_piece(paths, piece) for piece in json.loads(paths.plan.read_text(encoding="utf-8"))["pieces"])
    first_rows = np.load(folder / "plan.first_rows.npy")
    return _Plan(pieces, join_sections(pieces), first_rows, np.load(folder / "plan.zones.npy"))


def _plan_of(folder: Path) -> _Plan:
    return _read_plan(folder, _Paths(folder).plan.stat().st_mtime_ns)


def _sort_band(folder: Path, band: int) -> Entry:
    """Find the order of a band's rows and the rows of each of its zones."""
    plan, paths = _plan_of(folder), _Paths(folder)
    positions = plan.read(band, 0)
    ra, dec = np.ascontiguousarray(positions[:, 0]), np.ascontiguousarray(positions[:, 1])
    zones = zones_of(dec, ZONES_PER_DEGREE)
    order = _sorted_rows(ra, dec, zones, plan.read(band, 1))
    counts = np.bincount(zones[order] - plan.zones[band], minlength=plan.zones[band + 1] - plan.zones[band])
    save_array(paths.band(band, "order.npy"), order.astype(np.uint32))
    save_array(paths.band(band, "zones.npy"), counts)
    return {"rows": len(order), "repeated": len(ra) - len(order)}


def _sorted_rows(ra: NDArray, dec: NDArray, zones: NDArray, identifiers: NDArray) -> NDArray[np.int64]:
    """Order by zone, right ascension, declination, identifier; of equal position and identifier the first row only."""
    if len(ra) == 0:
        return np.zeros(0, np.int64)
    values = identifiers.view(f"S{identifiers.shape[1]}") if identifiers.dtype == np.uint8 else identifiers
    values = values[:, 0]
    # Zone and right ascension in one integer: sorting those is several times faster, and few rows share one.
    zones = zones - zones.min()
    bits = 64 - max(1, int(zones.max()).bit_length())
    largest = np.uint64((1 << bits) - 1)
    key = (zones.astype(np.uint64) << np.uint64(bits)) | np.minimum(
        (ra * (2.0**bits / 360.0)).astype(np.uint64), largest
    )
    order = np.argsort(key)
    key = key[order]
    same = key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, values[rows], dec[rows], ra[rows], zones[rows]))]
    before, after = order[tied[:-1]], order[tied[1:]]
    repeated = (ra[after] == ra[before]) & (dec[after] == dec[before]) & (values[after] == values[before])
    return np.delete(order, tied[1:][repeated])


def _create_arrays(paths: _Paths, plan: _Plan, rows: int) -> NDArray[np.int64]:
    """Create the arrays of the catalogue and write its zones; gives each band's first entry in the list of cells."""
    bands = len(plan.zones) - 1
    zone_rows = np.concatenate([np.load(paths.band(band, "zones.npy")) for band in range(bands)])
    zone_cells = np.concatenate([[0], np.cumsum(_entries(zone_rows))]).astype(np.int64)
    for section in plan.sections:
        create_array(paths.index / section.file, section.dtype, (rows, section.width))
    create_array(paths.index / _CELL_ROWS, "<u4", (int(zone_cells[-1]),))
    save_array(paths.index / "zone_rows.npy", np.concatenate([[0], np.cumsum(zone_rows)]).astype(np.int64))
    save_array(paths.index / "zone_cells.npy", zone_cells)
    return zone_cells[plan.zones]


def _write_band(folder: Path, band: int, first_row: int, first_entry: int, bits: int, with_hats: bool) -> Entry:
    """Write a band's rows to their places, and beside them what the later stages need."""
    plan, paths = _plan_of(folder), _Paths(folder)
    order = np.load(paths.band(band, "order.npy"))
    counts = np.load(paths.band(band, "zones.npy"))
    for number, section in enumerate(plan.sections):
        values = np.take(plan.read(band, number), order, axis=0)
        write_rows(paths.index / section.file, first_row, values)
        if section.file == IDENTIFIERS:
            identifier_check.write_hashes(paths.band(band, "hashes"), values, first_row, bits)
        elif section.file == POSITIONS:
            ra, dec = np.ascontiguousarray(values[:, 0]), np.ascontiguousarray(values[:, 1])
            write_rows(paths.index / _CELL_ROWS, first_entry, _first_rows_of_cells(ra, counts))
            if with_hats:
                _write_pixels(paths, band, first_row, hats_writer.healpix_of(ra, dec))
    return {}


def _write_pixels(paths: _Paths, band: int, first_row: int, pixels: NDArray[np.int64]) -> None:
    """Write the HEALPix pixels of a band's rows, rising, the rows, and how many rows each larger pixel has."""
    order = np.argsort(pixels, kind="stable")
    pixels = pixels[order]
    save_array(paths.band(band, "pixels.npy"), pixels)
    save_array(paths.band(band, "rows.npy"), order + first_row)
    save_array(paths.band(band, "density.npy"), np.stack(hats_writer.count_pixels(pixels)))


def _check_bucket(folder: Path, bands: int, bucket: int) -> Entry:
    paths = _Paths(folder)
    identifiers = np.load(paths.index / IDENTIFIERS, mmap_mode="r")
    hashes = [paths.band(band, "hashes") for band in range(bands)]
    repeated, examples = identifier_check.count_repeated(hashes, bucket, identifiers)
    return {"repeated": repeated, "examples": examples}


def _write_hats(
    folder: Path, build: Build, bands: int, run: Callable[[str, Callable[..., Entry], list[Task], str], list[Entry]]
) -> list[tuple[Pixel, Entry]]:
    """Write the partitions of the HATS part."""
    paths = _Paths(folder)
    sections = [np.load(paths.index / file, mmap_mode="r") for file in {c.file for c in build.hats_columns[0]}]
    row_bytes = sum(section.itemsize * section.shape[1] for section in sections)
    most_rows = max(1, min(build.partition_rows, _BYTES_PER_PARTITION // row_bytes))
    pixels = hats_writer.choose_partitions(_density(paths, bands), most_rows)
    begins = np.array([pixel.begin for pixel in pixels], np.int64)
    ends = np.array([pixel.end for pixel in pixels], np.int64)
    places = np.zeros((len(pixels), bands, 2), np.int64)
    for band in range(bands):
        sorted_pixels = np.load(paths.band(band, "pixels.npy"), mmap_mode="r")
        places[:, band, 0] = np.searchsorted(sorted_pixels, begins)
        places[:, band, 1] = np.searchsorted(sorted_pixels, ends)
    columns, _ = build.hats_columns
    tasks = []
    for k, pixel in enumerate(pixels):
        slices = [(b, *places[k, b].tolist()) for b in np.flatnonzero(places[k, :, 1] > places[k, :, 0]).tolist()]
        rows = sum(end - begin for _, begin, end in slices)
        tasks.append(Task(f"{pixel.order}-{pixel.number}", (folder, pixel, slices, columns), rows))
    return list(zip(pixels, run("partition", _write_partition, tasks, "rows"), strict=True))


def _density(paths: _Paths, bands: int) -> NDArray[np.int64]:
    counts = np.zeros(12 << 2 * hats_writer.HIGHEST_ORDER, np.int64)
    for band in range(bands):
        pixels, rows = np.load(paths.band(band, "density.npy"))
        counts[pixels] += rows
    return counts


def _write_partition(folder: Path, pixel: Pixel, slices: list[tuple[int, int, int]], columns: list[Column]) -> Entry:
    """Write the rows of a HEALPix pixel, sorted by their pixels of order 29."""
    paths = _Paths(folder)

    def read(what: str) -> NDArray[np.int64]:
        return np.concatenate([np.load(paths.band(b, what), mmap_mode="r")[begin:end] for b, begin, end in slices])

    pixels, rows = read("pixels.npy"), read("rows.npy")
    order = np.argsort(pixels, kind="stable")
    arrays = {file: np.load(paths.index / file, mmap_mode="r") for file in {column.file for column in columns}}
    table = take_columns(arrays, columns, rows[order])
    table = table.add_column(0, HEALPIX_COLUMN, pa.array(pixels[order])).cast(_hats_schema(columns))
    path = paths.catalog / pixel.path
    beside = path.with_name(f".{path.name}")
    hats_writer.write_partition(beside, table)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    return {"rows": len(rows), "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _hats_schema(columns: Sequence[Column]) -> pa.Schema:
    types = {"double": pa.float64(), "int64": pa.int64(), "string": pa.string()}
    fields = [
        pa.field(column.name, types[column.type], metadata={"unit": column.unit} if column.unit else None)
        for column in columns
    ]
    return pa.schema([pa.field(HEALPIX_COLUMN, pa.int64()), *fields])


def _describe_hats(partitions: Sequence[tuple[Pixel, Entry]]) -> dict[str, Any]:
    return {"partitions": len(partitions), "largest": max((entry["rows"] for _, entry in partitions), default=0)}


def _write_hats_description(
    paths: _Paths, build: Build, partitions: Sequence[tuple[Pixel, Entry]], manifest: dict[str, Any]
) -> None:
    columns, names = build.hats_columns
    hats_writer.write_metadata(paths.catalog, _hats_schema(columns), [pixel for pixel, _ in partitions])
    bands = len(list(paths.bands.glob("*.density.npy")))
    hats_writer.write_point_map(paths.catalog / "point_map.fits", _density(paths, bands))
    hats_writer.write_properties(
        paths.catalog,
        name=build.name,
        version=build.version,
        rows=manifest["rows"],
        most_rows=manifest["hats"]["largest"],
        columns=names,
        created=manifest["created"],
        size_bytes=sum(entry["bytes"] for _, entry in partitions),
    )


def _checksums(
    folder: Path,
    build: Build,
    units: Sequence[Unit],
    reads: Sequence[Entry],
    partitions: Sequence[tuple[Pixel, Entry]],
    run: Callable[[str, Callable[..., Entry], list[Task], str], list[Entry]],
) -> dict[str, Any]:
    """Sizes and checksums of the inputs and of all files of the catalogue."""
    root = _Paths(folder).catalog
    fetched = {unit.file.name: entry["source"] for unit, entry in zip(units, reads, strict=True) if entry["source"]}
    known = {pixel.path for pixel, _ in partitions}
    # What a killed task left half written.
    for path in root.rglob(".*"):
        path.unlink()
    files = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and str(path.relative_to(root)) not in known and path.name != MANIFEST
    )
    local = [file for file in build.inputs.files if file.name not in fetched]
    tasks = [Task(f"{k:06d}", (file.path, file), file.size) for k, file in enumerate(local)]
    tasks += [
        Task(f"{k:06d}", (root / file, None), (root / file).stat().st_size)
        for k, file in enumerate(files, start=len(local))
    ]
    entries = run("checksum", _checksum, tasks, "bytes")
    by_name = dict(zip([*(file.name for file in local), *files], entries, strict=True)) | fetched
    by_name |= {pixel.path: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for pixel, entry in partitions}
    return {
        "sources": [{"name": file.name, **by_name[file.name]} for file in build.inputs.files],
        "files": {file: by_name[file] for file in sorted([*files, *known])},
    }


def _checksum(path: Path, given: Any) -> Entry:
    """Size and checksum of a file; an input must still be as it was at the beginning."""
    entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if given is not None and input_file(path) != given:
        raise CatalogError(f"{path} changed while it was read; build again.")
    return entry


def _add_up(refused: Sequence[dict[str, int]]) -> dict[str, int]:
    return {reason: sum(each[reason] for each in refused) for reason in Refused._fields}


def _entries(zone_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries of each zone in the list of cells: one per cell and one for the end, none for a zone without rows."""
    return np.where(zone_rows > 0, np.maximum(zone_rows // ROWS_PER_CELL, 1) + 1, 0)


def _first_rows_of_cells(ra: NDArray, zone_rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Part of the list of cells for sorted rows that make up whole zones of so many rows."""
    entries = _entries(zone_rows)
    first_entry = np.repeat(np.cumsum(entries) - entries, zone_rows)
    cell = cells_of(ra, np.repeat(entries - 1, zone_rows))
    rows_before = np.bincount(first_entry + cell + 1, minlength=entries.sum()).cumsum()
    first_row = np.cumsum(zone_rows) - zone_rows
    return (rows_before - np.repeat(first_row, entries)).astype(np.uint32)
