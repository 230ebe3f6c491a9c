"""What the tests of alerts/ share: a small alert schema, plain readings to compare with, encoder, strict reader."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from alerts.container import CODECS, compress, header_bytes, write_long
from alerts.decode import Records, Values, to_arrow_array
from alerts.layout import ROOT, Layout

SYNC = bytes(range(16))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_POINT = [
    {"name": "jd", "type": "double"},
    {"name": "fid", "type": "int"},
    {"name": "programid", "type": "int"},
    {"name": "candid", "type": ["null", "long"], "default": None},
    {"name": "magpsf", "type": ["null", "float"], "default": None},
    {"name": "isdiffpos", "type": ["string", "null"], "default": "null"},
]
ALERT: dict[str, Any] = {
    "type": "record",
    "name": "alert",
    "namespace": "test",
    "fields": [
        {"name": "schemavsn", "type": "string"},
        {"name": "objectId", "type": ["string", "null"]},
        {"name": "candid", "type": ["null", "long"]},
        {
            "name": "candidate",
            "type": {
                "type": "record",
                "name": "candidate",
                "fields": [
                    *_POINT,
                    {"name": "ra", "type": ["double", "null"]},
                    {"name": "dec", "type": ["double", "null"]},
                ],
            },
        },
        {
            "name": "prv_candidates",
            "type": ["null", {"type": "array", "items": {"type": "record", "name": "prv", "fields": _POINT}}],
            "default": None,
        },
        {"name": "cutoutScience", "type": ["null", "bytes"], "default": None},
    ],
}
ALERT_TEXT = json.dumps(ALERT)


def alert(number: int, previous: int = 2, cutout: int = 40) -> dict[str, Any]:
    """Record of :data:`ALERT`; every third lacks a magnitude."""

    def point(k: int) -> dict[str, Any]:
        return {
            "jd": 2458000.5 + number + k / 8,
            "fid": 1 + k % 3,
            "programid": 1,
            "candid": 1_000_000 * number + k,
            "magpsf": None if (number + k) % 3 == 0 else 15.0 + k / 4,
            "isdiffpos": "t",
        }

    return {
        "schemavsn": "3.3",
        "objectId": f"ZTF18test{number:04d}",
        "candid": 1_000_000 * number,
        "candidate": {**point(0), "ra": (number * 17.25) % 360, "dec": -20 + number % 90},
        "prv_candidates": None if previous < 0 else [point(k + 1) for k in range(previous)],
        "cutoutScience": bytes((number * k) % 256 for k in range(cutout)),
    }


def schemaless(schema: Any, record: Any) -> bytes:
    """Body of one record, written by fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def container(blocks: list[list[bytes]], text: str = ALERT_TEXT, codec: str = "null", sync: bytes = SYNC) -> bytes:
    """Object container of encoded records."""
    assert codec in CODECS
    parts = [header_bytes(text, codec, sync)]
    for bodies in blocks:
        data = bytes(compress(codec, b"".join(bodies)))
        parts += [write_long(len(bodies)), write_long(len(data)), data, sync]
    return b"".join(parts)


def packet(number: int, codec: str = "null", **how: Any) -> bytes:
    """Container of one alert."""
    return container([[schemaless(ALERT, alert(number, **how))]], codec=codec)


def good_packets(data: Path) -> Iterator[tuple[str, bytes]]:
    """The 650 packets of the reference data with their names."""
    import tarfile

    for path in sorted(data.joinpath("alerts").rglob("*")):
        if path.parent.name == "bad" or not path.is_file():
            continue
        if path.suffix == ".avro":
            yield path.name, path.read_bytes()
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isreg() else None
                    if file and member.name.endswith(".avro"):
                        yield member.name, file.read()


# -- columns from plain dictionaries ---------------------------------------------------------------------------------


def plain_values(layout: Layout, records: list[Any]) -> dict[str, list[Any]]:
    """Value of every column, null as None, taken from dictionaries: texts, bytes, numbers, lengths, presence."""
    rows: dict[str, list[Any]] = {ROOT: records}
    for table in layout.tables[1:]:
        parent = max((t for t in rows if t == ROOT or table.startswith(f"{t}.")), key=len)
        rows[table] = [item for row in rows[parent] for item in _at(row, table[len(parent) :].strip(".")) or []]
    found = {}
    for path, column in layout.columns.items():
        values = [_at(row, path[len(column.table) :].strip(".")) for row in rows[column.table]]
        if column.kind == "length":
            values = [None if value is None else len(value) for value in values]
        elif column.kind == "present":
            values = [None if value is None else True for value in values]
        if column.kind != "offset":
            found[path] = values
    return found


def _at(row: Any, path: str) -> Any:
    for name in path.split(".") if path else []:
        if name == "item" and not isinstance(row, dict):
            continue
        if name == "@present" or row is None:
            return row
        row = row[name]
    # Columns hold the number of a time stamp, of which fastavro makes a date.
    return (row - _EPOCH) // timedelta(microseconds=1) if isinstance(row, datetime) else row


def column_values(values: Values, buf: np.ndarray) -> list[Any]:
    """Values of a decoded column as Python objects, through Arrow."""
    found = to_arrow_array(values, buf)
    found.validate(full=True)
    return found.to_pylist()


