"""Light curves from tables of detections and non-detections, Parquet or CSV, as ALeRCE's services give them.

Columns may have the names of ZTF's packets (``objectId``, ``jd``) or of ALeRCE's database (``oid``, ``mjd``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.columns import DETECTION_INPUT, JD_MINUS_MJD, NON_DETECTION

OBJECTS_PER_BATCH: Final = 1000
_ROWS_PER_READ: Final = 65_536
_OTHER_NAMES: Final = {"objectId": "oid", "objectid": "oid", "jd": "mjd"}
_OTHER_NAMES_OF: Final = {name: other for other, name in _OTHER_NAMES.items() if other != "objectid"}
_REQUIRED: Final = ("oid", "mjd", "fid", "isdiffpos", "ra", "dec", "magpsf", "sigmapsf", "rb")
_CORRECTED: Final = ("corrected", "magpsf_corr", "sigmapsf_corr_ext")
_TO_CORRECT: Final = ("distnr", "magnr", "sigmagnr")
_REQUIRED_NON: Final = ("oid", "mjd", "fid", "diffmaglim")
_POSITIVE: Final = ("t", "true", "1", "+1", "1.0")
_NEGATIVE: Final = ("f", "false", "0", "-1", "0.0", "-1.0")


# What a piece of a file looks like must not decide; whole numbers may be written as 1 or 1.0, so they are left to it.
_CSV_TYPES: Final = {
    **{field.name: field.type for field in DETECTION_INPUT if field.type in (pa.float64(), pa.string())},
    **dict.fromkeys(("jd", "jdendref", "jdstarthist", "jdendhist"), pa.float64()),
    **dict.fromkeys(("objectId", "objectid"), pa.string()),
}


class TableError(ValueError):
    """A table cannot be understood as detections or non-detections."""


def detection_rows(table: pa.Table, name: str = "the table of detections") -> pa.Table:
    """Rows of :func:`lightcurves.assembly.assemble` from a table with packets' or the database's names.

    ``isdiffpos`` may be t/f, 1/0 or ±1. Corrected magnitudes are kept if the table has them all, else computed.

    Raises
    ------
    TableError
        If a column is missing or cannot be understood; the message names it.
    """
    table = _renamed(table, name)
    _require(table, _REQUIRED, name)
    if not {*_CORRECTED} <= {*table.column_names}:
        _require(table, _TO_CORRECT, name, f" (or {', '.join(_CORRECTED)})")
        table = table.drop_columns([column for column in _CORRECTED if column in table.column_names])
    columns = {column: table[column] for column in DETECTION_INPUT.names if column in table.column_names}
    columns["isdiffpos"] = _sign(columns["isdiffpos"], name)
    if "parent_candid" in columns:
        # 0 stands for none in some tables.
        parent = _identifier(columns["parent_candid"], "parent_candid", name)
        columns["parent_candid"] = pc.if_else(pc.equal(parent, 0), None, parent)
        columns.setdefault("has_stamp", columns["parent_candid"].is_null())
    if "candid" in columns:
        columns["candid"] = _identifier(columns["candid"], "candid", name)
    return pa.table(columns)


def non_detection_rows(table: pa.Table, name: str = "the table of non-detections") -> pa.Table:
    """Non-detections in the same way.

    Raises
    ------
    TableError
        If a column is missing; the message names it.
    """
    table = _renamed(table, name)
    _require(table, _REQUIRED_NON, name)
    return table.select([column for column in NON_DETECTION.names if column in table.column_names])


def read_light_curves(
    detections: str | Path,
    non_detections: str | Path | None = None,
    *,
    objects_per_batch: int = OBJECTS_PER_BATCH,
    as_of_mjd: float | None = None,
    crossmatches: pa.Table | None = None,
) -> Iterator[LightCurveBatch]:
    """Read the light curves of tables, some objects at a time.

    If the rows of both files are sorted by object, memory holds little more than a batch; else both are read whole.

    Parameters
    ----------
    detections, non_detections : path
        ``.parquet`` or ``.csv`` (also ``.csv.gz``).
    objects_per_batch : int
        Objects of a batch at least, but for the last.
    as_of_mjd, crossmatches
        As of :func:`lightcurves.assembly.assemble`.

    Raises
    ------
    TableError
        If a file is of no known format, cannot be read, or lacks a column; the message names it.
    """
    paths = [Path(detections)] + ([Path(non_detections)] if non_detections is not None else [])
    parts = _sorted_parts if all(map(_is_sorted, paths)) else _whole
    limits = _Limits(parts(paths[1], objects_per_batch) if len(paths) > 1 else iter(()), paths[-1].name)
    for table in parts(paths[0], objects_per_batch):
        rows = detection_rows(table, paths[0].name)
        if not rows.num_rows:
            continue
        last = pc.max(rows["oid"].cast(pa.string())).as_py() if parts is _sorted_parts else None
        yield assemble(rows, limits.until(last), as_of_mjd=as_of_mjd, crossmatches=crossmatches)


def check_tables(detections: str | Path, non_detections: str | Path | None = None) -> None:
    """Look at the first rows of tables that :func:`read_light_curves` shall read.

    Raises
    ------
    TableError
        As :func:`read_light_curves`.
    """
    for file, understand in ((detections, detection_rows), (non_detections, non_detection_rows)):
        if file is not None and (head := next(_pieces(Path(file)), None)) is not None:
            understand(head, Path(file).name)


def rows_of_object(
    oid: str, detections: str | Path, non_detections: str | Path | None = None
) -> tuple[pa.Table, pa.Table, set[str]]:
    """Read the rows of one object: its detections, its non-detections, and the names of all objects.

    The files are read piece by piece, and no more of them is kept.

    Raises
    ------
    TableError
        As :func:`read_light_curves`.
    """
    names: set[str] = set()
    found = []
    for piece in _pieces(Path(detections)):
        rows = detection_rows(piece, Path(detections).name)
        names.update(pc.unique(rows["oid"].cast(pa.string())).drop_null().to_pylist())
        found.append(_of_object(rows, oid))
    limits = [NON_DETECTION.empty_table()]
    if non_detections is not None:
        pieces = _pieces(Path(non_detections))
        limits += [_of_object(non_detection_rows(piece, Path(non_detections).name), oid) for piece in pieces]
    own = pa.concat_tables(found or [DETECTION_INPUT.empty_table()], promote_options="permissive")
    return own, pa.concat_tables(limits, promote_options="permissive"), names


def _of_object(rows: pa.Table, oid: str) -> pa.Table:
    return rows.filter(pc.equal(rows["oid"].cast(pa.string()), oid))


class _Limits:
    """Non-detections, handed out by object while the detections go by."""

    def __init__(self, tables: Iterator[pa.Table], name: str) -> None:
        self._tables, self._name = tables, name
        self._waiting: pa.Table = NON_DETECTION.empty_table().select(_REQUIRED_NON)

    def until(self, last: str | None) -> pa.Table:
        """Rows of the objects up to `last`; all if it is None."""
        while last is None or not self._waiting.num_rows or self._waiting["oid"][-1].as_py() <= last:
            table = next(self._tables, None)
            if table is None:
                break
            rows = non_detection_rows(table, self._name)
            rows = rows.set_column(rows.column_names.index("oid"), "oid", rows["oid"].cast(pa.string()))
            self._waiting = pa.concat_tables([self._waiting, rows], promote_options="permissive").combine_chunks()
        if last is None:
            found, self._waiting = self._waiting, self._waiting.slice(0, 0)
            return found
        ready = int(pc.sum(pc.less_equal(self._waiting["oid"], last)).as_py() or 0)
        found, self._waiting = self._waiting.slice(0, ready), self._waiting.slice(ready)
        return found


def _renamed(table: pa.Table, name: str) -> pa.Table:
    for old, new in _OTHER_NAMES.items():
        if old in table.column_names and new not in table.column_names:
            table = table.rename_columns([new if column == old else column for column in table.column_names])
            if old == "jd":
                table = _shifted(table, new, name)
    for column in table.column_names:
        if column.startswith("jd") and f"m{column}" in DETECTION_INPUT.names and f"m{column}" not in table.column_names:
            new_names = [f"m{column}" if other == column else other for other in table.column_names]
            table = _shifted(table.rename_columns(new_names), f"m{column}", name)
    return table


def _shifted(table: pa.Table, column: str, name: str) -> pa.Table:
    try:
        mjd = pc.subtract(table[column].cast(pa.float64()), JD_MINUS_MJD)
    except pa.ArrowInvalid as error:
        raise TableError(f"{name}: the column j{column[2:]} holds something that is no number: {error}") from error
    return table.set_column(table.column_names.index(column), column, mjd)


def _require(table: pa.Table, columns: tuple[str, ...], name: str, instead: str = "") -> None:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        named = [
            f"{column} (or {_OTHER_NAMES_OF[column]})" if column in _OTHER_NAMES_OF else column for column in missing
        ]
        raise TableError(f"{name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(named)}{instead}.")


def _sign(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        text = pc.utf8_lower(values)
        positive = pc.is_in(text, value_set=pa.array(_POSITIVE, text.type))
        unclear = pc.invert(pc.is_in(text, value_set=pa.array([*_POSITIVE, *_NEGATIVE, None], text.type)))
        if pc.any(unclear).as_py():
            example = values.filter(unclear)[0].as_py()
            raise TableError(f"{name}: isdiffpos must be t or f, 1 or 0, or 1 or -1, not {example!r}.")
    else:
        positive = pc.greater(values.cast(pa.float64()), 0)
    sign = pc.if_else(positive, pa.scalar(1, pa.int32()), pa.scalar(-1, pa.int32()))
    return pc.if_else(values.is_valid(), sign, None)


def _identifier(values: pa.ChunkedArray, column: str, name: str) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        if pc.any(pc.greater(pc.abs(values), 2.0**53)).as_py():
            raise TableError(
                f"{name}: the column {column} is stored in floating point, which cuts its last digits off."
            )
    return values.cast(pa.int64())


def _is_csv(path: Path) -> bool:
    if path.name.endswith((".csv", ".csv.gz")):
        return True
    if path.suffix in (".parquet", ".pq"):
        return False
    raise TableError(f"{path.name}: the name of a table must end in .parquet, .csv or .csv.gz.")


def _pieces(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Rows of a file in its order, some at a time."""
    try:
        if _is_csv(path):
            convert = pacsv.ConvertOptions(include_columns=columns, column_types=_CSV_TYPES, strings_can_be_null=True)
            with pacsv.open_csv(path, convert_options=convert) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        else:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS_PER_READ, columns=columns):
                    yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"{path.name} cannot be read: {error}") from error


