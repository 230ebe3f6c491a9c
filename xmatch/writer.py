"""Writing the folder of a catalogue: sort the sources by declination zone, one band of zones at a time."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmatch.cells import text_matrix
from xmatch.layout import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    NULL_INTEGER,
    ROWS_PER_CELL,
    ZONES_PER_DEGREE,
    Column,
    count_zones,
    sha256_of,
)
from xmatch.search import cells_of, zones_of
from xmatch.sources import Reading, SourceColumn, read_batches, text_width

_BANDS = 180
_ZONES = count_zones(ZONES_PER_DEGREE)
_HEADER_BYTES = 128
_MATRIX_FILES = {"double": "doubles.npy", "int64": "integers.npy"}


class ArrayWriter:
    """Write an `.npy` file by appending blocks of rows; the header is completed on closing.

    Parameters
    ----------
    path : Path
    dtype : numpy dtype
    row_shape : tuple of int
        Shape of one row, empty for a one-dimensional array.
    """

    def __init__(self, path: Path, dtype: type[np.generic], row_shape: tuple[int, ...] = ()):
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._rows = 0
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))

    def append(self, block: NDArray) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(block, self._dtype).data.cast("B") if block.size else b"")
        self._rows += block.shape[0]

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(self._header())

    def _header(self) -> bytes:
        shape = (self._rows, *self._row_shape)
        text = repr({"descr": self._dtype.str, "fortran_order": False, "shape": shape})
        length = _HEADER_BYTES - 10
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


class Bands:
    """Rows held in memory, or once they exceed `memory_bytes` on disk in bands of declination.

    Parameters
    ----------
    folder : Path
        Folder for the bands' files, made when needed.
    memory_bytes : int
        Size of the rows held before they are moved to disk.
    """

    def __init__(self, folder: Path, memory_bytes: int):
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}

    def add(self, rows: pa.Table) -> None:
        """Add rows with a column `dec` in degrees."""
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes > self._memory_bytes:
            self._spill()

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows of each band, from south to north; rows of a band are in the order of their adding."""
        if not self._writers:
            yield from [pa.concat_tables(self._held)] if self._held else []
            return
        self._spill()
        for writer in self._writers.values():
            writer.close()
        for band in sorted(self._writers):
            with pa.memory_map(str(self._path(band))) as file:
                yield pa.ipc.open_file(file).read_all()

    def _spill(self) -> None:
        self._folder.mkdir(exist_ok=True)
        if self._held:
            rows = pa.concat_tables(self._held)
            bands = zones_of(rows["dec"].to_numpy(), ZONES_PER_DEGREE) * _BANDS // _ZONES
            order = np.argsort(bands, kind="stable")
            counts = np.bincount(bands, minlength=_BANDS)
            rows = rows.take(pa.array(order))
            begin = 0
            for band in np.flatnonzero(counts).tolist():
                if band not in self._writers:
                    self._writers[band] = pa.ipc.new_file(str(self._path(band)), rows.schema)
                self._writers[band].write_table(rows.slice(begin, counts[band]))
                begin += counts[band]
        self._held, self._held_bytes = [], 0

    def _path(self, band: int) -> Path:
        return self._folder / f"band_{band:03d}.arrow"


def write_folder(folder: Path, files: list[Path], reading: Reading, name: str, version: str, memory_bytes: int) -> None:
    """Write the whole catalogue into `folder`, which exists and is empty; the manifest comes last."""
    refused = {"position": 0, "identifier": 0}
    widths: dict[str, int] = {}
    spill = folder / "spill"
    bands = Bands(spill, memory_bytes)
    for file in files:
        for batch in read_batches(file, reading):
            rows = _accepted(batch, refused)
            for column in rows.schema:
                if column.type == pa.string():
                    widths[column.name] = max(widths.get(column.name, 1), text_width(rows[column.name]))
            bands.add(rows)
    rows_written, duplicates = _write_arrays(folder, bands, reading, widths)
    if spill.is_dir():
        shutil.rmtree(spill)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows_written,
        "refused": refused,
        "duplicates": duplicates,
        "columns": [asdict(column) for column in place_columns(reading)],
        "index": {"zones_per_degree": ZONES_PER_DEGREE, "rows_per_cell": ROWS_PER_CELL},
        "sources": [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files],
        "files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in sorted(folder.glob("*.npy"))},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def place_columns(reading: Reading) -> list[Column]:
    """Say in which file of the folder each column of the catalogue lies."""
    places = {
        reading.ra.source: ("positions.npy", 0),
        reading.dec.source: ("positions.npy", 1),
        reading.identifier.source: ("identifiers.npy", 0),
    }
    for kind, file in _MATRIX_FILES.items():
        places |= {column.source: (file, k) for k, (_, column) in enumerate(_values_of(reading, kind))}
    places |= {column.source: (f"text_{k}.npy", 0) for k, (_, column) in enumerate(_values_of(reading, "string"))}
    return [Column(column.name, column.type, column.unit, *places[column.source]) for column in reading.columns]


def _values_of(reading: Reading, kind: str) -> list[tuple[str, SourceColumn]]:
    """Value columns of one type, each with its name in the batches that are read."""
    return [(f"value_{i}", column) for i, column in enumerate(reading.values) if column.type == kind]