def same(left: list[Any], right: list[Any]) -> bool:
    """Say whether two lists are equal; a NaN equals a NaN, and zeros differ by their sign."""
    return len(left) == len(right) and all(map(_same, left, right))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (a != a and b != b) or struct.pack("<d", a) == struct.pack("<d", b)
    return a == b and (a is None) == (b is None)


def assert_equals_plain(found: Records, layout: Layout, buf: np.ndarray, records: list[Any]) -> None:
    """Compare decoded columns with dictionaries."""
    assert len(found) == len(records)
    for path, expected in plain_values(layout, records).items():
        got = column_values(found.columns[path], buf)
        assert same(got, expected), f"{path}: {got[:5]} instead of {expected[:5]}"


# -- an encoder that can do what fastavro's writer does not ------------------------------------------------------------


def encode(schema: Any, value: Any, names: dict[str, Any], chance: random.Random) -> bytes:
    """Encode; a union's value is (branch, value). Arrays and maps are cut into blocks at random, with sizes or not."""
    if isinstance(schema, list):
        branch, inner = value
        return write_long(branch) + encode(schema[branch], inner, names, chance)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind in names:
        return encode(names[kind], value, names, chance)
    match kind:
        case "null":
            return b""
        case "boolean":
            return bytes([value])
        case "int" | "long":
            return write_long(value)
        case "float":
            return struct.pack("<f", value)
        case "double":
            return struct.pack("<d", value)
        case "string":
            return write_long(len(value.encode())) + value.encode()
        case "bytes":
            return write_long(len(value)) + value
        case "fixed":
            return value
        case "enum":
            return write_long(schema["symbols"].index(value))
        case "record":
            return b"".join(encode(f["type"], value[f["name"]], names, chance) for f in schema["fields"])
        case "array":
            return _encode_blocks([encode(schema["items"], item, names, chance) for item in value], chance)
        case "map":
            return _encode_blocks(
                [
                    write_long(len(key.encode())) + key.encode() + encode(schema["values"], item, names, chance)
                    for key, item in value.items()
                ],
                chance,
            )
    raise AssertionError(kind)


def _encode_blocks(items: list[bytes], chance: random.Random) -> bytes:
    out = b""
    while items:
        count = chance.randint(1, len(items))
        data = b"".join(items[:count])
        out += write_long(-count) + write_long(len(data)) + data if chance.random() < 0.5 else write_long(count) + data
        items = items[count:]
    return out + b"\0"


# -- the Avro specification to the letter ------------------------------------------------------------------------------


class Invalid(Exception):
    """Bytes that are not what the specification says."""


def strict_read(schema: Any, data: bytes, position: int, names: dict[str, Any]) -> tuple[Any, int]:
    """Read a value as the specification has it: value and the position after it."""
    if isinstance(schema, list):
        branch, position = _strict_long(data, position)
        if not 0 <= branch < len(schema):
            raise Invalid("branch")
        return strict_read(schema[branch], data, position, names)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind in names:
        return strict_read(names[kind], data, position, names)
    match kind:
        case "null":
            return None, position
        case "boolean":
            raw, position = _strict_bytes(data, position, 1)
            return raw != b"\0", position
        case "int" | "long":
            value, position = _strict_long(data, position)
            if kind == "int" and not -(2**31) <= value < 2**31:
                raise Invalid("int")
            return value, position
        case "float" | "double":
            raw, position = _strict_bytes(data, position, 4 if kind == "float" else 8)
            return struct.unpack("<f" if kind == "float" else "<d", raw)[0], position
        case "string" | "bytes":
            size, position = _strict_long(data, position)
            raw, position = _strict_bytes(data, position, size)
            return (_strict_text(raw) if kind == "string" else raw), position
        case "fixed":
            return _strict_bytes(data, position, schema["size"])
        case "enum":
            index, position = _strict_long(data, position)
            if not 0 <= index < len(schema["symbols"]):
                raise Invalid("enum")
            return schema["symbols"][index], position
        case "record":
            record = {}
            for item in schema["fields"]:
                record[item["name"]], position = strict_read(item["type"], data, position, names)
            return record, position
        case "array" | "map":
            items: list[Any] = []
            while True:
                count, position = _strict_long(data, position)
                if count < 0:
                    count = -count
                    _, position = _strict_long(data, position)
                if count == 0:
                    return items, position
                if count > len(data) - position:
                    raise Invalid("count")
                for _ in range(count):
                    if kind == "map":
                        size, position = _strict_long(data, position)
                        raw, position = _strict_bytes(data, position, size)
                        _strict_text(raw)
                    item, position = strict_read(
                        schema["items"] if kind == "array" else schema["values"], data, position, names
                    )
                    items.append(item)
    raise AssertionError(kind)


def _strict_long(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, position = _strict_bytes(data, position, 1)
        value |= (byte[0] & 0x7F) << shift
        if value >> 64:
            raise Invalid("more than 64 bits")
        if byte[0] < 128:
            return (value >> 1) ^ -(value & 1), position
    raise Invalid("more than ten bytes")


def _strict_bytes(data: bytes, position: int, size: int) -> tuple[bytes, int]:
    if not 0 <= size <= len(data) - position:
        raise Invalid("beyond the end")
    return data[position : position + size], position + size


def _strict_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("text") from error
