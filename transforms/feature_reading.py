"""From tables and messages of features to batches."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alerts.batch import AlertBatch
from alerts.container import (
    SYNC_BYTES,
    ContainerError,
    Header,
    HeaderCache,
    blocks,
    decompress,
    single_block_container,
)
from alerts.dead_letters import DeadLetter
from alerts.decode import Decoder, to_arrow_array
from alerts.layout import SchemaError, compile_layout
from alerts.reader import MAX_PAYLOAD_BYTES, EmptyContainer, Limits, Portion, read_portions
from alerts.sources import Source
from classifier.inputs import FeatureRows, identifier_column, rows_of_records, rows_of_table
from transforms.dead_letters import DEAD_LETTERS
from transforms.reading import ReadSources

FEATURE_BATCHES: Final = "features"
TABLE_ENDINGS: Final = (".csv", ".csv.gz", ".parquet")
_ROWS: Final = 5_000
_LIMITS: Final = Limits()
_FIELDS: Final = frozenset({"oid", "candid", "features"})
_INSIDE: Final = "features."


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of some objects, and where they come from.

    Attributes
    ----------
    unit : str
        Unit of work, which names what is written from it.
    source : str
        File, archive or folder.
    rows : FeatureRows
    messages : AlertBatch, optional
        The messages' bytes, if they come from messages.
    """

    unit: str
    source: str
    rows: FeatureRows
    messages: AlertBatch | None = None

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.rows)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> FeatureBatch:
        """Batch of some of the objects, by number or by mask."""
        messages = None if self.messages is None else self.messages.take(rows)
        return FeatureBatch(self.unit, self.source, self.rows.take(rows), messages)

    def letter(self, row: int, stage: str, reason: str) -> DeadLetter:
        """Dead letter of one object: its message, or its row of the table as CSV."""
        oid, candid = self.rows.oid[row].as_py(), self.rows.candid[row].as_py()
        if self.messages is None:
            return DeadLetter(stage, reason, self.source, str(oid), self._as_csv(row), candid=candid)
        member, payload = self.messages.members[row], self.messages.packet(row)
        return DeadLetter(stage, f"{oid}: {reason}", self.source, member, payload, candid=candid)

    def _as_csv(self, row: int) -> bytes:
        values = {name: [value] for name, value in zip(self.rows.names, self.rows.values[row].tolist(), strict=True)}
        sink = pa.BufferOutputStream()
        keys = {"oid": self.rows.oid.slice(row, 1), "candid": self.rows.candid.slice(row, 1)}
        pa.csv.write_csv(pa.table({**keys, **values}), sink)
        return sink.getvalue().to_pybytes()


def check_feature_table(path: str) -> dict[str, str]:
    """Look at the head of a table of features; give what it tells of itself, such as ``feature_mode``.

    Raises
    ------
    OSError
        If it cannot be read.
    InputRowsError
        If it has no column ``oid``.
    """
    with _arrow_errors(path):
        schema = (
            pq.read_schema(path)
            if path.endswith(".parquet")
            else pa.schema([(n, pa.string()) for n in _csv_header(path)])
        )
    try:
        identifier_column(schema.names)
    except ValueError as error:
        raise type(error)(f"{path}: {error}; a table of features has the columns oid and one per feature") from error
    told = {key: value for key, value in (schema.metadata or {}).items() if key.startswith(b"feature_")}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in told.items()}


