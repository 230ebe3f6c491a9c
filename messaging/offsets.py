"""Where reading begins, and how far it came: offsets of partitions."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from messaging.connection import forbidden, new_consumer
from messaging.settings import COMMITTED, LATEST, STARTS, ConsumerSettings, Kafka

_LOGGER = logging.getLogger(__name__)

# For one request.
REQUEST_S: Final = 5.0
COMMIT_PATIENCE_S: Final = 30.0
_REFUSED: Final = (
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_GROUP_ID,
)
_GROUP_IN_USE: Final = (
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
)

Partition = tuple[str, int]


def start_time_ms(start: str) -> int | None:
    """Read where to start: a time as milliseconds since 1970; None for one of :data:`~messaging.settings.STARTS`.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if start in STARTS:
        return None
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        words = ", ".join(STARTS)
        raise ValueError(f"{start!r} is no start: name {words}, or a time such as 2026-11-21T18:00:00") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def first_offsets(
    consumer: Consumer, partitions: Sequence[Partition], start: str, known: Mapping[Partition, int]
) -> dict[Partition, int]:
    """Ask the brokers where the reading of partitions begins.

    Parameters
    ----------
    consumer : Consumer
    partitions : sequence of partitions
        All exist and have a leader.
    start : str
        As in :class:`~messaging.settings.ConsumerSettings`.
    known : mapping
        Next offsets of partitions that were read before, which win over `start`.

    Raises
    ------
    KafkaException
        If a broker does not answer, or refuses.
    """
    ends = {partition: end_offsets(consumer, partition) for partition in partitions}
    wanted = {partition: known[partition] for partition in partitions if partition in known}
    fresh = [partition for partition in partitions if partition not in wanted]
    time_ms = start_time_ms(start)
    if fresh and time_ms is not None:
        asked = [TopicPartition(*partition, time_ms) for partition in fresh]
        for partition, offset in _offsets(consumer.offsets_for_times(asked, timeout=REQUEST_S)):
            wanted[partition] = offset if offset >= 0 else ends[partition][1]
    elif fresh and start == COMMITTED:
        asked = [TopicPartition(*partition) for partition in fresh]
        answer = _offsets(consumer.committed(asked, timeout=REQUEST_S))
        wanted |= {partition: offset for partition, offset in answer if offset >= 0}
    elif start == LATEST:
        wanted |= {partition: ends[partition][1] for partition in fresh}
    return {
        partition: readable_offset(partition, wanted.get(partition, ends[partition][0]), ends[partition])
        for partition in partitions
    }


def end_offsets(consumer: Consumer, partition: Partition) -> tuple[int, int]:
    """Ask for the first offset of a partition, and for that behind its last."""
    return consumer.get_watermark_offsets(TopicPartition(*partition), timeout=REQUEST_S)


def readable_offset(partition: Partition, offset: int, ends: tuple[int, int]) -> int:
    """Offset to go on from; what cannot be read any more is logged.

    Parameters
    ----------
    partition : Partition
    offset : int
        Up to which it was read.
    ends : tuple of int
        See :func:`end_offsets`.
    """
    low, high = ends
    if low <= offset <= high:
        return offset
    name = f"{partition[0]}/{partition[1]}"
    if offset > high:
        text = "%s was read up to offset %d, but now ends at %d: it was made anew and is read from its beginning"
        _LOGGER.error(text, name, offset, high)
    else:
        text = "%s: %d messages expired before they were read; it goes on at offset %d"
        _LOGGER.error(text, name, low - offset, low)
    return low


def commit_offsets(
    settings: ConsumerSettings, positions: Mapping[Partition, int], patience_s: float = COMMIT_PATIENCE_S
) -> bool:
    """Commit the next offsets of partitions; say whether the brokers have them all.

    What is already committed is not committed again. What a broker does not take within the patience (because there is
    none, as a rule) is logged, and tried once more with each later call.

    Parameters
    ----------
    settings : ConsumerSettings
        Their brokers and group; one connection of the process commits for both.
    positions : mapping
        By topic and partition.
    patience_s : float
        Seconds for trying again.
    """
    with _COMMITTERS_LOCK:
        key = (settings.kafka, settings.group)
        committer = _COMMITTERS.get(key)
        if committer is None:
            committer = _COMMITTERS[key] = _Committer(*key)
    return committer.commit(positions, patience_s)


class _Committer:
    def __init__(self, kafka: Kafka, group: str) -> None:
        self._kafka, self._group = kafka, group
        self._lock = threading.Lock()
        self._committed: dict[Partition, int] = {}
        self._waiting: dict[Partition, int] = {}
        self._failing = False
        # It has no partitions: the session bounds how long a commit waits for the group's coordinator.
        waiting = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500, "socket_timeout_ms": 10_000}
        self._consumer = new_consumer(kafka, group, lambda _: None, **waiting)

    def commit(self, positions: Mapping[Partition, int], patience_s: float) -> bool:
        with self._lock:
            self._waiting |= positions
            self._waiting = {
                partition: offset
                for partition, offset in self._waiting.items()
                if self._committed.get(partition) != offset
            }
            if not self._waiting:
                return True
            self._consumer.poll(0)
            give_up_at = time.monotonic() + (0.0 if self._failing else patience_s)
            tries = 0
            while (error := self._try()) is not None:
                if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART and self._forget_deleted():
                    continue
                tries += 1
                pause_s = min(5.0, 0.1 * 2**tries) * random.uniform(0.5, 1.0)
                if error.code() in (*_REFUSED, *_GROUP_IN_USE) or time.monotonic() + pause_s > give_up_at:
                    self._tell(error)
                    return False
                time.sleep(pause_s)
            if self._failing:
                _LOGGER.warning("offsets of group %s are committed again", self._group)
            self._failing = False
            return True

    def _try(self) -> KafkaError | None:
        if not self._waiting:
            return None
        offsets = [TopicPartition(*partition, offset) for partition, offset in sorted(self._waiting.items())]
        try:
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            return error.args[0]
        failed = None
        for answer in answers:
            partition = (answer.topic, answer.partition)
            if answer.error is None:
                self._committed[partition] = self._waiting.pop(partition)
            else:
                failed = answer.error
        return failed

    def _forget_deleted(self) -> bool:
        try:
            topics = self._consumer.list_topics(timeout=REQUEST_S).topics
        except KafkaException:
            return False
        gone = [partition for partition in self._waiting if partition[0] not in topics]
        for partition in gone:
            del self._waiting[partition]
        return bool(gone)

    def _tell(self, error: KafkaError) -> None:
        if self._failing:
            return
        self._failing = True
        if error.code() in _GROUP_IN_USE:
            reason = "other consumers are active in it; stop them or name another group"
        elif error.code() in _REFUSED:
            reason = forbidden(self._kafka, error)
        else:
            reason = error.str()
        _LOGGER.error("offsets of group %s are not committed, and will be tried again: %s", self._group, reason)


_COMMITTERS: dict[tuple[Kafka, str], _Committer] = {}
_COMMITTERS_LOCK = threading.Lock()


def _offsets(answers: Iterable[TopicPartition]) -> list[tuple[Partition, int]]:
    answers = list(answers)
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)
    return [((answer.topic, answer.partition), answer.offset) for answer in answers]
