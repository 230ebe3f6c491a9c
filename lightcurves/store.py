"""Light-curve store: the detections of an archive by object, to which nights are added.

The store is a log-structured merge tree. What a night brings is appended to ``incoming/``; :meth:`LightCurveStore.fold`
takes from it what is new into a segment, a sorted Parquet file per bucket of objects and generation, and
:meth:`LightCurveStore.compact` merges segments of similar size, so that a row is rewritten a few times, whatever the
number of nights. ::

    light_curves/
      store.json                                            format version and number of buckets
      incoming/<table>/<unit>.<nnnn>.arrow
      detections/bucket=0017/<first>-<last>.parquet         sorted by oid, mjd
      non_detections/bucket=0017/...
      crossmatches/bucket=0017/...

Any number of processes may work at once without locks: files of different units, and of different buckets, have
different names, and each appears when it is complete. The same unit, or the same bucket, must not be worked on by two
processes at once, save for reading. Before workers start, :func:`storage.files.remove_partial_files` may clear what
killed ones left; nothing depends on it.

For any date, the light curves of the stored rows are those of all rows that were ever added
(:mod:`lightcurves.unique` says which rows that takes). Where several generations hold a point, the reading methods
tell which rows count; other readers of the Parquet files see, until a compaction, also those that were superseded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightcurves.incoming import IncomingFiles, IncomingWriter
from lightcurves.segments import (
    OpenSegment,
    Segment,
    all_segments,
    live_segments,
    merged,
    object_names,
    open_segments,
    segment_path,
    write_segment,
)
from lightcurves.store_tables import TABLES, StoreTable
from lightcurves.unique import arrival
from storage.buckets import bucket_of
from storage.files import PARTIAL

BUCKETS: Final = 128
OBJECTS_PER_BATCH: Final = 2000
_FORMAT: Final = 1
_DESCRIPTION: Final = "store.json"
# Incoming rows that are held before repetitions are dropped; about 60 MB.
_ROWS_AT_ONCE: Final = 1 << 18
_SEGMENTS_TO_MERGE: Final = 8
# A segment of so many rows is merged no more. Folding looks for repetitions only in segments of the time of the
# incoming rows, and one that grew for ever would always be among them.
_FULL_SEGMENT_ROWS: Final = 1 << 19
# Objects that are merged at once.
_OBJECTS_AT_ONCE: Final = 500

_Choice = Callable[[Sequence[tuple[Segment, int]]], list[Segment]]


class StoreError(ValueError):
    """The store cannot do what was asked; the message says why."""


@dataclass(frozen=True)
class StoreRows:
    """Rows of some objects.

    Attributes
    ----------
    detections : pyarrow.Table
        Columns of :data:`lightcurves.columns.DETECTION_INPUT`, without those that assembly computes.
    non_detections : pyarrow.Table
        Columns of :data:`lightcurves.columns.NON_DETECTION`.
    crossmatches : pyarrow.Table
        AllWISE matches of alerts: ``oid``, ``candid``, ``jd``, ``angDist`` (arcsec), ``W1mag``, ``W2mag``, ``W3mag``.
    """

    detections: pa.Table
    non_detections: pa.Table
    crossmatches: pa.Table

    @property
    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """All three, in the order of the store's tables."""
        return self.detections, self.non_detections, self.crossmatches


@dataclass(frozen=True)
class FoldCounts:
    """What a fold found, all tables together.

    Attributes
    ----------
    rows : int
        Incoming rows.
    new : int
        Rows that were written.
    superseded : int
        Of these, rows of a point that the store knew by another row.
    """

    rows: int = 0
    new: int = 0
    superseded: int = 0

    def __add__(self, other: FoldCounts) -> FoldCounts:
        """Sum."""
        return FoldCounts(self.rows + other.rows, self.new + other.new, self.superseded + other.superseded)


@dataclass(frozen=True)
class TableStatistics:
    """Size of a table.

    Attributes
    ----------
    rows, bytes, segments : int
    """

    rows: int
    bytes: int
    segments: int


