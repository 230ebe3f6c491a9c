"""A backfill that sends to Kafka: the alerts of pass 1, the classes of pass 2, beside files or in their place."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pandas as pd
import pyarrow.parquet as pq
import pytest
from backfill_fixtures import DEMO_MODEL, Nights, backfilled, frame, make_nights
from kafka_sink_fixtures import messages_in, mock_broker
from pipeline_fixtures import alerts_of

from alerts.dead_letters import read_dead_letters
from alerts.sources import find_sources
from classifier.package import read_model, write_model
from lightcurves.features.curves import Mode
from messaging.settings import Kafka, ProducerSettings
from pipelines.backfill import BackfillJob, do
from pipelines.backfill_run import add_sources
from pipelines.replay import letter_files, letters_by_stage
from pipelines.workers import StopWork
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger
from xmatch.catalog import open_catalog
from xmatch.matcher import LocalMatcher


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"))


def records(address: str, topic: str) -> list[dict[str, Any]]:
    """Records of a topic whose messages are containers; the keys must be the objects' names."""
    found = []
    for key, value in messages_in(address, topic):
        (record,) = fastavro.reader(io.BytesIO(value))
        assert isinstance(record, dict)
        assert key.decode() == record.get("oid", record.get("objectId"))
        found.append(record)
    return found


def test_backfill_with_kafka(nights: Nights, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with mock_broker() as address:
        kafka = ("--kafka", address, "--alerts-topic", "alerts", "--classifications-topic", "classes")
        options = [*nights.options, "--database", "none"]
        summary = backfilled(run, *nights.archives[:2], *options, *kafka)
        assert summary["adds_up"]
        first, written = records(address, "alerts"), alerts_of(run)
        assert summary["sent"] == {"alerts": len(written), "classifications": summary["now"]["classified"]}
        assert sorted(map(repr, first)) == sorted(map(repr, written))
        classes = records(address, "classes")
        assert_as_stored(classes, run)
        newest = {alert["objectId"]: alert["candid"] for alert in sorted(written, key=time_of)}
        assert {record["oid"]: record["candid"] for record in classes} == {
            record["oid"]: newest[record["oid"]] for record in classes
        }

        # What was said once holds for the next night; no files from here on.
        summary = backfilled(run, nights.archives[2], "--no-avro")
        assert summary["adds_up"]
        assert alerts_of(run) == written
        assert summary["alerts"]["written"] == len(records(address, "alerts")) > len(written)
        second = records(address, "alerts")
        assert {alert["candid"] for alert in second} > {alert["candid"] for alert in first}
        # Of objects that did not change nothing is sent.
        later = records(address, "classes")
        assert len(later) == len(classes) + summary["now"]["classified"]
        assert_as_stored(sorted(later, key=lambda record: record["candid"]), run)

        # What was known at a date is no news.
        backfilled(run, "--only", "pass2", "--as-of", "2026-01-03")
        assert len(records(address, "classes")) == len(later)

        # The objects of an earlier version of the program have no candid; they are no packets to be fed again.
        for path in RunLayout(run).results().objects.rglob("*.parquet"):
            pq.write_table(pq.read_table(path, partitioning=None).drop_columns("candid"), path)
        write_model(replace(read_model(DEMO_MODEL), version="second"), tmp_path / "second")
        summary = backfilled(run, "--only", "pass2", "--model", tmp_path / "second")
        assert len(records(address, "classes")) == len(later)
    unsent = [path for path in letter_files([str(run)]) if ".send." in path.name]
    letters = [letter for path in unsent for letter in read_dead_letters(path)]
    assert summary["now"]["classified"] == len(letters) > 10
    assert {letter.reason for letter in letters} == {"it has no candid, which a message needs"}
    assert letters_by_stage(unsent) == ([], [], unsent)


def test_a_broker_that_is_away_stops_the_run(nights: Nights, tmp_path: Path) -> None:
    job = BackfillJob(
        folder=tmp_path,
        matchers=(LocalMatcher(open_catalog(nights.catalog)),),
        buckets=4,
        mode=Mode.ALERCE,
        feature_version="1",
        alerts_to=ProducerSettings(Kafka("127.0.0.1:9"), "lost", delivery_timeout_s=0.3),
    )
    with Ledger.open(job.layout.ledger) as ledger:
        add_sources(ledger, find_sources([str(nights.archives[0])]))
        (unit,) = ledger.units("read")
        with pytest.raises(StopWork, match=r"for topic lost did not reach Kafka at 127\.0\.0\.1:9: [^[]*$"):
            do(unit, job)
    assert not alerts_of(tmp_path)


def time_of(alert: dict[str, Any]) -> tuple[float, int]:
    return alert["candidate"]["jd"], alert["candid"]


def assert_as_stored(messages: list[dict[str, Any]], run: Path) -> None:
    """The last message of each object says what the tables of the run hold."""
    last = {record["oid"]: record for record in messages}
    stored, features = frame(RunLayout(run).results().all_probabilities), frame(RunLayout(run).results().all_features)
    assert stored["candid"].to_dict() == {oid: record["candid"] for oid, record in last.items()}
    for oid, record in last.items():
        told = record["lc_classification"]
        assert told["class"] == stored.loc[oid, "class"]
        assert told["probabilities"] == pytest.approx(stored.loc[oid, list(told["probabilities"])].to_dict(), abs=1e-7)
        mine = record["features"]
        known = {name: value for name, value in features.loc[oid, list(mine)].items() if pd.notna(value)}
        assert {name: value for name, value in mine.items() if value is not None} == pytest.approx(known, rel=1e-6)
