"""The variables of ALeRCE's steps that are about streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from messaging.offsets import start_time_ms
from messaging.settings import STARTS, Topics
from messaging.topics import DailyTopics
from pipelines.environment import DATABASE_VARIABLES, read_environment
from pipelines.step_file import METRICS_SCHEMA, NO_SCRIBE, SCHEMA_FOLLOWS, StepFile, read_step_file
from pipelines.stream_settings import (
    ALL,
    CONTAINER,
    JSON,
    LATE_CLASSIFICATION,
    SCHEMALESS,
    XMATCH,
    ConsumerEnvironment,
    MetricsEnvironment,
    ProducerEnvironment,
    StreamEnvironment,
)
from pipelines.usage import UsageError
from pipelines.variables import list_of, number_of, parse_switch, switch_of, text_of

# Where the containers of ALeRCE's steps have their configuration.
CONFIG_FILE: Final = "/config/config.yaml"
# What STEP_ID and STEP_NAME are if they are not set.
STEP_IDS: Final = {XMATCH: "xmatch", LATE_CLASSIFICATION: "lc_classifier", ALL: "stream"}

# Hour (UTC) at which the daily topics of ZTF's packets change; that of other topics is 22 (alerce.md 3.3).
_PACKETS_CHANGE_HOUR: Final = 23
_FORMATS: Final = {
    "KafkaConsumer": CONTAINER,
    "KafkaJsonConsumer": JSON,
    "KafkaSchemalessConsumer": SCHEMALESS,
}
_SCHEMALESS: Final = {"KafkaProducer": False, "KafkaSchemalessProducer": True}
_STRATEGIES: Final = ("DailyTopicStrategy",)
_MODELS: Final = ("HierarchicalRandomForest",)

# Each the format of the topics and of the date, the hour at which they change, and the days for which they are kept.
_READ_DAILY: Final = (
    "TOPIC_STRATEGY_FORMAT",
    "TOPIC_STRATEGY_DATE_FORMAT",
    "TOPIC_STRATEGY_CHANGE_HOUR",
    "TOPIC_STRATEGY_RETENTION_DAYS",
)
_WRITTEN_DAILY: Final = (
    "PRODUCER_TOPIC_FORMAT",
    "PRODUCER_DATE_FORMAT",
    "PRODUCER_CHANGE_HOUR",
    "PRODUCER_RETENTION_DAYS",
)
_CONSUMER: Final = (
    "CONSUMER_SERVER",
    "CONSUMER_GROUP_ID",
    "CONSUMER_TOPICS",
    *_READ_DAILY,
    "TOPIC_STRATEGY_CLASS",
    "CONSUMER_START",
    "ENABLE_PARTITION_EOF",
    "CONSUME_TIMEOUT",
    "CONSUME_MESSAGES",
    "CONSUMER_CLASS",
    "CONSUMER_SCHEMA_PATH",
    "CONSUMER_KAFKA_USERNAME",
    "CONSUMER_KAFKA_PASSWORD",
)
_PRODUCER: Final = (
    "PRODUCER_SERVER",
    "PRODUCER_TOPIC",
    *_WRITTEN_DAILY,
    "PRODUCER_TOPIC_STRATEGY_CLASS",
    "PRODUCER_MESSAGE_MAX_BYTES",
    "PRODUCER_CLASS",
    "PRODUCER_SCHEMA_PATH",
    "PRODUCER_KAFKA_USERNAME",
    "PRODUCER_KAFKA_PASSWORD",
    "PRODUCER_SECURITY_PROTOCOL",
    "PRODUCER_SASL_MECHANISM",
)
_METRICS: Final = (
    "METRICS_HOST",
    "METRICS_TOPIC",
    "METRICS_SOURCE",
    "METRICS_SURVEY",
    "METRICS_CLASS",
    "METRICS_KAFKA_USERNAME",
    "METRICS_KAFKA_PASSWORD",
)
_OTHERS: Final = (
    *("CATALOG", "USE_XWAVE", "RETRIES", "RETRY_INTERVAL"),
    *("STEP_ID", "STEP_NAME", "STEP_VERSION", "STEP_COMMENTS", "FEATURE_VERSION"),
    *("MODEL_CLASS", "MODEL_PATH", "MODEL_VERSION", "MIN_DETECTIONS"),
    *("USE_PROMETHEUS", "USE_PROFILING", "SKIP_XMATCH", "LOGGING_DEBUG"),
)
_NO_PARSER: Final = "messages have the fields of the steps' documentation"
_NOT_USED: Final = {
    "SCRIBE_SERVER": NO_SCRIBE,
    "SCRIBE_TOPIC": NO_SCRIBE,
    "SCRIBE_SCHEMA_PATH": NO_SCRIBE,
    "SCRIBE_KAFKA_USERNAME": NO_SCRIBE,
    "SCRIBE_KAFKA_PASSWORD": NO_SCRIBE,
    "SCRIBE_PARSER_CLASS": NO_SCRIBE,
    "STEP_PARSER_CLASS": _NO_PARSER,
    "PRODUCER_SCHEMA_PATH": SCHEMA_FOLLOWS,
    "METRIS_SCHEMA_PATH": METRICS_SCHEMA,
    "METRICS_SCHEMA_PATH": METRICS_SCHEMA,
    "PYROSCOPE_SERVER": "no profiles are sent",
}
_SWITCHES_NOT_USED: Final = {
    "USE_PROFILING": "no profiles are sent",
    "SKIP_XMATCH": "catalogues are always searched, and failed searches go to the dead letters",
}
VARIABLES: Final = frozenset(
    (*DATABASE_VARIABLES, *_CONSUMER, *_PRODUCER, *_METRICS, *_OTHERS, *_NOT_USED, "CONFIG_FROM_YAML")
)
# A variable that begins so and is not known is likely misspelt.
_BEGINNINGS: Final = ("CONSUMER_", "CONSUME_", "TOPIC_STRATEGY_", "PRODUCER_", "METRICS_", "MODEL_")

# Ways to say one thing: what a file says counts for nothing if the environment says any of it.
_WAYS: Final = (
    ("CONSUMER_TOPICS", *_READ_DAILY, "TOPIC_STRATEGY_CLASS"),
    ("PRODUCER_TOPIC", *_WRITTEN_DAILY, "PRODUCER_TOPIC_STRATEGY_CLASS"),
)


def read_stream_environment(variables: Mapping[str, str], step: str) -> StreamEnvironment:
    """Read the variables, and the file that ``CONFIG_FROM_YAML`` names; variables come before the file.

    Parameters
    ----------
    variables : mapping of str to str
    step : str
        ``xmatch``, ``late_classification`` or ``all``.

    Raises
    ------
    UsageError
        If one of them cannot be understood, or two contradict each other; the sentence names them, never a password.
    """
    path = config_path(variables)
    try:
        file = read_step_file(path, VARIABLES) if path else StepFile()
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        return _read(_merged(variables, file), file, step, _unknown(variables))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{error} (what no variable says is read from {path})" if path else str(error)) from error


def read_producer_environment(variables: Mapping[str, str]) -> ProducerEnvironment:
    """What the variables say of brokers to write to, for commands that send only what options name.

    Raises
    ------
    UsageError
        As :func:`read_stream_environment`.
    """
    try:
        return replace(_producer(variables, StepFile()), topic=None)
    except ValueError as error:
        raise UsageError(str(error)) from error


def config_path(variables: Mapping[str, str]) -> str | None:
    """Path of the file that ``CONFIG_FROM_YAML`` names: itself, or ALeRCE's for ``true``; None for ``false``."""
    text = text_of(variables, "CONFIG_FROM_YAML")
    if text is None:
        return None
    try:
        return CONFIG_FILE if parse_switch("CONFIG_FROM_YAML", text) else None
    except ValueError:
        return text