def _column_of_names(path: Path) -> str:
    head = next(_pieces(path), None)
    names = [] if head is None else head.column_names
    found = [name for name in ("oid", *_OTHER_NAMES) if name in names and _OTHER_NAMES.get(name, "oid") == "oid"]
    if not found:
        raise TableError(f"{path.name} lacks the column oid (or objectId).")
    return found[0]


def _is_sorted(path: Path) -> bool:
    column, before = _column_of_names(path), ""
    for piece in _pieces(path, [column]):
        names = piece[column].cast(pa.string())
        if not len(names):
            continue
        if names.null_count or names[0].as_py() < before:
            return False
        if len(names) > 1 and pc.any(pc.less(names[1:], names[:-1])).as_py():
            return False
        before = names[-1].as_py()
    return True


def _whole(path: Path, objects: int) -> Iterator[pa.Table]:
    yield pa.concat_tables(list(_pieces(path)), promote_options="permissive")


def _sorted_parts(path: Path, objects: int) -> Iterator[pa.Table]:
    """Rows of `objects` whole objects or more, of a file sorted by object."""
    column, waiting = _column_of_names(path), None
    for piece in _pieces(path):
        waiting = piece if waiting is None else pa.concat_tables([waiting, piece], promote_options="permissive")
        names = waiting[column].combine_chunks()
        starts = np.flatnonzero(pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)) + 1
        # The last object may go on in the next piece.
        while len(starts) >= objects:
            end = int(starts[objects - 1])
            yield waiting.slice(0, end)
            waiting, starts = waiting.slice(end), starts[objects:] - end
    if waiting is not None and waiting.num_rows:
        yield waiting
