"""Metrics messages: what ALeRCE's framework tells of each batch, sent beside the stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from messaging.settings import ExtraEntry, MetricsSettings

_LOGGER = logging.getLogger(__name__)

# What a broker takes that nobody has configured, less the room for what Kafka adds.
MAX_MESSAGE_BYTES: Final = 1_000_000
# Of librdkafka. Messages wait for a broker no longer than this, and no more of them than fit.
_PRODUCER_OPTIONS: Final[Mapping[str, Any]] = {
    "queue.buffering.max.messages": 1000,
    "queue.buffering.max.kbytes": 16_384,
    "message.timeout.ms": 30_000,
    "compression.type": "lz4",
    # An outage is told once, by the sender; the client would repeat it for each try.
    "log_level": 0,
}
_ENCODING: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def utc_text(seconds: float) -> str:
    """Give a time [s since 1970] in ISO 8601, UTC, as the metrics messages do: ``2026-11-21T17:49:04.250000+00:00``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def metrics_message(
    settings: MetricsSettings,
    messages: int,
    received_at: float,
    sent_at: float,
    values: Mapping[str, Sequence[Any]],
) -> bytes:
    """Make the metrics message of a batch: JSON, as of APF (alerce.md 3.4).

    Parameters
    ----------
    settings : MetricsSettings
    messages : int
        In the batch.
    received_at, sent_at : float
        When the first of them was received, and now [s since 1970].
    values : mapping of str to sequence
        What the extra entries list, by key: a value of each message, in order. Entries of other keys are left out.

    Raises
    ------
    TypeError, ValueError
        If a format does not fit a value.

    Notes
    -----
    The lists of the extra entries are left out where they would make the message larger than
    :data:`MAX_MESSAGE_BYTES`. NaN and infinity are null.
    """
    message: dict[str, Any] = {
        "timestamp_received": utc_text(received_at),
        "timestamp_sent": utc_text(sent_at),
        "execution_time": round(sent_at - received_at, 6),
        "source": settings.source,
        "survey": settings.survey,
        "n_messages": messages,
    }
    extra = {entry.name: _formatted(entry, values[entry.key]) for entry in settings.entries() if entry.key in values}
    whole = orjson.dumps(message | {name: extra[name] for name in extra if name not in message}, _as_text, _ENCODING)
    return whole if len(whole) <= MAX_MESSAGE_BYTES else orjson.dumps(message)


def _formatted(entry: ExtraEntry, values: Sequence[Any]) -> list[Any]:
    return [entry.format.format(value) for value in values] if entry.format else list(values)


def _as_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class MetricsSender:
    """Sends metrics messages without ever stopping or delaying the caller.

    Messages wait in a bounded queue. One that finds it full, or that no broker takes in time, is counted and lost; the
    log tells of the first of an outage and of its end.

    Raises
    ------
    ValueError
        If the settings are none that a client of Kafka understands.
    """

    def __init__(self, settings: MetricsSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._sent = 0
        self._lost = 0
        self._lost_before_outage: int | None = None
        options = {**_PRODUCER_OPTIONS, **settings.kafka.client_options(), "error_cb": self._client_failed}
        try:
            self._producer = Producer(options)
        except KafkaException as error:
            raise ValueError(f"metrics messages cannot be sent: {error.args[0].str()}") from error

    @property
    def sent(self) -> int:
        """Messages that a broker has taken."""
        return self._sent

    @property
    def lost(self) -> int:
        """Messages that were given up."""
        return self._lost

    def send(
        self, messages: int, received_at: float, sent_at: float, values: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """Queue the message of a batch; see :func:`metrics_message`. Never raises, never waits."""
        try:
            value = metrics_message(self._settings, messages, received_at, sent_at, values or {})
            self._producer.produce(self._settings.topic, value, on_delivery=self._delivered)
        except BufferError:
            self._gave_up("too many of them wait for the broker")
        except KafkaException as error:
            self._gave_up(error.args[0].str())
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            self._gave_up(f"the message cannot be made: {error}")
        # Tells of earlier messages.
        self._producer.poll(0)

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait for what is queued, not longer than this; what still waits then is lost."""
        waiting = self._producer.flush(timeout_s)
        if waiting:
            self._producer.purge()
            self._producer.flush(1.0)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._gave_up(error.str())
            return
        with self._lock:
            self._sent += 1
            before, self._lost_before_outage = self._lost_before_outage, None
        if before is not None:
            _LOGGER.info("metrics messages are taken again; %d were lost", self._lost - before)

    def _client_failed(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._RESOLVE):
            self._outage(error.str())

    def _gave_up(self, why: str) -> None:
        self._outage(why)
        with self._lock:
            self._lost += 1

    def _outage(self, why: str) -> None:
        with self._lock:
            first = self._lost_before_outage is None
            if first:
                self._lost_before_outage = self._lost
        if first:
            _LOGGER.warning(
                "metrics messages do not reach topic %s at %s: %s; the stream goes on without them",
                self._settings.topic,
                self._settings.kafka.servers,
                why,
            )
