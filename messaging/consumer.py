"""Reading the partitions of topics from Kafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from zlib import crc32

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from messaging.connection import BrokerError, Outage, forbidden, new_consumer
from messaging.offsets import REQUEST_S, Partition, end_offsets, first_offsets, readable_offset, start_time_ms
from messaging.settings import EARLIEST, LATEST, ConsumerSettings, Topics
from messaging.topics import DailyTopics

_LOGGER = logging.getLogger(__name__)

REFRESH_S: Final = 60.0
# What is taken at once is decoded at once.
POLL_BYTES: Final = 24 << 20
# While something is missing, it is looked for more often.
_RETRY_S: Final = 2.0
_CHECK_S: Final = 1.0
_STEP: Final = 100
_UNKNOWN: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class Message(NamedTuple):
    """A message of a topic; a timestamp that is not positive is none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class PartitionConsumer:
    """Reads partitions of topics: all of them, or a share of them that is always the same.

    Brokers that do not answer are waited for. Topics and partitions that appear later are read from their beginning
    on; daily topics that are no longer to be read are left when they are read to their end.

    Parameters
    ----------
    settings : ConsumerSettings
    index, splits : int
        Which share, of how many.
    positions : mapping, optional
        Next offset by topic and partition, up to which was read before; it wins over the settings' start. A partition
        that it does not name appeared later.
    refresh_s : float
        How often new topics and partitions are looked for.
    now : callable
        Time of the day, for daily topics.

    Raises
    ------
    ValueError
        If the settings' start is none.
    BrokerError
        If the options of the connection are wrong.
    """

    def __init__(
        self,
        settings: ConsumerSettings,
        index: int = 0,
        splits: int = 1,
        positions: Mapping[Partition, int] | None = None,
        refresh_s: float = REFRESH_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        start_time_ms(settings.start)
        self._settings, self._index, self._splits = settings, index, splits
        self._refresh_s, self._now = refresh_s, now
        self._next: dict[Partition, int] = dict(positions or {})
        self._start = settings.start if positions is None or settings.start != LATEST else EARLIEST
        self._started = False
        self._owned: set[Partition] = set()
        self._retired: set[Partition] = set()
        # Those whose next message expired.
        self._lost: set[Partition] = set()
        # Those that were at their end at some moment, and since when the others are.
        self._ended: set[Partition] = set()
        self._end_since: dict[Partition, float] = {}
        self._missing: set[str] = set()
        self._told: set[tuple[Any, ...]] = set()
        self._refresh_at = time.monotonic()
        self._outage = Outage(settings.kafka)
        self._consumer = new_consumer(settings.kafka, settings.group, self._heard)

    def poll(self) -> list[Message]:
        """Take what is there, up to the settings' number of messages and :data:`POLL_BYTES`; in order by partition.

        Waits for the first message only. Empty if there is none, if no topic exists, or if no broker answers.

        Raises
        ------
        BrokerError
            If waiting does not mend it.
        """
        self._outage.check()
        if time.monotonic() >= self._refresh_at:
            self._refresh()
        found: list[Message] = []
        size = 0
        wait_until = time.monotonic() + self._settings.timeout_s
        while len(found) < self._settings.max_messages and size < POLL_BYTES:
            if found:
                taken: list[Any] = self._consumer.consume(min(_STEP, self._settings.max_messages - len(found)), 0)
            else:
                # More than one would be waited for until all are there.
                taken = self._consumer.consume(1, max(0.0, wait_until - time.monotonic()))
            if not taken:
                break
            for raw in taken:
                if raw.error() is not None:
                    self._event(raw)
                    continue
                topic, partition, offset, value = raw.topic(), raw.partition(), raw.offset(), raw.value()
                found.append(Message(topic, partition, offset, raw.timestamp()[1], raw.key(), value))
                self._next[topic, partition] = offset + 1
                self._end_since.pop((topic, partition), None)
                size += len(value or b"")
        return found

    def is_started(self) -> bool:
        """Say whether the brokers have told which partitions there are, and where each begins."""
        return self._started

    def answers(self) -> bool:
        """Say whether the brokers answer, as far as is known."""
        return self._started and not self._outage.lasts

    def positions(self) -> dict[Partition, int]:
        """Next offset of each partition; before the start, as they were given."""
        return dict(self._next)

    def partitions(self) -> frozenset[Partition]:
        """Partitions that are read."""
        return frozenset(self._owned)

    def at_end(self) -> bool:
        """Say whether every partition has been read to its end, as it was at some moment since the start."""
        return self._started and all(
            partition in self._ended or partition[0] in self._missing for partition in self._owned
        )

    def idle(self, seconds: float) -> frozenset[Partition]:
        """Partitions that have been at their ends for at least so long."""
        before = time.monotonic() - seconds
        return frozenset(partition for partition, since in self._end_since.items() if since <= before)

    def lag(self) -> dict[Partition, int]:
        """Messages that are not read yet, by the brokers' latest answers; without partitions not heard of yet."""
        found = {}
        for partition in self._owned:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            if high >= 0:
                found[partition] = max(0, high - self._next[partition])
        return found

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _heard(self, error: KafkaError) -> None:
        self._outage.heard(error)
        if self._outage.suspected and not self._outage.lasts:
            self._refresh_at = time.monotonic()

    def _refresh_soon(self) -> None:
        self._refresh_at = min(self._refresh_at, time.monotonic() + _RETRY_S)

    def _event(self, raw: Any) -> None:
        partition, error = (raw.topic(), raw.partition()), raw.error()
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            if partition in self._owned:
                # Offsets behind the last message may belong to none.
                self._next[partition] = max(self._next[partition], raw.offset())
                self._ended.add(partition)
                self._end_since.setdefault(partition, time.monotonic())
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._lost.add(partition)
            self._refresh_at = time.monotonic()
        elif code in _UNKNOWN:
            self._refresh_soon()
        elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise BrokerError(forbidden(self._settings.kafka, error))
        elif error.fatal():
            raise BrokerError(f"Kafka at {self._settings.kafka.servers} ended the reading for good: {error.str()}")
        else:
            self._warn_once((partition, code), f"{partition[0]}/{partition[1]}: {error.str()}")

    def _refresh(self) -> None:
        try:
            self._update_partitions()
            self._go_on_behind_expired()
        except KafkaException as error:
            self._outage.failed(error.args[0])
            self._refresh_at = time.monotonic() + min(_RETRY_S, self._refresh_s)
            return
        self._outage.over()
        self._started = True
        self._start = EARLIEST if self._start == LATEST else self._start
        waits = not self._owned or (self._missing and not isinstance(self._settings.topics, DailyTopics))
        self._refresh_at = time.monotonic() + min(_RETRY_S if waits else self._refresh_s, self._refresh_s)

    def _update_partitions(self) -> None:
        wanted = topics_to_read(self._settings.topics, self._now())
        for partition in self._retired:
            del self._next[partition]
        self._retired = set()
        existing = self._existing_partitions(wanted)
        new = sorted(
            partition for partition in existing - self._owned if share_of(partition, self._splits) == self._index
        )
        if new:
            first = first_offsets(self._consumer, new, self._start, self._next)
            self._consumer.incremental_assign([TopicPartition(*partition, first[partition]) for partition in new])
            self._next |= first
            self._owned |= first.keys()
            _LOGGER.info("reading %d partitions of %s", len(new), ", ".join(sorted({topic for topic, _ in new})))
        self._retire(wanted)

    def _retire(self, wanted: tuple[str, ...]) -> None:
        done = {
            partition
            for partition in self._next
            if partition[0] not in wanted and (partition in self._end_since or partition[0] in self._missing)
        }
        if not done:
            return
        if left := sorted(done & self._owned):
            self._consumer.incremental_unassign([TopicPartition(*partition) for partition in left])
        self._owned -= done
        self._ended -= done
        for partition in done:
            self._end_since.pop(partition, None)
        # They stay in the positions for one more round, so that their last ones are committed.
        self._retired = done
        _LOGGER.info("no longer reading %s", ", ".join(sorted({topic for topic, _ in done})))

    def _existing_partitions(self, wanted: tuple[str, ...]) -> set[Partition]:
        described = self._consumer.list_topics(timeout=_CHECK_S if self._outage.suspected else REQUEST_S).topics
        found: set[Partition] = set()
        missing: set[str] = set()
        # Those begun are read to their end.
        for topic in {*wanted, *(topic for topic, _ in self._next)}:
            error = described[topic].error if topic in described else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                missing.add(topic)
            elif error is not None:
                raise KafkaException(error)
            else:
                for number, partition in described[topic].partitions.items():
                    if topic not in wanted and (topic, number) not in self._next:
                        continue
                    if partition.leader >= 0:
                        found.add((topic, number))
                    else:
                        self._warn_once((topic, number), f"{topic}/{number} has no leader; it is read when it has one")
        self._tell_missing(wanted, missing)
        self._missing = missing
        return found

    def _tell_missing(self, wanted: tuple[str, ...], missing: set[str]) -> None:
        for topic in self._missing - missing:
            self._told.discard((topic, "missing"))
        servers = self._settings.kafka.servers
        if not isinstance(self._settings.topics, DailyTopics):
            for topic in missing.intersection(wanted):
                self._warn_once((topic, "missing"), f"topic {topic} does not exist at {servers}; it is waited for")
        elif missing.issuperset(wanted):
            text = f"no topic from {wanted[0]} to {wanted[-1]} exists at {servers}; they are waited for"
            self._warn_once(("missing",), text)

    def _go_on_behind_expired(self) -> None:
        for partition in sorted(self._lost & self._owned):
            first = readable_offset(partition, self._next[partition], end_offsets(self._consumer, partition))
            self._consumer.incremental_unassign([TopicPartition(*partition)])
            self._consumer.incremental_assign([TopicPartition(*partition, first)])
            self._next[partition] = first
        self._lost.clear()

    def _warn_once(self, what: tuple[Any, ...], text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _LOGGER.warning("%s", text)


def topics_to_read(topics: Topics, now: datetime) -> tuple[str, ...]:
    """Names of the topics to read at a time of the day."""
    return topics.to_read(now) if isinstance(topics, DailyTopics) else topics


def share_of(partition: Partition, splits: int) -> int:
    """Number of the share that a partition always belongs to; those of a topic are spread evenly."""
    topic, number = partition
    return (crc32(topic.encode()) + number) % splits
