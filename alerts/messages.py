"""Alerts as messages of a topic: containers, bare records of one schema, or JSON; to the items that a reader gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from alerts.container import HeaderCache, WriterSchema, writer_schema
from alerts.dead_letters import DeadLetter
from alerts.json_records import JsonError, JsonRecords, json_records, parse_object
from alerts.layout import SchemaError
from alerts.reader import MAX_PAYLOAD_BYTES, Item, Limits, Portion, decode_bodies, decode_portion
from alerts.sources import Source
from schemas import load_schema

CONTAINER: Final = "container"
SCHEMALESS: Final = "schemaless"
JSON: Final = "json"
FORMATS: Final = (CONTAINER, SCHEMALESS, JSON)

_NO_VALUE: Final = "a message without a value"
_JSON_SCHEMA: Final = "ztf_alert_4.02"


class AlertMessages:
    """Decodes the messages of a topic.

    Parameters
    ----------
    format : {"container", "schemaless", "json"}
        Of a message: an Avro object container; the body of one record, without its schema; a JSON object.
    schema_text : str
        JSON of the schema, which bare records cannot be read without. For JSON messages it names the fields (default:
        those of ZTF's schema 4.02); containers bring their own.
    limits : Limits
        Of a batch.

    Raises
    ------
    ValueError
        If the format is unknown, or if the schema is missing, cannot be understood or is not that of an alert.
    """

    def __init__(self, format: str = CONTAINER, schema_text: str = "", limits: Limits = Limits()) -> None:  # noqa: B008
        self._limits = limits
        self._headers = HeaderCache()
        self._schema = message_schema(format, schema_text or _json_schema_text() if format == JSON else schema_text)
        missing = self._schema.layout.missing if self._schema else []
        if missing:
            raise SchemaError(f"not the schema of a ZTF alert: it has no {', '.join(missing)}")
        self._encoder = json_records(self._schema.text) if self._schema and format == JSON else None

    def decode(self, numbers: Sequence[int], values: Sequence[bytes | None], source: Source) -> Iterator[Item]:
        """Decode messages; whatever they hold, nothing raises.

        Parameters
        ----------
        numbers : sequence of int
            Of the messages within the source: their offsets. They become the names of the packets.
        values : sequence of bytes or None
        source : Source

        Yields
        ------
        AlertBatch, DeadLetter or EmptyContainer
        """
        yield from without_value(numbers, values, source)
        if self._schema is None:
            for portion in portions_of(numbers, values, self._limits):
                yield from decode_portion(portion, source, self._headers, self._limits)
            return
        if self._encoder is not None:
            values, letters = _encoded(self._encoder, numbers, values, source)
            yield from letters
        for portion in portions_of(numbers, values, self._limits):
            yield from decode_bodies(portion, self._schema, source, self._limits)


def _encoded(
    encoder: JsonRecords, numbers: Sequence[int], values: Sequence[bytes | None], source: Source
) -> tuple[list[bytes | None], list[DeadLetter]]:
    """Bodies of records, None for what becomes a letter."""
    bodies: list[bytes | None] = []
    letters: list[DeadLetter] = []
    for number, value in zip(numbers, values, strict=True):
        body = None
        if value:
            try:
                body = encoder.encode(parse_object(value))
            except JsonError as error:
                letters.append(_undecodable(str(error), source, number, value))
        bodies.append(body)
    return bodies, letters


def message_schema(format: str, schema_text: str) -> WriterSchema | None:
    """Schema that messages of a format are read by; None where they bring their own, or need none.

    Raises
    ------
    ValueError
    """
    if format not in FORMATS:
        raise ValueError(f"the format of messages must be one of {', '.join(FORMATS)}, not {format!r}")
    if format == SCHEMALESS and not schema_text:
        raise ValueError("messages without a schema can be read only if their schema is given")
    return writer_schema(schema_text) if format != CONTAINER and schema_text else None


def _json_schema_text() -> str:
    return json.dumps(load_schema(_JSON_SCHEMA))


def _undecodable(reason: str, source: Source, number: int, value: bytes) -> DeadLetter:
    return DeadLetter("decode", reason, source.location, str(number), value[:MAX_PAYLOAD_BYTES])


def without_value(numbers: Sequence[int], values: Sequence[bytes | None], source: Source) -> Iterator[DeadLetter]:
    """Letters of the messages that hold nothing, which :func:`portions_of` leaves out."""
    if not all(values):
        for number, value in zip(numbers, values, strict=True):
            if not value:
                yield _undecodable(_NO_VALUE if value is None else "an empty message", source, number, b"")


def portions_of(numbers: Sequence[int], values: Sequence[bytes | None], limits: Limits) -> Iterator[Portion]:
    """Put messages together to portions within limits; a message alone may be larger.

    Parameters
    ----------
    numbers : sequence of int
        Names of the packets.
    values : sequence of bytes or None
        Those that hold nothing are left out.
    limits : Limits
    """
    names: list[int] = []
    texts: list[bytes] = []
    held = 0
    for number, value in zip(numbers, values, strict=True):
        if not value:
            continue
        if texts and (len(texts) >= limits.alerts or held + len(value) > limits.bytes):
            yield _portion(names, texts)
            names, texts, held = [], [], 0
        names.append(number)
        texts.append(value)
        held += len(value)
    if texts:
        yield _portion(names, texts)


def _portion(numbers: list[int], texts: list[bytes]) -> Portion:
    ends = np.cumsum([len(text) for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    data = np.frombuffer(b"".join(texts), dtype=np.uint8)
    return Portion(data, numbers[0], [str(number) for number in numbers], starts.tolist(), ends.tolist())
