"""The slow and obvious decoder: fastavro and dictionaries. Oracle of the tests, and reader of recursive schemas."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np

from alerts.decode import _DTYPES, Failure, Records, Values
from alerts.layout import ROOT, Column, Layout


def decode_with_fastavro(schema: Any, layout: Layout, buf: Any, starts: Any, ends: Any, counts: Any) -> Records:
    """Do what :meth:`alerts.decode.Decoder.decode` does, one Python object at a time.

    Texts and bytes are not in the buffer any more, so that their columns hold Python objects.
    """
    parsed = fastavro.parse_schema(schema)
    rows: dict[str, list[Any]] = {table: [] for table in layout.tables}
    start, end, block, failures = [], [], [], []
    for number, (first, last, count) in enumerate(zip(starts, ends, counts, strict=True)):
        stream = io.BytesIO(bytes(buf[first:last]))
        for _ in range(int(count)):
            begin = stream.tell()
            try:
                record = fastavro.schemaless_reader(stream, parsed)
            except Exception as error:  # whatever fastavro meets is the record's fault
                failures.append(Failure(number, int(first) + begin, f"fastavro: {type(error).__name__}: {error}"[:200]))
                break
            rows[ROOT].append(record)
            start.append(first + begin)
            end.append(first + stream.tell())
            block.append(number)
        else:
            if stream.tell() < last - first:
                failures.append(Failure(number, int(first) + stream.tell(), "there are bytes behind the last record"))
    for table in layout.tables[1:]:
        parent = max((t for t in layout.tables if t != table and _inside(table, t)), key=len)
        keys = table[len(parent) :].lstrip(".").split(".")
        for row in rows[parent]:
            rows[table].extend(follow(row, keys) or [])
    columns = {path: _values(column, rows[column.table]) for path, column in layout.columns.items()}
    as_int = [np.array(values, dtype=np.int64) for values in (start, end, block)]
    return Records(as_int[0], as_int[1], as_int[2], columns, tuple(failures), len(starts))


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
        raw = rows
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
