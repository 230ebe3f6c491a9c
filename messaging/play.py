"""Sending messages at a chosen pace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from messaging.producer import borrow, give_back
from messaging.settings import ProducerSettings

# Short waits would cost more than they are worth: what falls due meanwhile is sent together.
_SHORTEST_WAIT_S: Final = 0.002
_LONGEST_WAIT_S: Final = 0.1
_SECONDS_PER_DAY: Final = 86_400.0


class Played(NamedTuple):
    """A message to send.

    Attributes
    ----------
    key, value : bytes
        Without a key (empty) the messages go to all partitions in turn.
    jd : float
        Julian date at which it was first sent; NaN where unknown.
    """

    key: bytes
    value: bytes
    jd: float = math.nan


@dataclass(frozen=True)
class Pace:
    """When messages are due; without limits they are as fast as they can.

    Attributes
    ----------
    rate : float
        Most messages per second; 0 for no limit.
    speed : float
        So many times as fast as the Julian dates of the messages pass; 0 for no limit. A message that is older than
        one before it is sent at once.

    Raises
    ------
    ValueError
        If one of them is negative or infinite.
    """

    rate: float = 0.0
    speed: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("speed", self.speed)):
            if not 0 <= value < math.inf:
                raise ValueError(f"the {name} must be 0 or more, not {value}")


@dataclass
class PlayCounts:
    """What was sent so far; ``refused`` counts messages that are too large for the producer or its topic."""

    messages: int = 0
    bytes: int = 0
    refused: int = 0


def play(
    settings: ProducerSettings,
    messages: Iterable[Played],
    pace: Pace,
    counts: PlayCounts,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Send messages to a topic, in their order, and wait until the broker has taken them.

    Parameters
    ----------
    settings : ProducerSettings
    messages : iterable of Played
    pace : Pace
    counts : PlayCounts
        Counted further. After an interruption, a few that were on their way may have arrived and not be counted.
    progress : callable
        Called after every message, and while waiting for the next at least every 0.1 s.

    Raises
    ------
    messaging.producer.DeliveryError
        If the broker does not take them.
    """
    producer = borrow(settings)
    topic = producer.topic()
    clock = _Clock(pace)
    try:
        for message in messages:
            due = clock.due(message)
            while (left := due - time.monotonic()) > 0:
                producer.poll()
                progress()
                time.sleep(min(max(left, _SHORTEST_WAIT_S), _LONGEST_WAIT_S))
            if producer.fits(len(message.value), len(message.key)):
                producer.send(topic, message.key, message.value)
                counts.messages += 1
                counts.bytes += len(message.value)
            else:
                counts.refused += 1
            progress()
        refused = len(producer.flush())
        counts.messages -= refused
        counts.refused += refused
    finally:
        counts.messages -= producer.pending
        give_back(producer)


class _Clock:
    """Tells when messages are due."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._start = time.monotonic()
        self._number = 0
        self._first_jd = math.nan

    def due(self, message: Played) -> float:
        """Time of the monotonic clock."""
        wait_s = self._number / self._pace.rate if self._pace.rate else 0.0
        self._number += 1
        if self._pace.speed and not math.isnan(message.jd):
            if math.isnan(self._first_jd):
                self._first_jd = message.jd
            wait_s = max(wait_s, (message.jd - self._first_jd) * _SECONDS_PER_DAY / self._pace.speed)
        return self._start + wait_s
