"""The three tables of the light-curve store: their columns, and which of several rows are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from lightcurves.columns import DETECTION_INPUT, NON_DETECTION, conform
from lightcurves.unique import Lasting, distinct_rows, lasting_detections, lasting_non_detections, usable

# What is computed from the other columns.
_COMPUTED: Final = frozenset({"corrected", "magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext"})
# ZTF's schemas have float and int. Doubles are times, positions, and magnitudes, which forced photometry computes.
_DOUBLE: Final = frozenset(
    {"mjd", "mjdstarthist", "mjdendhist", "mjdendref", "alert_mjd", "ra", "dec", "magpsf", "sigmapsf"}
)
_NARROW: Final = {"isdiffpos": pa.int8(), **dict.fromkeys(("nid", "ndethist", "ncovhist"), pa.int32())}


def _narrow(schema: pa.Schema) -> pa.Schema:
    fields = []
    for field in schema:
        if field.name in _COMPUTED:
            continue
        narrow = field.type == pa.float64() and field.name not in _DOUBLE
        fields.append((field.name, pa.float32() if narrow else _NARROW.get(field.name, field.type)))
    return pa.schema(fields)


@dataclass(frozen=True)
class StoreTable:
    """One table of the store.

    Attributes
    ----------
    name : str
        Of its folder.
    schema : pyarrow.Schema
    keys : tuple of str
        Columns that tell which point a row stands for, how preferred it is and from when it is known.
    lasting : callable
        Gives the rows that are enough at any date.
    """

    name: str
    schema: pa.Schema
    keys: tuple[str, ...]
    lasting: Callable[[pa.Table], Lasting]

    def conform(self, rows: pa.Table) -> pa.Table:
        """Rows with the table's columns.

        Values of a wider type are rounded to the table's, and integers that it cannot hold are null.

        Raises
        ------
        ValueError
            If a column is not of numbers or not of text where the table's is.
        """
        columns: list[pa.ChunkedArray | pa.Array] = []
        for field in self.schema:
            if field.name not in rows.column_names:
                columns.append(pa.nulls(rows.num_rows, field.type))
                continue
            values = rows[field.name]
            try:
                columns.append(values if values.type == field.type else _cast(values, field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"the column {field.name} is not of type {field.type}: {error}") from error
        return pa.table(columns, schema=self.schema)

    def usable(self, rows: pa.Table) -> pa.Table:
        """Rows of an object and, where they have a time and a band, with these; NaN is null."""
        rows = conform(rows, self.schema)
        if "fid" in self.schema.names:
            return usable(rows)
        return rows.filter(rows["oid"].is_valid()) if rows["oid"].null_count else rows


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_integer(kind) and pa.types.is_integer(values.type) and values.type.bit_width > kind.bit_width:
        limit = 2 ** (kind.bit_width - 1)
        inside = pc.and_(pc.greater_equal(values, -limit), pc.less(values, limit))
        values = pc.if_else(inside, values, pa.scalar(None, values.type))
    return values.cast(kind)


DETECTIONS: Final = StoreTable(
    "detections",
    _narrow(DETECTION_INPUT),
    ("oid", "candid", "mjd", "fid", "magpsf", "ra", "dec", "has_stamp", "forced", "alert_candid", "alert_mjd"),
    lasting_detections,
)
NON_DETECTIONS: Final = StoreTable(
    "non_detections",
    _narrow(NON_DETECTION),
    ("oid", "fid", "mjd", "alert_candid", "alert_mjd"),
    lasting_non_detections,
)
_MATCH: Final = pa.schema(
    {
        "oid": pa.string(),
        "candid": pa.int64(),
        **dict.fromkeys(("jd", "angDist", "W1mag", "W2mag", "W3mag"), pa.float64()),
    }
)
CROSSMATCHES: Final = StoreTable("crossmatches", _MATCH, tuple(_MATCH.names), distinct_rows)
TABLES: Final = (DETECTIONS, NON_DETECTIONS, CROSSMATCHES)
