"""Columns of Avro records: storage, growth and views around the compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alerts import kernel
from alerts.layout import Column, Layout

_DTYPES: Final = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "long": np.int64,
    "boolean": np.int32,
    "enum": np.int32,
    "present": np.int32,
    "length": np.int64,
    "offset": np.int64,
}


@dataclass(frozen=True)
class Values:
    """Values of one column.

    Attributes
    ----------
    column : Column
    data : array, shape (rows,), or int64 shape (rows, 2)
        Numbers; for texts and bytes the start and the length of each in the buffer.
    valid : uint8 array, shape (rows,)
        1 where there is a value, 0 for null. A NaN that the packet holds is a value.
    """

    column: Column
    data: NDArray
    valid: NDArray[np.uint8]


@dataclass(frozen=True)
class Failure:
    """A block that could not be decoded from `position` on."""

    block: int
    position: int
    reason: str


@dataclass(frozen=True)
class Records:
    """Decoded records.

    Attributes
    ----------
    start, end : int64 arrays
        Bytes of each record in the buffer.
    block : int64 array
        Block from which each record comes.
    columns : dict of str to Values
        By path.
    failures : tuple of Failure
    blocks_done : int
        Blocks that are finished; fewer than were given where the store's limit was reached.
    records_done, position : int
        Of the first unfinished block: the records that were decoded, and where the next one begins.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    block: NDArray[np.int64]
    columns: dict[str, Values]
    failures: tuple[Failure, ...]
    blocks_done: int
    records_done: int = 0
    position: int = 0

    def __len__(self) -> int:
        """Count the records."""
        return len(self.start)


