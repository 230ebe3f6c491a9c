"""In place of ALeRCE's containers: streams that are told everything by variables, beside the commands for files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from classify_fixtures import container, message_schema, random_rows, records_of, written_model
from database_fixtures import new_database
from kafka_fixtures import consume_all, produce
from live_stream_fixtures import rows_in
from pipeline_fixtures import Sample, alerts_of, make_sample, packets_of
from remote_fixtures import FakeCds, FakeCrossWave, FakeServer, Sky, serving
from sqlalchemy import make_url
from stream_process_fixtures import logs_as_before, offsets_of  # noqa: F401

from classifier.messages import message_schema_text
from messaging.local_broker import LocalBroker
from pipelines import matchers

Run = Callable[..., dict[str, Any]]
XMATCH_TABLES = {"object": "*", "allwise": "*", "xmatch": "*"}
CLASSIFIER_TABLES = {"object": "*", "probability": "*", "taxonomy": "*"}
COLUMNS = (
    *("AllWISE", "RAJ2000", "DEJ2000", "W1mag", "W2mag", "W3mag", "W4mag", "e_W1mag", "e_W2mag", "e_W3mag", "e_W4mag"),
    *("Jmag", "e_Jmag", "Hmag", "e_Hmag", "Kmag", "e_Kmag"),
)

pytestmark = pytest.mark.usefixtures("logs_as_before")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"), alerts=150, cutouts=False, bad_members=0)


@pytest.fixture(scope="module")
def sky(night: Sample) -> Sky:
    return Sky.read(night.archive.parent / "allwise_sample.csv")


@pytest.fixture
def other_url(database_url: str) -> Iterator[str]:
    """Another new database, for the command that the stream is compared with."""
    with new_database(database_url) as url:
        yield url


class Container:
    """What ALeRCE's deployment gives a step: brokers, topics and a database, all by variables.

    Attributes
    ----------
    incoming, outgoing, metrics : str
        Topics.
    variables : dict
    """

    def __init__(self, broker: LocalBroker, topic: Callable[..., str], url: str, group: str) -> None:
        self.address = broker.address
        self.incoming, self.outgoing, self.metrics = topic(2), topic(), topic()
        database = make_url(url)
        self.variables = {
            "CONSUMER_SERVER": self.address,
            "CONSUMER_TOPICS": self.incoming,
            "CONSUMER_GROUP_ID": group,
            "CONSUME_MESSAGES": "50",
            "ENABLE_PARTITION_EOF": "true",
            "PRODUCER_SERVER": self.address,
            "PRODUCER_TOPIC": self.outgoing,
            "METRICS_HOST": self.address,
            "METRICS_TOPIC": self.metrics,
            "DB_ENGINE": "postgresql",
            "DB_HOST": str(database.query["host"]),
            "DB_USER": str(database.username),
            "DB_PASSWORD": "",
            "DB_PORT": "5432",
            "DB_NAME": str(database.database),
            "STEP_VERSION": "1.0.0",
            "STEP_ID": "the_step",
            "STEP_NAME": "the_step",
            "STEP_COMMENTS": "",
            "USE_PROMETHEUS": "False",
            "LOGGING_DEBUG": "False",
        }

    def run(self, step: str, alertbeam: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Run a step as its container is run; what was sent is committed, and told of in the metrics."""
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
        ended = alertbeam("stream", "--step", step, "--json", "--quiet")
        assert ended["status"] == 0, ended["err"]
        for name in self.variables:
            monkeypatch.delenv(name)
        assert (
            sum(offsets_of(self.address, self.incoming, self.variables["CONSUMER_GROUP_ID"]).values())
            == (ended["committed"])
        )
        return ended

    def send(self, messages: list[bytes]) -> None:
        produce(self.address, self.incoming, [(str(number).encode(), value) for number, value in enumerate(messages)])

    def received(self) -> list[tuple[str, bytes]]:
        return [((key or b"").decode(), value or b"") for key, value in consume_all(self.address, self.outgoing)]

    def metrics_messages(self) -> list[dict[str, Any]]:
        return [json.loads(value or b"") for _, value in consume_all(self.address, self.metrics)]


