"""Reading topics of Kafka into batches; the only module that knows Beam's unbounded sources."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Final

import apache_beam as beam
import numpy as np
import orjson
from apache_beam.coders import Coder
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from alerts.reader import EmptyContainer
from alerts.sources import Source
from messaging.consumer import Message, PartitionConsumer
from messaging.monitor import Committed, Monitor, monitor
from messaging.offsets import Partition, commit_offsets
from messaging.settings import ConsumerSettings, MonitorSettings
from transforms.counts import count
from transforms.dead_letters import DEAD_LETTERS, dead_letter
from transforms.feature_reading import FeatureBatch
from transforms.reading import BATCHES, keep_programs

BUNDLE_S: Final = 0.5
RECORDS_PER_BUNDLE: Final = 100
ALLOWED_LAG_S: Final = 3600.0
# A partition without a message for so long, at its end, holds no other back.
IDLE_S: Final = 30.0
# Counter of the messages taken.
MESSAGES: Final = "messages"
_LAG_TOLD_EVERY_S: Final = 5.0
_JD_OF_1970: Final = 2_440_587.5
_DAY_S: Final = 86_400.0

# A unit of work, and what came of one of its messages.
UnitItem = tuple[str, Any]
Decode = Callable[[Sequence[Message], Source], Iterable[Any]]


@dataclass
class ReadFromKafka(beam.PTransform):
    """Read topics into batches, at a pipeline's root.

    Gives the PCollections ``batches`` and ``dead_letters``. A batch holds messages of one partition that were taken at
    once. Offsets are committed when a bundle is finalized: when all that came of its messages is in the sinks. After a
    failure, messages that were not committed are read once more.

    The end of a reading (a stop file, or the end of all partitions if so wanted) ends the pipeline.

    Parameters
    ----------
    settings : ConsumerSettings
    decode : callable
        From messages of one partition and the :class:`~alerts.sources.Source` that names them to batches (AlertBatch,
        FeatureBatch), dead letters and empty containers; see :mod:`transforms.message_reading`. It can be pickled.
    monitor : MonitorSettings, optional
        Told of messages, commits and lags.
    splits : int
        Parts that are read side by side, each some of the partitions. One on a local runner, which reads them in turn.
    part : int
        Which of the parts to read, the others being read by other pipelines; all if it is negative.
    programs : tuple of int
        Wanted values of ``candidate.programid``; all if empty.
    bundle_s : float
        A bundle ends when messages were gathered for so long, and
    bundle_records : int
        at the latest when messages were taken so many times.
    allowed_lag_s : float
        By how much the watermark stays behind the newest alert.
    checkpointed : bool
        The runner finalizes bundles when a checkpoint is complete, as Flink does; see :class:`Finalized`.
    """

    settings: ConsumerSettings
    decode: Decode
    monitor: MonitorSettings | None = None
    splits: int = 1
    part: int = -1
    programs: tuple[int, ...] = ()
    bundle_s: float = BUNDLE_S
    bundle_records: int = RECORDS_PER_BUNDLE
    allowed_lag_s: float = ALLOWED_LAG_S
    checkpointed: bool = False

    def expand(self, root: beam.Pipeline) -> Any:
        """Apply to a pipeline."""
        source = KafkaSource(
            self.settings,
            self.decode,
            self.monitor,
            self.splits,
            self.part,
            self.allowed_lag_s,
            self.checkpointed,
        )
        read = (
            root
            | "Read messages"
            >> ReadFromUnboundedSource(
                source,
                poll_interval=0.05,
                max_records_per_bundle=self.bundle_records,
                max_read_time_seconds=self.bundle_s,
            )
            | "Tell batches and dead letters apart"
            >> beam.FlatMap(_tell_apart, self.programs).with_outputs(DEAD_LETTERS, main=BATCHES)
        )
        return {BATCHES: read[BATCHES], DEAD_LETTERS: read[DEAD_LETTERS]}


def _tell_apart(record: tuple[UnitItem, ...], programs: tuple[int, ...]) -> Iterator[Any]:
    for unit, item in record:
        match item:
            case DeadLetter():
                yield dead_letter(unit, item)
            case EmptyContainer():
                count("empty")
            case AlertBatch():
                count("read", len(item))
                yield from keep_programs(item, programs)
            case _:
                count("read", len(item))
                yield item


@dataclass(frozen=True)
class KafkaSource(UnboundedSource):
    """Topics as an unbounded source; a record is all that came of the messages taken at once.

    Parameters
    ----------
    settings, decode, monitor, splits, allowed_lag_s, checkpointed
        See :class:`ReadFromKafka`.
    index : int
        Which of the splits; -1 before it is split.
    """

    settings: ConsumerSettings
    decode: Decode
    monitor: MonitorSettings | None = None
    splits: int = 1
    index: int = -1
    allowed_lag_s: float = ALLOWED_LAG_S
    checkpointed: bool = False

    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        """Give the parts; how many is a setting."""
        if self.index >= 0:
            return [self]
        return [replace(self, index=index) for index in range(self.splits)]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        """Begin to read, or go on behind a mark."""
        assert checkpoint_mark is None or isinstance(checkpoint_mark, KafkaMark)
        return KafkaReader(self, checkpoint_mark)

    def get_checkpoint_mark_coder(self) -> Coder:
        """Coder of marks."""
        return MarkCoder(self.settings, self.monitor)


@dataclass
class Progress:
    """Messages that were handed out since the last mark.

    Attributes
    ----------
    messages : int
    timestamps_ms : list of int
        Kafka's, of each message.
    received_at : float
        When the first of them was taken [s since 1970].
    keys : dict of str to list
        Values for the metrics messages, by name.
    """

    messages: int = 0
    timestamps_ms: list[int] = field(default_factory=list)
    received_at: float = 0.0
    keys: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class KafkaMark(CheckpointMark):
    """How far topics were read: every message before it was handed out.

    Attributes
    ----------
    settings, monitor
        Whom to tell.
    positions : mapping or None
        Next offset by topic and partition; None before the brokers told where the partitions begin.
    progress : Progress
        Since the mark before; it does not outlive the process.
    finalized : Finalized, optional
        Marks of this split that are not committed yet; without it marks are committed as soon as the runner says that
        they may be.
    made_at_s : float
        On the clock of this process.
    """

    settings: ConsumerSettings
    monitor: MonitorSettings | None
    positions: Mapping[Partition, int] | None
    progress: Progress = field(default_factory=Progress)
    finalized: Finalized | None = None
    made_at_s: float = field(default_factory=time.monotonic)

    def finalize_checkpoint(self) -> None:
        """Commit the offsets, and tell the monitor of the messages, of this mark or of those that wait for it."""
        marks = [self] if self.finalized is None else self.finalized.take(self, time.monotonic())
        # In order: a partition's next offset may also go back, where a topic was made anew.
        positions = {place: offset for mark in marks for place, offset in (mark.positions or {}).items()}
        commit_offsets(self.settings, positions)
        for mark in marks:
            mark._tell()

    def _tell(self) -> None:
        done = self.progress
        if self.monitor is not None and done.messages:
            stamps = np.array(done.timestamps_ms, dtype=np.int64)
            monitor(self.monitor).committed(Committed(done.messages, stamps, done.received_at, done.keys))


class Finalized:
    """Marks of a split that the runner declared final, until a later checkpoint shows that they are.

    When a checkpoint of Flink is complete, Beam's runner for it finalizes all bundles that have ended by then: also
    those that ended behind the checkpoint's barrier, of which the stages behind a shuffle may not have written
    everything. The next barrier is behind them. So a mark is committed when one is finalized that was made after the
    mark itself had been finalized, which is then done for a later checkpoint.
    """

    def __init__(self) -> None:
        # With the times at which they were finalized.
        self._waiting: list[tuple[float, KafkaMark]] = []
        self._lock = threading.Lock()

    def take(self, mark: KafkaMark, now_s: float) -> list[KafkaMark]:
        """Keep a mark that is finalized now; give those that a complete checkpoint covers, the oldest first."""
        with self._lock:
            covered = [waiting for at_s, waiting in self._waiting if at_s < mark.made_at_s]
            self._waiting = [(at_s, waiting) for at_s, waiting in self._waiting if at_s >= mark.made_at_s]
            self._waiting.append((now_s, mark))
        return sorted(covered, key=lambda covered: covered.made_at_s)


class MarkCoder(Coder):
    """Writes the positions of marks; the same positions as the same bytes.

    Parameters
    ----------
    settings, monitor
        Of the marks that are read.
    """

    def __init__(self, settings: ConsumerSettings, monitor: MonitorSettings | None) -> None:
        self._settings, self._monitor = settings, monitor

    def encode(self, value: KafkaMark) -> bytes:
        """Write the positions as JSON: topics with their partitions and offsets."""
        if value.positions is None:
            return b"null"
        rows = sorted((topic, partition, offset) for (topic, partition), offset in value.positions.items())
        topics = [(topic, [row[1:] for row in some]) for topic, some in groupby(rows, key=lambda row: row[0])]
        return orjson.dumps(topics)

    def decode(self, encoded: bytes) -> KafkaMark:
        """Read a mark."""
        topics = orjson.loads(encoded)
        if topics is not None:
            topics = {(topic, partition): offset for topic, some in topics for partition, offset in some}
        return KafkaMark(self._settings, self._monitor, topics)

    def is_deterministic(self) -> bool:
        """Say yes."""
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MarkCoder) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self._settings, self._monitor))


class KafkaReader(UnboundedReader):
    """Hands out what comes of the messages of a source.

    Parameters
    ----------
    source : KafkaSource
    mark : KafkaMark, optional
        Where to go on.
    """

    def __init__(self, source: KafkaSource, mark: KafkaMark | None) -> None:
        self._source = source
        self._positions = None if mark is None else mark.positions
        self._reading = _reading_at(source, self._positions, None)
        self._monitor: Monitor | None = monitor(source.monitor) if source.monitor is not None else None
        self._key_names = _key_names(source.monitor)
        self._progress = Progress()
        self._record: tuple[UnitItem, ...] = ()
        self._event_time = MIN_TIMESTAMP
        self._ended = False
        self._tell_lag_at = 0.0

    def start(self) -> bool:
        """Take the first messages; say whether there are any."""
        return self.advance()

    def advance(self) -> bool:
        """Take the next messages; say whether there are any, after a short while."""
        self._reading = _reading_at(self._source, self._positions, self._reading)
        self._look_for_end()
        if self._ended:
            self._tell_lag(now=True)
            return False
        messages = self._consumer.poll()
        if self._consumer.is_started():
            self._positions = self._consumer.positions()
        self._tell_lag()
        if messages:
            self._take(messages)
            return True
        self._look_for_end()
        if self._ended:
            self._tell_lag(now=True)
        if self._monitor is not None and self._consumer.answers():
            self._monitor.idle()
        return False

    def get_current(self) -> tuple[UnitItem, ...]:
        """Give what came of the messages."""
        return self._record

    def get_current_timestamp(self) -> Timestamp:
        """Event time of the newest alert in the record."""
        return self._event_time

    def get_watermark(self) -> Timestamp:
        """Time before which no more alerts are awaited; the end of time behind the last."""
        if self._ended:
            return MAX_TIMESTAMP
        if not self._consumer.is_started():
            return MIN_TIMESTAMP
        watermark_s = self._reading.watermark.at(self._consumer.partitions(), self._consumer.idle(IDLE_S), time.time())
        return _timestamp(watermark_s)

    def get_checkpoint_mark(self) -> KafkaMark:
        """Mark behind all that was handed out."""
        progress, self._progress = self._progress, Progress()
        finalized = self._reading.finalized if self._source.checkpointed else None
        return KafkaMark(self._source.settings, self._source.monitor, self._positions, progress, finalized)

    def close(self) -> None:
        """Close the connections, unless another reader goes on with them."""
        self._reading.leave()

    @property
    def _consumer(self) -> PartitionConsumer:
        return self._reading.consumer

    def _look_for_end(self) -> None:
        settings = self._source.settings
        stopped = bool(settings.stop_file) and os.path.exists(settings.stop_file)
        self._ended = self._ended or stopped or (settings.stop_at_end and self._consumer.at_end())

    def _take(self, messages: list[Message]) -> None:
        now_s = time.time()
        count(MESSAGES, len(messages))
        if self._monitor is not None:
            self._monitor.received(len(messages))
        if not self._progress.messages:
            self._progress.received_at = now_s
        self._progress.messages += len(messages)
        self._progress.timestamps_ms.extend(message.timestamp_ms for message in messages)
        record: list[UnitItem] = []
        newest_s = -np.inf
        for partition, some in by_partition(messages).items():
            source = unit_of(some)
            items = list(self._source.decode(some, source))
            record.extend((source.name, item) for item in items)
            event_s = event_time_s(items, some, now_s)
            self._reading.watermark.saw(partition, event_s, now_s)
            newest_s = max(newest_s, event_s)
            for name in self._key_names:
                self._progress.keys.setdefault(name, []).extend(_keys(items, name))
        self._record, self._event_time = tuple(record), _timestamp(newest_s)

    def _tell_lag(self, now: bool = False) -> None:
        if self._monitor is not None and (now or time.monotonic() >= self._tell_lag_at):
            self._monitor.lag(self._consumer.lag())
            self._tell_lag_at = time.monotonic() + _LAG_TOLD_EVERY_S


class Reading:
    """Connections, watermark and marks of a split, for its readers in this process, of which one reads at a time.

    A worker of Beam has several copies of a transform. On Flink now one and now another of them goes on with a split,
    each with a reader of its own, and none of them should fetch again what was fetched already.

    Parameters
    ----------
    source : KafkaSource
    positions : mapping, optional
        See :class:`~messaging.consumer.PartitionConsumer`.
    """

    def __init__(self, source: KafkaSource, positions: Mapping[Partition, int] | None) -> None:
        self.consumer = PartitionConsumer(source.settings, max(source.index, 0), source.splits, positions)
        self.watermark = Watermark(source.allowed_lag_s)
        # Not for those who read once more from an earlier mark: what was final before is not, until it was done again.
        self.finalized = Finalized()
        self._key, self._given = _key_of(source), positions
        self._readers = 0

    def is_at(self, positions: Mapping[Partition, int] | None) -> bool:
        """Say whether what comes next is what a reader awaits that is at these positions."""
        return positions == (self.consumer.positions() if self.consumer.is_started() else self._given)

    def join(self) -> None:
        """Take up another reader."""
        self._readers += 1

    def leave(self) -> None:
        """Let a reader go; the last one closes the connections."""
        with _READINGS_LOCK:
            self._readers -= 1
            if self._readers:
                return
            if _READINGS.get(self._key) is self:
                del _READINGS[self._key]
        self.consumer.close()


_READINGS: dict[tuple[ConsumerSettings, int, int], Reading] = {}
_READINGS_LOCK = threading.Lock()


def _key_of(source: KafkaSource) -> tuple[ConsumerSettings, int, int]:
    return source.settings, source.index, source.splits


def _reading_at(source: KafkaSource, positions: Mapping[Partition, int] | None, own: Reading | None) -> Reading:
    """Give what a reader goes on with: its own, that of another reader if it is at the same positions, or a new one."""
    if own is not None and own.is_at(positions):
        return own
    with _READINGS_LOCK:
        found = _READINGS.get(_key_of(source))
        if found is None or not found.is_at(positions):
            found = _READINGS[_key_of(source)] = Reading(source, positions)
        found.join()
    if own is not None:
        own.leave()
    return found


class Watermark:
    """Time before which no more alerts are awaited, from what was seen of each partition.

    The partition that is farthest behind counts. One that is idle does not; if all are, time passes for the newest of
    them as it does on the clock.

    Parameters
    ----------
    allowed_lag_s : float
        By how much alerts may be older than the newest of their partition.
    """

    def __init__(self, allowed_lag_s: float = ALLOWED_LAG_S) -> None:
        self._allowed_lag_s = allowed_lag_s
        # Of each partition: event time of its newest alert, and when it was seen.
        self._newest: dict[Partition, tuple[float, float]] = {}
        self._watermark_s = -np.inf

    def saw(self, partition: Partition, event_s: float, now_s: float) -> None:
        """Take up the event time of an alert, no later than now."""
        if event_s > self._newest.get(partition, (-np.inf, 0.0))[0]:
            self._newest[partition] = (event_s, now_s)

    def at(self, partitions: frozenset[Partition], idle: frozenset[Partition], now_s: float) -> float:
        """Give the watermark, seconds since 1970; -infinity before it is known. It never goes back.

        Parameters
        ----------
        partitions : set of partitions
            Those that are read.
        idle : set of partitions
            Those of them that are idle.
        now_s : float
            The clock.
        """
        busy = partitions - idle
        if not partitions:
            # Other readers have them all, and are not to wait for this one.
            found = now_s
        elif busy:
            found = min(self._newest.get(partition, (-np.inf, 0.0))[0] for partition in busy)
        else:
            seen = [self._newest[partition] for partition in partitions if partition in self._newest]
            found = max((event_s + now_s - seen_at_s for event_s, seen_at_s in seen), default=-np.inf)
        self._watermark_s = max(self._watermark_s, min(found, now_s) - self._allowed_lag_s)
        return self._watermark_s


def by_partition(messages: Iterable[Message]) -> dict[Partition, list[Message]]:
    """Group messages, in order, by topic and partition."""
    found: dict[Partition, list[Message]] = {}
    for message in messages:
        found.setdefault((message.topic, message.partition), []).append(message)
    return found


def unit_of(messages: Sequence[Message]) -> Source:
    """Name messages of one partition that were taken at once, as a unit of work."""
    topic, partition, offset = messages[0][:3]
    # What stands before the first dot of a file's name is the unit; Kafka warns of topics that differ in this only.
    name = f"{topic.replace('.', '_')}-{partition}-{offset:012d}"
    location = f"kafka:{topic}/{partition}"
    return Source(name, location, (location,), first=offset)


def event_time_s(items: Iterable[Any], messages: Iterable[Message], now_s: float) -> float:
    """Time of the newest alert, seconds since 1970; without alerts that of the newest message, and without it now.

    Exposures of the future, which no alert can have, count as of now.
    """
    times = [alert_time_s(item) for item in items if isinstance(item, AlertBatch)]
    newest = max(times, default=-np.inf)
    if newest == -np.inf:
        newest = max(message.timestamp_ms for message in messages) / 1000
    return min(newest, now_s) if newest > 0 else now_s


def alert_time_s(batch: AlertBatch) -> float:
    """Time of the newest exposure (start) of a batch, seconds since 1970; -infinity if there is none after 1970."""
    jd = batch.jd
    real = jd[jd > _JD_OF_1970]
    return (float(real.max()) - _JD_OF_1970) * _DAY_S if len(real) else -np.inf


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds) if np.isfinite(seconds) else MIN_TIMESTAMP


def _key_names(settings: MonitorSettings | None) -> tuple[str, ...]:
    if settings is None or settings.metrics is None:
        return ()
    return tuple(entry.key for entry in settings.metrics.entries())


def _keys(items: Iterable[Any], name: str) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, FeatureBatch):
            found.extend(getattr(item.rows, name).to_pylist() if name in ("oid", "candid") else [])
        elif isinstance(item, AlertBatch):
            path = "objectId" if name == "oid" else name
            found.extend(item.arrow(path).to_pylist() if item.has(path) else [])
    return found
