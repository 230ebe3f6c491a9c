"""The slow and obvious decoder: fastavro and dictionaries. Oracle of the tests, and reader of recursive schemas."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np

# The pure Python half of fastavro: the compiled one overflows its stack on deeply nested records.
from fastavro._read_py import schemaless_reader

from alerts.decode import _DTYPES, Failure, Records, Values
from alerts.layout import ROOT, Column, Layout


def decode_with_fastavro(schema: Any, layout: Layout, buf: Any, starts: Any, ends: Any, counts: Any) -> Records:
    """Do what :meth:`alerts.decode.Decoder.decode` does, one Python object at a time.

    Texts and bytes are not in the buffer any more, so that their columns hold Python objects.
    """
    blocks = len(starts)
    rows: dict[str, list[Any]] = {table: [] for table in layout.tables}
    start, end, block, offsets, failures = [], [], [], [], []
    try:
        parsed, head = _parsed(schema)
    except Exception as error:  # whatever fastavro finds in the schema is the packets' fault
        refused = tuple(Failure(number, int(first), _reason(error)) for number, first in enumerate(starts))
        starts, failures = starts[:0], list(refused)
    for number, (first, last, count) in enumerate(zip(starts, ends, counts, strict=False)):
        stream = io.BytesIO(bytes(buf[first:last]))
        for _ in range(int(count)):
            begin = stream.tell()
            try:
                record: Any = schemaless_reader(stream, parsed, None)
                after = stream.tell()
                if "xmatches" in layout.columns:
                    stream.seek(begin)
                    schemaless_reader(stream, head, None)
                    offsets.append(int(first) + stream.tell())
                    stream.seek(after)
            except Exception as error:  # whatever fastavro meets is the record's fault
                failures.append(Failure(number, int(first) + begin, _reason(error)))
                break
            rows[ROOT].append(record)
            start.append(first + begin)
            end.append(first + after)
            block.append(number)
        else:
            if stream.tell() < last - first:
                failures.append(Failure(number, int(first) + stream.tell(), "there are bytes behind the last record"))
    for table in layout.tables[1:]:
        parent = max((t for t in layout.tables if t != table and _inside(table, t)), key=len)
        keys = table[len(parent) :].lstrip(".").split(".")
        for row in rows[parent]:
            rows[table].extend((row if isinstance(row, list) else follow(row, keys)) or [])
    columns = {path: _values(column, rows[column.table]) for path, column in layout.columns.items()}
    if "xmatches" in columns:
        places = np.array(offsets, dtype=np.int64)
        columns["xmatches"] = Values(layout.columns["xmatches"], places, np.ones(len(places), dtype=np.uint8))
    as_int = [np.array(values, dtype=np.int64) for values in (start, end, block)]
    return Records(as_int[0], as_int[1], as_int[2], columns, tuple(failures), blocks)


def _reason(error: Exception) -> str:
    return f"fastavro: {type(error).__name__}: {error}"[:200]


def _parsed(schema: Any) -> tuple[Any, Any]:
    """Schema as fastavro wants it, and the same without the last field of its record."""
    raw = _without_logical_types(schema)
    while isinstance(raw["type"], dict):
        raw = raw["type"]
    head = {**raw, "fields": raw["fields"][:-1]}
    return fastavro.parse_schema(raw), fastavro.parse_schema(head)


def _without_logical_types(schema: Any) -> Any:
    """Copy in which a time stamp is the number that it is in the packet."""
    if isinstance(schema, list):
        return [_without_logical_types(item) for item in schema]
    if isinstance(schema, dict):
        return {
            key: _without_logical_types(value) if key in ("type", "items", "values", "fields") else value
            for key, value in schema.items()
            if key != "logicalType"
        }
    return schema


def _inside(path: str, table: str) -> bool:
    return table == ROOT or path.startswith(f"{table}.")


def follow(row: Any, keys: Any) -> Any:
    """Value at the end of a path of names, ``None`` where the path breaks off."""
    for key in keys:
        if not isinstance(row, Mapping):
            return None
        row = row.get(key)
    return row


def _values(column: Column, rows: list[Any]) -> Values:
    keys = column.keys
    if keys == ("item",):
        raw = [row.get("item") if isinstance(row, Mapping) else row for row in rows]
    elif keys == ("@present",):
        raw = [None if row is None else True for row in rows]
    else:
        raw = [follow(row, keys) for row in rows]
    match column.kind:
        case "present":
            raw = [None if value is None else 1 for value in raw]
        case "length":
            raw = [None if value is None else len(value) for value in raw]
        case "enum":
            raw = [None if value is None else column.symbols.index(value) for value in raw]
        case "offset":
            raw = [None] * len(raw)
    valid = np.array([value is not None for value in raw], dtype=np.uint8)
    dtype = _DTYPES.get(column.kind)
    if dtype is None:
        data = np.array([*raw, None], dtype=object)[:-1]
    else:
        data = np.array([0 if value is None else value for value in raw], dtype=dtype)
    return Values(column, data, valid)
