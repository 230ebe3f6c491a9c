"""Producers of Kafka messages of which no loss goes unnoticed."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as Client

from messaging.settings import ProducerSettings
from messaging.topics import DailyTopics

_LOGGER = logging.getLogger(__name__)

# What waits in memory for the broker at most; a few requests keep a connection busy.
_QUEUE_BYTES: Final = 64 << 20
# Most of a message is compressed already: the fastest level is within 5 % of the bytes of the usual one.
_ZSTD_LEVEL: Final = 1
# What a request adds to a message alone in it; the client counts it in.
_ENVELOPE_BYTES: Final = 1024
_POLL_S: Final = 0.1
_CLOSE_S: Final = 1.0


class DeliveryError(RuntimeError):
    """Messages did not reach the broker; the message is one sentence."""


class Refused(NamedTuple):
    """A message that the broker takes under no circumstances.

    Attributes
    ----------
    token : object
        As given to :meth:`Producer.send`.
    reason : str
    """

    token: Any
    reason: str


class _Sent(NamedTuple):
    topic: str
    key: bytes
    value: bytes
    token: Any


class Producer:
    """Sends messages to Kafka, and tells what became of them.

    Idempotent: the client's own repetitions put no message into the topic twice and change no order. What the broker
    has not acknowledged within ``delivery_timeout_s`` has failed. Of one thread at a time.

    Parameters
    ----------
    settings : ProducerSettings

    Raises
    ------
    ValueError
        If the settings are none that a client of Kafka understands.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self.settings = settings
        self.broken = False
        self._failed: Counter[tuple[str, str]] = Counter()
        self._too_large: list[_Sent] = []
        self._trouble = ""
        try:
            self._client = Client(_options(settings) | {"error_cb": self._note_trouble})
        except KafkaException as error:
            raise ValueError(f"no messages can be sent to Kafka: {error.args[0].str()}") from error

    @property
    def pending(self) -> int:
        """Messages of which it is not known yet what becomes of them."""
        return len(self._client) + len(self._too_large)

    def topic(self, now: datetime | None = None) -> str:
        """Topic that messages go to now."""
        topic = self.settings.topic
        return topic.to_write(now or datetime.now(UTC)) if isinstance(topic, DailyTopics) else topic

    def fits(self, value_bytes: int, key_bytes: int = 0) -> bool:
        """Say whether a message is within the limit of size."""
        return value_bytes + key_bytes <= self.settings.max_message_bytes

    def send(self, topic: str, key: bytes, value: bytes, token: Any = None) -> None:
        """Queue a message; waits while too much is queued.

        Parameters
        ----------
        topic : str
        key, value : bytes
            Together of a size that :meth:`fits`.
        token : object, optional
            What the message is known by if it is refused.

        Raises
        ------
        DeliveryError
            If this message cannot be queued, or an earlier one failed.
        """
        report = partial(self._report, token)
        while True:
            try:
                self._client.produce(topic, value, key=key, on_delivery=report)
                return
            except BufferError:
                self._client.poll(_POLL_S)
                self._check()
            except KafkaException as error:
                self._note_failure(_Sent(topic, key, value, token), error.args[0])
                self._check()
                return

    def poll(self) -> bool:
        """Look at what became of messages, without waiting; say whether :meth:`flush` has something to give.

        Raises
        ------
        DeliveryError
            If any failed.
        """
        self._client.poll(0)
        self._check()
        return bool(self._too_large)

    def flush(self) -> list[Refused]:
        """Wait until the broker has taken all messages; give those that it refuses for their size.

        Raises
        ------
        DeliveryError
            If any failed for another reason.
        """
        self._wait()
        # The broker judges requests as a whole: each message gets a request of its own before it is given up.
        suspects, self._too_large = self._too_large, []
        refused = []
        for suspect in suspects:
            self.send(*suspect)
            self._wait()
            if self._too_large:
                self._too_large.clear()
                reason = f"{len(suspect.value) + len(suspect.key):,} bytes are more than topic {suspect.topic} takes"
                refused.append(Refused(suspect.token, reason))
        return refused

    def close(self) -> None:
        """Give up what is still queued, and the connection."""
        self.broken = True
        with suppress(KafkaException):
            self._client.purge()
            self._client.flush(_CLOSE_S)

    def _wait(self) -> None:
        # In portions, so that signals are heard.
        while self._client.flush(1.0):
            if self._failed:
                break
        self._check()
        if self._trouble:
            _LOGGER.info("Kafka at %s has taken all messages", self.settings.kafka.servers)
            self._trouble = ""

    def _check(self) -> None:
        if not self._failed:
            return
        self.broken = True
        (topic, reason), _ = self._failed.most_common(1)[0]
        number = self._failed.total()
        self._failed.clear()
        raise DeliveryError(
            f"{number:,} message{'s' if number > 1 else ''} for topic {topic} did not reach Kafka at "
            f"{self.settings.kafka.servers}: {reason}{self._trouble and f' ({self._trouble})'}"
        )

    def _report(self, token: Any, error: KafkaError, message: Message) -> None:
        """Called by the client for messages that failed."""
        sent = _Sent(message.topic() or "", _bytes(message.key()), _bytes(message.value()), token)
        self._note_failure(sent, error)

    def _note_failure(self, sent: _Sent, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._too_large.append(sent)
        else:
            self._failed[sent.topic, error.str()] += 1

    def _note_trouble(self, error: KafkaError) -> None:
        # The client repeats itself with every attempt, and its last word is only that all brokers are down.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            return
        if not self._trouble:
            _LOGGER.warning("Kafka at %s: %s; trying on", self.settings.kafka.servers, error.str())
        self._trouble = error.str()


def _bytes(part: bytes | str | None) -> bytes:
    return part.encode() if isinstance(part, str) else part or b""


def _options(settings: ProducerSettings) -> dict[str, Any]:
    """Properties of librdkafka; those of the connection win."""
    found: dict[str, Any] = {
        "enable.idempotence": True,
        "acks": "all",
        "message.max.bytes": min(settings.max_message_bytes + _ENVELOPE_BYTES, 1_000_000_000),
        "delivery.timeout.ms": round(1000 * settings.delivery_timeout_s),
        "linger.ms": settings.linger_ms,
        "compression.type": settings.compression,
        "queue.buffering.max.kbytes": max(_QUEUE_BYTES, 2 * settings.max_message_bytes) >> 10,
        "delivery.report.only.error": True,
        "reconnect.backoff.max.ms": 2000,
        # What the client would print itself.
        "log_level": 0,
    }
    if settings.compression == "zstd":
        found["compression.level"] = _ZSTD_LEVEL
    return found | settings.kafka.client_options()


_idle: dict[ProducerSettings, list[Producer]] = {}
_idle_lock = threading.Lock()


def borrow(settings: ProducerSettings) -> Producer:
    """Producer of this process that nobody else uses until it is given back; it stays connected in between.

    What fails is told to the one who sent it: a producer that several used at once would tell any of them.
    """
    with _idle_lock:
        waiting = _idle.get(settings)
        if waiting:
            return waiting.pop()
    return Producer(settings)


def give_back(producer: Producer) -> None:
    """Let others have a producer, unless it failed or still holds messages."""
    if producer.broken or producer.pending:
        producer.close()
        return
    with _idle_lock:
        _idle.setdefault(producer.settings, []).append(producer)
