"""The element that flows through every pipeline: a batch of alerts as columns, with the packets' own bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alerts.container import WriterSchema, single_block_container
from alerts.decode import Values, list_offsets, to_arrow_array
from alerts.layout import REQUIRED_FIELDS, ROOT


@dataclass(frozen=True, eq=False)
class AlertBatch:
    """Alerts of one writer schema.

    Attributes
    ----------
    schema : WriterSchema
    source : str
        Archive, folder or topic from which they come.
    unit : str
        Name of the unit of work, which names the files that are written from it.
    members : tuple of str
        Name of each alert's packet within the source.
    first : int
        Number of the batch's first packet within the source.
    buffer : uint8 array
        Memory that holds the packets.
    start, end : int64 arrays, shape (alerts,)
        Bytes of each record (without container) in `buffer`.
    values : dict of str to Values
        Columns by path. Those of ``prv_candidates`` and ``fp_hists`` are ragged: one row per item, the items of an
        alert at ``offsets(table)[i:i + 2]``.
    """

    schema: WriterSchema
    source: str
    unit: str
    members: tuple[str, ...]
    first: int
    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    values: dict[str, Values]

    def __len__(self) -> int:
        """Count the alerts."""
        return len(self.start)

    def has(self, path: str) -> bool:
        """Say whether the writer schema has a column."""
        return path in self.values

    def numbers(self, path: str, missing: float = np.nan) -> NDArray[np.float64]:
        """Column as float64; null, and a field that the schema lacks, as `missing`."""
        if path not in self.values:
            return np.full(len(self), missing)
        values = self.values[path]
        return np.where(values.valid, values.data, missing)

    def integers(self, path: str, missing: int = -1) -> NDArray[np.int64]:
        """Column as int64; null, and a field that the schema lacks, as `missing`."""
        if path not in self.values:
            return np.full(len(self), missing, dtype=np.int64)
        values = self.values[path]
        return np.where(values.valid, values.data, missing).astype(np.int64)

    def arrow(self, path: str) -> pa.Array:
        """Column as an Arrow array with nulls; numbers share the batch's memory."""
        return to_arrow_array(self.values[path], self.buffer)

    def offsets(self, table: str) -> NDArray[np.int64]:
        """Where each alert's items begin in the columns of an array, shape (alerts + 1,)."""
        return list_offsets(self.values[table]) if table in self.values else np.zeros(len(self) + 1, dtype=np.int64)

    @property
    def candid(self) -> NDArray[np.int64]:
        """Identifier of each alert."""
        return self._required("candid").data.astype(np.int64, copy=False)

    @property
    def object_id(self) -> pa.Array:
        """Name of each alert's object."""
        return to_arrow_array(self._required("objectId"), self.buffer)

    @property
    def jd(self) -> NDArray[np.float64]:
        """Julian date of each alert's exposure (start), days."""
        return self._required("jd").data.astype(np.float64, copy=False)

    @property
    def ra(self) -> NDArray[np.float64]:
        """Right ascension of each alert, degrees, J2000."""
        return self._required("ra").data.astype(np.float64, copy=False)

    @property
    def dec(self) -> NDArray[np.float64]:
        """Declination of each alert, degrees, J2000."""
        return self._required("dec").data.astype(np.float64, copy=False)

    @property
    def programid(self) -> NDArray[np.int64]:
        """Survey programme: 1 public, 2 partnership, 3 Caltech; -1 if the packet does not say."""
        return self.integers("candidate.programid")

    def _required(self, name: str) -> Values:
        for path in REQUIRED_FIELDS[name]:
            if path in self.values:
                return self.values[path]
        raise KeyError(f"the writer schema has no {name}")

    def missing_values(self) -> list[tuple[int, str]]:
        """Alerts that lack the value of a required field: their rows, and the field's name."""
        found = []
        for name in REQUIRED_FIELDS:
            for row in np.flatnonzero(self._required(name).valid == 0):
                found.append((int(row), name))
        return found

    def record(self, row: int) -> memoryview:
        """Avro body of one alert."""
        return self.buffer.data[self.start[row] : self.end[row]]

    def packet(self, row: int) -> bytes:
        """One alert as a container of its own."""
        return single_block_container(self.schema, bytes(self.record(row)))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> AlertBatch:
        """Batch of some of the alerts, by number or by mask."""
        if rows.dtype == np.bool_:
            if rows.all():
                return self
            rows = np.flatnonzero(rows)
        picked = {ROOT: rows.astype(np.int64)}
        for table in dict.fromkeys(values.column.table for values in self.values.values()):
            if table == ROOT:
                continue
            parent = max((t for t in picked if t == ROOT or table.startswith(f"{t}.")), key=len)
            picked[table] = _ranges(list_offsets(self.values[table]), picked[parent])
        values = {
            path: Values(v.column, v.data[picked[v.column.table]], v.valid[picked[v.column.table]])
            for path, v in self.values.items()
        }
        members = tuple(self.members[row] for row in rows)
        return AlertBatch(
            self.schema,
            self.source,
            self.unit,
            members,
            self.first,
            self.buffer,
            self.start[rows],
            self.end[rows],
            values,
        )

    def to_arrow(self) -> pa.RecordBatch:
        """Record batch with a column per path and a list of structs per array; numbers are not copied."""
        names, arrays = [], []
        tables = {values.column.table for values in self.values.values()} - {ROOT}
        for path, values in self.values.items():
            if values.column.table != ROOT or values.column.kind == "offset":
                continue
            names.append(path)
            arrays.append(self._list_array(path) if path in tables else self.arrow(path))
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _list_array(self, table: str) -> pa.Array:
        inside = {
            path[len(table) + 1 :]: values
            for path, values in self.values.items()
            if values.column.table == table and values.column.kind not in ("length", "present")
        }
        lengths = self.values[table]
        offsets = pa.array(self.offsets(table).astype(np.int32))
        items = pa.StructArray.from_arrays(
            [to_arrow_array(values, self.buffer) for values in inside.values()], names=list(inside)
        )
        bitmap = pa.py_buffer(np.packbits(lengths.valid, bitorder="little"))
        return pa.Array.from_buffers(pa.list_(items.type), len(self), [bitmap, offsets.buffers()[1]], children=[items])

    def to_pandas(self) -> Any:
        """Data frame with a row per alert; arrays as lists of dictionaries."""
        return self.to_arrow().to_pandas()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the records alone, not the buffer's other contents."""
        records = b"".join(self.record(row) for row in range(len(self)))
        place = (self.schema, self.source, self.unit, self.members, self.first)
        return decode_batch, (*place, records, self.end - self.start)


def decode_batch(
    schema: WriterSchema,
    source: str,
    unit: str,
    members: Sequence[str],
    first: int,
    records: bytes,
    sizes: NDArray[np.int64],
) -> AlertBatch:
    """Decode the bodies of records that are known to be good, one behind the other."""
    ends = np.cumsum(sizes)
    buffer = np.frombuffer(records, dtype=np.uint8)
    found = schema.decode(buffer, ends - sizes, ends, np.ones(len(sizes), dtype=np.int64))
    if len(found) != len(sizes):
        raise ValueError(f"{len(sizes) - len(found)} records that were read before cannot be read again")
    return AlertBatch(schema, source, unit, tuple(members), first, buffer, found.start, found.end, found.columns)


def _ranges(offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of all items of the given rows."""
    lengths = offsets[rows + 1] - offsets[rows]
    before = np.repeat(offsets[rows] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return np.arange(int(lengths.sum())) + before
