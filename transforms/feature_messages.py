"""From messages of the feature step to batches of features: of both of ALeRCE's generations, in Avro and JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import fastavro
import numpy as np
import pyarrow as pa

from alerts.batch import AlertBatch
from alerts.container import (
    SYNC_BYTES,
    ContainerError,
    HeaderCache,
    WriterSchema,
    blocks,
    decompress,
    single_block_container,
)
from alerts.dead_letters import DeadLetter
from alerts.decode import Decoder, to_arrow_array
from alerts.json_records import JsonError, parse_object
from alerts.layout import SchemaError, compile_layout
from alerts.reader import MAX_PAYLOAD_BYTES, EmptyContainer, Limits, Portion
from alerts.sources import Source
from classifier.inputs import FeatureRows, newest_candid, rows_of_records
from transforms.feature_batch import FeatureBatch, MessageTexts, sound_rows

_ROWS: Final = 5_000
_FIELDS: Final = frozenset({"oid", "candid", "candid.item", "features"})
_INSIDE: Final = "features."
_CANDID_KINDS: Final = ("int", "long", "string")


@dataclass
class _Group:
    """Blocks of one writer schema, inflated; `bare` if they are messages without a container."""

    schema: WriterSchema
    texts: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    bare: bool = False


Items = Iterator[FeatureBatch | DeadLetter | EmptyContainer]


class FeatureMessages:
    """Decodes messages of the feature step; what cannot be used becomes dead letters.

    Where the schema has a record of features, they are decoded by columns; a map of them is read one by one.

    Parameters
    ----------
    wanted : frozenset of str
        Names of features to take.
    limits : Limits
        Of what is inflated at once.
    """

    def __init__(self, wanted: frozenset[str], limits: Limits) -> None:
        self._wanted, self._limits = wanted, limits
        self._headers = HeaderCache()

    def containers(self, portion: Portion, source: Source) -> Items:
        """Decode containers in memory."""
        groups: dict[int, _Group] = {}
        inflated = 0
        view, location = portion.data.data, source.location
        for name, start, end in zip(portion.names, portion.starts, portion.ends, strict=True):
            good: list[bytes] = []
            counts: list[int] = []
            problem = ""
            try:
                header = self._headers.find(view, start, end)
                feature_decoder(header.schema, self._wanted)
                body = start + len(header.raw) + SYNC_BYTES
                if body > end:
                    raise ContainerError("the container ends in the middle of its header")
                for block in blocks(view, body, end, bytes(view[body - SYNC_BYTES : body])):
                    good.append(decompress(header.codec, view, block))
                    counts.append(block.count)
            except (ContainerError, SchemaError) as error:
                problem = str(error)
            if problem:
                yield DeadLetter(
                    "decode", problem, location, name, bytes(view[start : min(end, start + MAX_PAYLOAD_BYTES)])
                )
                if sum(counts) <= 1:
                    continue
            elif not sum(counts):
                yield EmptyContainer(location, name)
            group = groups.setdefault(id(header.schema), _Group(header.schema))
            group.texts += good
            group.counts += counts
            group.members += [name] * len(good)
            inflated += sum(map(len, good))
            if inflated >= self._limits.bytes:
                for full in groups.values():
                    yield from self._decode(full, source, portion.first)
                groups, inflated = {}, 0
        for group in groups.values():
            yield from self._decode(group, source, portion.first)

    def bodies(self, portion: Portion, schema: WriterSchema, source: Source) -> Items:
        """Decode records of a known schema without a container."""
        texts = [portion.data[start:end].tobytes() for start, end in zip(portion.starts, portion.ends, strict=True)]
        yield from self._decode(_Group(schema, texts, [1] * len(texts), portion.names, True), source, portion.first)

    def objects(self, portion: Portion, source: Source) -> Items:
        """Decode JSON objects."""
        names: list[str] = []
        texts: list[bytes] = []
        records: list[dict[str, Any]] = []
        for name, start, end in zip(portion.names, portion.starts, portion.ends, strict=True):
            text = portion.data[start:end].tobytes()
            try:
                records.append(parse_object(text))
            except JsonError as error:
                yield DeadLetter("decode", str(error), source.location, name, text[:MAX_PAYLOAD_BYTES])
                continue
            names.append(name)
            texts.append(text)
        for begin in range(0, len(records), _ROWS):
            part = slice(begin, begin + _ROWS)
            rows, faults = rows_of_records(records[part], self._wanted)
            messages = MessageTexts(tuple(names[part]), tuple(texts[part]))
            yield from sound_rows(FeatureBatch(source.name, source.location, rows, messages), faults)

    def _decode(self, group: _Group, source: Source, first: int) -> Iterator[FeatureBatch | DeadLetter]:
        decoder, schema = feature_decoder(group.schema, self._wanted), group.schema
        data = np.frombuffer(b"".join(group.texts), np.uint8)
        ends = np.cumsum([len(text) for text in group.texts], dtype=np.int64)
        starts = ends - np.array([len(text) for text in group.texts], np.int64)
        counts, members = np.array(group.counts, np.int64), np.array(group.members, dtype=object)
        while len(starts):
            records = decoder.decode(data, starts, ends, counts)
            for failure in records.failures:
                block = failure.block
                body = data[starts[block] : ends[block]].tobytes()
                payload = body if group.bare else single_block_container(schema, body, int(counts[block]))
                yield DeadLetter(
                    "decode",
                    failure.reason,
                    source.location,
                    members[block],
                    payload[:MAX_PAYLOAD_BYTES],
                    failure.position - int(starts[block]),
                )
            spoilt = [failure.block for failure in records.failures if counts[failure.block] == 1]
            messages = AlertBatch(
                schema,
                source.location,
                source.name,
                tuple(members[records.block]),
                first,
                data,
                records.start,
                records.end,
                records.columns,
            ).take(~np.isin(records.block, spoilt))
            for begin in range(0, len(messages), _ROWS):
                yield from self._batches(messages.take(np.arange(begin, min(begin + _ROWS, len(messages)))))
            done = records.blocks_done
            starts, ends, counts, members = starts[done:], ends[done:], counts[done:], members[done:]
            if len(starts):
                starts[0] = max(starts[0], records.position)
                counts[0] -= records.records_done

    def _batches(self, messages: AlertBatch) -> Iterator[FeatureBatch | DeadLetter]:
        if _has_columns(messages):
            rows, faults = _rows_of_columns(messages)
        else:
            records, unreadable = _records(messages)
            rows, faults = rows_of_records(records, self._wanted)
            faults |= unreadable
        light = AlertBatch(
            messages.schema,
            messages.source,
            messages.unit,
            messages.members,
            messages.first,
            messages.buffer,
            messages.start,
            messages.end,
            {},
        )
        yield from sound_rows(FeatureBatch(messages.unit, messages.source, rows, light), faults)


@lru_cache(maxsize=16)
def feature_decoder(schema: WriterSchema, wanted: frozenset[str]) -> Decoder:
    """Decoder of messages of the feature step.

    Raises
    ------
    ContainerError
        If the schema is not one of such messages.
    """
    layout = compile_layout(schema.parsed, _FIELDS | {_INSIDE + name for name in wanted})
    if "oid" not in layout.columns or layout.columns["oid"].kind != "string":
        raise ContainerError("not a message of the feature step: its schema has no text oid")
    if not layout.compiled:
        raise ContainerError("not a message of the feature step: its schema contains itself")
    return Decoder(layout)


def _records(messages: AlertBatch) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Decode messages one by one; where that fails, an empty record and the reason."""
    records: list[dict[str, Any]] = []
    faults: dict[int, str] = {}
    schema: Any = None
    for row in range(len(messages)):
        record: Any = {}
        try:
            schema = schema or fastavro.parse_schema(messages.schema.parsed)
            record = fastavro.schemaless_reader(io.BytesIO(messages.record(row)), schema, None)
        except Exception as error:  # whatever fastavro meets is the message's fault
            faults[row] = f"fastavro: {type(error).__name__}: {error}"[:200]
        records.append(record)
    return records, faults