@pytest.fixture
def steps_container(
    kafka_broker: LocalBroker,
    topic: Callable[..., str],
    empty_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Container:
    # The output is where the step runs.
    monkeypatch.chdir(tmp_path)
    return Container(kafka_broker, topic, empty_url, request.node.name)


def read(value: bytes) -> dict[str, Any]:
    [record] = fastavro.reader(io.BytesIO(value))
    return record  # type: ignore[return-value]


def bare(schema: dict[str, Any], record: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def check_metrics(found: list[dict[str, Any]], source: str, candids: list[int], oids: list[str]) -> None:
    assert {message["source"] for message in found} == {source}
    assert sum(message["n_messages"] for message in found) == len(candids)
    assert sorted(text for message in found for text in message["candid"]) == sorted(map(str, candids))
    assert sorted(oid for message in found for oid in message["oid"]) == sorted(oids)
    for message in found:
        assert message["timestamp_received"] <= message["timestamp_sent"]
        assert message["execution_time"] >= 0


@pytest.mark.parametrize("kind", ["containers and CDS", "bare records and CrossWave"])
def test_the_xmatch_step(
    kind: str,
    night: Sample,
    sky: Sky,
    steps_container: Container,
    alertbeam: Run,
    empty_url: str,
    other_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packets = list(packets_of(night.archive))
    catalog: dict[str, Any] = {"name": "allwise", "columns": list(COLUMNS)}
    service: FakeServer
    if kind == "containers and CDS":
        service, matcher = FakeCds(sky), "cds"
        messages = [container(schema, [record]) for schema, record in packets]
    else:
        service, matcher = FakeCrossWave(sky), "crosswave"
        packets = [(schema, record) for schema, record in packets if record["schemavsn"] == "4.02"]
        schema = packets[0][0]
        messages = [bare(schema, record) for _, record in packets]
        (tmp_path / "input.avsc").write_text(json.dumps(schema))
        steps_container.variables |= {
            "CONSUMER_CLASS": "apf.consumers.KafkaSchemalessConsumer",
            "CONSUMER_SCHEMA_PATH": str(tmp_path / "input.avsc"),
            "USE_XWAVE": "true",
        }
    folder = tmp_path / "packets"
    folder.mkdir()
    for schema, record in packets:
        (folder / f"{record['candid']}.avro").write_bytes(container(schema, [record]))
    steps_container.send(messages)
    with serving(service) as url:
        monkeypatch.setattr(matchers, "CDS_URL", url)
        catalog["service_url"] = url if matcher == "crosswave" else ""
        steps_container.variables |= {"CATALOG": json.dumps(catalog), "RETRIES": "3", "RETRY_INTERVAL": "0"}
        summary = steps_container.run("xmatch", alertbeam, monkeypatch)
        words = ["xmatch", folder, "--matcher", matcher, "--catalog", "allwise", "--service-url", url, "--quiet"]
        assert alertbeam(*words, "--output", tmp_path / "batch", "--database", other_url)["status"] == 0
    assert summary["received"] == summary["committed"] == len(packets)
    wanted = {alert["candid"]: alert for alert in alerts_of(tmp_path / "batch")}
    received = [(key, read(value)) for key, value in steps_container.received()]
    assert sorted(alert["candid"] for _, alert in received) == sorted(wanted)
    for key, alert in received:
        assert key == alert["objectId"]
        assert repr(alert) == repr(wanted[alert["candid"]])
        match = night.truth[alert["candid"]]
        assert (alert["xmatches"] and alert["xmatches"]["allwise"]["AllWISE"]) == (match and match[0])
    assert any(alert["xmatches"] for _, alert in received)
    rows = rows_in(other_url, XMATCH_TABLES)
    assert all(rows.values())
    assert rows_in(empty_url, XMATCH_TABLES) == rows
    assert [row[:4] for row in rows_in(empty_url, {"step": "*"})["step"]] == [("the_step", "the_step", "1.0.0", "")]
    oids = [record["objectId"] for _, record in packets]
    check_metrics(steps_container.metrics_messages(), "XmatchStep", [*wanted], oids)


@pytest.mark.parametrize("form", ["Avro", "Schemaless", "Json"])
def test_the_late_classification_step(
    form: str,
    steps_container: Container,
    alertbeam: Run,
    empty_url: str,
    other_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written_model(tmp_path / "model")
    rows_sent = random_rows(120, seed=8)
    # Avro's messages have 32 bits, and JSON's as many as are written.
    rows_sent.values[:] = np.float32(rows_sent.values)
    records, schema = records_of(rows_sent), message_schema()
    variables = steps_container.variables
    variables["MODEL_PATH"] = str(tmp_path / "model")
    match form:
        case "Avro":
            messages = [container(schema, [record]) for record in records]
        case "Schemaless":
            messages = [bare(schema, record) for record in records]
            (tmp_path / "input.avsc").write_text(json.dumps(schema))
            variables["CONSUMER_SCHEMA_PATH"] = str(tmp_path / "input.avsc")
            variables["PRODUCER_CLASS"] = "apf.producers.KafkaSchemalessProducer"
        case "Json":
            messages = [json.dumps(record).encode() for record in records]
    if form != "Avro":
        variables["CONSUMER_CLASS"] = f"apf.consumers.Kafka{form}Consumer"
    steps_container.send(messages)
    summary = steps_container.run("late_classification", alertbeam, monkeypatch)
    assert summary["received"] == summary["committed"] == len(records)

    path, out = tmp_path / "features.avro", tmp_path / "classes.avro"
    path.write_bytes(container(schema, records))
    words = ["classify", path, "--model", tmp_path / "model", "--output", out, "--database", other_url, "--quiet"]
    assert alertbeam(*words)["status"] == 0
    with open(out, "rb") as file:
        wanted = {message["oid"]: message for message in fastavro.reader(file)}
    ours = fastavro.parse_schema(json.loads(message_schema_text()))
    received = [
        (key, fastavro.schemaless_reader(io.BytesIO(value), ours, None) if form == "Schemaless" else read(value))
        for key, value in steps_container.received()
    ]
    assert sorted(key for key, _ in received) == sorted(wanted)
    for key, message in received:
        assert message["lc_classification"] == wanted[key]["lc_classification"]
        assert message["candid"] == wanted[key]["candid"]
        if form == "Avro":
            assert repr(message) == repr(wanted[key])
    rows = rows_in(other_url, CLASSIFIER_TABLES)
    assert all(rows.values())
    assert rows_in(empty_url, CLASSIFIER_TABLES) == rows
    oids, candids = [record["oid"] for record in records], [record["candid"] for record in records]
    check_metrics(steps_container.metrics_messages(), "LateClassifier", candids, oids)
