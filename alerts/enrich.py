"""Enriched alerts: the original record's bytes with the encoded crossmatches behind them.

The output schema is the packet's own with the field ``xmatches`` at its end (seed `xmatch_step`, output schema), so
that nothing of the packet is encoded again and cutouts stay as they are, byte for byte. The seed's defaults (the text
"null") are not valid Avro: a default must be a value of the union's first branch. Those that are not are left out here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from alerts.batch import AlertBatch
from alerts.container import write_long
from schemas import load_schema

FIELD: Final = "xmatches"
PRECISIONS: Final = ("float", "double")
_TEXT, _NUMBER = 0, 1


@dataclass(frozen=True)
class CatalogMatches:
    """Answer of one catalogue for the alerts of a batch.

    Attributes
    ----------
    name : str
        Catalogue, the key in ``xmatches``.
    matched : bool array, shape (alerts,)
    columns : mapping of str to pyarrow.Array
        Values with nulls, one per alert: texts and numbers; the order is kept.
    """

    name: str
    matched: NDArray[np.bool_]
    columns: Mapping[str, pa.Array | pa.ChunkedArray]


@dataclass(frozen=True, eq=False)
class EnrichedAlerts:
    """Encoded records.

    Attributes
    ----------
    schema_text : str
        JSON of the enriched schema.
    data : uint8 array
    offsets : int64 array, shape (alerts + 1,)
        Where each record begins in `data`.
    """

    schema_text: str
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the records."""
        return len(self.offsets) - 1

    def record(self, row: int) -> memoryview:
        """Avro body of one enriched alert."""
        return self.data.data[self.offsets[row] : self.offsets[row + 1]]