class Decoder:
    """Decodes blocks of one layout, and remembers how much room the last ones took.

    Parameters
    ----------
    layout : Layout
    max_bytes : int
        Most memory, in bytes, that the columns of one call may take: what bounds a packet that claims absurd arrays.
    """

    def __init__(self, layout: Layout, max_bytes: int = 256 << 20) -> None:
        if not layout.compiled:
            raise ValueError("the schema contains itself: read such packets with alerts.reference")
        self.layout = layout
        self.max_bytes = max_bytes
        self._columns = sorted(layout.columns.values(), key=lambda column: column.slot)
        numbers = {table: number for number, table in enumerate(layout.tables)}
        self._slot_table = np.array([numbers[column.table] for column in self._columns] or [0], dtype=np.int64)
        self._words = np.array([kernel.words(column.kind) for column in self._columns] or [1], dtype=np.int64)
        self._rows_per_record = np.full(len(layout.tables), 24.0)
        self._rows_per_record[0] = 1.0

    def decode(
        self,
        buf: NDArray[np.uint8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> Records:
        """Decode blocks of records.

        Parameters
        ----------
        buf : uint8 array
        starts, ends : int64 arrays
            Bytes of each block in `buf`.
        counts : int64 array
            Records that each block claims.
        """
        if len(starts) and (starts.min() < 0 or (ends < starts).any() or ends.max() > len(buf)):
            raise ValueError("a block lies outside the buffer")
        # A record takes at least a byte; one more than can be is tried, so that it fails if the block claims it.
        claimed = np.clip(counts, 0, ends - starts + 1)
        store = _Store(self._slot_table, self._words, self._capacity(int(claimed.sum())))
        used = np.zeros(len(store.capacity), dtype=np.int64)
        record_start, record_end, record_block = (np.empty(store.capacity[0], dtype=np.int64) for _ in range(3))
        failed_block, failed_pos, failed_status = (np.empty(len(starts) + 1, dtype=np.int64) for _ in range(3))
        state = np.zeros(4, dtype=np.int64)
        while True:
            status, reached = kernel.decode_blocks(
                buf,
                starts,
                ends,
                claimed,
                state,
                self.layout.program,
                self.layout.targets,
                self._slot_table,
                store.base,
                store.valid_base,
                store.heap,
                store.valid,
                store.capacity,
                used,
                record_start,
                record_end,
                record_block,
                failed_block,
                failed_pos,
                failed_status,
            )
            if status == kernel.OK:
                break
            wanted = np.maximum(store.capacity, (reached * 1.5).astype(np.int64))
            wanted[0] = store.capacity[0]
            if used[0] < store.capacity[0] and store.bytes_for(wanted) <= self.max_bytes:
                store = store.grown(wanted, used)
            elif used[0]:
                break
            else:
                # One record alone is too much: its block is given up.
                failed_block[state[3]], failed_pos[state[3]] = state[0], state[2]
                failed_status[state[3]] = kernel.TOO_MANY_ITEMS
                state[:] = state[0] + 1, 0, 0, state[3] + 1
        if used[0]:
            self._rows_per_record = np.maximum(0.5 * self._rows_per_record, used / used[0])
        failures = tuple(
            Failure(int(block), int(position), kernel.REASONS[int(reason)])
            for block, position, reason in zip(
                failed_block[: state[3]], failed_pos[: state[3]], failed_status[: state[3]], strict=True
            )
        )
        rows = int(used[0])
        columns = {
            column.path: store.values(column, int(used[self._slot_table[column.slot]])) for column in self._columns
        }
        done, in_block, position = (int(value) for value in state[:3])
        return Records(
            record_start[:rows], record_end[:rows], record_block[:rows], columns, failures, done, in_block, position
        )

    def _capacity(self, claimed: int) -> NDArray[np.int64]:
        """Rows to make room for: as many as earlier records needed, within the memory allowed."""
        capacity = np.maximum(16, (claimed * self._rows_per_record * 1.25).astype(np.int64))
        root_bytes = int((4 * self._words + 1)[self._slot_table == 0].sum()) + 24
        capacity[0] = max(1, min(claimed, self.max_bytes // (2 * root_bytes)))
        size = _Store.size(self._slot_table, self._words, capacity)
        if size > self.max_bytes:
            capacity[1:] = np.maximum(16, (capacity[1:] * (self.max_bytes / (2 * size))).astype(np.int64))
        return capacity


class _Store:
    """Memory of all columns: one block for the values and one for their validity."""

    def __init__(self, slot_table: NDArray[np.int64], words: NDArray[np.int64], capacity: NDArray[np.int64]) -> None:
        self.slot_table, self.words = slot_table, words
        self.capacity = (capacity + 15) // 16 * 16
        rows = self.capacity[slot_table]
        self.base = np.concatenate([[0], np.cumsum(rows * words)[:-1]]).astype(np.int64)
        self.valid_base = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64)
        self.heap = np.empty(int((rows * words).sum()), dtype=np.uint32)
        self.valid = np.zeros(int(rows.sum()), dtype=np.uint8)

    @staticmethod
    def size(slot_table: NDArray[np.int64], words: NDArray[np.int64], capacity: NDArray[np.int64]) -> int:
        return int((capacity[slot_table] * (4 * words + 1)).sum())

    def bytes_for(self, capacity: NDArray[np.int64]) -> int:
        return self.size(self.slot_table, self.words, capacity)

    def grown(self, capacity: NDArray[np.int64], used: NDArray[np.int64]) -> _Store:
        bigger = _Store(self.slot_table, self.words, capacity)
        for slot, table in enumerate(self.slot_table):
            rows, words = int(used[table]), int(self.words[slot])
            new, old = bigger.base[slot], self.base[slot]
            bigger.heap[new : new + rows * words] = self.heap[old : old + rows * words]
            new, old = bigger.valid_base[slot], self.valid_base[slot]
            bigger.valid[new : new + rows] = self.valid[old : old + rows]
        return bigger

    def values(self, column: Column, rows: int) -> Values:
        first, words = int(self.base[column.slot]), int(self.words[column.slot])
        raw = self.heap[first : first + rows * words]
        valid_first = int(self.valid_base[column.slot])
        valid = self.valid[valid_first : valid_first + rows]
        dtype = _DTYPES.get(column.kind)
        data = raw.view(np.int64).reshape(rows, 2) if dtype is None else raw.view(dtype)
        return Values(column, data, valid)


def to_arrow_array(values: Values, buf: NDArray[np.uint8]) -> pa.Array:
    """Arrow array of a column; numbers share its memory, texts are gathered from `buf`."""
    kind, rows = values.column.kind, len(values.valid)
    nulls = rows - int(values.valid.sum())
    bitmap = pa.py_buffer(np.packbits(values.valid, bitorder="little")) if nulls else None
    if values.data.dtype == object:
        return pa.array(values.data.tolist(), pa.string() if kind == "string" else pa.binary())
    if kind in ("string", "bytes", "fixed"):
        offsets = np.empty(rows + 1, dtype=np.int32)
        text = kernel.gather_bytes(buf, values.data, values.valid, offsets)
        arrow_type = pa.string() if kind == "string" else pa.binary()
        return pa.Array.from_buffers(arrow_type, rows, [bitmap, pa.py_buffer(offsets), pa.py_buffer(text)], nulls)
    if kind in ("boolean", "present"):
        bits = pa.py_buffer(np.packbits(values.data.astype(np.uint8) & values.valid, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), rows, [bitmap, bits], nulls)
    arrow_type = pa.from_numpy_dtype(values.data.dtype)
    numbers = pa.Array.from_buffers(arrow_type, rows, [bitmap, pa.py_buffer(values.data)], nulls)
    if kind == "enum":
        return pa.DictionaryArray.from_arrays(numbers, pa.array(values.column.symbols, pa.string()))
    return numbers


def list_offsets(lengths: Values) -> NDArray[np.int64]:
    """Offsets (rows + 1) of the items of an array column; null arrays have none."""
    return np.concatenate([[0], np.cumsum(np.where(lengths.valid, lengths.data, 0))])
