"""Columns of a table of the store as bytes behind each other, and any pieces of them moved in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from lightcurves.store_tables import StoreTable

_Bytes = NDArray[np.uint8]
_Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How the columns of a table lie behind each other: the widest first, so that each begins where its type may.

    Attributes
    ----------
    table : StoreTable
    """

    table: StoreTable

    @cached_property
    def fields(self) -> list[pa.Field]:
        """All columns but the object's name, which is packed once."""
        return [field for field in self.table.schema if field.name != "oid"]

    @cached_property
    def texts(self) -> list[str]:
        """Columns of texts."""
        return [field.name for field in self.fields if pa.types.is_string(field.type)]

    @cached_property
    def bits(self) -> dict[str, int]:
        """Number of the bit of each column that says whether a row has a value."""
        return {field.name: number for number, field in enumerate(self.fields)}

    @cached_property
    def valid_columns(self) -> list[str]:
        """Columns of eight such bits."""
        return [f"valid {first}" for first in range(0, len(self.fields), 8)]

    @cached_property
    def _columns(self) -> list[tuple[str, np.dtype]]:
        columns = [(field.name, _dtype(field.type)) for field in self.fields]
        columns += [(name, np.dtype(np.uint8)) for name in self.valid_columns]
        return sorted(columns, key=lambda column: -column[1].itemsize)

    @cached_property
    def widths(self) -> _Integers:
        """Bytes of a value of each packed column."""
        return np.array([dtype.itemsize for _, dtype in self._columns])

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(self.widths.sum())

    @cached_property
    def _starts(self) -> _Integers:
        return np.cumsum(self.widths) - self.widths

    @cached_property
    def columns(self) -> dict[str, tuple[int, np.dtype]]:
        """Of each packed column the bytes of those before it, in one row, and its type."""
        return {name: (int(at), dtype) for (name, dtype), at in zip(self._columns, self._starts, strict=True)}

    def places(self, base: _Integers | int, rows: _Integers | int, first: _Integers) -> _Integers:
        """Where the values of some rows lie, each in a table of so many rows; shape (len(first), packed columns)."""
        base, rows = np.asarray(base)[..., None], np.asarray(rows)[..., None]
        return base + rows * self._starts + first[:, None] * self.widths


def _dtype(kind: pa.DataType) -> np.dtype:
    if pa.types.is_string(kind):
        return np.dtype("<i4")
    return np.dtype(np.uint8 if pa.types.is_boolean(kind) else kind.to_pandas_dtype()).newbyteorder("<")


@dataclass(frozen=True)
class PackedColumns:
    """Rows of one table as they are packed.

    Attributes
    ----------
    layout : Layout
    count : int
    data : uint8 array
        Columns; of a text its length.
    texts : uint8 array
        Texts of the first such column, then of the next.
    """

    layout: Layout
    count: int
    data: _Bytes
    texts: _Bytes

    def column(self, name: str) -> NDArray:
        """Values of a packed column; they can be written to."""
        at, dtype = self.layout.columns[name]
        return self.data[at * self.count : (at + dtype.itemsize) * self.count].view(dtype)

    def valid(self, name: str) -> NDArray[np.bool_]:
        """Where a column has a value."""
        byte, bit = divmod(self.layout.bits[name], 8)
        return (self.column(self.layout.valid_columns[byte]) >> bit & 1).view(np.bool_)

    @cached_property
    def text_ends(self) -> _Integers:
        """Where each text begins and the last one ends, of all columns; shape (text columns * count + 1,)."""
        return ends_of(np.array([self.column(name) for name in self.layout.texts]))

    def text_sizes(self, counts: _Integers) -> _Integers:
        """Bytes of the texts of each chunk of so many rows and each column of texts; shape (chunks, text columns)."""
        bounds = np.arange(len(self.layout.texts))[:, None] * self.count + ends_of(counts)
        return np.diff(self.text_ends[bounds], axis=1).T

    def taken(self, chosen: _Integers) -> PackedColumns:
        """Some of the rows, by number."""
        layout, count = self.layout, len(chosen)
        if not count:
            return PackedColumns(layout, 0, self.data[:0], self.texts[:0])
        data = np.empty(count * layout.row_bytes, np.uint8)
        sizes = np.broadcast_to(layout.widths, (count, len(layout.widths)))
        target = layout.places(0, count, np.arange(count))
        copy_pieces(self.data, layout.places(0, self.count, chosen), data, target, sizes)
        if not layout.texts:
            return PackedColumns(layout, count, data, self.texts[:0])
        which = (np.arange(len(layout.texts))[:, None] * self.count + chosen).ravel()
        starts = self.text_ends[which]
        lengths = self.text_ends[which + 1] - starts
        ends = ends_of(lengths)
        texts = np.empty(int(ends[-1]), np.uint8)
        copy_pieces(self.texts, starts, texts, ends[:-1], lengths)
        return PackedColumns(layout, count, data, texts)