def read_features(
    source: Source,
    wanted: frozenset[str],
    limits: Limits = _LIMITS,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[FeatureBatch | DeadLetter | EmptyContainer]:
    """Read a source of features in portions that fit in memory; what cannot be used becomes dead letters.

    Parameters
    ----------
    source : Source
        A table (``.parquet``, ``.csv``, ``.csv.gz``), or messages of the feature step in any form in which
        :func:`alerts.reader.read_source` finds packets.
    wanted : frozenset of str
        Names of features to take.

    Raises
    ------
    OSError
        If the source cannot be read at all.
    """
    if source.location.endswith(TABLE_ENDINGS) and not source.loose:
        yield from _read_table(source, wanted)
        progress(source.size)
        return
    reader = _MessageReader(source, wanted, limits)
    for item in read_portions(source, limits, progress):
        if isinstance(item, Portion):
            yield from reader.read(item)
        else:
            yield item


class ReadFeatures(beam.PTransform):
    """Read sources into batches of features.

    Gives the PCollections ``features`` (of :class:`FeatureBatch`) and ``dead_letters``.

    Parameters
    ----------
    wanted : frozenset of str
        Names of features to take.
    limits : Limits
        Of a portion.
    progress_folder : str
        Where to note how far it is; nowhere if empty.
    """

    def __init__(self, wanted: frozenset[str], limits: Limits = _LIMITS, progress_folder: str = "") -> None:
        super().__init__()
        self._wanted, self._limits, self._progress_folder = wanted, limits, progress_folder

    def expand(self, sources: beam.PCollection) -> Any:
        """Apply to a PCollection of :class:`~alerts.sources.Source`."""
        read = partial(read_features, wanted=self._wanted, limits=self._limits)
        reading = ReadSources(read, self._progress_folder)
        return sources | beam.ParDo(reading).with_outputs(DEAD_LETTERS, main=FEATURE_BATCHES)


# -- tables ----------------------------------------------------------------------------------------------------------


@contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
    """Give what Arrow finds wrong with a file the type of a file's error."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(f"{path}: cannot be read as a table ({str(error)[:200]})") from error


def _read_table(source: Source, wanted: frozenset[str]) -> Iterator[FeatureBatch | DeadLetter]:
    letters: list[DeadLetter] = []
    with _arrow_errors(source.location):
        for table in _tables(source.location, wanted, letters):
            rows, faults = rows_of_table(table, wanted)
            yield from letters
            letters.clear()
            yield from _sound(FeatureBatch(source.name, source.location, rows), faults)
    yield from letters


def _sound(batch: FeatureBatch, faults: dict[int, str]) -> Iterator[FeatureBatch | DeadLetter]:
    """Set aside the rows at fault."""
    for row, reason in sorted(faults.items()):
        yield batch.letter(row, "decode", reason)
    good = np.ones(len(batch), np.bool_)
    good[list(faults)] = False
    if good.any():
        yield batch.take(good) if faults else batch


def _tables(path: str, wanted: frozenset[str], letters: list[DeadLetter]) -> Iterator[pa.RecordBatch]:
    if path.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow.names, wanted)
            yield from file.iter_batches(batch_size=_ROWS, columns=columns)
        return

    def set_aside(row: pa.csv.InvalidRow) -> str:
        reason = f"the line has {row.actual_columns} cells instead of {row.expected_columns}"
        letters.append(DeadLetter("read", reason, path, row.text.partition(",")[0], row.text.encode()))
        return "skip"

    columns = _columns(_csv_header(path), wanted)
    # As text: a number's column may begin with a million empty cells.
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), null_values=[], include_columns=columns
    )
    parse = pa.csv.ParseOptions(invalid_row_handler=set_aside)
    with pa.csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            for first in range(0, len(batch), _ROWS):
                yield batch.slice(first, _ROWS)


def _columns(names: list[str], wanted: frozenset[str]) -> list[str]:
    keys = (identifier_column(names), "candid")
    return [name for name in dict.fromkeys(names) if name in wanted or name in keys]


def _csv_header(path: str) -> list[str]:
    parse = pa.csv.ParseOptions(invalid_row_handler=lambda _: "skip")
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        return reader.schema.names


# -- messages --------------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Blocks of one writer schema, inflated."""

    header: Header
    texts: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


class _MessageReader:
    def __init__(self, source: Source, wanted: frozenset[str], limits: Limits) -> None:
        self._source, self._wanted, self._limits = source, wanted, limits
        self._headers = HeaderCache()
        self._decoders: dict[str, Decoder] = {}
        self._fields = _FIELDS | {_INSIDE + name for name in wanted}

    def read(self, portion: Portion) -> Iterator[FeatureBatch | DeadLetter | EmptyContainer]:
        """Decode packets in memory."""
        groups: dict[int, _Group] = {}
        inflated = 0
        view, location = portion.data.data, self._source.location
        for name, start, end in zip(portion.names, portion.starts, portion.ends, strict=True):
            good: list[bytes] = []
            counts: list[int] = []
            problem = ""
            try:
                header = self._headers.find(view, start, end)
                self._decoder(header)
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
            group = groups.setdefault(id(header), _Group(header))
            group.texts += good
            group.counts += counts
            group.members += [name] * len(good)
            inflated += sum(map(len, good))
            if inflated >= self._limits.bytes:
                for full in groups.values():
                    yield from self._decode(full, portion.first)
                groups, inflated = {}, 0
        for group in groups.values():
            yield from self._decode(group, portion.first)

    def _decoder(self, header: Header) -> Decoder:
        text = header.schema.text
        if text not in self._decoders:
            layout = compile_layout(header.schema.parsed, self._fields)
            if "oid" not in layout.columns or layout.columns["oid"].kind != "string":
                raise ContainerError("not a message of the feature step: its schema has no text oid")
            if not layout.compiled:
                raise ContainerError("not a message of the feature step: its schema contains itself")
            self._decoders[text] = Decoder(layout)
        return self._decoders[text]

    def _decode(self, group: _Group, first: int) -> Iterator[FeatureBatch | DeadLetter]:
        decoder, schema = self._decoder(group.header), group.header.schema
        data = np.frombuffer(b"".join(group.texts), np.uint8)
        ends = np.cumsum([len(text) for text in group.texts], dtype=np.int64)
        starts = ends - np.array([len(text) for text in group.texts], np.int64)
        counts, members = np.array(group.counts, np.int64), np.array(group.members, dtype=object)
        while len(starts):
            records = decoder.decode(data, starts, ends, counts)
            for failure in records.failures:
                block = failure.block
                body = data[starts[block] : ends[block]].tobytes()
                payload = single_block_container(schema, body, int(counts[block]))[:MAX_PAYLOAD_BYTES]
                yield DeadLetter(
                    "decode",
                    failure.reason,
                    self._source.location,
                    members[block],
                    payload,
                    failure.position - int(starts[block]),
                )
            spoilt = [failure.block for failure in records.failures if counts[failure.block] == 1]
            messages = AlertBatch(
                schema,
                self._source.location,
                self._source.name,
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
        if any(path.startswith(_INSIDE) for path in messages.values):
            rows, faults = _rows_of_columns(messages)
        else:
            # A map of features has no columns to decode into.
            schema = fastavro.parse_schema(messages.schema.parsed)
            records = [_record(messages.record(row), schema) for row in range(len(messages))]
            rows, faults = rows_of_records(records, self._wanted)
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
        yield from _sound(FeatureBatch(messages.unit, messages.source, rows, light), faults)


def _record(body: memoryview, schema: Any) -> dict[str, Any]:
    record = fastavro.schemaless_reader(io.BytesIO(body), schema, None)
    assert isinstance(record, dict)
    return record


def _rows_of_columns(messages: AlertBatch) -> tuple[FeatureRows, dict[int, str]]:
    paths = [path for path in messages.values if path.startswith(_INSIDE)]
    values = np.empty((len(messages), len(paths)))
    for number, path in enumerate(paths):
        values[:, number] = messages.numbers(path)
    oid = to_arrow_array(messages.values["oid"], messages.buffer)
    candid = pa.nulls(len(messages), pa.int64())
    if "candid" in messages.values:
        candid = to_arrow_array(messages.values["candid"], messages.buffer).cast(pa.int64())
    absent = None
    if "features" in messages.values:
        there = messages.values["features"]
        absent = np.repeat(~((there.valid != 0) & (there.data != 0))[:, None], len(paths), axis=1)
    names = tuple(path.removeprefix(_INSIDE) for path in paths)
    empty = [row for row, text in enumerate(oid.is_null().to_pylist()) if text] if oid.null_count else []
    faults = dict.fromkeys(empty, "oid is missing")
    return FeatureRows(oid, candid, names, values, absent), faults