class Appender:
    """Adds the rows of one unit of work to a store; nothing of it is seen before :meth:`commit`.

    As a context manager it abandons what was not committed.

    Parameters
    ----------
    files : sequence of IncomingFiles
        Of each table.
    unit : str
        Name of the unit; text without ``/``.
    buffer_bytes : int
        Rows that are held back before they are written; memory reaches about three times as much.
    """

    def __init__(self, files: Sequence[IncomingFiles], unit: str, buffer_bytes: int) -> None:
        if not unit or "/" in unit or unit.startswith("."):
            raise StoreError(f"{unit!r} cannot be the name of a unit of a store")
        self._writers = [IncomingWriter(of_table, unit) for of_table in files]
        self._buffer_bytes = buffer_bytes

    def add(self, rows: StoreRows) -> None:
        """Add rows, in any order, repeated or not.

        Raises
        ------
        StoreError
            If a column is not of the kind that the store has; the message names it.
        """
        try:
            for writer, table in zip(self._writers, rows.tables, strict=True):
                writer.add(table)
        except ValueError as error:
            raise StoreError(str(error)) from error
        if sum(writer.waiting_bytes for writer in self._writers) >= self._buffer_bytes:
            for writer in self._writers:
                writer.flush()

    def commit(self) -> None:
        """Make all rows of the unit appear, in the place of those that an earlier attempt committed."""
        # All is written before the first part is seen.
        for writer in self._writers:
            writer.flush()
        for writer in self._writers:
            writer.commit()

    def abandon(self) -> None:
        """Remove what was not committed."""
        for writer in self._writers:
            writer.abandon()

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


