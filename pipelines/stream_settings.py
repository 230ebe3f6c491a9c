"""What the variables of ALeRCE's steps say of a stream, and the settings of clients made of it.

None is what nothing says. Options come over variables by :func:`dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from alerts.messages import CONTAINER as CONTAINER
from alerts.messages import JSON as JSON
from alerts.messages import SCHEMALESS as SCHEMALESS
from messaging.settings import (
    COMMITTED,
    MAX_MESSAGE_BYTES,
    ConsumerSettings,
    ExtraEntry,
    Kafka,
    MetricsSettings,
    ProducerSettings,
    Topics,
)
from messaging.topics import DailyTopics
from pipelines.environment import Environment
from pipelines.usage import UsageError

XMATCH: Final = "xmatch"
LATE_CLASSIFICATION: Final = "late_classification"
ALL: Final = "all"

PROMETHEUS_PORT: Final = 8000
# Names of the classes of ALeRCE's steps, which their metrics messages carry as their source (alerce.md 3.4).
_SOURCES: Final = {XMATCH: "XmatchStep", LATE_CLASSIFICATION: "LateClassifier", ALL: "alertbeam"}
# What the metrics messages list of each message read (alerce.md 1.8). A candid is text, since many readers of JSON
# round numbers of 18 digits.
_EXTRA: Final = (ExtraEntry("candid", format="{}"), ExtraEntry("oid"))


@dataclass(frozen=True)
class ClusterEnvironment:
    """How brokers are reached.

    Attributes
    ----------
    server : str, optional
        ``host:port``, several separated by commas.
    username, password : str, optional
        Both or neither.
    options : tuple of pairs of str
        Further properties of librdkafka; never shown, for they may hold passwords.
    """

    server: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def kafka(self, missing: str) -> Kafka:
        """Give the cluster to connect to.

        Raises
        ------
        UsageError
            With the sentence given, if no broker is named.
        """
        if self.server is None:
            raise UsageError(missing)
        return Kafka(self.server, self.username or "", self.password or "", self.options)


@dataclass(frozen=True)
class ConsumerEnvironment(ClusterEnvironment):
    """What is read from Kafka.

    Attributes
    ----------
    topics : tuple of str or DailyTopics, optional
    group : str, optional
        Name under which offsets are committed.
    start : str, optional
        As of :class:`~messaging.settings.ConsumerSettings`.
    stop_at_end : bool, optional
    max_messages : int, optional
    timeout_s : float, optional
        Seconds.
    message_format : str, optional
        ``container``, ``schemaless`` or ``json``.
    schema_path : str, optional
        Schema (``.avsc``) of messages that carry none.
    """

    topics: Topics | None = None
    group: str | None = None
    start: str | None = None
    stop_at_end: bool | None = None
    max_messages: int | None = None
    timeout_s: float | None = None
    message_format: str | None = None
    schema_path: str | None = None

    def settings(self, stop_file: str = "") -> ConsumerSettings:
        """Give the settings of a consumer.

        Raises
        ------
        UsageError
            If brokers, topics, group or schema are missing; the sentence says what to set.
        """
        kafka = self.kafka(
            "no brokers to read from: name them by --server or CONSUMER_SERVER, for example localhost:9092"
        )
        if not self.topics:
            raise UsageError(
                "no topic to read: name them by --topics or CONSUMER_TOPICS, separated by commas, or those of a day by "
                "--daily-topics or TOPIC_STRATEGY_FORMAT, such as ztf_%s_programid1"
            )
        if self.group is None:
            raise UsageError(
                "no consumer group: name it by --group or CONSUMER_GROUP_ID; this stream's offsets are kept under it"
            )
        if self.message_format == SCHEMALESS and self.schema_path is None:
            raise UsageError(
                "messages without a schema cannot be read without one: name their schema (.avsc) by --schema or "
                "CONSUMER_SCHEMA_PATH, or set CONSUMER_CLASS to apf.consumers.KafkaConsumer if they are Avro containers"
            )
        given = {"max_messages": self.max_messages, "timeout_s": self.timeout_s}
        return ConsumerSettings(
            kafka=kafka,
            topics=self.topics,
            group=self.group,
            start=self.start or COMMITTED,
            stop_at_end=bool(self.stop_at_end),
            stop_file=stop_file,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ProducerEnvironment(ClusterEnvironment):
    """What is written to Kafka.

    Attributes
    ----------
    topic : str or DailyTopics, optional
    max_message_bytes : int, optional
    schemaless : bool, optional
        Messages hold the bare record.
    schema_path : str, optional
        ``PRODUCER_SCHEMA_PATH``, which is not used: the schema follows from what is read.
    """

    topic: str | DailyTopics | None = None
    max_message_bytes: int | None = None
    schemaless: bool | None = None
    schema_path: str | None = None

    def settings(self) -> ProducerSettings | None:
        """Give the settings of a producer; None if neither brokers nor a topic are named.

        Raises
        ------
        UsageError
            If one of them is missing; the sentence says what to set.
        """
        if self.server is None and self.topic is None:
            return None
        kafka = self.kafka("PRODUCER_TOPIC without brokers to write to: set PRODUCER_SERVER as well, or neither")
        if self.topic is None:
            raise UsageError(
                "PRODUCER_SERVER without a topic to write: set PRODUCER_TOPIC, or PRODUCER_TOPIC_FORMAT for daily "
                "topics, or leave PRODUCER_SERVER out"
            )
        return ProducerSettings(kafka, self.topic, self.max_message_bytes or MAX_MESSAGE_BYTES)


@dataclass(frozen=True)
class MetricsEnvironment(ClusterEnvironment):
    """Where metrics messages go.

    Attributes
    ----------
    topic : str, optional
    source, survey : str, optional
    extra : tuple of ExtraEntry, optional
    """

    topic: str | None = None
    source: str | None = None
    survey: str | None = None
    extra: tuple[ExtraEntry, ...] | None = None

    def settings(self, step: str) -> MetricsSettings | None:
        """Give the settings of a step's metrics messages; None if neither brokers nor a topic are named.

        Raises
        ------
        UsageError
            If one of them is missing; the sentence says what to set.
        """
        if self.server is None and self.topic is None:
            return None
        kafka = self.kafka("METRICS_TOPIC without brokers to write to: set METRICS_HOST as well, or neither")
        if self.topic is None:
            raise UsageError("METRICS_HOST without a topic to write: set METRICS_TOPIC as well, or neither")
        return MetricsSettings(
            kafka=kafka,
            topic=self.topic,
            source=self.source or _SOURCES[step],
            survey=self.survey or "",
            extra=_EXTRA if self.extra is None else self.extra,
        )


@dataclass(frozen=True)
class StreamEnvironment:
    """What the variables of ALeRCE's steps, and the file that they may name, say.

    Attributes
    ----------
    environment : Environment
        Database, catalogues, step, retries and version of features, as for every command.
    consumer : ConsumerEnvironment
    producer : ProducerEnvironment
        Of what the step gives: enriched alerts in ``xmatch``, classifications in the other steps.
    metrics : MetricsEnvironment
    prometheus : bool, optional
        Serve metrics at port 8000.
    debug : bool, optional
        Log all.
    model_path, model_version : str, optional
    min_detections : int, optional
        Objects with fewer are not classified.
    notices : tuple of str
        Sentences about variables and keys that are not used, for the log.
    """

    environment: Environment
    consumer: ConsumerEnvironment = ConsumerEnvironment()
    producer: ProducerEnvironment = ProducerEnvironment()
    metrics: MetricsEnvironment = MetricsEnvironment()
    prometheus: bool | None = None
    debug: bool | None = None
    model_path: str | None = None
    model_version: str | None = None
    min_detections: int | None = None
    notices: tuple[str, ...] = ()