def _accepted(batch: pa.Table, refused: dict[str, int]) -> pa.Table:
    """Rows that have a position on the sphere and an identifier; counts the others in `refused`."""
    ra, dec = batch["ra"].to_numpy(), batch["dec"].to_numpy()
    has_position = (ra >= 0.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    has_identifier = pc.is_valid(batch["identifier"]).to_numpy()
    if batch.schema.field("identifier").type == pa.string():
        has_identifier &= pc.not_equal(pc.fill_null(batch["identifier"], ""), "").to_numpy()
    refused["position"] += int(np.count_nonzero(~has_position))
    refused["identifier"] += int(np.count_nonzero(has_position & ~has_identifier))
    accepted = has_position & has_identifier
    rows = batch if accepted.all() else batch.filter(pa.array(accepted))
    # One position has one spelling: 360 becomes 0, and adding zero turns -0.0 into 0.0.
    ra = np.where(ra == 360.0, 0.0, ra)[accepted] + 0.0
    dec = dec[accepted] + 0.0
    return rows.set_column(0, "ra", pa.array(ra)).set_column(1, "dec", pa.array(dec))


def _write_arrays(folder: Path, bands: Bands, reading: Reading, widths: dict[str, int]) -> tuple[int, int]:
    """Write every array of the folder; returns the numbers of rows written and of duplicates left out."""
    zone_counts = np.zeros(_ZONES, np.int64)
    duplicates = 0
    has_text_identifier = reading.identifier.type == "string"
    text = _values_of(reading, "string")
    with ExitStack() as stack:

        def writer(file: str, dtype: type[np.generic], *row_shape: int) -> ArrayWriter:
            return stack.enter_context(ArrayWriter(folder / file, dtype, row_shape))

        positions = writer("positions.npy", np.float64, 2)
        identifier_width = widths.get("identifier", 1)
        identifiers = writer("identifiers.npy", np.uint8 if has_text_identifier else np.int64, identifier_width)
        doubles = writer("doubles.npy", np.float64, len(_values_of(reading, "double")))
        integers = writer("integers.npy", np.int64, len(_values_of(reading, "int64")))
        texts = [writer(f"text_{k}.npy", np.uint8, widths.get(name, 1)) for k, (name, _) in enumerate(text)]
        cell_rows = writer("cell_rows.npy", np.uint32)
        for band in bands:
            if has_text_identifier:
                identifier = text_matrix(band["identifier"], identifier_width)
            else:
                identifier = band["identifier"].to_numpy().reshape(-1, 1)
            order = _sorted_rows(band, identifier)
            duplicates += band.num_rows - order.shape[0]
            band, identifier = band.take(pa.array(order)), identifier[order]
            ra, dec = band["ra"].to_numpy(), band["dec"].to_numpy()
            zones = zones_of(dec, ZONES_PER_DEGREE)
            counts = np.bincount(zones, minlength=_ZONES)
            zone_counts += counts
            positions.append(np.stack([ra, dec], axis=1))
            identifiers.append(identifier)
            doubles.append(_matrix(band, _values_of(reading, "double"), np.nan))
            integers.append(_matrix(band, _values_of(reading, "int64"), NULL_INTEGER))
            for file, (name, _) in zip(texts, text, strict=True):
                file.append(text_matrix(band[name], widths.get(name, 1)))
            cell_rows.append(_first_rows_of_cells(ra, zones, counts))
    np.save(folder / "zone_rows.npy", np.concatenate([[0], np.cumsum(zone_counts)]))
    np.save(folder / "zone_cells.npy", np.concatenate([[0], np.cumsum(_entries(zone_counts))]))
    return int(zone_counts.sum()), duplicates


def _sorted_rows(band: pa.Table, identifier: NDArray) -> NDArray[np.int64]:
    """Order by zone, right ascension, declination, identifier; of equal position and identifier the first row only."""
    ra, dec = band["ra"].to_numpy(), band["dec"].to_numpy()
    width = identifier.shape[1]
    key = identifier.view(f"S{width}")[:, 0] if identifier.dtype == np.uint8 else identifier[:, 0]
    order = np.lexsort((key, dec, ra, zones_of(dec, ZONES_PER_DEGREE)))
    before, after = order[:-1], order[1:]
    repeated = (ra[after] == ra[before]) & (dec[after] == dec[before]) & (key[after] == key[before])
    return np.concatenate([order[:1], after[~repeated]])


def _matrix(band: pa.Table, columns: list[tuple[str, SourceColumn]], null: float) -> NDArray:
    values = [pc.fill_null(band[name], null).to_numpy() for name, _ in columns]
    return np.stack(values, axis=1) if values else np.empty((band.num_rows, 0))


def _entries(zone_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries of each zone in `cell_rows`: one per cell and one for the end, none for a zone without rows."""
    return np.where(zone_counts > 0, np.maximum(zone_counts // ROWS_PER_CELL, 1) + 1, 0)


def _first_rows_of_cells(ra: NDArray, zones: NDArray, zone_counts: NDArray) -> NDArray[np.uint32]:
    """Part of `cell_rows` of sorted rows that make up whole zones."""
    entries = _entries(zone_counts)
    first_entry = np.cumsum(entries) - entries
    cell = cells_of(ra, entries[zones] - 1)
    rows_before = np.bincount(first_entry[zones] + cell + 1, minlength=entries.sum()).cumsum()
    first_row = np.cumsum(zone_counts) - zone_counts
    return (rows_before - np.repeat(first_row, entries)).astype(np.uint32)