def _merged(variables: Mapping[str, str], file: StepFile) -> dict[str, str]:
    given = {name: value for name, value in variables.items() if value.strip()}
    replaced = {name for ways in _WAYS if any(way in given for way in ways) for name in ways}
    merged = {name: value for name, value in file.variables.items() if name not in replaced} | given
    # The one variable that may be set to nothing.
    return {name: variables[name] for name in ("DB_PASSWORD",) if name in variables} | merged


def _read(variables: Mapping[str, str], file: StepFile, step: str, unknown: tuple[str, ...]) -> StreamEnvironment:
    if step != XMATCH:
        _check_class(variables, "MODEL_CLASS", _MODELS)
    return StreamEnvironment(
        environment=read_environment(variables, STEP_IDS[step]),
        consumer=_consumer(variables, file, step),
        producer=_producer(variables, file),
        metrics=_metrics(variables, file),
        prometheus=switch_of(variables, "USE_PROMETHEUS"),
        debug=switch_of(variables, "LOGGING_DEBUG"),
        model_path=text_of(variables, "MODEL_PATH"),
        model_version=text_of(variables, "MODEL_VERSION"),
        min_detections=number_of(variables, "MIN_DETECTIONS", int),
        notices=(*_notices(variables), *unknown, *file.notices),
    )


