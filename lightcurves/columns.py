"""Columns of detections and non-detections, by the names of ALeRCE's tables (alerce.md 2.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

JD_MINUS_MJD: Final = 2400000.5

_SOURCE = {
    # The alert that brought the row: what was known when.
    "alert_candid": pa.int64(),
    "alert_mjd": pa.float64(),
}

#: Of rows as they come from packets and tables. A row without ``corrected`` gets its corrected magnitudes computed.
DETECTION_INPUT: Final = pa.schema(
    {
        "oid": pa.string(),
        "candid": pa.int64(),
        "mjd": pa.float64(),
        "fid": pa.int32(),
        "pid": pa.int64(),
        "diffmaglim": pa.float64(),
        "isdiffpos": pa.int32(),
        "nid": pa.int64(),
        "ra": pa.float64(),
        "dec": pa.float64(),
        "magpsf": pa.float64(),
        "sigmapsf": pa.float64(),
        "magap": pa.float64(),
        "sigmagap": pa.float64(),
        "distnr": pa.float64(),
        "magnr": pa.float64(),
        "sigmagnr": pa.float64(),
        "chinr": pa.float64(),
        "sharpnr": pa.float64(),
        "rb": pa.float64(),
        "rbversion": pa.string(),
        "drb": pa.float64(),
        "drbversion": pa.string(),
        "magapbig": pa.float64(),
        "sigmagapbig": pa.float64(),
        "rfid": pa.int64(),
        "distpsnr1": pa.float64(),
        "sgscore1": pa.float64(),
        "ndethist": pa.int64(),
        "ncovhist": pa.int64(),
        "mjdstarthist": pa.float64(),
        "mjdendhist": pa.float64(),
        "mjdendref": pa.float64(),
        "corrected": pa.bool_(),
        "magpsf_corr": pa.float64(),
        "sigmapsf_corr": pa.float64(),
        "sigmapsf_corr_ext": pa.float64(),
        "has_stamp": pa.bool_(),
        "parent_candid": pa.int64(),
        "forced": pa.bool_(),
        "procstatus": pa.string(),
        **_SOURCE,
    }
)
DETECTION: Final = DETECTION_INPUT.append(pa.field("dubious", pa.bool_()))
NON_DETECTION: Final = pa.schema(
    {"oid": pa.string(), "fid": pa.int32(), "mjd": pa.float64(), "diffmaglim": pa.float64(), **_SOURCE}
)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns of a schema: others are left out, absent ones and NaN are null.

    Raises
    ------
    ValueError
        If a column cannot be converted, with its name.
    """
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            values = rows[field.name].cast(field.type)
            columns.append(_without_nan(values) if pa.types.is_floating(field.type) else values)
        except pa.ArrowInvalid as error:
            raise ValueError(f"the column {field.name} is not of type {field.type}: {error}") from error
    return pa.table(columns, schema=schema).combine_chunks()


def _without_nan(values: pa.ChunkedArray) -> pa.ChunkedArray:
    missing = pc.is_nan(values)
    return pc.if_else(missing, None, values) if pc.any(missing).as_py() else values


def numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Column as float64; null is NaN."""
    return pc.fill_null(rows[name].cast(pa.float64()), np.nan).to_numpy()


def integers(rows: pa.Table, name: str, missing: int) -> NDArray[np.int64]:
    """Column as int64; null is `missing`."""
    return pc.fill_null(rows[name].cast(pa.int64()), missing).to_numpy()


def flags(rows: pa.Table, name: str) -> NDArray[np.bool_]:
    """Column as bool; null is false."""
    return pc.fill_null(rows[name], False).to_numpy()


def known(rows: pa.Table, name: str) -> NDArray[np.bool_]:
    """Where a column is not null."""
    return rows[name].is_valid().to_numpy()


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Arrow array of numbers in which NaN is null."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def set_columns(rows: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Rows with columns replaced."""
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def lexsort(keys: Sequence[NDArray]) -> NDArray[np.int64]:
    """Stable order of rows by several keys, the most important one first; keys that never change cost nothing."""
    rows = len(keys[0])
    needed = [key for key in keys if rows and not (key[0] == key).all()]
    if not needed:
        return np.arange(rows)
    return np.lexsort(needed[::-1])


def group_starts(keys: Sequence[NDArray]) -> NDArray[np.bool_]:
    """Where, in sorted rows, a row differs from the row before it in some key."""
    rows = len(keys[0])
    starts = np.zeros(rows, np.bool_)
    starts[:1] = True
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    return starts


def offsets_of(groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where each of `count` groups begins in rows that are sorted by the number of their group; shape (count + 1,)."""
    return np.searchsorted(groups, np.arange(count + 1)).astype(np.int64)
