"""Alerts and classifications in Kafka equal those in files; what cannot be sent is a dead letter, or ends the run."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from classify_fixtures import FEATURES, random_rows, small_model, table_of
from kafka_sink_fixtures import messages_in, mock_broker, topics_of
from pipeline_fixtures import Sample, alerts_of, letters_of, make_sample

from alerts.batch import AlertBatch
from alerts.reader import Limits, read_source
from alerts.sources import find_sources
from classifier.inputs import rows_of_table
from classifier.messages import message_schema_text
from classifier.outputs import classify
from messaging.producer import DeliveryError
from messaging.settings import Kafka, ProducerSettings
from messaging.topics import DailyTopics
from pipelines.replay import is_unsent, letters_by_stage, replay_unsent
from transforms.classify import ClassifiedBatch, WriteMessages
from transforms.counts import RunCounts, counters, run_counts
from transforms.crossmatch import MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.feature_reading import FeatureBatch
from transforms.kafka_sink import SendAlerts, SendClassifications
from transforms.writing import WriteAlerts
from xmatch.catalog import open_catalog
from xmatch.matcher import LocalMatcher, match_all

NOWHERE = Kafka("127.0.0.1:9")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with mock_broker() as address:
        yield address


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"), alerts=60, cutouts=False)


@pytest.fixture(scope="module")
def matched(sample: Sample) -> list[MatchedAlerts]:
    matchers = (LocalMatcher(open_catalog(sample.catalog)),)
    source = find_sources([str(sample.archive)])[0]
    batches = [item for item in read_source(source, Limits(alerts=17)) if isinstance(item, AlertBatch)]
    return [MatchedAlerts(batch, tuple(match_all(matchers, batch.ra, batch.dec))) for batch in batches]


@pytest.fixture(scope="module")
def classified() -> list[ClassifiedBatch]:
    model, found = small_model(), []
    for seed in (1, 2):
        table = table_of(random_rows(12, seed, FEATURES))
        rows, _ = rows_of_table(table, FEATURES)
        found.append(ClassifiedBatch(FeatureBatch("night", "features", rows), classify(model, rows)[0]))
    return found


def run(elements: list[Any], folder: Path, send: beam.PTransform, write: beam.PTransform | None = None) -> RunCounts:
    pipeline = TestPipeline(runner=FnApiRunner())
    given = pipeline | beam.Create(elements, reshuffle=False)
    sent = given | "Send" >> send
    sent[DEAD_LETTERS] | "Letters" >> WriteDeadLetters(folder / "dead_letters", "send")
    if write is not None:
        given | "Write" >> write
    result = pipeline.run()
    result.wait_until_finish()
    return run_counts(counters(result))


def decoded(value: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writer schema and the one record of a container."""
    reader = fastavro.reader(io.BytesIO(value))
    (record,) = reader
    assert reader.codec == "null"
    return json.loads(reader.metadata["avro.schema"]), record  # type: ignore[return-value]


def body(value: bytes) -> bytes:
    """The one block of a container."""
    (block,) = fastavro.block_reader(io.BytesIO(value))
    assert block.num_records == 1
    return block.bytes_.getvalue()  # type: ignore[attr-defined]


def schemas_of(folder: Path) -> list[Any]:
    """Writer schemas of a run's alerts."""
    found = []
    for path in (folder / "alerts").glob("*.avro"):
        with open(path, "rb") as file:
            found.append(json.loads(fastavro.reader(file).metadata["avro.schema"]))
    return found


def sorted_by(name: str, records: list[dict[str, Any]]) -> list[str]:
    return [repr(record) for record in sorted(records, key=lambda record: record[name])]


@pytest.mark.parametrize("precision", ["float", "double"])
def test_alerts_equal_those_in_files(broker: str, matched: list[MatchedAlerts], tmp_path: Path, precision: str) -> None:
    topic = f"alerts-{precision}"
    settings = ProducerSettings(Kafka(broker), topic)
    write = WriteAlerts(tmp_path / "alerts", precision=precision)
    counts = run(matched, tmp_path, SendAlerts(settings, precision), write)
    assert counts.sent == {"alerts": 60}
    assert counts.dead == 0
    messages = [(key, *decoded(value)) for key, value in messages_in(broker, topic)]
    written = alerts_of(tmp_path)
    assert sorted_by("candid", [record for _, _, record in messages]) == sorted_by("candid", written)
    assert all(key.decode() == record["objectId"] for key, _, record in messages)
    assert any(record["xmatches"] for _, _, record in messages)
    assert {json.dumps(schema) for _, schema, _ in messages} == {json.dumps(one) for one in schemas_of(tmp_path)}