def _consumer(variables: Mapping[str, str], file: StepFile, step: str) -> ConsumerEnvironment:
    username, password = _credentials(variables, "CONSUMER_KAFKA_USERNAME", "CONSUMER_KAFKA_PASSWORD")
    message_class = _check_class(variables, "CONSUMER_CLASS", tuple(_FORMATS))
    return ConsumerEnvironment(
        server=text_of(variables, "CONSUMER_SERVER"),
        username=username,
        password=password,
        options=tuple(file.options.get("consumer", {}).items()),
        topics=_topics(variables, step),
        group=text_of(variables, "CONSUMER_GROUP_ID"),
        start=_start(variables),
        stop_at_end=switch_of(variables, "ENABLE_PARTITION_EOF"),
        max_messages=number_of(variables, "CONSUME_MESSAGES", int, least=1),
        timeout_s=number_of(variables, "CONSUME_TIMEOUT", float),
        message_format=_FORMATS[message_class] if message_class else None,
        schema_path=text_of(variables, "CONSUMER_SCHEMA_PATH"),
    )


def _topics(variables: Mapping[str, str], step: str) -> Topics | None:
    topics = list_of(variables, "CONSUMER_TOPICS")
    pattern = next((topic for topic in topics if topic.startswith("^")), None)
    if pattern is not None:
        raise ValueError(
            f"CONSUMER_TOPICS holds the pattern {pattern}: name the topics, or set TOPIC_STRATEGY_FORMAT for daily ones"
        )
    _check_class(variables, "TOPIC_STRATEGY_CLASS", _STRATEGIES)
    daily = _daily_topics(variables, _READ_DAILY, None if step == LATE_CLASSIFICATION else _PACKETS_CHANGE_HOUR)
    if topics and daily:
        raise ValueError("CONSUMER_TOPICS and TOPIC_STRATEGY_FORMAT are both set: leave one of them out")
    return daily or topics or None


def _start(variables: Mapping[str, str]) -> str | None:
    start = text_of(variables, "CONSUMER_START")
    if start is None:
        return None
    start = start.casefold() if start.casefold() in STARTS else start
    try:
        start_time_ms(start)
    except ValueError as error:
        raise ValueError(f"CONSUMER_START: {error}") from error
    return start


