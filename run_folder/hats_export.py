"""Results of a run as a HATS catalogue: a row per object, by option with its light curve nested.

The tables of objects are spread over buckets by name, the partitions of the catalogue over the sky. The rows therefore
are sorted twice: those of some buckets at a time by HEALPix pixel, each lot in a file of its own (a *run*); then, when
it is known how many there are in every pixel, those of one partition at a time, from all runs.

The nested column is a struct of lists that are as long as each other. `nested_pandas` and `lsdb` take it for a nested
one and can read some of the lists alone, which they cannot of a list of structs (lincc-frameworks/nested-pandas#394).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.files import partial_name
from storage.object_tables import ObjectTable
from xmatch.hats import HEALPIX_COLUMN, HEALPIX_ORDER, Pixel, is_hats_folder, is_partition_column
from xmatch.hats_writer import (
    HIGHEST_ORDER,
    choose_partitions,
    healpix_of,
    write_metadata,
    write_partition,
    write_point_map,
    write_properties,
)

LIGHT_CURVE: Final = "lightcurve"
RA, DEC, OID = "meanra", "meandec", "oid"
LightCurves = Callable[[int, pa.Array], pa.Table]

# Uncompressed.
_BYTES_PER_RUN = 64 << 20
_BYTES_PER_PARTITION = 128 << 20
# What is read of a run at a time: it is not mapped into memory, where pages beside the wanted ones would be counted.
_ROWS_PER_BATCH = 1024
_TEXT_BYTES = 16
_UNITS: Final = {RA: "deg", DEC: "deg", "firstmjd": "d", "lastmjd": "d", "deltajd": "d"}
# Of a table of probabilities, what says which model gave them: it is the same in all rows.
_MODEL: Final = ("classifier_name", "classifier_version", "model_sha256")


@dataclass(frozen=True)
class HatsInput:
    """Tables that are joined by ``oid``: folders of :class:`storage.object_tables.ObjectTable`.

    Attributes
    ----------
    objects : Path
        Statistics of the objects, with their mean positions ``meanra``, ``meandec`` in degrees.
    features : Path or None
        Features of one version.
    probabilities : Path or None
        Probabilities of one model.
    """

    objects: Path
    features: Path | None = None
    probabilities: Path | None = None


@dataclass(frozen=True)
class HatsSummary:
    """What a catalogue consists of.

    Attributes
    ----------
    rows : int
        Objects in the catalogue.
    without_position : int
        Objects that are left out, because they have no mean position.
    partitions : int
    bytes : int
        Size of the partitions.
    """

    rows: int
    without_position: int
    partitions: int
    bytes: int


def export_hats(
    source: HatsInput,
    buckets: int,
    output: Path,
    *,
    name: str,
    version: str,
    light_curves: LightCurves | None = None,
    most_rows: int = 1_000_000,
    say: Callable[[int, int], None] | None = None,
) -> HatsSummary:
    """Write a HATS catalogue of objects that `lsdb` opens, in the place of the one that may be there.

    Columns are those of the objects, of the features (without row: null), of the probabilities, and by option
    ``lightcurve``. Names stay as they are; one that is taken already, letters' case aside, gets ``_feature`` or
    ``_probability`` appended, and dots become underscores, because a dot leads into a nested column. Versions of the
    features and of the model are among the properties, as ``alertbeam_...``.

    The catalogue appears as a whole or not at all. Partitions depend on the rows alone, byte for byte: neither on the
    number of buckets nor on how the rows were put into the tables. The rows are spilled to files beside the catalogue,
    about 1.3 kB per object of 200 columns. Memory is bounded by a bucket and a partition, not by the number of objects:
    about 0.5 GB at 200 columns, 0.8 GB with light curves.

    Parameters
    ----------
    source : HatsInput
    buckets : int
        Buckets of the tables.
    output : Path
        Folder of the catalogue.
    name, version : str
        Of the catalogue.
    light_curves : callable, optional
        From a bucket and names of objects of it to a table: ``oid``, the same names in the same order, and columns of
        lists, which are as long as each other in a row.
    most_rows : int
        Largest number of rows of a partition; one has fewer where they take more than 128 MiB uncompressed.
    say : callable, optional
        Is told how much is done, of how much.

    Raises
    ------
    ValueError
        If a table has not the number of buckets, or no positions, or `light_curves` gives what does not fit.
    FileExistsError
        If `output` is something else than a HATS catalogue.
    """
    place = _Place(output)
    place.prepare()
    try:
        plan = _plan(source, buckets)
        progress = _Progress(2 * sum(_count_rows(plan.objects)), say or (lambda done, total: None))
        runs = _Runs(place.spill, most_rows)
        without_position = 0
        for bucket in range(buckets):
            left_out = _add_bucket(runs, plan, bucket, light_curves, progress)
            without_position += left_out
            progress.add(left_out)
        runs.flush()
        schema = runs.schema or plan.schema.insert(0, pa.field(HEALPIX_COLUMN, pa.int64()))
        pixels = choose_partitions(runs.weights, _BYTES_PER_PARTITION)
        largest = _write_partitions(place.partial, pixels, runs, progress)
        shutil.rmtree(place.spill)
        rows = int(runs.counts.sum())
        size = sum((place.partial / pixel.path).stat().st_size for pixel in pixels)
        write_metadata(place.partial, schema, pixels)
        write_point_map(place.partial / "point_map.fits", runs.counts)
        write_properties(
            place.partial,
            name=name,
            version=version,
            rows=rows,
            most_rows=largest,
            columns={"ra": RA, "dec": DEC, "identifier": OID},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            size_bytes=size,
            more=plan.versions,
        )
    except BaseException:
        shutil.rmtree(place.partial, ignore_errors=True)
        raise
    place.exchange()
    return HatsSummary(rows, without_position, len(pixels), size)


class _Place:
    """A folder that is written beside the one whose place it takes."""

    def __init__(self, output: Path) -> None:
        self.output, self.partial = output, partial_name(output)
        self.spill = self.partial / "spill"
        self._old = output.with_name(f".{output.name}.old")

    def prepare(self) -> None:
        """Put in order what a killed call left, and make the folder to be written."""
        if self.output.exists() and not is_hats_folder(self.output):
            raise FileExistsError(f"{self.output} is no HATS catalogue: it is not replaced")
        if self.partial.exists():
            shutil.rmtree(self.partial)
        if self._old.exists() and not self.output.exists():
            self._old.rename(self.output)
        self._remove_old()
        self.spill.mkdir(parents=True)

    def exchange(self) -> None:
        """Let the folder that was written take its place."""
        for path in self.partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if self.output.exists():
            self.output.rename(self._old)
        self.partial.rename(self.output)
        self._remove_old()

    def _remove_old(self) -> None:
        if self._old.exists():
            # Under this name nobody takes for whole what is half removed.
            self._old.rename(self.partial)
            shutil.rmtree(self.partial)


class _Progress:
    def __init__(self, total: int, say: Callable[[int, int], None]) -> None:
        self._done, self._total, self._say = 0, total, say

    def add(self, rows: int) -> None:
        self._done += rows
        self._say(self._done, self._total)


class _Part(NamedTuple):
    """A table, and the names in the catalogue of those of its columns that are wanted."""

    table: ObjectTable
    names: dict[str, str]


class _Plan(NamedTuple):
    """Tables to be joined, the objects first; columns without pixel and light curve; versions by property."""

    parts: tuple[_Part, ...]
    schema: pa.Schema
    versions: dict[str, str]

    @property
    def objects(self) -> ObjectTable:
        return self.parts[0].table


def _plan(source: HatsInput, buckets: int) -> _Plan:
    sources = [
        (source.objects, "object", ()),
        (source.features, "feature", (OID,)),
        (source.probabilities, "probability", (OID, "candid", *_MODEL)),
    ]
    taken = {LIGHT_CURVE}
    parts: list[_Part] = []
    fields: list[pa.Field] = []
    versions: dict[str, str] = {}
    for folder, kind, unwanted in sources:
        if folder is None:
            continue
        table = ObjectTable(folder, buckets)
        _check_buckets(table)
        schema = table.schema()
        if kind == "object":
            schema = _with_positions(schema, folder)
        names: dict[str, str] = {}
        for field in schema:
            if field.name not in unwanted:
                names[field.name] = _free_name(field.name, kind, taken)
                taken.add(names[field.name].lower())
                unit = _UNITS.get(field.name) if kind == "object" else None
                fields.append(pa.field(names[field.name], field.type, metadata={"unit": unit} if unit else None))
        parts.append(_Part(table, names))
        versions |= _versions(table, schema)
    return _Plan(tuple(parts), pa.schema(fields), versions)


def _with_positions(schema: pa.Schema, folder: Path) -> pa.Schema:
    needed = {OID: pa.string(), RA: pa.float64(), DEC: pa.float64()}
    if not schema.names:
        return pa.schema(needed)
    absent = [name for name in needed if name not in schema.names]
    if absent:
        raise ValueError(f"the objects in {folder} have no column {', '.join(absent)}")
    return schema


def _check_buckets(table: ObjectTable) -> None:
    known = {table.path(bucket) for bucket in range(table.buckets)}
    other = next((path for path in sorted(table.folder.glob("bucket=*.parquet")) if path not in known), None)
    if other:
        raise ValueError(f"{other} is none of {table.buckets} buckets")


def _free_name(name: str, kind: str, taken: set[str]) -> str:
    name = name.replace(".", "_")
    if name.lower() in taken or is_partition_column(name):
        name = f"{name}_{kind}"
    while name.lower() in taken:
        name += "_"
    return name


def _versions(table: ObjectTable, schema: pa.Schema) -> dict[str, str]:
    """Properties that say what features and probabilities are of."""
    metadata = schema.metadata or {}
    found = {
        key: {metadata[key.encode()].decode()}
        for key in ("feature_version", "feature_mode")
        if key.encode() in metadata
    }
    named = [name for name in _MODEL if name in schema.names]
    for rows in table.read_all(named) if named else ():
        for name in named:
            found.setdefault(name, set()).update(rows[name].drop_null().unique().to_pylist())
    return {f"alertbeam_{key}": ", ".join(sorted(values)) for key, values in found.items() if values}


def _count_rows(table: ObjectTable) -> Iterator[int]:
    for path in table.folder.glob("bucket=*.parquet"):
        yield pq.read_metadata(path).num_rows


def _add_bucket(runs: _Runs, plan: _Plan, bucket: int, light_curves: LightCurves | None, progress: _Progress) -> int:
    """Join the rows of a bucket's objects and add them to the runs; gives the number of those without position."""
    objects = plan.objects.read(bucket)
    if objects is None:
        return 0
    ra, dec = (pc.fill_null(objects[name].cast(pa.float64()), np.nan).to_numpy() for name in (RA, DEC))
    is_placed = (ra >= 0.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    objects = objects.filter(pa.array(is_placed))
    if not len(objects):
        return len(is_placed)
    oids = objects[OID].combine_chunks()
    columns: list[pa.Array] = [pa.array(healpix_of(ra[is_placed], dec[is_placed]))]
    fields = iter(plan.schema)
    for part in plan.parts:
        rows = objects if part.table is plan.objects else _rows_of(part.table, bucket, oids)
        found = dict(zip(rows.column_names, rows.columns, strict=True))
        for name in part.names:
            field, values = next(fields), found.get(name)
            if values is None:
                values = pa.nulls(len(oids), field.type)
            columns.append(values if values.type == field.type else values.cast(field.type))
    schema = plan.schema.insert(0, pa.field(HEALPIX_COLUMN, pa.int64()))
    if light_curves is not None:
        nested = _nest(light_curves(bucket, oids), oids)
        columns.append(nested)
        schema = schema.append(pa.field(LIGHT_CURVE, nested.type))
    runs.add(pa.table(columns, schema=schema))
    progress.add(len(oids))
    return len(is_placed) - len(oids)


def _rows_of(table: ObjectTable, bucket: int, oids: pa.Array) -> pa.Table:
    """Rows of objects in their order, null where the table has none."""
    rows = table.read(bucket)
    if rows is None:
        return pa.table({OID: oids})
    return rows.combine_chunks().take(pc.index_in(oids, value_set=rows[OID].combine_chunks()))


def _nest(curves: pa.Table, oids: pa.Array) -> pa.StructArray:
    """Light curves as a struct of lists.

    Raises
    ------
    ValueError
        If they are not of these objects, or lists of an object differ in length or are absent.
    """
    if not curves[OID].combine_chunks().cast(oids.type).equals(oids):
        raise ValueError("the light curves are not those of the objects asked for, in their order")
    names = [name for name in curves.column_names if name != OID]
    lists = [curves[name].combine_chunks() for name in names]
    lists = [values.cast(pa.list_(values.type.value_type)) for values in lists]
    lengths = [values.value_lengths() for values in lists]
    for name, values, length in zip(names, lists, lengths, strict=True):
        if values.null_count or not length.equals(lengths[0]):
            raise ValueError(f"the lists {name} of the light curves are not as long as those of {names[0]}")
    return pa.StructArray.from_arrays(lists, fields=[pa.field(n, v.type) for n, v in zip(names, lists, strict=True)])


class _Run(NamedTuple):
    """A file of rows by pixel, and the first pixel of each of its record batches."""

    path: Path
    first_pixels: NDArray[np.int64]

    def rows_of(self, pixel: Pixel) -> Iterator[pa.RecordBatch]:
        first = max(0, int(np.searchsorted(self.first_pixels, pixel.begin)) - 1)
        stop = int(np.searchsorted(self.first_pixels, pixel.end))
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(first, stop):
                rows = reader.get_batch(number)
                begin, end = np.searchsorted(rows[HEALPIX_COLUMN].to_numpy(), [pixel.begin, pixel.end])
                if end > begin:
                    yield rows.slice(begin, end - begin)


class _Runs:
    """Files of rows that are sorted by pixel, and what there is in each pixel of the highest order.

    Attributes
    ----------
    schema : pyarrow.Schema or None
        Columns of the rows, None as long as there are none.
    counts, weights : int64 [12 * 4**HIGHEST_ORDER]
        Rows, and about how many bytes they take, which is such that a partition of `most_rows` is full.
    """

    def __init__(self, folder: Path, most_rows: int) -> None:
        self.schema: pa.Schema | None = None
        self.counts = np.zeros(12 << 2 * HIGHEST_ORDER, np.int64)
        self.weights = np.zeros_like(self.counts)
        self._least_weight = -(-_BYTES_PER_PARTITION // most_rows)
        self._folder, self._files = folder, list[_Run]()
        self._waiting, self._bytes = list[pa.Table](), 0

    def add(self, rows: pa.Table) -> None:
        self.schema = self.schema or rows.schema
        if rows.schema != self.schema:
            raise ValueError(f"the light curves of two buckets are of different columns: {rows.schema.field(-1).type}")
        self._waiting.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= _BYTES_PER_RUN:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting, self._bytes = [], 0
        pixels = rows[HEALPIX_COLUMN].to_numpy()
        coarse = pixels >> 2 * (HEALPIX_ORDER - HIGHEST_ORDER)
        np.add.at(self.counts, coarse, 1)
        np.add.at(self.weights, coarse, np.maximum(_row_bytes(rows), self._least_weight))
        order = np.argsort(pixels, kind="stable")
        rows = _take(rows, pa.array(order))
        path = self._folder / f"{len(self._files):06d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=_ROWS_PER_BATCH)
        self._files.append(_Run(path, pixels[order[::_ROWS_PER_BATCH]]))

    def rows_of(self, pixel: Pixel) -> pa.Table:
        """Rows within a pixel that has some, by pixel of order 29 and by name."""
        found = [batch for run in self._files for batch in run.rows_of(pixel)]
        table = pa.Table.from_batches(found)
        keys = [(HEALPIX_COLUMN, "ascending"), (OID, "ascending")]
        return _take(table, pc.sort_indices(table.select([HEALPIX_COLUMN, OID]), sort_keys=keys))


def _take(rows: pa.Table, order: pa.Array) -> pa.Table:
    # Column by column, so that no more than one is held three times.
    return pa.table([column.combine_chunks().take(order) for column in rows.columns], schema=rows.schema)


def _row_bytes(rows: pa.Table) -> NDArray[np.int64]:
    """About how many bytes each row takes."""
    total = np.full(len(rows), sum(_width(field.type) for field in rows.schema if field.name != LIGHT_CURVE), np.int64)
    if LIGHT_CURVE in rows.column_names:
        curves = rows[LIGHT_CURVE].combine_chunks()
        for field in curves.type:
            total += curves.field(field.name).value_lengths().to_numpy() * _width(field.type.value_type)
    return total


def _width(kind: pa.DataType) -> int:
    return kind.bit_width // 8 + 1 if pa.types.is_primitive(kind) else _TEXT_BYTES


def _write_partitions(root: Path, pixels: Sequence[Pixel], runs: _Runs, progress: _Progress) -> int:
    """Write the Parquet file of each pixel; gives the number of rows of the largest."""
    largest = 0
    for pixel in pixels:
        rows = runs.rows_of(pixel)
        write_partition(root / pixel.path, rows)
        largest = max(largest, len(rows))
        progress.add(len(rows))
    return largest
