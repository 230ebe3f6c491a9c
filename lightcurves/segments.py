"""Segments of a light-curve store: Parquet files of one bucket, sorted by object, each of some generations.

A segment ``<first>-<last>.parquet`` replaces all others whose generations lie within its own. Merging therefore writes
the new segment first and removes the old ones then, and a killed process leaves nothing that is read twice.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightcurves.store_tables import StoreTable
from storage.files import replacing

ROWS_PER_GROUP: Final = 16_384
_NAME: Final = re.compile(r"(\d{6,})-(\d{6,})\.parquet")
_TRIES: Final = 10
# Columns with few values; other dictionaries would be as long as the column.
_REPEATED: Final = (
    *(
        "oid",
        "fid",
        "pid",
        "nid",
        "isdiffpos",
        "rbversion",
        "drbversion",
        "rfid",
        "ncovhist",
        "mjdendref",
        "procstatus",
    ),
    *("alert_candid", "alert_mjd", "parent_candid"),
)

# What readers may want to skip row groups by; statistics of every column make opening twice as long.
_RANGED: Final = ("oid", "candid", "mjd", "fid", "ra", "dec", "magpsf", "alert_mjd", "jd")


@dataclass(frozen=True, order=True)
class Segment:
    """A file and the generations that it holds.

    Attributes
    ----------
    first, last : int
    path : Path
    """

    first: int
    last: int
    path: Path

    def within(self, other: Segment) -> bool:
        """Say whether another one has replaced it."""
        return other.first <= self.first and self.last <= other.last and self.path != other.path


def segment_path(folder: Path, first: int, last: int) -> Path:
    """File of the generations from the first to the last."""
    return folder / f"{first:06d}-{last:06d}.parquet"


def all_segments(folder: Path) -> list[Segment]:
    """Segments of a folder, also those that were replaced, by generation."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(Segment(int(match[1]), int(match[2]), path))
    return sorted(found)


def live_segments(folder: Path) -> list[Segment]:
    """Segments of a folder that no other has replaced, by generation."""
    found = all_segments(folder)
    return [segment for segment in found if not any(segment.within(other) for other in found)]


def write_segment(path: Path, table: StoreTable, parts: Iterable[pa.Table]) -> int:
    """Write sorted rows, which come piece by piece, as a segment; give their number."""
    dictionary = [name for name in _REPEATED if name in table.schema.names]
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": dictionary}
    options["write_statistics"] = [name for name in _RANGED if name in table.schema.names]
    rows = 0
    with replacing(path) as file, pq.ParquetWriter(file, table.schema, **options) as writer:
        for group in _groups(parts):
            writer.write_table(group, row_group_size=ROWS_PER_GROUP)
            rows += group.num_rows
    return rows


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Rows in pieces of whole row groups, but for the last."""
    waiting: list[pa.Table] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += part.num_rows
        if count >= ROWS_PER_GROUP:
            rows = pa.concat_tables(waiting)
            whole = count - count % ROWS_PER_GROUP
            yield rows.slice(0, whole)
            waiting, count = [rows.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(waiting)


class OpenSegment:
    """A segment open for reading; it stays readable when the file is removed.

    Attributes
    ----------
    table : StoreTable
    segment : Segment
    file : pyarrow.parquet.ParquetFile
    """

    def __init__(self, table: StoreTable, segment: Segment, file: pq.ParquetFile) -> None:
        self.table, self.segment, self.file = table, segment, file

    @property
    def groups(self) -> int:
        """Count the row groups."""
        return self.file.metadata.num_row_groups

    def range(self, group: int, column: str) -> tuple[Any, Any] | None:
        """Least and greatest value of a column in a row group; None if that is not known."""
        statistics = self._statistics(group, column)
        return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None

    def has_nulls(self, group: int, column: str) -> bool:
        """Say whether a column may have nulls in a row group."""
        statistics = self._statistics(group, column)
        return statistics is None or not statistics.has_null_count or statistics.null_count > 0

    def _statistics(self, group: int, column: str) -> Any:
        return self.file.metadata.row_group(group).column(self.table.schema.get_field_index(column)).statistics

    def read(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of some row groups."""
        return self.file.read_row_groups(list(groups), columns=columns and list(columns), use_threads=False)

    def may_have(self, group: int, names: pa.StringArray) -> bool:
        """Say whether one of some sorted names lies within the range of a row group."""
        bounds = self.range(group, "oid")
        if bounds is None:
            return len(names) > 0
        place = bisect_left(names, bounds[0], key=lambda name: name.as_py())
        return place < len(names) and names[place].as_py() <= bounds[1]


