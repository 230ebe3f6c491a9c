"""From options and variables to the job of a stream: options come first, and what cannot be is told in one sentence."""

from pathlib import Path

import pytest
from backfill_fixtures import DEMO_MODEL

from lightcurves.store import LightCurveStore
from messaging.settings import Kafka
from messaging.topics import DailyTopics
from pipelines.cli import parser
from pipelines.stream import StreamJob
from pipelines.stream_job import chosen, make_job
from pipelines.usage import UsageError
from run_folder.layout import RunLayout
from transforms.message_reading import AlertDecoder, FeatureDecoder
from xmatch.cds import CdsMatcher

VARIABLES = {"CONSUMER_SERVER": "there:9092", "CONSUMER_TOPICS": "one, two", "CONSUMER_GROUP_ID": "ours"}
MODEL = str(DEMO_MODEL)


def job_of(*words: str, **variables: str) -> StreamJob:
    options, _ = parser("stream").parse_known_args(["stream", *words])
    return make_job(options, chosen(options, VARIABLES | variables))


def refusal(*words: str, **variables: str) -> str:
    with pytest.raises(UsageError) as caught:
        job_of(*words, **variables)
    return str(caught.value)


def test_variables_alone_make_the_step_of_alerce() -> None:
    job = job_of("--step", "xmatch", PRODUCER_SERVER="here:1", PRODUCER_TOPIC="out", CONSUME_MESSAGES="50")
    assert job.consumer.kafka == Kafka("there:9092")
    assert (job.consumer.topics, job.consumer.group) == (("one", "two"), "ours")
    assert job.consumer.max_messages == 50
    assert job.alerts_to is not None
    assert (job.alerts_to.kafka.servers, job.alerts_to.topic) == ("here:1", "out")
    assert job.classifications_to is None
    assert isinstance(job.decode, AlertDecoder)
    # AllWISE at CDS, as there.
    [matcher] = job.matchers
    assert isinstance(matcher, CdsMatcher)
    assert matcher.name == "allwise"
    late = job_of("--step", "late_classification", MODEL_PATH=MODEL, PRODUCER_SERVER="here:1", PRODUCER_TOPIC="out")
    assert isinstance(late.decode, FeatureDecoder)
    assert late.classifications_to is not None
    assert (late.alerts_to, late.matchers) == (None, ())


def test_options_come_over_variables(tmp_path: Path) -> None:
    words = ["--server", "my:1", "--daily-topics", "ztf_%s", "--group", "mine", "--start", "latest", "--stop-at-end"]
    words += ["--output", str(tmp_path), "--matcher", "cds", "--catalog", "allwise", "--model", MODEL]
    words += ["--mode", "alerce", "--metrics-port", "0", "--alerts-topic", "a", "--classifications-topic", "c_%s"]
    job = job_of(*words, CONSUMER_KAFKA_USERNAME="me", CONSUMER_KAFKA_PASSWORD="secret", CONSUMER_TOPICS="")
    assert job.consumer.topics == DailyTopics("ztf_%s")
    assert (job.consumer.start, job.consumer.stop_at_end) == ("latest", True)
    assert job.monitor.port == 0
    assert job.feature_version.endswith("-alerce")
    # Nobody names brokers to write to: those that are read, and how they are reached.
    for to in (job.alerts_to, job.classifications_to):
        assert to is not None
        assert (to.kafka.servers, to.kafka.username, to.kafka.password) == ("my:1", "me", "secret")
    assert job.classifications_to is not None
    assert job.classifications_to.topic == DailyTopics("c_%s")
    assert "secret" not in repr(job)


def test_light_curves_of_a_run(tmp_path: Path) -> None:
    store = RunLayout(tmp_path / "run").light_curves
    words = ["--matcher", "cds", "--catalog", "allwise", "--light-curves", str(tmp_path / "run")]
    assert "is no folder of a backfill" in refusal(*words)
    LightCurveStore.open(store, 2)
    assert job_of(*words).origins.store == store


def test_parts_of_the_partitions() -> None:
    assert (job_of("--step", "xmatch").part, job_of("--step", "xmatch").splits) == (-1, 1)
    job = job_of("--step", "xmatch", "--part", "2/3")
    assert (job.part, job.splits) == (1, 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--part", "0/3", "--step", "xmatch"], "say which part of how many"),
        (["--part", "1/2"], "two processes would keep the light curve of one object"),
        (["--topics", "a", "--daily-topics", "b_%s"], "name one of them"),
        (["--daily-topics", "b"], "must hold %s once"),
        (["--bundle-seconds", "-1"], "--bundle-seconds must be more than 0"),
        (["--keep-days", "0"], "--keep-days must be more than 0"),
        (["--renew-hours", "nan"], "--renew-hours must be more than 0"),
        (["--without-tables", "xmatch"], "these can be left out"),
        (["--step", "late_classification"], "no model to classify with"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--format", "schemaless"], "name their schema"),
        (["--format", "schemaless", "--schema", "/nowhere.avsc"], "cannot be read"),
        (["--start", "yesterday"], "yesterday"),
        (["--metrics-port", "70000"], "0 to 65535"),
        (["--kafka", "here:1"], "name what to send as well"),
        (["--programid", "x"], "--programid x"),
    ],
)
def test_refusals(words: list[str], sentence: str) -> None:
    given = ["--matcher", "cds", "--catalog", "allwise"] if "late_classification" not in words else []
    assert sentence in refusal(*words, *given)
