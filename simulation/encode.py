"""Columns to Avro: the flat records of a packet, many rows at a time.

The nested part of a packet is joined by the caller: Avro is concatenative, so a record's bytes are its fields' bytes in
order (Avro 1.11 specification, "Binary encoding").
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

INTEGER, FLOAT, DOUBLE, STRING = range(4)
_KINDS = {"int": INTEGER, "long": INTEGER, "float": FLOAT, "double": DOUBLE, "string": STRING}
_VARINT_BYTES = 10
_WIDTHS = {INTEGER: _VARINT_BYTES, FLOAT: 4, DOUBLE: 8}


def zigzag(value: int) -> bytes:
    """Avro long: zigzag, then seven bits per byte, lowest first."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """Avro string."""
    data = value.encode()
    return zigzag(len(data)) + data


def container_header(schema: Mapping[str, Any], sync: bytes) -> bytes:
    """Head of an Avro object container with codec null; `sync` is the 16-byte marker."""
    metadata = text("avro.codec") + text("null") + text("avro.schema") + text(json.dumps(schema))
    return b"Obj\x01" + zigzag(2) + metadata + zigzag(0) + sync


@dataclass(frozen=True)
class Encoded:
    """Avro bytes of rows: row i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: bytes
    offsets: np.ndarray

    def rows(self, start: int, stop: int) -> bytes:
        """Bytes of rows start to stop, joined."""
        return self.data[self.offsets[start] : self.offsets[stop]]


class RecordEncoder:
    """Encoder of a record whose fields are primitive, or a union of one primitive type and null.

    Parameters
    ----------
    record
        The Avro record schema.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.names = [field["name"] for field in record["fields"]]
        types = [field["type"] for field in record["fields"]]
        unions = [t if isinstance(t, list) else None for t in types]
        primitive = [t if u is None else next(b for b in u if b != "null") for t, u in zip(types, unions, strict=True)]
        self._kinds = np.array([_KINDS[p] for p in primitive], dtype=np.int64)
        self._value_branch = np.array(
            [-1 if u is None else u.index(p) for p, u in zip(primitive, unions, strict=True)], dtype=np.int64
        )
        self._null_branch = np.array([-1 if u is None else u.index("null") for u in unions], dtype=np.int64)

    def encode(self, columns: Mapping[str, np.ndarray]) -> Encoded:
        """Encode rows.

        Parameters
        ----------
        columns
            One array of shape (n,) per field: numbers, or bytes (``S``) for strings. Masked elements are null.

        Returns
        -------
        Encoded
            The n records.

        Raises
        ------
        ValueError
            If a field that cannot be null has masked elements.
        """
        rows = len(columns[self.names[0]])
        null = np.zeros((len(self.names), rows), dtype=np.bool_)
        longs: list[np.ndarray] = []
        doubles: list[np.ndarray] = []
        texts: list[np.ndarray] = []
        slots = np.zeros((len(self.names), 2), dtype=np.int64)
        bound, text_width = 0, 0
        for i, name in enumerate(self.names):
            column = columns[name]
            if isinstance(column, np.ma.MaskedArray):
                null[i] = np.ma.getmaskarray(column)
                column = column.data
            if self._null_branch[i] < 0 and null[i].any():
                raise ValueError(f"Field {name} cannot be null; give every row a value.")
            if self._kinds[i] == STRING:
                width = column.dtype.itemsize
                texts.append(np.ascontiguousarray(column).view(np.uint8).reshape(rows, width))
                slots[i] = text_width, width
                text_width += width
                bound += width + _VARINT_BYTES + 1
            else:
                matrix = longs if self._kinds[i] == INTEGER else doubles
                slots[i, 0] = len(matrix)
                matrix.append(column)
                bound += _WIDTHS[int(self._kinds[i])] + 1
        out = np.empty(rows * bound, dtype=np.uint8)
        offsets = np.zeros(rows + 1, dtype=np.int64)
        _encode(
            self._kinds,
            slots,
            self._value_branch,
            self._null_branch,
            null,
            np.array(longs, dtype=np.int64).reshape(len(longs), rows),
            np.array(doubles, dtype=np.float64).reshape(len(doubles), rows),
            np.concatenate(texts, axis=1) if texts else np.empty((rows, 0), dtype=np.uint8),
            out,
            offsets,
        )
        return Encoded(out[: offsets[-1]].tobytes(), offsets)


@numba.njit(cache=True, nogil=True)
def _put_long(value, out, at):
    bits = np.uint64((value << 1) ^ (value >> 63))
    while bits > np.uint64(0x7F):
        out[at] = np.uint8((bits & np.uint64(0x7F)) | np.uint64(0x80))
        bits >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(bits)
    return at + 1


@numba.njit(cache=True, nogil=True)
def _encode(kinds, slots, value_branch, null_branch, null, longs, doubles, texts, out, offsets):
    single = np.empty(1, dtype=np.float32)
    single_bytes = single.view(np.uint8)
    double = np.empty(1, dtype=np.float64)
    double_bytes = double.view(np.uint8)
    at = 0
    for row in range(len(offsets) - 1):
        for field in range(len(kinds)):
            if null[field, row]:
                at = _put_long(null_branch[field], out, at)
                continue
            if value_branch[field] >= 0:
                at = _put_long(value_branch[field], out, at)
            kind = kinds[field]
            slot = slots[field, 0]
            if kind == INTEGER:
                at = _put_long(longs[slot, row], out, at)
            elif kind == FLOAT:
                single[0] = np.float32(doubles[slot, row])
                out[at : at + 4] = single_bytes
                at += 4
            elif kind == DOUBLE:
                double[0] = doubles[slot, row]
                out[at : at + 8] = double_bytes
                at += 8
            else:
                length = slots[field, 1]
                while length > 0 and texts[row, slot + length - 1] == 0:
                    length -= 1
                at = _put_long(length, out, at)
                out[at : at + length] = texts[row, slot : slot + length]
                at += length
        offsets[row + 1] = at
