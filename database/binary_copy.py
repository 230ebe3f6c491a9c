"""Columns of Arrow as the rows of PostgreSQL's `COPY … (FORMAT binary)`, without a Python object per value."""

from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Double, Integer, LargeBinary, String

__all__ = ["binary_rows", "wire_types"]

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_LONGEST_TEXT = 1 << 30
_EPOCH_2000_US = 946_684_800_000_000

# Column types, the Arrow type and the layout of their values (none for texts and bytes), and PostgreSQL's names of the
# types that read them so.
# BigInteger comes before Integer, of which it is a kind.
_WIRES: tuple[tuple[type, pa.DataType, str, tuple[str, ...]], ...] = (
    (Double, pa.float64(), ">f8", ("float8",)),
    (BigInteger, pa.int64(), ">i8", ("int8",)),
    (Integer, pa.int32(), ">i4", ("int4",)),
    (Boolean, pa.uint8(), "u1", ("bool",)),
    (DateTime, pa.int64(), ">i8", ("timestamp", "timestamptz")),
    (String, pa.large_string(), "", ("varchar", "text")),
    (LargeBinary, pa.large_binary(), "", ("bytea",)),
)


def wire_types(column: Column[Any]) -> tuple[str, ...]:
    """Names of PostgreSQL's types that read the binary form of a column; none if it has no such form here."""
    return next((names for kind, _, _, names in _WIRES if isinstance(column.type, kind)), ())


def binary_rows(columns: list[Column[Any]], rows: pa.Table) -> memoryview | None:
    """Encode rows for `COPY … (FORMAT binary)` (PostgreSQL's manual, COPY, "Binary Format").

    Parameters
    ----------
    columns
        Columns of the database, one for each column of the rows.
    rows
        As `database.upsert.checked_columns` gives them.

    Returns
    -------
    memoryview or None
        None if there are no rows, or a value or a column has no binary form here.
    """
    fields = [_field(column, values) for column, values in zip(columns, rows.columns, strict=True)]
    if any(field is None for field in fields) or not rows.num_rows:
        return None
    parts = [field for field in fields if field is not None]
    sizes = np.full(rows.num_rows, 2 + 4 * len(parts), np.int64)
    for _, ends, valid in parts:
        sizes += np.where(valid, np.diff(ends), 0)
    out = np.empty(len(_HEADER) + int(sizes.sum()) + len(_TRAILER), np.uint8)
    out[: len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
    out[-len(_TRAILER) :] = np.frombuffer(_TRAILER, np.uint8)
    place = len(_HEADER) + np.cumsum(sizes) - sizes
    _put_count(out, place, len(parts))
    for data, ends, valid in parts:
        _put_values(out, place, data, ends, valid)
    return out.data


def _field(
    column: Column[Any], values: pa.ChunkedArray
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]] | None:
    """Bytes of a column's values, where each begins and the last ends, and which are not null."""
    wire = next((wire for wire in _WIRES if isinstance(column.type, wire[0])), None)
    if wire is None:
        return None
    kind, arrow_type, layout, _ = wire
    valid = np.ones(len(values), np.bool_) if not values.null_count else values.is_valid().to_numpy()
    if not layout:
        return _texts(_in_one_piece(values.cast(arrow_type)), valid)
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    try:
        known = _in_one_piece(values.cast(arrow_type)).fill_null(0)
        if kind is DateTime:
            known = pc.subtract_checked(known, _EPOCH_2000_US)
    except pa.ArrowInvalid:
        # The value lies outside of the column's range, which the database shall say itself.
        return None
    data = known.to_numpy(zero_copy_only=False).astype(layout).view(np.uint8)
    width = np.dtype(layout).itemsize
    return data, np.arange(0, data.size + width, width, dtype=np.int64), valid


def _texts(
    values: pa.Array, valid: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]] | None:
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int64, len(values) + 1, offset=8 * values.offset)
    texts = np.frombuffer(data or b"", np.uint8)
    # PostgreSQL knows no NUL in a text.
    if pa.types.is_large_string(values.type) and not texts[ends[0] : ends[-1]].all():
        return None
    if len(ends) > 1 and np.diff(ends).max() > _LONGEST_TEXT:
        return None
    return texts, ends, valid


def _in_one_piece(values: pa.ChunkedArray) -> pa.Array:
    pieces = values.combine_chunks()
    return pa.concat_arrays(pieces.chunks) if isinstance(pieces, pa.ChunkedArray) else pieces


@numba.njit(cache=True, nogil=True)
def _put_count(out: NDArray[np.uint8], place: NDArray[np.int64], fields: int) -> None:
    for row in range(len(place)):
        out[place[row]] = fields >> 8
        out[place[row] + 1] = fields & 0xFF
        place[row] += 2


@numba.njit(cache=True, nogil=True)
def _put_values(
    out: NDArray[np.uint8],
    place: NDArray[np.int64],
    data: NDArray[np.uint8],
    ends: NDArray[np.int64],
    valid: NDArray[np.bool_],
) -> None:
    """Write a value of every row to its place, its length before it, and move the places on."""
    for row in range(len(place)):
        at = place[row]
        if not valid[row]:
            out[at : at + 4] = 0xFF
            place[row] = at + 4
            continue
        first, size = ends[row], ends[row + 1] - ends[row]
        for byte in range(4):
            out[at + byte] = (size >> (24 - 8 * byte)) & 0xFF
        for byte in range(size):
            out[at + 4 + byte] = data[first + byte]
        place[row] = at + 4 + size