def packed_columns(layout: Layout, table: pa.Table) -> PackedColumns:
    """Pack columns of Arrow, which must be the table's."""
    count, texts = table.num_rows, [np.zeros(0, np.uint8)]
    rows = PackedColumns(layout, count, np.zeros(count * layout.row_bytes, np.uint8), texts[0])
    valid = np.ones((count, 8 * len(layout.valid_columns)), np.bool_)
    for number, field in enumerate(layout.fields):
        values = table[field.name].combine_chunks()
        if values.null_count:
            valid[:, number] = values.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_string(field.type):
            ends, data = _text_buffers(pc.fill_null(values, ""))
            rows.column(field.name)[:] = np.diff(ends)
            texts.append(data)
        elif values.null_count < count:
            missing = False if pa.types.is_boolean(field.type) else 0
            rows.column(field.name)[:] = pc.fill_null(values, missing).to_numpy(zero_copy_only=False)
    for name, bits in zip(layout.valid_columns, np.packbits(valid, axis=1, bitorder="little").T, strict=True):
        rows.column(name)[:] = bits
    return PackedColumns(layout, count, rows.data, np.concatenate(texts))


def _text_buffers(values: pa.StringArray) -> tuple[_Integers, _Bytes]:
    """Where the texts begin and the last ends, and their bytes."""
    if not len(values):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int32, len(values) + 1, offset=4 * values.offset).astype(np.int64)
    return ends, np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]


def arrow_table(rows: PackedColumns, oid: pa.StringArray) -> pa.Table:
    """Columns of Arrow, with the name of each row's object."""
    columns, texts = {"oid": oid}, 0
    for field in rows.layout.fields:
        valid = rows.valid(field.name)
        validity = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        if pa.types.is_string(field.type):
            ends = rows.text_ends[texts * rows.count : (texts + 1) * rows.count + 1]
            buffers = [pa.py_buffer((ends - ends[0]).astype(np.int32)), pa.py_buffer(rows.texts[ends[0] : ends[-1]])]
            texts += 1
        else:
            values = rows.column(field.name)
            packed = np.packbits(values, bitorder="little") if pa.types.is_boolean(field.type) else values
            buffers = [pa.py_buffer(packed)]
        columns[field.name] = pa.Array.from_buffers(field.type, rows.count, [validity, *buffers])
    return pa.table([columns[name] for name in rows.layout.table.schema.names], schema=rows.layout.table.schema)


def ends_of(sizes: NDArray | Sequence[int]) -> _Integers:
    """Where parts begin and the last one ends, shape (parts + 1,)."""
    ends = np.zeros(np.size(sizes) + 1, np.int64)
    np.cumsum(np.ravel(sizes), out=ends[1:])
    return ends


def copy_pieces(source: _Bytes, source_at: _Integers, target: _Bytes, target_at: _Integers, sizes: _Integers) -> None:
    """Copy so many bytes from each place to each place; the three arrays are of one shape."""
    places = (np.ascontiguousarray(array).ravel() for array in (source_at, target_at, sizes))
    _copy_bytes(source, target, *places)


@njit(cache=True, nogil=True)
def _copy_bytes(source, target, source_at, target_at, sizes):
    for i in range(len(sizes)):
        begin, to = source_at[i], target_at[i]
        for byte in range(sizes[i]):
            target[to + byte] = source[begin + byte]