@lru_cache(maxsize=64)
def enriched_schema_text(text: str, precision: str = "float") -> str:
    """Writer schema of the enriched alerts of a packet's writer schema.

    Parameters
    ----------
    text : str
        JSON of the packet's writer schema.
    precision : {"float", "double"}
        Numbers in ``xmatches``: 32 bits as in the seed, or 64 bits (32 bits lose 0.05 arcsec of a position).

    Raises
    ------
    ValueError
        If the packet already has a field ``xmatches`` that is not its last.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    schema = json.loads(text)
    while isinstance(schema["type"], dict):
        schema = schema["type"]
    names = [item["name"] for item in schema["fields"]]
    if FIELD in names[:-1]:
        raise ValueError(f"the packets hold a field {FIELD!r} in the middle: they were not written by this pipeline")
    if names[-1] == FIELD:
        schema["fields"].pop()
    xmatch = load_schema(f"xmatches_{precision}")
    schema["fields"].append({"name": FIELD, "type": [xmatch, "null"], "default": {}})
    _drop_wrong_defaults(schema, {}, "")
    return json.dumps(schema)


def _drop_wrong_defaults(schema: Any, named: dict[str, Any], space: str) -> None:
    """Take the defaults that a strict reader refuses out of a schema."""
    if isinstance(schema, list):
        for branch in schema:
            _drop_wrong_defaults(branch, named, space)
    elif isinstance(schema, dict):
        if schema.get("type") in ("record", "error", "enum", "fixed"):
            full = schema["name"] if "." in schema["name"] else f"{schema.get('namespace', space)}.{schema['name']}"
            space = full.rpartition(".")[0]
            named[full] = named[schema["name"]] = schema
        for key in ("type", "items", "values"):
            _drop_wrong_defaults(schema.get(key), named, space)
        for item in schema.get("fields", ()):
            _drop_wrong_defaults(item["type"], named, space)
            if "default" in item and not _fits(item["default"], item["type"], named):
                del item["default"]


def _fits(value: Any, schema: Any, named: dict[str, Any]) -> bool:
    """Say whether a JSON value is a default of a type; in a union, of the first branch."""
    if isinstance(schema, list):
        return bool(schema) and _fits(value, schema[0], named)
    kind = schema if isinstance(schema, str) else schema["type"]
    if isinstance(kind, dict | list):
        return _fits(value, kind, named)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "int" | "long":
            bits = 31 if kind == "int" else 63
            return number and isinstance(value, int) and -(1 << bits) <= value < 1 << bits
        case "float" | "double":
            return number and math.isfinite(value)
        case "string":
            return isinstance(value, str)
        case "bytes" | "fixed":
            size = schema["size"] if kind == "fixed" else None
            return isinstance(value, str) and all(ord(c) < 256 for c in value) and size in (None, len(value))
        case "enum":
            return value in schema["symbols"]
        case "array":
            return isinstance(value, list) and all(_fits(item, schema["items"], named) for item in value)
        case "map":
            return isinstance(value, dict) and all(_fits(item, schema["values"], named) for item in value.values())
        case "record" | "error":
            return isinstance(value, dict) and all(
                _fits(value[item["name"]], item["type"], named) if item["name"] in value else "default" in item
                for item in schema["fields"]
            )
    return kind in named and _fits(value, named[kind], named)


def enrich(batch: AlertBatch, matches: Sequence[CatalogMatches], precision: str = "float") -> EnrichedAlerts:
    """Append ``xmatches`` to the records of a batch.

    An alert without a match in any catalogue gets null; otherwise a map from catalogue to its columns.

    Parameters
    ----------
    batch : AlertBatch
    matches : sequence of CatalogMatches
        In the order in which they shall stand.
    precision : {"float", "double"}
    """
    encoded, offsets = encode_xmatches(len(batch), matches, precision)
    ends = batch.end
    if batch.has(FIELD):
        ends = batch.values[FIELD].data
    data, places = _append(batch.buffer, batch.start, ends, encoded, offsets)
    return EnrichedAlerts(enriched_schema_text(batch.schema.text, precision), data, places)


def encode_xmatches(
    alerts: int, matches: Sequence[CatalogMatches], precision: str = "float"
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Encode the union ``[map<map<string | number | null>>, null]``: bytes and offsets (alerts + 1)."""
    pieces = [_encode_catalog(match, precision == "double") for match in matches]
    matched = sum((match.matched.astype(np.int64) for match in matches), np.zeros(alerts, dtype=np.int64))
    if np.any(matched > 63):
        raise ValueError("more than 63 catalogues at once")
    sizes = sum((np.diff(offsets) for _, offsets in pieces), np.zeros(alerts, dtype=np.int64))
    lengths = np.where(matched > 0, sizes + 3, 1)
    total = np.concatenate([[0], np.cumsum(lengths)])
    out = np.empty(int(total[-1]), dtype=np.uint8)
    # Null is branch 1. The map is branch 0: its number of catalogues, the entries, and the zero that ends it.
    out[total[:-1]] = np.where(matched > 0, 0, 2)
    some = matched > 0
    out[total[:-1][some] + 1] = 2 * matched[some]
    out[total[1:][some] - 1] = 0
    at = total[:-1] + 2
    for data, offsets in pieces:
        _scatter(data, offsets, out, at)
        at += np.diff(offsets)
    return out, total


