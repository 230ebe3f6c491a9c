"""What a connection to Kafka needs to know; all of it can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Formatter
from typing import Final

from messaging.topics import DailyTopics

COMMITTED: Final = "committed"
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
STARTS: Final = (COMMITTED, EARLIEST, LATEST)
# What ALeRCE's steps allow (alerce.md 3.3).
MAX_MESSAGE_BYTES: Final = 6_291_456
COMPRESSIONS: Final = ("none", "gzip", "snappy", "lz4", "zstd")

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
        Further properties of librdkafka; they win over those that follow from the rest. Never shown, for they may hold
        passwords.
    """

    servers: str
    username: str = ""
    password: str = field(default="", repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

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
    compression : str
        One of :data:`COMPRESSIONS`. Of enriched alerts of 72 kB, ``zstd`` (at its fastest level) sends 43 kB each and
        ``lz4`` 50 kB; since fewer bytes are sent, it also needs the least processor time.
    delivery_timeout_s : float
        How long a message may wait for a broker that is away before its delivery has failed.

    Raises
    ------
    ValueError
        If one of them makes no sense; the message names it.
    """

    kafka: Kafka
    topic: str | DailyTopics
    max_message_bytes: int = MAX_MESSAGE_BYTES
    linger_ms: int = 50
    compression: str = "zstd"
    delivery_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1000 <= self.max_message_bytes <= 1_000_000_000:
            raise ValueError(
                f"the largest message must have 1,000 to 1,000,000,000 bytes, not {self.max_message_bytes:,}"
            )
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression {self.compression!r} is not one of {', '.join(COMPRESSIONS)}")
        if not 1000 * self.delivery_timeout_s > max(self.linger_ms, 0):
            raise ValueError(
                f"a delivery must be given more time than {self.linger_ms} ms, not {self.delivery_timeout_s} s"
            )


@dataclass(frozen=True)
class ExtraEntry:
    """An entry of APF's metrics messages that lists a value of each message (one of ``EXTRA_METRICS``, alerce.md 3.4).

    Attributes
    ----------
    key : str
        Name of the value, such as ``candid``.
    alias : str
        What the entry is called; as the key if empty.
    format : str
        As of :meth:`str.format`, for one value: ``{}`` gives numbers as text, which no reader of JSON rounds. The value
        as it is if empty.

    Raises
    ------
    ValueError
        If there is no key, or the format does not name one value.
    """

    key: str
    alias: str = ""
    format: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("an extra entry of the metrics messages needs a key, such as 'candid'")
        fields = [name for _, name, _, _ in Formatter().parse(self.format) if name is not None]
        if self.format and fields not in ([""], ["0"]):
            raise ValueError(
                f"the format of the extra entry {self.key!r} must hold {{}} once, as {self.format!r} does not"
            )

    @property
    def name(self) -> str:
        """Name of the entry in the message."""
        return self.alias or self.key


@dataclass(frozen=True)
class MetricsSettings:
    """Where APF's metrics messages go (alerce.md 3.4).

    Attributes
    ----------
    kafka : Kafka
    topic : str
    source, survey : str
        What the messages say of the step.
    extra : tuple of str or ExtraEntry
        Further entries; a name alone, such as ``candid``, is that of a value as it is.
    """

    kafka: Kafka
    topic: str
    source: str
    survey: str = ""
    extra: tuple[str | ExtraEntry, ...] = ()

    def entries(self) -> tuple[ExtraEntry, ...]:
        """Further entries, each with its name and format."""
        return tuple(ExtraEntry(entry) if isinstance(entry, str) else entry for entry in self.extra)


@dataclass(frozen=True)
class MonitorSettings:
    """What a stream tells about itself.

    Attributes
    ----------
    port : int, optional
        Of the Prometheus endpoint; none without one, any free one with 0.
    address : str
        That the endpoint listens at.
    metrics : MetricsSettings, optional
    stalled_after_s : float
        A stream that neither commits nor waits for messages for longer than this is not healthy.

    Raises
    ------
    ValueError
        If the port is none.
    """

    port: int | None = None
    address: str = "0.0.0.0"
    metrics: MetricsSettings | None = None
    stalled_after_s: float = 300.0

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65_535:
            raise ValueError(f"the port of the metrics endpoint must be 0 to 65535, not {self.port}")