def test_the_same_alert_is_the_same_message_however_alerts_are_batched(
    broker: str, matched: list[MatchedAlerts], tmp_path: Path
) -> None:
    for topic, elements in (("one-way", matched), ("other-way", matched[::-1])):
        run(elements, tmp_path, SendAlerts(ProducerSettings(Kafka(broker), topic)))
    assert sorted(messages_in(broker, "one-way")) == sorted(messages_in(broker, "other-way"))


def test_schemaless_alerts(broker: str, matched: list[MatchedAlerts], tmp_path: Path) -> None:
    run(matched, tmp_path, SendAlerts(ProducerSettings(Kafka(broker), "bare"), schemaless=True))
    run(matched, tmp_path, SendAlerts(ProducerSettings(Kafka(broker), "whole")))
    bodies = [(key, body(value)) for key, value in messages_in(broker, "whole")]
    assert sorted(messages_in(broker, "bare")) == sorted(bodies)


def test_classifications_equal_those_in_files(broker: str, classified: list[ClassifiedBatch], tmp_path: Path) -> None:
    send = SendClassifications(ProducerSettings(Kafka(broker), "classes"))
    counts = run(classified, tmp_path, send, WriteMessages(tmp_path / "messages"))
    assert counts.sent == {"classifications": 24}
    messages = [(key, *decoded(value)) for key, value in messages_in(broker, "classes")]
    with open(tmp_path / "messages" / "night.avro", "rb") as file:
        written = list(fastavro.reader(file))
    assert sorted_by("oid", [record for _, _, record in messages]) == sorted_by("oid", written)  # type: ignore[arg-type]
    assert all(key.decode() == record["oid"] for key, _, record in messages)
    assert all(schema == json.loads(message_schema_text()) for _, schema, _ in messages)
    run(classified, tmp_path, SendClassifications(ProducerSettings(Kafka(broker), "bare-classes"), schemaless=True))
    schema = fastavro.parse_schema(json.loads(message_schema_text()))
    bare = [fastavro.schemaless_reader(io.BytesIO(v), schema, None) for _, v in messages_in(broker, "bare-classes")]
    assert sorted_by("oid", bare) == sorted_by("oid", written)  # type: ignore[arg-type]


def test_objects_without_candid_are_dead_letters(
    broker: str, classified: list[ClassifiedBatch], tmp_path: Path
) -> None:
    one = classified[0]
    candid = pa.array([None if row % 3 == 0 else row for row in range(12)], pa.int64())
    rows = replace(one.batch.rows, candid=candid)
    element = ClassifiedBatch(replace(one.batch, rows=rows), replace(one.classification, rows=rows))
    counts = run([element], tmp_path, SendClassifications(ProducerSettings(Kafka(broker), "gaps")))
    assert (counts.sent, counts.dead_letters) == ({"classifications": 8}, {"send": 4})
    sent = {key.decode() for key, _ in messages_in(broker, "gaps")}
    letters = letters_of(tmp_path)
    assert sent | {letter.member for letter in letters} == set(rows.oid.to_pylist())
    assert {letter.reason for letter in letters} == {"it has no candid, which a message needs"}


def sizes_of(matched: list[MatchedAlerts], broker: str, tmp_path: Path) -> dict[int, int]:
    """Bytes of the message of each alert, its key included."""
    topic = "sizes"
    if topic not in topics_of(broker):
        run(matched, tmp_path / "sizes", SendAlerts(ProducerSettings(Kafka(broker), topic)))
    return {decoded(value)[1]["candid"]: len(key) + len(value) for key, value in messages_in(broker, topic)}


@pytest.mark.parametrize("by", ["us", "the broker"])
def test_too_large_is_a_dead_letter_and_its_neighbours_arrive(
    broker: str, matched: list[MatchedAlerts], tmp_path: Path, by: str
) -> None:
    sizes = sizes_of(matched, broker, tmp_path)
    limit = int(np.median(list(sizes.values())))
    kafka, topic = Kafka(broker), f"small-{by[:2]}"
    settings = ProducerSettings(kafka, topic, max_message_bytes=limit)
    if by == "the broker":
        # The client's own limit is refused in the same words as the broker's, which a mock broker does not have.
        settings = ProducerSettings(replace(kafka, options=(("message.max.bytes", str(limit)),)), topic)
    counts = run(matched, tmp_path, SendAlerts(settings))
    large = {candid for candid, size in sizes.items() if size > limit}
    assert 10 < len(large) < 50
    assert (counts.sent, counts.dead_letters) == ({"alerts": 60 - len(large)}, {"send": len(large)})
    assert {decoded(value)[1]["candid"] for _, value in messages_in(broker, topic)} == sizes.keys() - large
    letters = letters_of(tmp_path)
    assert {letter.candid for letter in letters} == large
    for letter in letters:
        assert letter.stage == "send"
        assert f"{sizes[letter.candid]:,} bytes" in letter.reason  # type: ignore[index]
        assert f"{limit:,}" in letter.reason or topic in letter.reason
        assert decoded(letter.payload)[1]["candid"] == letter.candid


