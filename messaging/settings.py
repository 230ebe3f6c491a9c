"""What a connection to Kafka needs to know; all of it can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from messaging.topics import DailyTopics

COMMITTED: Final = "committed"
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
STARTS: Final = (COMMITTED, EARLIEST, LATEST)
# What ALeRCE's steps allow (alerce.md 3.3).
MAX_MESSAGE_BYTES: Final = 6_291_456

Topics = tuple[str, ...] | DailyTopics


@dataclass(frozen=True)
class Kafka:
    """A cluster of brokers.

    Attributes
    ----------
    servers : str
        ``host:port``, several separated by commas.
    username, password : str
        With both, the connection is encrypted and authenticated by SCRAM-SHA-512, as in ALeRCE's steps.
    options : tuple of pairs of str
        Further properties of librdkafka; they win over those that follow from the rest.
    """

    servers: str
    username: str = ""
    password: str = field(default="", repr=False)
    options: tuple[tuple[str, str], ...] = ()

    def client_options(self) -> dict[str, str]:
        """Properties of librdkafka for any client."""
        found = {"bootstrap.servers": self.servers, "client.id": "alertbeam"}
        if self.username and self.password:
            found |= {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": self.username,
                "sasl.password": self.password,
            }
        return found | dict(self.options)


@dataclass(frozen=True)
class ConsumerSettings:
    """What is read, and from where on.

    Attributes
    ----------
    kafka : Kafka
    topics : tuple of str or DailyTopics
    group : str
        Name under which offsets are committed.
    start : str
        ``committed``, ``earliest``, ``latest``, or a time in ISO 8601 (UTC if it names no zone). Where nothing is
        committed yet, ``committed`` is ``earliest``.
    stop_at_end : bool
        End when every partition is read to its end.
    max_messages : int
        Messages taken at once.
    timeout_s : float
        Longest wait for the first of them.
    stop_file : str
        The reading ends as soon as this file exists; never if empty.
    """

    kafka: Kafka
    topics: Topics
    group: str
    start: str = COMMITTED
    stop_at_end: bool = False
    max_messages: int = 1000
    timeout_s: float = 0.2
    stop_file: str = ""


@dataclass(frozen=True)
class ProducerSettings:
    """Where messages are written to.

    Attributes
    ----------
    kafka : Kafka
    topic : str or DailyTopics
    max_message_bytes : int
        A larger message is not sent.
    linger_ms : int
        How long the client waits to fill a request.
    """

    kafka: Kafka
    topic: str | DailyTopics
    max_message_bytes: int = MAX_MESSAGE_BYTES
    linger_ms: int = 50


@dataclass(frozen=True)
class MetricsSettings:
    """Where APF's metrics messages go (alerce.md 3.4).

    Attributes
    ----------
    kafka : Kafka
    topic : str
    source, survey : str
        What the messages say of the step.
    extra : tuple of str
        Names of further entries, such as ``candid`` and ``oid``.
    """

    kafka: Kafka
    topic: str
    source: str
    survey: str = ""
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class MonitorSettings:
    """What a stream tells about itself.

    Attributes
    ----------
    port : int, optional
        Of the Prometheus endpoint; none without one.
    address : str
        That the endpoint listens at.
    metrics : MetricsSettings, optional
    """

    port: int | None = None
    address: str = "0.0.0.0"
    metrics: MetricsSettings | None = None