def _producer(variables: Mapping[str, str], file: StepFile) -> ProducerEnvironment:
    username, password = _credentials(variables, "PRODUCER_KAFKA_USERNAME", "PRODUCER_KAFKA_PASSWORD")
    options = dict(file.options.get("producer", {}))
    for name, option in (
        ("PRODUCER_SECURITY_PROTOCOL", "security.protocol"),
        ("PRODUCER_SASL_MECHANISM", "sasl.mechanism"),
    ):
        value = text_of(variables, name)
        if value:
            options[option] = value
    topic = text_of(variables, "PRODUCER_TOPIC")
    _check_class(variables, "PRODUCER_TOPIC_STRATEGY_CLASS", _STRATEGIES)
    daily = _daily_topics(variables, _WRITTEN_DAILY)
    if topic and daily:
        raise ValueError("PRODUCER_TOPIC and PRODUCER_TOPIC_FORMAT are both set: leave one of them out")
    message_class = _check_class(variables, "PRODUCER_CLASS", tuple(_SCHEMALESS))
    return ProducerEnvironment(
        server=text_of(variables, "PRODUCER_SERVER"),
        username=username,
        password=password,
        options=tuple(options.items()),
        topic=daily or topic,
        max_message_bytes=number_of(variables, "PRODUCER_MESSAGE_MAX_BYTES", int, least=1),
        schemaless=_SCHEMALESS[message_class] if message_class else None,
        schema_path=text_of(variables, "PRODUCER_SCHEMA_PATH"),
    )


def _metrics(variables: Mapping[str, str], file: StepFile) -> MetricsEnvironment:
    username, password = _credentials(variables, "METRICS_KAFKA_USERNAME", "METRICS_KAFKA_PASSWORD")
    _check_class(variables, "METRICS_CLASS", ("KafkaMetricsProducer",))
    return MetricsEnvironment(
        server=text_of(variables, "METRICS_HOST"),
        username=username,
        password=password,
        options=tuple(file.options.get("metrics", {}).items()),
        topic=text_of(variables, "METRICS_TOPIC"),
        source=text_of(variables, "METRICS_SOURCE"),
        survey=text_of(variables, "METRICS_SURVEY"),
        extra=file.extra,
    )


def _credentials(variables: Mapping[str, str], username: str, password: str) -> tuple[str | None, str | None]:
    # A password may begin or end with blanks.
    given = text_of(variables, username), variables.get(password) or None
    if given[0] is None and given[1] is None:
        return None, None
    if given[0] is None or given[1] is None:
        there, missing = (password, username) if given[0] is None else (username, password)
        raise ValueError(f"{there} is set without {missing}: set both, or neither")
    return given


def _daily_topics(
    variables: Mapping[str, str], names: tuple[str, str, str, str], change_hour: int | None = None
) -> DailyTopics | None:
    topic_format, *others = names
    text = text_of(variables, topic_format)
    if text is None:
        lonely = next((name for name in others if text_of(variables, name)), None)
        if lonely:
            raise ValueError(f"{lonely} is about daily topics: set {topic_format} as well, or leave {lonely} out")
        return None
    hour = number_of(variables, names[2], int)
    given = {
        "topic_format": text,
        "date_format": text_of(variables, names[1]),
        "change_hour": change_hour if hour is None else hour,
        "retention_days": number_of(variables, names[3], int),
    }
    daily = DailyTopics("%s")
    for name, (attribute, value) in zip(names, given.items(), strict=True):
        try:
            daily = daily if value is None else replace(daily, **{attribute: value})  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return daily


def _check_class(variables: Mapping[str, str], name: str, known: tuple[str, ...]) -> str | None:
    """Give the last part of the name of a class; None if it is not set."""
    text = text_of(variables, name)
    last = text.rpartition(".")[2] if text else None
    if last is not None and last not in known:
        raise ValueError(f"{name} is {text}, which has no counterpart here: use {' or '.join(known)}, or leave it out")
    return last


def _notices(variables: Mapping[str, str]) -> Iterator[str]:
    for name, reason in _NOT_USED.items():
        if text_of(variables, name):
            yield f"{name} is not used: {reason}"
    for name, reason in _SWITCHES_NOT_USED.items():
        if switch_of(variables, name):
            yield f"{name} is not used: {reason}"


def _unknown(variables: Mapping[str, str]) -> tuple[str, ...]:
    names = sorted(name for name in variables if name.startswith(_BEGINNINGS) and name not in VARIABLES)
    return tuple(f"{name} is not known here, and not used" for name in names)
