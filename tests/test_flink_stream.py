"""What a stream on Flink is watched by: counters, offsets and arrivals seen from outside; options that are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from backfill_fixtures import DEMO_MODEL
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from kafka_fixtures import client_options, produce

from database.client import Database
from messaging.group import Arrivals, Group, Position
from messaging.local_broker import LocalBroker
from messaging.monitor import Monitor
from messaging.offsets import commit_offsets
from messaging.settings import EARLIEST, LATEST, ConsumerSettings, Kafka, MonitorSettings
from pipelines.flink_jobs import RUNNING, Job
from pipelines.flink_stream import FlinkStream, RunningCounts, our_name
from pipelines.stream import StreamJob, build
from pipelines.usage import UsageError
from transforms.models import ModelPlace

PARTITION = ("t", 0)


def test_names_of_counters() -> None:
    names = ("read", "rows:feature_version", "dead_letters:read", "sent:alerts", "class:YSO", "classified", "model:new")
    for name in names:
        assert our_name(name.replace(":", "_")) == our_name(name) == name


def test_counters_go_on_behind_a_restart() -> None:
    counts = RunningCounts()
    # Some counters appear late; a restart begins all of them anew.
    for told in ({"read": 3}, {}, {"read": 5, "rows_object": 2}, {"read": 1}, {"read": 4, "rows_object": 1}):
        counts.take(told)
    assert counts.total == {"read": 9, "rows:object": 3}
    counts.end()
    counts.take({"read": 4, "rows_object": 1})
    assert counts.total == {"read": 13, "rows:object": 4}


@pytest.mark.parametrize(
    ("position", "lag"),
    [
        (Position(None, 0, 5), 5),
        (Position(None, 3, 5), 2),
        (Position(4, 0, 5), 1),
        (Position(5, 0, 5), 0),
        # Messages expired before they were read; a topic that was made anew.
        (Position(1, 3, 5), 2),
        (Position(9, 0, 5), 0),
    ],
)
def test_lag(position: Position, lag: int) -> None:
    assert position.lag == lag


@given(st.lists(st.integers(0, 3), max_size=30))
def test_arrivals_are_those_of_the_looks_before(came: list[int]) -> None:
    """Each second some messages come, and then somebody looks."""
    arrivals, end = Arrivals(), 7
    arrivals.look({PARTITION: Position(None, 0, end)}, 100.0)
    expected = [0] * end
    for second, number in enumerate(came):
        end += number
        expected += [1000 * (100 + second)] * number
        arrivals.look({PARTITION: Position(None, 0, end)}, 101.0 + second)
    assert arrivals.times_ms(PARTITION, 0, end).tolist() == expected
    assert arrivals.times_ms(PARTITION, 3, end).tolist() == expected[3:]
    assert arrivals.times_ms(PARTITION, 3, 3).tolist() == []
    # What came since nobody has looked at.
    assert arrivals.times_ms(PARTITION, end, end + 1).tolist() == [0]
    assert not arrivals.times_ms(("u", 0), 0, 2).any()


def test_group_from_outside(kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
    name = topic(2)
    settings = ConsumerSettings(Kafka(kafka_broker.address), (name, "absent"), "watched")
    produce(kafka_broker.address, name, [(str(number).encode(), b"") for number in range(20)])
    consumer = Consumer({**client_options(kafka_broker.address), "group.id": "any"})
    ends = [consumer.get_watermark_offsets(TopicPartition(name, number), 10)[1] for number in range(2)]
    consumer.close()
    assert sum(ends) == 20
    with Group(settings) as group:
        assert group.positions() == {(name, number): Position(None, 0, ends[number]) for number in range(2)}
        assert commit_offsets(settings, {(name, 0): 3})
        assert group.positions() == {(name, 0): Position(3, 0, ends[0]), (name, 1): Position(None, 0, ends[1])}


@pytest.mark.parametrize(("start", "share"), [(EARLIEST, 0.0), (LATEST, 1.0), ("2020-01-01", 0.0), ("2100-01-01", 1.0)])
def test_group_is_moved_to_the_start(
    kafka_broker: LocalBroker, topic: Callable[..., str], start: str, share: float
) -> None:
    name = topic()
    settings = ConsumerSettings(Kafka(kafka_broker.address), (name,), "moved", start)
    produce(kafka_broker.address, name, [(None, b"")] * 5)
    assert commit_offsets(settings, {(name, 0): 2})
    with Group(settings) as group:
        assert group.move_to_start() == {(name, 0): 5 * share}
        assert group.positions() == {(name, 0): Position(round(5 * share), 0, 5)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "Flink is not named"),
        (["--job_endpoint=localhost:8099"], "name the Flink behind it by --flink_master=HOST:PORT"),
        (["--job_endpoint=localhost:8099", "--flink_master=[local]"], "name the Flink behind it"),
        (["--flink_master=[local]", "--checkpointing_interval=0"], "--checkpointing_interval must be more than 0"),
    ],
)
def test_refused(options: list[str], complaint: str, tmp_path: Path) -> None:
    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group")
    with pytest.raises(UsageError, match=complaint):
        FlinkStream(options, consumer, tmp_path)


def test_options_may_be_written_with_hyphens(tmp_path: Path) -> None:
    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group")
    with FlinkStream(["--job-endpoint=localhost:8099", "--flink-master=flink:8081"], consumer, tmp_path) as place:
        assert place._rest_url == "http://flink:8081"


def test_a_part_of_the_partitions_is_refused(tmp_path: Path) -> None:
    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group")
    options = ["--flink_master=localhost:8081", "--parallelism=3"]
    place = FlinkStream(options, consumer, tmp_path)
    job = StreamJob("xmatch", consumer, decode=list, output=tmp_path, threads=8)
    adapted = place.adapted(job)
    assert adapted.consumer.timeout_s == 1.5
    often = FlinkStream([*options, "--min_pause_between_checkpoints=400"], consumer, tmp_path)
    assert often.adapted(job).consumer.timeout_s == pytest.approx(0.3)
    assert (adapted.splits, adapted.threads, adapted.checkpointed, adapted.monitor) == (3, 2, True, None)
    with pytest.raises(UsageError, match="on Flink say --parallelism=N"):
        place.adapted(replace(job, part=0, splits=2))


@pytest.mark.parametrize(
    ("left", "more", "moved"),
    [
        (True, [], 0),
        (False, [], 1),
        (False, ["--savepoint_path=file:///a"], 0),
        (False, ["--savepoint-path=file:///a"], 0),
    ],
)
def test_only_a_job_that_is_begun_here_is_begun_at_the_start(
    left: bool, more: list[str], moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is taken up, nor the one that renews it."""
    moves: list[int] = []

    class Watched(Group):
        def __init__(self, settings: ConsumerSettings) -> None:
            pass

        def close(self) -> None:
            pass

        def move_to_start(self) -> dict[tuple[str, int], int]:
            moves.append(1)
            return {}

    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group", EARLIEST)
    place = FlinkStream(["--flink_master=localhost:8081", *more], consumer, tmp_path)
    job = Job("id", place.name, RUNNING)
    found = iter([job if left else None, None])
    monkeypatch.setattr("pipelines.flink_stream.Group", Watched)
    monkeypatch.setattr(place, "_left_running", lambda: next(found))
    monkeypatch.setattr(place, "_submit", lambda _: None)
    monkeypatch.setattr(place, "_begun", lambda _: job)
    monkeypatch.setattr(place, "_watch", lambda *_: None)
    for _ in range(2):
        place.run(StreamJob("xmatch", consumer, decode=list, output=tmp_path), Monitor(MonitorSettings()))
    assert len(moves) == moved
    assert not [option for option in place._options if "savepoint" in option]