def test_alerts_that_were_too_large_are_sent_when_more_is_allowed(
    broker: str, sample: Sample, matched: list[MatchedAlerts], tmp_path: Path
) -> None:
    small = ProducerSettings(Kafka(broker), "again", max_message_bytes=1000)
    run(matched, tmp_path, SendAlerts(small))
    packets, refused, others = letters_by_stage(sorted((tmp_path / "dead_letters").glob("*")))
    assert (packets, others) == ([], [])
    matchers = (LocalMatcher(open_catalog(sample.catalog)),)
    for number, path in enumerate(refused):
        assert is_unsent(path)
        sending = SendAlerts(replace(small, max_message_bytes=10**6))
        place = (path, f"again{number}", tmp_path / "new", sending, matchers)
        counts = replay_unsent(*place, TestPipeline(runner=FnApiRunner()), programs=())
        assert counts["sent:alerts"] > 0
    assert not (tmp_path / "new").exists()
    run(matched, tmp_path, SendAlerts(replace(small, topic="at-once", max_message_bytes=10**6)))
    assert sorted(messages_in(broker, "again")) == sorted(messages_in(broker, "at-once"))


@pytest.mark.parametrize("kind", ["alerts", "classifications"])
def test_failed_delivery_raises(
    matched: list[MatchedAlerts], classified: list[ClassifiedBatch], tmp_path: Path, kind: str
) -> None:
    settings = ProducerSettings(NOWHERE, "lost", delivery_timeout_s=0.3)
    sending = SendAlerts(settings) if kind == "alerts" else SendClassifications(settings)
    elements: list[Any] = matched if kind == "alerts" else classified
    with pytest.raises(DeliveryError, match=r"for topic lost did not reach Kafka at 127\.0\.0\.1:9"):
        run(elements, tmp_path, sending)


def test_daily_topic(broker: str, matched: list[MatchedAlerts], tmp_path: Path) -> None:
    topics = DailyTopics("day_%s_alerts")
    before = topics.to_write(datetime.now(UTC))
    run(matched, tmp_path, SendAlerts(ProducerSettings(Kafka(broker), topics)))
    after = topics.to_write(datetime.now(UTC))
    names = {before, after} & topics_of(broker)
    assert sum(len(messages_in(broker, name)) for name in names) == 60


class TestXmatchCommand:
    @pytest.fixture
    def command(self, alertbeam: Callable[..., dict[str, Any]], sample: Sample, tmp_path: Path) -> Any:
        def run(*arguments: object) -> dict[str, Any]:
            options = ("--output", tmp_path / "run", "--database", "none", "--max-dead-letters", "99")
            return alertbeam(*sample.arguments, *options, *arguments)

        return run

    def test_kafka_beside_files_and_in_their_place(self, command: Any, broker: str, tmp_path: Path) -> None:
        told = command("--kafka", broker, "--alerts-topic", "beside")
        assert (told["status"], told["written"], told["sent"]) == (0, 60, {"alerts": 60})
        beside = messages_in(broker, "beside")
        found = [decoded(value)[1] for _, value in beside]
        assert sorted_by("candid", found) == sorted_by("candid", alerts_of(tmp_path / "run"))
        told = command("--kafka", broker, "--alerts-topic", "instead", "--no-avro")
        assert (told["status"], told["read"], told["written"], told["sent"]) == (0, 60, 60, {"alerts": 60})
        assert sorted(messages_in(broker, "instead")) == sorted(beside)
        assert not alerts_of(tmp_path / "run")
        assert (tmp_path / "run" / "crossmatches.parquet").exists()

    def test_nothing_is_sent_unless_named(self, command: Any, tmp_path: Path) -> None:
        told = command()
        assert (told["status"], told["sent"], len(alerts_of(tmp_path / "run"))) == (0, {}, 60)

    def test_usage(self, command: Any, broker: str) -> None:
        def said(*arguments: object) -> str:
            told = command(*arguments)
            assert told["status"] == 2
            return told["err"]

        assert "name the brokers as well, --kafka" in said("--alerts-topic", "x")
        assert "name what to send as well, --alerts-topic NAME" in said("--kafka", broker)
        assert "must hold %s once" in said("--kafka", broker, "--alerts-topic", "%s-%s")

    def test_stops_without_kafka(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipelines import xmatch_command

        quick = ProducerSettings(NOWHERE, "lost", delivery_timeout_s=0.3)
        monkeypatch.setattr(xmatch_command, "producer_settings", lambda *_: quick)
        told = command("--kafka", "127.0.0.1:9", "--alerts-topic", "lost")
        assert told["status"] == 3
        assert "for topic lost did not reach Kafka at 127.0.0.1:9" in told["err"]
        assert "while running" not in told["err"]