def _has_columns(messages: AlertBatch) -> bool:
    """Say whether all that is wanted was decoded by columns: not features in a map, or a candid of several types."""
    features = any(path.startswith(_INSIDE) for path in messages.values)
    return features and (_candid_kind(messages) != "" or "candid" not in _fields(messages.schema.parsed))


def _fields(schema: Any) -> list[str]:
    while isinstance(schema["type"], dict):
        schema = schema["type"]
    return [item["name"] for item in schema["fields"]]


def _candid_kind(messages: AlertBatch) -> str:
    """Type of the column candid, ``length`` for a list of candids; empty if there is none that can be used."""
    values = messages.values
    if "candid" not in values:
        return ""
    kind = values["candid"].column.kind
    if kind == "length":
        usable = "candid.item" in values and values["candid.item"].column.kind in _CANDID_KINDS
    else:
        usable = kind in _CANDID_KINDS
    return kind if usable else ""


def _candids(messages: AlertBatch) -> tuple[pa.Array, dict[int, str]]:
    """Candid of each message, and what is wrong with some of them."""
    kind = _candid_kind(messages)
    if not kind:
        return pa.nulls(len(messages), pa.int64()), {}
    column = to_arrow_array(messages.values["candid" if kind != "length" else "candid.item"], messages.buffer)
    if kind in ("int", "long"):
        return column.cast(pa.int64()), {}
    items = column.to_pylist()
    if kind == "length":
        offsets = messages.offsets("candid").tolist()
        items = [items[first:last] for first, last in pairwise(offsets)]
    candids: list[int | None] = []
    faults: dict[int, str] = {}
    for row, item in enumerate(items):
        candids.append(None)
        try:
            candids[-1] = newest_candid(item)
        except ValueError as error:
            faults[row] = str(error)
    return pa.array(candids, pa.int64()), faults


def _rows_of_columns(messages: AlertBatch) -> tuple[FeatureRows, dict[int, str]]:
    paths = [path for path in messages.values if path.startswith(_INSIDE)]
    values = np.empty((len(messages), len(paths)))
    for number, path in enumerate(paths):
        values[:, number] = messages.numbers(path)
    oid = to_arrow_array(messages.values["oid"], messages.buffer)
    candid, faults = _candids(messages)
    absent = None
    if "features" in messages.values:
        there = messages.values["features"]
        absent = np.repeat(~((there.valid != 0) & (there.data != 0))[:, None], len(paths), axis=1)
    names = tuple(path.removeprefix(_INSIDE) for path in paths)
    if oid.null_count:
        faults |= {int(row): "oid is missing" for row in np.flatnonzero(oid.is_null())}
    return FeatureRows(oid, candid, names, values, absent), faults
