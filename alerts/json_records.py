"""From JSON to Avro: a message's object as the bytes of a record, so that it goes the way of all records."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import orjson

from alerts.container import write_long, writer_schema
from alerts.layout import SchemaError, SchemaReader

_Write = Callable[[bytearray, Any], None]

_FLOAT: Final = struct.Struct("<f").pack
_DOUBLE: Final = struct.Struct("<d").pack
_NUMBERS: Final = ("float", "double")
# What JSON has for each type of Avro's; bytes are written in base64.
_JSON_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "boolean": bool,
    "int": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "string": str,
    "bytes": str,
    "enum": str,
    "fixed": str,
    "array": list,
    "map": dict,
    "record": dict,
    "error": dict,
}


class JsonError(ValueError):
    """JSON that is not what it should be.

    Parameters
    ----------
    what : str
    path : str
        Where: names, joined by dots, and numbers of items in brackets.
    """

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{path} {what}" if path else what)
        self.what, self.path = what, path

    def inside(self, name: str) -> JsonError:
        """Say the same of something that holds the place."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        return JsonError(self.what, f"{name}{joint}{self.path}")


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; ``NaN`` and ``Infinity``, which Python's writer knows, are numbers.

    Raises
    ------
    JsonError
    """
    try:
        value = orjson.loads(text)
    except ValueError:
        try:
            value = json.loads(text.decode("utf-8"))
            if b"\\u" in text:
                # Half a surrogate pair is no text.
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise JsonError(f"not JSON ({str(error)[:100]})") from error
    if not isinstance(value, dict):
        raise JsonError("not a JSON object")
    return value


class JsonRecords:
    """Encodes JSON objects as records of a schema.

    Numbers of a ``float`` field are rounded to it; a whole number may be written with a fraction of zero. A field that
    is not there is null where it may be, else its default. Names that the schema does not know are passed over. Bytes
    are base64. In a union, the first type that fits decides, and whole numbers prefer whole types.

    Parameters
    ----------
    schema_text : str
        JSON of the schema.

    Raises
    ------
    SchemaError
        If it is not the schema of a record, or has a union directly in a union.
    """

    def __init__(self, schema_text: str) -> None:
        self._reader = SchemaReader()
        self._named: dict[str, _Write] = {}
        self._write = self._writer(writer_schema(schema_text).parsed, "")

    def encode(self, value: dict[str, Any]) -> bytes:
        """Encode one object.

        Raises
        ------
        JsonError
            Naming the field that is at fault.
        """
        out = bytearray()
        try:
            self._write(out, value)
        except RecursionError as error:
            raise JsonError("the object is nested too deeply") from error
        return bytes(out)

    def _writer(self, schema: Any, space: str) -> _Write:
        kind, body, space = self._reader.resolve(schema, space)
        match kind:
            case "union":
                return self._union(body, space)
            case "record" | "error":
                return self._record(body, space)
            case "array":
                return _array(self._writer(self._reader.part(body, "items"), space))
            case "map":
                return _map(self._writer(self._reader.part(body, "values"), space))
            case "enum":
                return _enum(self._reader.symbols(body))
            case "fixed":
                return _bytes(self._reader.fixed_size(body))
            case "bytes":
                return _bytes(None)
        return _LEAVES[kind]

    def _record(self, body: dict[str, Any], space: str) -> _Write:
        name = self._reader.full_name(body, space)
        if name in self._named:
            return self._named[name]
        fields: list[tuple[str, _Write, Any]] = []

        def write(out: bytearray, value: Any) -> None:
            if not isinstance(value, dict):
                raise _unfit(value, "object")
            name = ""
            try:
                for name, inner, default in fields:
                    inner(out, value.get(name, default))
            except JsonError as error:
                raise error.inside(name) from None

        # A record may hold itself.
        self._named[name] = write
        for field in self._reader.record_fields(body):
            default = None if self._is_nullable(field["type"], space) else field.get("default")
            fields.append((field["name"], self._writer(field["type"], space), default))
        return write

    def _is_nullable(self, schema: Any, space: str) -> bool:
        kind, body, space = self._reader.resolve(schema, space)
        return kind == "union" and any(self._reader.resolve(branch, space)[0] == "null" for branch in body)

    def _union(self, branches: list[Any], space: str) -> _Write:
        kinds = [self._reader.resolve(branch, space)[0] for branch in branches]
        if "union" in kinds:
            raise SchemaError("a union lies directly in a union")
        writers = [
            (write_long(number), kind, self._writer(branch, space))
            for number, (kind, branch) in enumerate(zip(kinds, branches, strict=True))
        ]
        nulls = [number for number, kind, _ in writers if kind == "null"]
        null = nulls[0] if nulls else None
        values = [entry for entry in writers if entry[1] != "null"]
        if len(values) == 1:
            number, _, inner = values[0]

            def write_only(out: bytearray, value: Any) -> None:
                if value is None and null is not None:
                    out += null
                else:
                    out += number
                    inner(out, value)

            return write_only
        # Else a long in a union with a float would lose digits.
        values.sort(key=lambda entry: entry[1] in _NUMBERS)

        def write_fitting(out: bytearray, value: Any) -> None:
            if value is None and null is not None:
                out += null
                return
            for number, kind, inner in values:
                if isinstance(value, _JSON_TYPES[kind]) and (kind == "boolean") == isinstance(value, bool):
                    out += number
                    inner(out, value)
                    return
            raise _unfit(value, " or ".join(dict.fromkeys(kinds)))

        return write_fitting


@lru_cache(maxsize=16)
def json_records(schema_text: str) -> JsonRecords:
    """Encoder of a schema, from the cache if it was made before."""
    return JsonRecords(schema_text)


def _unfit(value: Any, kind: str) -> JsonError:
    if value is None:
        return JsonError("is missing")
    shown = repr(value)[:40] if isinstance(value, str | int | float) else type(value).__name__
    return JsonError(f"is no {kind} but {shown}")


def _null(out: bytearray, value: Any) -> None:
    if value is not None:
        raise _unfit(value, "null")


def _boolean(out: bytearray, value: Any) -> None:
    if not isinstance(value, bool):
        raise _unfit(value, "boolean")
    out.append(value)


def _integer(kind: str) -> _Write:
    bound = 1 << (31 if kind == "int" else 63)

    def write(out: bytearray, value: Any) -> None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not -bound <= value < bound:
            raise _unfit(value, kind)
        out += write_long(value)

    return write


def _number(kind: str, pack: Callable[[float], bytes]) -> _Write:
    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _unfit(value, kind)
        try:
            out += pack(value)
        except OverflowError:
            raise _unfit(value, kind) from None

    return write


def _string(out: bytearray, value: Any) -> None:
    if not isinstance(value, str):
        raise _unfit(value, "string")
    text = value.encode()
    out += write_long(len(text))
    out += text


def _bytes(size: int | None) -> _Write:
    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, str):
            raise _unfit(value, "base64")
        try:
            data = binascii.a2b_base64(value, strict_mode=True)
        except ValueError:
            raise _unfit(value, "base64") from None
        if size is None:
            out += write_long(len(data))
        elif len(data) != size:
            raise JsonError(f"has {len(data)} bytes instead of {size}")
        out += data

    return write


def _enum(symbols: tuple[str, ...]) -> _Write:
    numbers = {symbol: write_long(number) for number, symbol in enumerate(symbols)}

    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, str) or value not in numbers:
            raise _unfit(value, "symbol of the enum")
        out += numbers[value]

    return write


def _array(inner: _Write) -> _Write:
    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, list):
            raise _unfit(value, "array")
        if value:
            out += write_long(len(value))
            number = 0
            try:
                for number, item in enumerate(value):  # noqa: B007 (told in the error)
                    inner(out, item)
            except JsonError as error:
                raise error.inside(f"[{number}]") from None
        out.append(0)

    return write


def _map(inner: _Write) -> _Write:
    def write(out: bytearray, value: Any) -> None:
        if not isinstance(value, dict):
            raise _unfit(value, "map")
        if value:
            out += write_long(len(value))
            key = ""
            try:
                for key, item in value.items():
                    _string(out, key)
                    inner(out, item)
            except JsonError as error:
                raise error.inside(key) from None
        out.append(0)

    return write


_LEAVES: Final[dict[str, _Write]] = {
    "null": _null,
    "boolean": _boolean,
    "int": _integer("int"),
    "long": _integer("long"),
    "float": _number("float", _FLOAT),
    "double": _number("double", _DOUBLE),
    "string": _string,
}
