"""How far a group has come in its topics, seen from outside of the processes that read them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from numpy.typing import NDArray

from messaging.connection import Outage, new_consumer
from messaging.consumer import topics_to_read
from messaging.offsets import REQUEST_S, Partition, commit_offsets, end_offsets, first_offsets
from messaging.settings import ConsumerSettings

_PAUSE_S: Final = 1.0
# Of ends of a partition, for which the arrival of messages is known.
_LOOKS_KEPT: Final = 3600


class Position(NamedTuple):
    """A partition at a moment.

    Attributes
    ----------
    committed : int or None
        Offset up to which everything is done; None if nothing was ever committed.
    first, end : int
        Offset of the first message that the brokers still have, and that behind the last.
    """

    committed: int | None
    first: int
    end: int

    @property
    def lag(self) -> int:
        """Messages that are not done."""
        return self.end - max(self.first, min(self.committed or 0, self.end))


class Group:
    """A group of consumers, looked at without being one of them.

    Brokers that do not answer are waited for.

    Parameters
    ----------
    settings : ConsumerSettings

    Raises
    ------
    BrokerError
        If the options of the connection are wrong, or the brokers refuse.
    """

    def __init__(self, settings: ConsumerSettings) -> None:
        self._settings = settings
        self._outage = Outage(settings.kafka)
        self._consumer = new_consumer(settings.kafka, settings.group, self._outage.heard)

    def positions(self) -> dict[Partition, Position] | None:
        """Ask how far the group has come in the partitions that there are; None if the brokers do not answer."""
        self._consumer.poll(0)
        self._outage.check()
        try:
            partitions = self._partitions()
            asked = [TopicPartition(*partition) for partition in partitions]
            answers = self._consumer.committed(asked, timeout=REQUEST_S) if asked else []
            found = {}
            for answer in answers:
                if answer.error is not None:
                    raise KafkaException(answer.error)
                partition = (answer.topic, answer.partition)
                committed = answer.offset if answer.offset >= 0 else None
                found[partition] = Position(committed, *end_offsets(self._consumer, partition))
        except KafkaException as error:
            self._outage.failed(error.args[0])
            return None
        self._outage.over()
        return found

    def move_to_start(self) -> Mapping[Partition, int]:
        """Commit where the settings' start begins, so that whoever goes on from what is committed begins there.

        Gives the next offset of each partition.
        """
        while True:
            try:
                begin = first_offsets(self._consumer, self._partitions(), self._settings.start, {})
            except KafkaException as error:
                self._outage.failed(error.args[0])
                self._outage.check()
                time.sleep(_PAUSE_S)
                continue
            if commit_offsets(self._settings, begin):
                self._outage.over()
                return begin
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _partitions(self) -> list[Partition]:
        described = self._consumer.list_topics(timeout=REQUEST_S).topics
        found = []
        for topic in topics_to_read(self._settings.topics, datetime.now(UTC)):
            if topic not in described:
                continue
            if (error := described[topic].error) is not None and error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(error)
            found += [(topic, number) for number, each in described[topic].partitions.items() if each.leader >= 0]
        return sorted(found)


class Arrivals:
    """When messages came to their partitions, from looks at where these end."""

    def __init__(self) -> None:
        # Of each partition: offset of its end, and the look before, at which the messages before it were not there.
        self._looks: dict[Partition, deque[tuple[int, float]]] = {}
        self._before_s = 0.0

    def look(self, positions: Mapping[Partition, Position], now_s: float) -> None:
        """Take up where the partitions end now, in seconds since 1970."""
        for partition, position in positions.items():
            looks = self._looks.setdefault(partition, deque([(position.end, 0.0)], maxlen=_LOOKS_KEPT))
            if position.end > looks[-1][0]:
                looks.append((position.end, self._before_s))
        self._before_s = now_s

    def times_ms(self, partition: Partition, begin: int, end: int) -> NDArray[np.int64]:
        """Give the time of each message from an offset to before another, milliseconds since 1970; 0 if unknown.

        It is the last look at which the message was not there: no later than it came, and earlier by no more than the
        time between two looks.
        """
        looks = self._looks.get(partition, ())
        ends = np.array([end for end, _ in looks], dtype=np.int64)
        times_s = np.array([*(time_s for _, time_s in looks), 0.0])
        return (1000 * times_s[np.searchsorted(ends, np.arange(begin, end), side="right")]).astype(np.int64)