@contextmanager
def open_segments(
    table: StoreTable, folder: Path, without: Path | None = None, since: int = 0
) -> Iterator[list[OpenSegment]]:
    """Open the live segments of a folder; those of a moment, even if they are being merged.

    Parameters
    ----------
    table : StoreTable
    folder : Path
    without : Path, optional
        One that is left out.
    since : int
        Only those with a later generation.
    """
    for attempt in range(_TRIES):
        with ExitStack() as stack:
            try:
                opened = [
                    OpenSegment(table, segment, stack.enter_context(pq.ParquetFile(segment.path)))
                    for segment in live_segments(folder)
                    if segment.path != without and segment.last > since
                ]
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
                continue
            yield opened
            return


def object_names(segments: Iterable[OpenSegment], within: pa.StringArray | None = None) -> pa.StringArray:
    """Sorted names of all objects of segments, or of those among some sorted names."""
    found = [pa.array([], pa.string())]
    for segment in segments:
        groups = [g for g in range(segment.groups) if within is None or segment.may_have(g, within)]
        for group in groups:
            found.append(pc.unique(segment.read([group], ["oid"])["oid"]))
    names = pc.unique(pa.concat_arrays(found))
    if within is not None:
        names = names.filter(pc.is_in(names, value_set=within))
    return names.take(pc.sort_indices(names))


class Cursor:
    """Reads a segment from front to back, each row group once.

    Parameters
    ----------
    segment : OpenSegment
    names : pyarrow.StringArray, optional
        Sorted names of the objects wanted; all by default.
    """

    def __init__(self, segment: OpenSegment, names: pa.StringArray | None) -> None:
        self._segment, self._names = segment, names
        wanted = range(segment.groups)
        self._left = [group for group in wanted if names is None or segment.may_have(group, names)]
        self._waiting = segment.table.schema.empty_table()

    def until(self, last: str) -> pa.Table:
        """Rows up to those of the object of a name, from where the reading stands."""
        parts = [self._waiting]
        while self._left and not self._after(self._left[0], last):
            rows = self._segment.read([self._left.pop(0)])
            if self._names is not None:
                rows = rows.filter(pc.is_in(rows["oid"], value_set=self._names))
            parts.append(rows)
        rows = pa.concat_tables(parts)
        count = pc.sum(pc.less_equal(rows["oid"], last)).as_py() or 0
        self._waiting = rows.slice(count)
        return rows.slice(0, count)

    def _after(self, group: int, last: str) -> bool:
        bounds = self._segment.range(group, "oid")
        return bounds is not None and bounds[0] > last


def merged(
    table: StoreTable, segments: Sequence[OpenSegment], lasts: Iterable[str], names: pa.StringArray | None = None
) -> Iterator[pa.Table]:
    """Rows of segments up to one name after the other, each point as often as some date needs, sorted.

    Parameters
    ----------
    table : StoreTable
    segments : sequence of OpenSegment
    lasts : iterable of str
        Sorted names of the objects at which a piece ends.
    names : pyarrow.StringArray, optional
        Sorted names of the objects wanted; all by default.
    """
    cursors = [Cursor(segment, names) for segment in segments]
    for last in lasts:
        parts = [rows for rows in (cursor.until(last) for cursor in cursors) if rows.num_rows]
        if len(parts) > 1:
            rows = pa.concat_tables(parts).combine_chunks()
            yield rows.take(pa.array(table.lasting(rows).rows))
        else:
            yield parts[0].combine_chunks() if parts else table.schema.empty_table()