class LightCurveStore:
    """Rows of light curves by bucket of objects.

    Made by :meth:`open`.

    Attributes
    ----------
    folder : Path
    buckets : int
        How many parts the objects are spread over, by :func:`storage.buckets.bucket_of`.
    """

    def __init__(self, folder: Path, buckets: int) -> None:
        self.folder, self.buckets = folder, buckets
        self._incoming = [IncomingFiles(folder / "incoming" / table.name, table, buckets) for table in TABLES]

    @classmethod
    def open(cls, folder: Path, buckets: int | None = None) -> LightCurveStore:
        """Open a store, or make one in a folder that has none.

        Parameters
        ----------
        folder : Path
        buckets : int, optional
            By default that of the store, and 128 of a new one.

        Raises
        ------
        StoreError
            If the store has another number of buckets, or its description cannot be understood.
        """
        path = Path(folder) / _DESCRIPTION
        if buckets is not None and buckets < 1:
            raise StoreError(f"A store must have at least one bucket, not {buckets}.")
        if not path.exists():
            _create(path, json.dumps({"format": _FORMAT, "buckets": buckets or BUCKETS}))
        try:
            found = json.loads(path.read_bytes())
            version, existing = found["format"], int(found["buckets"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} does not describe a light-curve store: {error}") from error
        if version != _FORMAT:
            raise StoreError(f"{path} has the format {version}; this version of alertbeam reads format {_FORMAT}.")
        if buckets not in (None, existing):
            raise StoreError(f"{folder} has {existing} buckets, not {buckets}; that cannot be changed.")
        return cls(Path(folder), existing)

    def append(self, unit: str, buffer_bytes: int = 96 << 20) -> Appender:
        """Begin to add the rows of a unit of work."""
        return Appender(self._incoming, unit, buffer_bytes)

    def incoming_units(self) -> set[str]:
        """Units that were added and not yet removed."""
        return {unit for files in self._incoming for unit in files.parts()}

    def remove_incoming(self, units: Iterable[str]) -> None:
        """Remove the incoming files of units, if they are there: after they were folded in every bucket."""
        units = {*units}
        for files in self._incoming:
            for unit, paths in files.parts().items():
                if unit in units:
                    for path in paths:
                        path.unlink(missing_ok=True)

    def fold(self, bucket: int, generation: int, units: Collection[str]) -> FoldCounts:
        """Take what is new of a bucket's incoming rows into a segment.

        Repeating it with the same units gives the same file.

        Parameters
        ----------
        bucket : int
        generation : int
            From 1; that of no other units.
        units : collection of str
            Those that have no row in the bucket, or no file, add nothing.

        Raises
        ------
        StoreError
            If the generation has been merged with others and there are rows that it lacks.
        """
        if generation < 1:
            raise StoreError(f"Generations count from 1, not {generation}.")
        return sum((self._fold(files, bucket, generation, units) for files in self._incoming), FoldCounts())

    def _fold(self, files: IncomingFiles, bucket: int, generation: int, units: Collection[str]) -> FoldCounts:
        table, folder = files.table, self._folder(files.table, bucket)
        count, rows = _reduced(table, files.read(bucket, units))
        if not rows.num_rows:
            return FoldCounts(count)
        path = segment_path(folder, generation, generation)
        with open_segments(table, folder, without=path) as segments:
            new, superseded = _new_rows(table, segments, rows)
        if not len(new):
            return FoldCounts(count)
        place = Segment(generation, generation, path)
        if any(place.within(segment) for segment in all_segments(folder)):
            raise StoreError(f"{folder}: generation {generation} has been merged with others and takes no more rows.")
        write_segment(path, table, [rows if len(new) == rows.num_rows else rows.take(pa.array(new))])
        return FoldCounts(count, len(new), superseded)

    def changed(self, bucket: int, since: int) -> pa.StringArray:
        """Sorted names of the objects with rows in segments whose last generation is after `since`; 0 stands for all.

        Merging generations up to `since` with later ones makes the objects of all of them count as changed.
        """
        with ExitStack() as stack:
            opened = self._open(stack, bucket, since)
            return object_names(segment for segments in opened for segment in segments)

    def read(self, bucket: int, oids: pa.Array | None = None) -> StoreRows:
        """Rows of a bucket, of all objects or of some, sorted by object and time.

        Of each point there is the row that counts, and in rare cases those that counted at an earlier date, so that
        assembly can tell what was known at any date.
        """
        every = list(self.batches(bucket, oids, objects=1 << 62))
        return every[0] if every else StoreRows(*(table.schema.empty_table() for table in TABLES))

    def batches(
        self, bucket: int, oids: pa.Array | None = None, objects: int = OBJECTS_PER_BATCH
    ) -> Iterator[StoreRows]:
        """Read a bucket as :meth:`read` does, some objects at a time in the order of their names.

        Memory holds the batch and a row group of each segment.
        """
        names = _sorted(oids) if oids is not None else None
        with ExitStack() as stack:
            opened = self._open(stack, bucket)
            found = object_names((s for segments in opened for s in segments), names)
            ends = [min(start + objects, len(found)) - 1 for start in range(0, len(found), objects)]
            lasts = [found[end].as_py() for end in ends]
            wanted = found if names is not None else None
            parts = [merged(table, s, lasts, wanted) for table, s in zip(TABLES, opened, strict=True)]
            for tables in zip(*parts, strict=True):
                yield StoreRows(*tables)

    def rows_of(self, oid: str) -> StoreRows:
        """Rows of one object; none if it is unknown."""
        name = pa.array([oid], pa.string())
        return self.read(int(bucket_of(name, self.buckets)[0]), name)

    def rows_of_many(self, oids: Sequence[str]) -> StoreRows:
        """Rows of objects of any buckets, in any order and perhaps repeated; those that are still incoming too."""
        names = pa.array(sorted({*oids}), pa.string())
        if not len(names):
            return StoreRows(*(table.schema.empty_table() for table in TABLES))
        buckets = bucket_of(names, self.buckets)
        wanted = [*map(int, np.unique(buckets))]
        # What is folded in the meantime is found twice instead of never.
        parts = [[*files.read_all(wanted)] for files in self._incoming]
        parts = [[rows.filter(pc.is_in(rows["oid"], value_set=names)) for rows in part] for part in parts]
        for bucket in wanted:
            for part, rows in zip(
                parts, self.read(bucket, names.filter(pa.array(buckets == bucket))).tables, strict=True
            ):
                part.append(rows)
        return StoreRows(*(pa.concat_tables(part) for part in parts))

    def compact(self, bucket: int, upto: int) -> int:
        """Merge segments of similar size, of generations up to `upto`, where there are many; give the rows written.

        Eight or more are merged at once, none of them much larger than those after it together: a row is rewritten
        about as often as the logarithm of the number of nights, to base eight where nights are of similar size.
        """
        return sum(self._compact(table, bucket, upto, _to_merge) for table in TABLES)

    def compact_all(self, bucket: int, upto: int | None = None) -> int:
        """Merge all segments of generations up to `upto` (all by default) into one; give the rows written."""
        return sum(self._compact(table, bucket, upto, _all_of_them) for table in TABLES)

    def _compact(self, table: StoreTable, bucket: int, upto: int | None, choose: _Choice) -> int:
        folder, written = self._folder(table, bucket), 0
        while True:
            _remove_replaced(folder)
            segments = [segment for segment in live_segments(folder) if upto is None or segment.last <= upto]
            chosen = choose([(segment, _rows(segment)) for segment in segments])
            if len(chosen) < 2:
                return written
            with ExitStack() as stack:
                opened = [OpenSegment(table, s, stack.enter_context(pq.ParquetFile(s.path))) for s in chosen]
                names = object_names(opened)
                lasts = [names[end].as_py() for end in (*range(_OBJECTS_AT_ONCE - 1, len(names), _OBJECTS_AT_ONCE), -1)]
                path = segment_path(folder, chosen[0].first, chosen[-1].last)
                written += write_segment(path, table, merged(table, opened, lasts))
            _remove_replaced(folder)

    def generation(self) -> int:
        """Highest generation of which there are rows; 0 in an empty store."""
        found = (s.last for table in TABLES for bucket in range(self.buckets) for s in self._segments(table, bucket))
        return max(found, default=0)

    def statistics(self) -> dict[str, TableStatistics]:
        """Rows, bytes and segments by table, without what is incoming."""
        found = {}
        for table in TABLES:
            segments = [s for bucket in range(self.buckets) for s in self._segments(table, bucket)]
            found[table.name] = TableStatistics(
                sum(map(_rows, segments)), sum(s.path.stat().st_size for s in segments), len(segments)
            )
        return found

    def _folder(self, table: StoreTable, bucket: int) -> Path:
        if not 0 <= bucket < self.buckets:
            raise StoreError(f"The store has the buckets 0 to {self.buckets - 1}, not {bucket}.")
        return self.folder / table.name / f"bucket={bucket:04d}"

    def _segments(self, table: StoreTable, bucket: int) -> list[Segment]:
        return live_segments(self._folder(table, bucket))

    def _open(self, stack: ExitStack, bucket: int, since: int = 0) -> list[list[OpenSegment]]:
        folders = [(table, self._folder(table, bucket)) for table in TABLES]
        return [stack.enter_context(open_segments(table, folder, since=since)) for table, folder in folders]


def _create(path: Path, text: str) -> None:
    """Write a file unless there is one, whoever else tries the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL}")
    temporary.write_text(text)
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def _sorted(oids: pa.Array | pa.ChunkedArray) -> pa.StringArray:
    names = oids.combine_chunks() if isinstance(oids, pa.ChunkedArray) else oids
    names = pc.unique(names.cast(pa.string()).drop_null())
    return names.take(pc.sort_indices(names))


def _rows(segment: Segment) -> int:
    return pq.read_metadata(segment.path).num_rows


def _remove_replaced(folder: Path) -> None:
    for segment in {*all_segments(folder)} - {*live_segments(folder)}:
        segment.path.unlink(missing_ok=True)


def _to_merge(sized: Sequence[tuple[Segment, int]]) -> list[Segment]:
    """The newest eight or more neighbours of which none has more than twice the rows of those after it."""
    for newest in reversed(range(len(sized))):
        oldest, total = newest + 1, 0
        while oldest and sized[oldest - 1][1] < _FULL_SEGMENT_ROWS and (not total or sized[oldest - 1][1] <= 2 * total):
            oldest -= 1
            total += sized[oldest][1]
        if newest + 1 - oldest >= _SEGMENTS_TO_MERGE:
            return [segment for segment, _ in sized[oldest : newest + 1]]
    return []


def _all_of_them(sized: Sequence[tuple[Segment, int]]) -> list[Segment]:
    return [segment for segment, _ in sized]


def _reduced(table: StoreTable, parts: Iterable[pa.Table]) -> tuple[int, pa.Table]:
    """Count of rows, and those that are enough at any date, sorted; memory holds little more than the latter."""
    waiting, held, total, kept = [table.schema.empty_table()], 0, 0, 0
    for part in parts:
        waiting.append(part)
        held += part.num_rows
        total += part.num_rows
        if held >= max(_ROWS_AT_ONCE, 2 * kept):
            waiting = [_lasting(table, waiting)]
            held = kept = waiting[0].num_rows
    return total, _lasting(table, waiting)


def _lasting(table: StoreTable, parts: Sequence[pa.Table]) -> pa.Table:
    rows = table.usable(pa.concat_tables(parts))
    return rows.take(pa.array(table.lasting(rows).rows))


def _new_rows(table: StoreTable, segments: Sequence[OpenSegment], rows: pa.Table) -> tuple[np.ndarray, int]:
    """Which of some lasting rows the segments do not make needless, and how many of these stand for a known point."""
    stored = _repeated_keys(table, segments, rows)
    if stored is None:
        return np.arange(rows.num_rows), 0
    # Stored rows come first: of equal rows the first counts.
    both = pa.concat_tables([stored, rows], promote_options="default").select(table.schema.names)
    lasting, identity = table.lasting(both.combine_chunks())
    new = np.sort(lasting[lasting >= stored.num_rows])
    known = np.zeros(both.num_rows, np.bool_)
    known[identity[: stored.num_rows]] = True
    return new - stored.num_rows, int(known[identity[new]].sum())


def _repeated_keys(table: StoreTable, segments: Sequence[OpenSegment], rows: pa.Table) -> pa.Table | None:
    """Key columns of the stored rows that may stand for the same points; all columns where values will decide."""
    names, repeats = _sorted(rows["oid"]), _Repeats.of(rows)
    candid = pa.array(arrival(rows)[1]) if "alert_candid" in rows.column_names else None
    found = []
    for segment in segments:
        groups, mask = _groups_with(segment, names, repeats)
        if not groups:
            continue
        keys = segment.read(groups, table.keys).filter(mask)
        # An alert that came before: its rows are preferred alike, so that only their other values can tell.
        if candid is not None and pc.any(pc.is_in(pa.array(arrival(keys)[1]), value_set=candid)).as_py():
            keys = segment.read(groups).filter(mask)
        found.append(keys)
    return pa.concat_tables(found, promote_options="default") if found else None


def _groups_with(segment: OpenSegment, names: pa.StringArray, repeats: _Repeats) -> tuple[list[int], pa.Array]:
    """Row groups with rows that may repeat others of the given objects, and which of their rows these are."""
    groups = [g for g in range(segment.groups) if repeats.may_be_in(segment, g) and segment.may_have(g, names)]
    if not groups:
        return [], pa.array([], pa.bool_())
    columns = [name for name in ("candid", "mjd") if name in segment.table.schema.names]
    found = repeats.among(segment.read(groups, columns))
    ends = np.cumsum([segment.file.metadata.row_group(group).num_rows for group in groups])
    parts = [part for part in zip(groups, np.split(found, ends[:-1]), strict=True) if part[1].any()]
    return [group for group, _ in parts], pa.array(np.concatenate([mask for _, mask in parts] or [found[:0]]))


@dataclass(frozen=True)
class _Repeats:
    """What a row must have to repeat one of some others: a candid of theirs or, without candid, a time of theirs."""

    candid: pa.Array | None
    mjd: pa.Array | None

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """What the given rows have."""
        values = {name: pc.unique(rows[name]) for name in ("candid", "mjd") if name in rows.column_names}
        return cls(values.get("candid"), values.get("mjd"))

    def among(self, rows: pa.Table) -> np.ndarray:
        """Which of some rows have it; shape (rows,), bool."""
        at_time: np.ndarray | bool = True
        if self.mjd is not None:
            at_time = pc.is_in(rows["mjd"], value_set=self.mjd).to_numpy()
        if self.candid is None:
            return np.broadcast_to(at_time, len(rows))
        named = rows["candid"].is_valid().to_numpy()
        return np.where(named, pc.is_in(rows["candid"], value_set=self.candid).to_numpy(), at_time)

    def may_be_in(self, segment: OpenSegment, group: int) -> bool:
        """Say whether a row group may have such rows, by its ranges."""
        if self.candid is not None:
            if _meet(self.candid, segment.range(group, "candid")):
                return True
            if not self.candid.null_count or not segment.has_nulls(group, "candid"):
                return False
        return self.mjd is None or _meet(self.mjd, segment.range(group, "mjd"))


def _meet(values: pa.Array, bounds: tuple[Any, Any] | None) -> bool:
    """Say whether the range of values meets another one, which is unknown if it is None."""
    if values.null_count == len(values):
        return False
    ours = pc.min_max(values).as_py()
    return bounds is None or (ours["min"] <= bounds[1] and bounds[0] <= ours["max"])
