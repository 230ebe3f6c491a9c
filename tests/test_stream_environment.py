"""The variables and the file of ALeRCE's steps: names, precedence, what they mean, and what is refused."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from messaging.settings import ExtraEntry
from messaging.topics import DailyTopics
from pipelines.stream_environment import CONFIG_FILE, VARIABLES, config_path, read_stream_environment
from pipelines.stream_settings import StreamEnvironment
from pipelines.usage import UsageError
from pipelines.variables import parse_switch

STEPS = ("xmatch", "late_classification", "all")
SECRET = "s3cret"

# What the READMEs of the two steps ask for.
XMATCH = {
    "ENGINE": "postgres",
    "DB_HOST": "db",
    "DB_USER": "me",
    "DB_PASSWORD": SECRET,
    "DB_PORT": "5433",
    "DB_NAME": "ztf",
    "CONSUMER_TOPICS": "one, two",
    "CONSUMER_SERVER": "in:9092",
    "CONSUMER_GROUP_ID": "xmatch",
    "ENABLE_PARTITION_EOF": "False",
    "PRODUCER_TOPIC": "enriched",
    "PRODUCER_SERVER": "out:9092",
    "METRICS_HOST": "metrics:9092",
    "METRICS_TOPIC": "told",
    "CATALOG": '{"name": "allwise", "columns": ["AllWISE", "W1mag"], "service_url": "", "selection": ""}',
    "USE_XWAVE": "",
}
LATE_CLASSIFICATION = {name: value for name, value in XMATCH.items() if name not in ("ENGINE", "CATALOG", "USE_XWAVE")}
LATE_CLASSIFICATION |= {
    "DB_ENGINE": "postgresql",
    "STEP_VERSION": "1.0.0",
    "STEP_ID": "S3",
    "STEP_NAME": "S 3",
    "STEP_COMMENTS": "none",
    "FEATURE_VERSION": "2.0.0",
}
DAILY = {
    "PRODUCER_TOPIC_FORMAT": "classes_%s",
    "PRODUCER_DATE_FORMAT": "%Y%m",
    "PRODUCER_CHANGE_HOUR": "0",
    "PRODUCER_RETENTION_DAYS": "3",
}
FILE = {
    "CONSUMER_CONFIG": {
        "CLASS": "apf.consumers.KafkaSchemalessConsumer",
        "SCHEMA_PATH": "/schemas/output.avsc",
        "TOPICS": ["three", "four"],
        "PARAMS": {
            "bootstrap.servers": "file:9092",
            "group.id": "of_file",
            "auto.offset.reset": "beginning",
            "max.poll.interval.ms": 3600000,
            "enable.partition.eof": True,
            "enable.ssl.certificate.verification": False,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "PLAIN",
            "sasl.username": "reader",
            "sasl.password": SECRET,
        },
        "consume.messages": 500,
        "consume.timeout": 10,
        "offsets": {"start": 1_700_000_000_000},
    },
    "PRODUCER_CONFIG": {
        "CLASS": "apf.producers.KafkaSchemalessProducer",
        "TOPIC_STRATEGY": {
            "CLASS": "apf.core.topic_management.DailyTopicStrategy",
            "PARAMS": {"topic_format": "out_%s", "date_format": "%Y%m%d", "change_hour": 21, "retention_days": 2},
        },
        "PARAMS": {"bootstrap.servers": "file:9093", "message.max.bytes": 1000, "acks": "all"},
    },
    "METRICS_CONFIG": {
        "CLASS": "apf.metrics.KafkaMetricsProducer",
        "EXTRA_METRICS": ["candid", {"key": "objectId", "alias": "oid"}, {"key": "tid", "format": "{}"}],
        "PARAMS": {"TOPIC": "told", "PARAMS": {"bootstrap.servers": "file:9094"}},
    },
    "DB_CONFIG": {
        "SQL": {"ENGINE": "postgres", "HOST": "db", "USER": "me", "PASSWORD": SECRET, "PORT": 5433, "DB_NAME": "ztf"}
    },
    "XMATCH_CONFIG": {
        "CATALOG": {"name": "allwise", "columns": ["AllWISE"], "service_url": "http://x", "selection": 1}
    },
    "STEP_METADATA": {"STEP_ID": "S1", "STEP_VERSION": 2.5, "FEATURE_VERSION": "3"},
    "FEATURE_FLAGS": {"PROMETHEUS": True},
    "USE_XWAVE": True,
    "RETRIES": 7,
    "LOGGING_DEBUG": False,
    "MODEL_VERSION": "1.1.0",
    "MODEL_CONFIG": {"CLASS": "lc_classifier.models.HierarchicalRandomForest", "PARAMS": {"model_path": "/model"}},
}

WriteFile = Callable[[object], str]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write_file(content: object) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write_file


def read(step: str = "xmatch", **variables: str) -> StreamEnvironment:
    return read_stream_environment(variables, step)


def refusal(step: str = "xmatch", **variables: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(step, **variables)
    assert SECRET not in str(caught.value)
    return str(caught.value)


class TestVariables:
    def test_of_the_crossmatch_step(self) -> None:
        found = read("xmatch", **XMATCH)
        consumer = found.consumer.settings(stop_file="stop")
        assert (consumer.kafka.servers, consumer.topics, consumer.group) == ("in:9092", ("one", "two"), "xmatch")
        assert (consumer.start, consumer.stop_at_end, consumer.stop_file) == ("committed", False, "stop")
        producer = found.producer.settings()
        assert producer is not None
        assert (producer.kafka.servers, producer.topic, producer.max_message_bytes) == ("out:9092", "enriched", 6291456)
        metrics = found.metrics.settings("xmatch")
        assert metrics is not None
        assert (metrics.kafka.servers, metrics.topic, metrics.source) == ("metrics:9092", "told", "XmatchStep")
        assert [entry.name for entry in metrics.entries()] == ["candid", "oid"]
        assert found.environment.database == f"postgresql+psycopg2://me:{SECRET}@db:5433/ztf"
        assert [catalog.name for catalog in found.environment.catalogs] == ["allwise"]
        assert found.environment.step.step_id == "xmatch"
        assert found.notices == ()

    def test_of_the_classification_step(self) -> None:
        found = read("late_classification", **LATE_CLASSIFICATION)
        step = found.environment.step
        assert (step.step_id, step.name, step.version, step.comments) == ("S3", "S 3", "1.0.0", "none")
        assert found.environment.feature_version == "2.0.0"
        metrics = found.metrics.settings("late_classification")
        assert metrics is not None
        assert metrics.source == "LateClassifier"
        assert [entry.name for entry in metrics.entries()] == ["candid", "oid"]

    @pytest.mark.parametrize("step", STEPS)
    def test_nothing_set_is_nothing_said(self, step: str) -> None:
        found = read(step, CONSUMER_TOPICS=" ", METRICS_HOST="", USE_PROMETHEUS="")
        assert found == read(step)
        for part in (found.consumer, found.producer, found.metrics):
            assert {value for name, value in vars(part).items() if name != "options"} == {None}
        assert (found.prometheus, found.debug, found.model_path, found.min_detections) == (None, None, None, None)
        assert found.producer.settings() is None
        assert found.metrics.settings(step) is None

    def test_of_the_code(self) -> None:
        found = read(
            "late_classification",
            CONSUMER_CLASS="apf.consumers.KafkaJsonConsumer",
            CONSUMER_SCHEMA_PATH="in.avsc",
            CONSUMER_START="2026-11-21T03:00",
            CONSUME_MESSAGES="20",
            CONSUME_TIMEOUT="0.5",
            PRODUCER_CLASS="apf.producers.KafkaSchemalessProducer",
            PRODUCER_SCHEMA_PATH="out.avsc",
            PRODUCER_MESSAGE_MAX_BYTES="1000",
            METRICS_SOURCE="here",
            METRICS_SURVEY="ZTF",
            USE_PROMETHEUS="yes",
            LOGGING_DEBUG="on",
            RETRIES="5",
            RETRY_INTERVAL="2",
            MODEL_CLASS="lc_classifier.classifier.models.HierarchicalRandomForest",
            MODEL_PATH="models/new",
            MODEL_VERSION="1.1.0",
            MIN_DETECTIONS="6",
        )
        consumer = found.consumer
        assert (consumer.message_format, consumer.schema_path, consumer.start) == (
            "json",
            "in.avsc",
            "2026-11-21T03:00",
        )
        assert (consumer.max_messages, consumer.timeout_s) == (20, 0.5)
        producer = found.producer
        assert (producer.schemaless, producer.schema_path, producer.max_message_bytes) == (True, "out.avsc", 1000)
        assert (found.metrics.source, found.metrics.survey) == ("here", "ZTF")
        assert (found.prometheus, found.debug) == (True, True)
        assert (found.environment.retries, found.environment.retry_interval_s) == (5, 2.0)
        assert (found.model_path, found.model_version, found.min_detections) == ("models/new", "1.1.0", 6)
        assert found.notices == (
            "PRODUCER_SCHEMA_PATH is not used: the schema of the messages follows from what is read",
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            *((text, True) for text in ("True", "true", " yes ", "on", "1", "ON")),
            *((text, False) for text in ("False", "false", "no", "off", "0")),
            *((text, None) for text in ("", "  ")),
        ],
    )
    def test_switches_mean_what_a_person_means(self, text: str, expected: bool | None) -> None:
        assert parse_switch("ANY", text) is expected
        found = read(ENABLE_PARTITION_EOF=text, USE_PROMETHEUS=text, LOGGING_DEBUG=text, USE_XWAVE=text)
        assert found.consumer.stop_at_end is expected
        assert (found.prometheus, found.debug, found.environment.use_xwave) == (expected, expected, expected)

    @pytest.mark.parametrize(
        "name", ["ENABLE_PARTITION_EOF", "USE_PROMETHEUS", "LOGGING_DEBUG", "USE_XWAVE", "USE_PROFILING", "SKIP_XMATCH"]
    )
    def test_unclear_switches_are_refused(self, name: str) -> None:
        assert refusal(**{name: "maybe"}) == f"{name} must be true or false, not 'maybe'"

    def test_what_is_not_used_is_told_without_its_value(self) -> None:
        names = (
            *("SCRIBE_SERVER", "SCRIBE_TOPIC", "SCRIBE_SCHEMA_PATH", "SCRIBE_KAFKA_USERNAME", "SCRIBE_KAFKA_PASSWORD"),
            *("SCRIBE_PARSER_CLASS", "STEP_PARSER_CLASS", "METRIS_SCHEMA_PATH", "METRICS_SCHEMA_PATH"),
        )
        found = read(**dict.fromkeys(names, SECRET), USE_PROFILING="True", SKIP_XMATCH="False")
        assert [notice.partition(" ")[0] for notice in found.notices] == [*names, "USE_PROFILING"]
        assert not any(SECRET in notice for notice in found.notices)

    def test_misspelt_variables_are_told(self) -> None:
        found = read(CONSUMER_TOPIC="one", PRODUCER_TOPICS="two", PATH="/bin")
        assert found.notices == tuple(
            f"{name} is not known here, and not used" for name in ("CONSUMER_TOPIC", "PRODUCER_TOPICS")
        )


class TestDailyTopics:
    @pytest.mark.parametrize(("step", "hour"), [("xmatch", 23), ("all", 23), ("late_classification", 22)])
    def test_read(self, step: str, hour: int) -> None:
        topics = read(step, TOPIC_STRATEGY_FORMAT="ztf_%s_programid1").consumer.topics
        assert topics == DailyTopics("ztf_%s_programid1", change_hour=hour)
        before = datetime(2026, 11, 21, hour - 1, 59, tzinfo=UTC)
        assert topics.to_read(before)[-1] == "ztf_20261121_programid1"
        assert topics.to_read(before.replace(hour=hour, minute=0))[-1] == "ztf_20261122_programid1"

    def test_every_part_can_be_set(self) -> None:
        others = {
            "TOPIC_STRATEGY_CHANGE_HOUR": "0",
            "TOPIC_STRATEGY_DATE_FORMAT": "%y",
            "TOPIC_STRATEGY_RETENTION_DAYS": "2",
        }
        assert read(TOPIC_STRATEGY_FORMAT="a%s", **others).consumer.topics == DailyTopics("a%s", "%y", 0, 2)

    def test_written(self) -> None:
        assert read("late_classification", **DAILY).producer.topic == DailyTopics("classes_%s", "%Y%m", 0, 3)
        assert read("xmatch", PRODUCER_TOPIC_FORMAT="a_%s").producer.topic == DailyTopics("a_%s", "%Y%m%d", 22, 8)


class TestConnections:
    @pytest.mark.parametrize("client", ["CONSUMER", "PRODUCER", "METRICS"])
    def test_name_and_password(self, client: str) -> None:
        variables = {f"{client}_KAFKA_USERNAME": "me", f"{client}_KAFKA_PASSWORD": SECRET}
        found = read(**XMATCH, **variables)
        part = {"CONSUMER": found.consumer, "PRODUCER": found.producer, "METRICS": found.metrics}[client]
        options = part.kafka("").client_options()
        assert options["security.protocol"] == "SASL_SSL"
        assert options["sasl.mechanism"] == "SCRAM-SHA-512"
        assert (options["sasl.username"], options["sasl.password"]) == ("me", SECRET)
        secure = [part for part in (found.consumer, found.producer, found.metrics) if part.username]
        assert secure == [part]

    @pytest.mark.parametrize("client", ["CONSUMER", "PRODUCER", "METRICS"])
    def test_one_without_the_other(self, client: str) -> None:
        name, password = f"{client}_KAFKA_USERNAME", f"{client}_KAFKA_PASSWORD"
        assert refusal(**{name: "me"}) == f"{name} is set without {password}: set both, or neither"
        assert refusal(**{password: SECRET}) == f"{password} is set without {name}: set both, or neither"

    def test_other_protocols_of_the_producer(self) -> None:
        found = read(
            PRODUCER_SERVER="out:9092",
            PRODUCER_KAFKA_USERNAME="me",
            PRODUCER_KAFKA_PASSWORD=SECRET,
            PRODUCER_SECURITY_PROTOCOL="SASL_PLAINTEXT",
            PRODUCER_SASL_MECHANISM="SCRAM-SHA-256",
        )
        options = found.producer.kafka("").client_options()
        assert (options["security.protocol"], options["sasl.mechanism"]) == ("SASL_PLAINTEXT", "SCRAM-SHA-256")

    def test_passwords_are_never_shown(self, write: WriteFile) -> None:
        variables = {f"{client}_KAFKA_USERNAME": "me" for client in ("CONSUMER", "PRODUCER", "METRICS")}
        variables |= {f"{client}_KAFKA_PASSWORD": SECRET for client in ("CONSUMER", "PRODUCER", "METRICS")}
        path = write({"CONSUMER_CONFIG": {"PARAMS": {"ssl.key.password": SECRET}}})
        found = read(**XMATCH, **variables, CONFIG_FROM_YAML=path)
        assert SECRET not in repr(found)
        assert ("ssl.key.password", SECRET) in found.consumer.options
        assert pickle.loads(pickle.dumps(found)) == found


class TestRefusals:
    @pytest.mark.parametrize(
        ("variables", "sentence"),
        [
            (
                {"CONSUMER_TOPICS": "a", "TOPIC_STRATEGY_FORMAT": "b_%s"},
                "CONSUMER_TOPICS and TOPIC_STRATEGY_FORMAT are both set: leave one of them out",
            ),
            (
                {"PRODUCER_TOPIC": "a", "PRODUCER_TOPIC_FORMAT": "b_%s"},
                "PRODUCER_TOPIC and PRODUCER_TOPIC_FORMAT are both set: leave one of them out",
            ),
            (
                {"PRODUCER_TOPIC": "a", "PRODUCER_CHANGE_HOUR": "22"},
                "PRODUCER_CHANGE_HOUR is about daily topics: set PRODUCER_TOPIC_FORMAT as well, or leave "
                "PRODUCER_CHANGE_HOUR out",
            ),
            ({"TOPIC_STRATEGY_FORMAT": "b"}, "TOPIC_STRATEGY_FORMAT: the format of daily topics must hold %s once"),
            (DAILY | {"PRODUCER_CHANGE_HOUR": "24"}, "PRODUCER_CHANGE_HOUR: the hour at which"),
            (DAILY | {"PRODUCER_RETENTION_DAYS": "0"}, "PRODUCER_RETENTION_DAYS: daily topics must be kept"),
            ({"CONSUMER_TOPICS": "^ztf.*"}, "CONSUMER_TOPICS holds the pattern ^ztf.*: name the topics"),
            ({"CONSUME_MESSAGES": "0"}, "CONSUME_MESSAGES must be 1 or more, not 0"),
            ({"CONSUME_MESSAGES": "1.5"}, "CONSUME_MESSAGES must be a whole number, not '1.5'"),
            ({"CONSUME_TIMEOUT": "-1"}, "CONSUME_TIMEOUT must not be negative, as -1 is"),
            ({"CONSUME_TIMEOUT": "inf"}, "CONSUME_TIMEOUT must not be negative"),
            ({"PRODUCER_MESSAGE_MAX_BYTES": "6 MB"}, "PRODUCER_MESSAGE_MAX_BYTES must be a whole number, not '6 MB'"),
            ({"MIN_DETECTIONS": "few"}, "MIN_DETECTIONS must be a whole number, not 'few'"),
            (
                {"CONSUMER_START": "yesterday"},
                "CONSUMER_START: 'yesterday' is no start: name committed, earliest, latest, or a time",
            ),
            (
                {"CONSUMER_CLASS": "apf.consumers.CSVConsumer"},
                "CONSUMER_CLASS is apf.consumers.CSVConsumer, which has no",
            ),
            (
                {"PRODUCER_CLASS": "CSVProducer"},
                "PRODUCER_CLASS is CSVProducer, which has no counterpart here: use Kaf",
            ),
            ({"TOPIC_STRATEGY_CLASS": "mine.Weekly"}, "TOPIC_STRATEGY_CLASS is mine.Weekly, which has no counterpart"),
            ({"DB_HOST": "db"}, "The database settings are incomplete: set DB_USER, DB_PASSWORD, DB_NAME as well"),
            ({"CATALOG": "{"}, "CATALOG is neither JSON nor YAML"),
        ],
    )
    def test_sentences(self, variables: dict[str, str], sentence: str) -> None:
        assert refusal(**variables).startswith(sentence)

    def test_other_models(self) -> None:
        balto = {"MODEL_CLASS": "alerce_classifiers.balto.model.BaltoClassifier"}
        for step in ("late_classification", "all"):
            assert "BaltoClassifier, which has no counterpart here: use Hierarch" in refusal(step, **balto)
        read("xmatch", **balto)

    @pytest.mark.parametrize(
        ("missing", "sentence"),
        [
            ("CONSUMER_SERVER", "no brokers to read from: name them by --server or CONSUMER_SERVER"),
            ("CONSUMER_TOPICS", "no topic to read: name them by --topics or CONSUMER_TOPICS"),
            ("CONSUMER_GROUP_ID", "no consumer group: name it by --group or CONSUMER_GROUP_ID"),
            ("PRODUCER_SERVER", "PRODUCER_TOPIC without brokers to write to: set PRODUCER_SERVER"),
            ("PRODUCER_TOPIC", "PRODUCER_SERVER without a topic to write: set PRODUCER_TOPIC"),
            ("METRICS_HOST", "METRICS_TOPIC without brokers to write to: set METRICS_HOST"),
            ("METRICS_TOPIC", "METRICS_HOST without a topic to write: set METRICS_TOPIC"),
        ],
    )
    def test_what_is_missing(self, missing: str, sentence: str) -> None:
        found = read(**{name: value for name, value in XMATCH.items() if name != missing})
        with pytest.raises(UsageError) as caught:
            found.consumer.settings(), found.producer.settings(), found.metrics.settings("xmatch")
        assert str(caught.value).startswith(sentence)

    def test_messages_without_a_schema(self) -> None:
        schemaless = XMATCH | {"CONSUMER_CLASS": "apf.consumers.KafkaSchemalessConsumer"}
        with pytest.raises(UsageError, match="by --schema or CONSUMER_SCHEMA_PATH"):
            read(**schemaless).consumer.settings()
        read(**schemaless, CONSUMER_SCHEMA_PATH="in.avsc").consumer.settings()


class TestFile:
    def test_which_file(self) -> None:
        paths = [config_path({"CONFIG_FROM_YAML": text}) for text in ("True", "1", "False", "no", " ", "my/file.yaml")]
        assert paths == [CONFIG_FILE, CONFIG_FILE, None, None, None, "my/file.yaml"]

    def test_everything_in_it(self, write: WriteFile) -> None:
        found = read("late_classification", CONFIG_FROM_YAML=write(FILE))
        consumer = found.consumer.settings()
        assert (consumer.kafka.servers, consumer.topics, consumer.group) == ("file:9092", ("three", "four"), "of_file")
        assert (consumer.stop_at_end, consumer.max_messages, consumer.timeout_s) == (True, 500, 10.0)
        assert datetime.fromisoformat(consumer.start) == datetime.fromtimestamp(1_700_000_000, UTC)
        assert (found.consumer.message_format, found.consumer.schema_path) == ("schemaless", "/schemas/output.avsc")
        assert dict(found.consumer.options) == {
            "max.poll.interval.ms": "3600000",
            "enable.ssl.certificate.verification": "false",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
        }
        options = consumer.kafka.client_options()
        assert (options["security.protocol"], options["sasl.mechanism"]) == ("SASL_PLAINTEXT", "PLAIN")
        assert (options["sasl.username"], options["sasl.password"]) == ("reader", SECRET)
        producer = found.producer.settings()
        assert producer is not None
        assert (producer.topic, producer.max_message_bytes) == (DailyTopics("out_%s", "%Y%m%d", 21, 2), 1000)
        assert (found.producer.schemaless, found.producer.options) == (True, (("acks", "all"),))
        metrics = found.metrics.settings("late_classification")
        assert metrics is not None
        assert metrics.extra == (
            ExtraEntry("candid"),
            ExtraEntry("objectId", alias="oid"),
            ExtraEntry("tid", format="{}"),
        )
        base = found.environment
        assert base.database == f"postgresql+psycopg2://me:{SECRET}@db:5433/ztf"
        assert (base.step.step_id, base.step.name, base.step.version) == ("S1", "lc_classifier", "2.5")
        assert (base.feature_version, base.use_xwave, base.retries) == ("3", True, 7)
        assert base.catalogs[0].service_url == "http://x"
        assert (found.prometheus, found.debug) == (True, False)
        assert (found.model_path, found.model_version) == ("/model", "1.1.0")
        assert found.notices == ()
        assert SECRET not in repr(found)

    def test_variables_come_first(self, write: WriteFile) -> None:
        path = write(FILE)
        plain = read("late_classification", CONFIG_FROM_YAML=path)
        found = read(
            "late_classification",
            CONFIG_FROM_YAML=path,
            CONSUMER_SERVER="mine:9092",
            CONSUMER_GROUP_ID="",
            ENABLE_PARTITION_EOF="False",
            DB_NAME="other",
            USE_PROMETHEUS="off",
            STEP_ID="mine",
        )
        assert found.consumer.server == "mine:9092"
        assert found.consumer.group == "of_file"
        assert found.consumer.stop_at_end is False
        assert found.consumer.options == plain.consumer.options
        assert found.environment.database == f"postgresql+psycopg2://me:{SECRET}@db:5433/other"
        assert found.prometheus is False
        assert found.environment.step.step_id == "mine"

    def test_topics_of_variables_replace_those_of_the_file(self, write: WriteFile) -> None:
        path = write(FILE)
        assert read(CONFIG_FROM_YAML=path, TOPIC_STRATEGY_FORMAT="a_%s").consumer.topics == DailyTopics(
            "a_%s", change_hour=23
        )
        assert read(CONFIG_FROM_YAML=path, PRODUCER_TOPIC="one").producer.topic == "one"
        assert read(CONFIG_FROM_YAML=path, **DAILY).producer.topic == DailyTopics("classes_%s", "%Y%m", 0, 3)

    def test_a_password_of_nothing(self, write: WriteFile) -> None:
        assert read(**XMATCH | {"DB_PASSWORD": ""}).environment.database == "postgresql+psycopg2://me@db:5433/ztf"
        found = read(CONFIG_FROM_YAML=write(FILE), DB_PASSWORD="")
        assert found.environment.database == f"postgresql+psycopg2://me:{SECRET}@db:5433/ztf"

    def test_a_list_of_catalogues(self, write: WriteFile) -> None:
        path = write({"CATALOG_CONFIG": [{"name": "allwise"}, {"name": "gaia-dr2"}]})
        names = [catalog.name for catalog in read(CONFIG_FROM_YAML=path).environment.catalogs]
        assert names == ["allwise", "gaia-dr2"]

    def test_what_is_not_known_is_told(self, write: WriteFile) -> None:
        path = write(
            {
                "CONSUMER_CONFIG": {"ADD_TOPIC": True, "PARAMS": {"group.id": "a", "enable.auto.commit": True}},
                "SCRIBE_PRODUCER_CONFIG": {"PARAMS": {"sasl.password": SECRET}},
                "METRICS_CONFIG": {"PARAMS": {"SCHEMA": {}, "PARAMS": {"auto.offset.reset": "smallest"}}},
                "DB_CONFIG": {"MONGO": {"PASSWORD": SECRET}},
                "COMMIT": False,
                "PYROSCOPE_SERVER": "http://x",
            }
        )
        notices = read(CONFIG_FROM_YAML=path).notices
        assert {notice.partition(" ")[0] for notice in notices} == {
            "CONSUMER_CONFIG.ADD_TOPIC",
            "CONSUMER_CONFIG.PARAMS.enable.auto.commit",
            "SCRIBE_PRODUCER_CONFIG",
            "METRICS_CONFIG.PARAMS.SCHEMA",
            "METRICS_CONFIG.PARAMS.PARAMS.auto.offset.reset",
            "DB_CONFIG.MONGO",
            "COMMIT",
            "PYROSCOPE_SERVER",
        }
        assert not any(SECRET in notice for notice in notices)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("CONSUMER_CONFIG:\n  PARAMS: {sasl.password: s3cret\n", "is no YAML in line 3"),
            ("just text", "must hold keys such as CONSUMER_CONFIG"),
            ({"CONSUMER_CONFIG": "a"}, "CONSUMER_CONFIG in {path} must hold keys such as CLASS"),
            ({"CONSUMER_CONFIG": {"PARAMS": {"acks": [1]}}}, "CONSUMER_CONFIG.PARAMS.acks in {path} must be text or a"),
            (
                {"CONSUMER_CONFIG": {"PARAMS": {"auto.offset.reset": "latest"}}},
                "CONSUMER_CONFIG.PARAMS.auto.offset.reset in {path} would skip what no offset is committed for",
            ),
            (
                {"PROMETHEUS": True, "FEATURE_FLAGS": {"PROMETHEUS": False}},
                "FEATURE_FLAGS.PROMETHEUS and PROMETHEUS in {path} say different things; leave one out",
            ),
            (
                {"CONSUMER_CONFIG": {"TOPICS": ["a"], "TOPIC_STRATEGY": {"PARAMS": {"topic_format": "b_%s"}}}},
                "TOPIC_STRATEGY_FORMAT are both set: leave one of them out (what no variable says is read from {path})",
            ),
            (
                {"METRICS_CONFIG": {"EXTRA_METRICS": [{"alias": "a"}]}},
                "EXTRA_METRICS in {path} must list names, or key",
            ),
            ({"METRICS_CONFIG": {"EXTRA_METRICS": [{"key": "a", "format": "no"}]}}, "must hold {{}} once"),
        ],
    )
    def test_refusals(self, write: WriteFile, content: object, sentence: str) -> None:
        path = write(content)
        assert sentence.format(path=path) in refusal(CONFIG_FROM_YAML=path)

    def test_no_file(self, tmp_path: Path) -> None:
        path = str(tmp_path / "absent.yaml")
        sentence = f"the file {path} cannot be read (No such file or directory): put it there, set CONFIG_FROM_YAML to"
        assert refusal(CONFIG_FROM_YAML=path).startswith(sentence)


def test_names_are_known() -> None:
    """Those of the two READMEs, and of the tests above."""
    assert {*XMATCH, *LATE_CLASSIFICATION, *DAILY} <= VARIABLES