def test_states_come_back_from_savepoints(tmp_path: Path) -> None:
    """Flink's runner names a stage by what it reads: one that keeps states must be the only one that reads it."""
    consumer = ConsumerSettings(Kafka("localhost:9092"), ("t",), "group")
    model = ModelPlace(str(DEMO_MODEL))
    database = Database("postgresql://localhost/none")
    job = StreamJob("all", consumer, decode=list, output=tmp_path, model=model).with_database(database)
    pipeline = beam.Pipeline()
    build(pipeline, FlinkStream(["--flink_master=localhost:8081"], consumer, tmp_path).adapted(job))
    graph = pipeline.to_runner_api().components
    readers = Counter(name for transform in leaves(graph) for name in transform.inputs.values())
    stateful = [transform for transform in leaves(graph) if is_stateful(transform)]
    assert [transform.unique_name for transform in stateful] == ["Light curves by object/Keep rows"]
    assert [readers[name] for name in stateful[0].inputs.values()] == [1]


def leaves(graph: Any) -> list[Any]:
    return [transform for transform in graph.transforms.values() if not transform.subtransforms]


def is_stateful(transform: Any) -> bool:
    if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
        return False
    return bool(beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).state_specs)


def test_arrivals_have_the_type_of_timestamps() -> None:
    assert Arrivals().times_ms(PARTITION, 0, 1).dtype == np.int64