def _encode_catalog(match: CatalogMatches, double: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Encode one catalogue's entry of the outer map for each alert; nothing where it has no match."""
    keys: list[bytes] = []
    kinds: list[tuple[int, int]] = []
    numbers: list[NDArray[np.float64]] = []
    texts: list[pa.Array] = []
    valid = np.empty((len(match.columns), len(match.matched)), dtype=np.uint8)
    for position, (name, column) in enumerate(match.columns.items()):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        keys.append(write_long(len(name.encode())) + name.encode())
        # What is missing is null, never NaN.
        valid[position] = pc.is_valid(array).to_numpy(zero_copy_only=False)
        if pa.types.is_floating(array.type):
            valid[position] &= ~pc.is_nan(pc.fill_null(array, 0.0)).to_numpy(zero_copy_only=False)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            kinds.append((_TEXT, len(texts)))
            texts.append(pc.fill_null(array.cast(pa.large_string()), ""))
        else:
            kinds.append((_NUMBER, len(numbers)))
            numbers.append(pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False))
    rows = len(match.matched)
    text_offsets = np.zeros((max(len(texts), 1), rows + 1), dtype=np.int64)
    text_data, base = [], 0
    for position, array in enumerate(texts):
        offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + rows + 1]
        data = np.frombuffer(array.buffers()[2] or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
        text_offsets[position] = offsets - offsets[0] + base
        text_data.append(data)
        base += len(data)
    head = write_long(len(match.name.encode())) + match.name.encode() + (write_long(len(keys)) if keys else b"")
    key_offsets = np.concatenate([[0], np.cumsum([len(key) for key in keys])]).astype(np.int64)
    return _encode_rows(
        match.matched,
        np.frombuffer(head, dtype=np.uint8),
        np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_offsets,
        np.array(kinds, dtype=np.int64).reshape(-1, 2),
        valid,
        np.ascontiguousarray(numbers, dtype=np.float64).reshape(len(numbers), rows),
        np.concatenate(text_data) if text_data else np.zeros(0, dtype=np.uint8),
        text_offsets,
        double,
    )


@njit(cache=True, nogil=True)
def _encode_rows(matched, head, keys, key_offsets, kinds, valid, numbers, texts, text_offsets, double):
    rows = matched.shape[0]
    width = 8 if double else 4
    offsets = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        size = 0
        if matched[row]:
            size = head.shape[0] + keys.shape[0] + kinds.shape[0] + 1
            for column in range(kinds.shape[0]):
                if not valid[column, row]:
                    continue
                if kinds[column, 0] == _NUMBER:
                    size += width
                else:
                    length = text_offsets[kinds[column, 1], row + 1] - text_offsets[kinds[column, 1], row]
                    size += length + 1
                    while length > 63:
                        size += 1
                        length >>= 7
        offsets[row + 1] = offsets[row] + size
    out = np.empty(offsets[rows], np.uint8)
    box4 = np.empty(1, np.float32)
    box8 = np.empty(1, np.float64)
    for row in range(rows):
        if not matched[row]:
            continue
        at = offsets[row]
        for byte in head:
            out[at] = byte
            at += 1
        for column in range(kinds.shape[0]):
            for k in range(key_offsets[column], key_offsets[column + 1]):
                out[at] = keys[k]
                at += 1
            if not valid[column, row]:
                out[at] = 4
                at += 1
            elif kinds[column, 0] == _NUMBER:
                out[at] = 2
                at += 1
                if double:
                    box8[0] = numbers[kinds[column, 1], row]
                    bits8 = box8.view(np.uint64)[0]
                    for k in range(8):
                        out[at + k] = np.uint8((bits8 >> np.uint64(8 * k)) & np.uint64(0xFF))
                else:
                    box4[0] = numbers[kinds[column, 1], row]
                    bits4 = box4.view(np.uint32)[0]
                    for k in range(4):
                        out[at + k] = np.uint8((bits4 >> np.uint32(8 * k)) & np.uint32(0xFF))
                at += width
            else:
                first = text_offsets[kinds[column, 1], row]
                last = text_offsets[kinds[column, 1], row + 1]
                out[at] = 0
                at += 1
                left = 2 * (last - first)
                while left > 127:
                    out[at] = (left & 127) | 128
                    at += 1
                    left >>= 7
                out[at] = left
                at += 1
                for k in range(first, last):
                    out[at] = texts[k]
                    at += 1
        out[at] = 0
    return out, offsets


@njit(cache=True, nogil=True)
def _scatter(data, offsets, out, at):
    for row in range(offsets.shape[0] - 1):
        for k in range(offsets[row + 1] - offsets[row]):
            out[at[row] + k] = data[offsets[row] + k]


@njit(cache=True, nogil=True)
def _append(buffer, starts, ends, extra, extra_offsets):
    """Each record followed by its extra bytes: bytes and offsets."""
    rows = starts.shape[0]
    offsets = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        size = ends[row] - starts[row] + extra_offsets[row + 1] - extra_offsets[row]
        offsets[row + 1] = offsets[row] + size
    out = np.empty(offsets[rows], np.uint8)
    for row in range(rows):
        middle = offsets[row] + ends[row] - starts[row]
        out[offsets[row] : middle] = buffer[starts[row] : ends[row]]
        out[middle : offsets[row + 1]] = extra[extra_offsets[row] : extra_offsets[row + 1]]
    return out, offsets
