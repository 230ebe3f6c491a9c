"""The stream on Flink: it writes what the local one writes, also when workers, task managers and jobs die."""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from backfill_fixtures import DEMO_MODEL, Nights
from confluent_kafka import Consumer, KafkaException, TopicPartition
from database_fixtures import new_database
from flink_fixtures import last_checkpoint, pool_options
from kafka_fixtures import client_options, messages_in
from left_fixtures import ONE_STEP, Undisturbed, alerts_in, check_alerts, check_classes, public_candids
from live_stream_fixtures import Rows, rows_in, send, streamed
from stream_process_fixtures import Stream, logs_as_before, offsets_of  # noqa: F401

from database.embedded import start_embedded
from messaging.admin import create_topic
from messaging.local_broker import LocalBroker
from pipelines import flink_jobs
from pipelines.flink_cluster import FlinkCluster, FlinkServer, FlinkSettings, start_cluster, start_job_server
from pipelines.flink_options import CHECKPOINTING_INTERVAL_MS, MIN_PAUSE_MS
from pipelines.worker_pool import WorkerPool

pytestmark = pytest.mark.flink

PARTITIONS = 3
SMALL = {**ONE_STEP, "CONSUME_MESSAGES": "3"}
QUICK = ("--checkpointing_interval=500", "--min_pause_between_checkpoints=500")
# Flink cannot take the second checkpoint after a resume if a task has not yet heard of the first: the defaults' pause.
CAREFUL = (
    f"--checkpointing_interval={CHECKPOINTING_INTERVAL_MS}",
    f"--min_pause_between_checkpoints={MIN_PAUSE_MS}",
)


def all_steps(nights: Nights, url: str, topic: str) -> list[object]:
    sinks = ["--alerts-topic", f"{topic}-alerts", "--classifications-topic", f"{topic}-classes"]
    return ["--step", "all", "--catalog", nights.catalog, "--model", DEMO_MODEL, "--database", url, *sinks]


@pytest.fixture(scope="module")
def undisturbed(
    nights: Nights,
    packets: list[bytes],
    kafka_broker: LocalBroker,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    """What the local stream leaves."""
    topic = new_topic(kafka_broker, packets, seed=1)
    with new_database(database_url) as url:
        options = all_steps(nights, url, topic)
        streamed(tmp_path_factory.mktemp("stream"), kafka_broker.address, topic, *options, variables=ONE_STEP)
        return Undisturbed(rows_in(url), dict(alerts_in(kafka_broker.address, f"{topic}-alerts")))


def new_topic(broker: LocalBroker, packets: list[bytes], seed: int) -> str:
    topic = f"flink-{uuid.uuid4().hex[:12]}"
    create_topic(broker.address, topic, PARTITIONS)
    send(broker.address, topic, packets, seed)
    return topic


def same_rows(url: str, wanted: Rows) -> None:
    for table, rows in wanted.items():
        assert rows, table
        found = rows_in(url, {table: "*"})[table]
        assert [*map(repr, found)] == [*map(repr, rows)], table


@pytest.mark.usefixtures("logs_as_before")
def test_rows_of_the_local_stream(
    nights: Nights,
    packets: list[bytes],
    undisturbed: Undisturbed,
    kafka_broker: LocalBroker,
    flink_components: None,
    empty_url: str,
    tmp_path: Path,
) -> None:
    """Two slots read three partitions side by side."""
    topic = new_topic(kafka_broker, packets, seed=2)
    flink = ["--runner", "FlinkRunner", "--flink_master=[local]", "--environment_type=LOOPBACK", "--parallelism=2"]
    options = [*all_steps(nights, empty_url, topic), *flink, *QUICK]
    summary = streamed(tmp_path, kafka_broker.address, topic, *options, variables=ONE_STEP)
    assert summary["received"] == summary["committed"] == len(packets)
    assert summary["lag"] == 0
    assert summary["counts"]["rows:detection"] >= len(undisturbed.rows["detection"])
    assert sum(offsets_of(kafka_broker.address, topic).values()) == len(packets)
    same_rows(empty_url, undisturbed.rows)
    alerts = list(alerts_in(kafka_broker.address, f"{topic}-alerts"))
    assert dict(alerts) == undisturbed.alerts
    assert len(alerts) == len(undisturbed.alerts)
    check_classes(messages_in(kafka_broker.address, f"{topic}-classes"), undisturbed.rows["probability"])


def test_growth_is_shed_without_losing_light_curves(
    nights: Nights,
    packets: list[bytes],
    undisturbed: Undisturbed,
    kafka_broker: LocalBroker,
    flink_components: None,
    empty_url: str,
    tmp_path: Path,
) -> None:
    """A job that is taken up anew has an empty state, and goes on with the light curves of the database."""
    half = len(packets) // 2
    topic = new_topic(kafka_broker, packets[:half], seed=3)
    flink = ["--runner", "FlinkRunner", "--flink_master=[local]", "--environment_type=LOOPBACK", *QUICK]
    options = [*all_steps(nights, empty_url, topic), *flink, "--renew-hours", 15 / 3600, "--start", "earliest"]
    with Stream(tmp_path, kafka_broker.address, topic, *options, variables=ONE_STEP) as stream:
        stream.wait_for(lambda: "taking up the pipeline anew" in stream.said)
        stream.wait_for_commits(half)
        stream.wait_for(lambda: stream.said.count("runs as") == 2)
        send(kafka_broker.address, topic, packets[half:], seed=4)
        stream.wait_for_commits(len(packets))
        ended = stream.end(signal.SIGTERM)
    assert ended.status == 0, ended.said
    assert ended.summary["received"] >= ended.summary["committed"] == len(packets)
    same_rows(empty_url, undisturbed.rows)
    # Nobody needs those of jobs that went on without them.
    assert not [*(tmp_path / "flink" / "savepoints").glob("*")]


def messages(address: str, topic: str) -> int:
    """Number of messages that a topic of one partition has been sent; 0 if there is none."""
    consumer = Consumer({**client_options(address), "group.id": "any"})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), 10)[1])
    except KafkaException:
        return 0
    finally:
        consumer.close()


class Trial:
    """A cluster, its workers, and a stream on it that is disturbed."""

    def __init__(
        self, folder: Path, broker: LocalBroker, topic: str, options: list[object], pool: WorkerPool, url: str
    ) -> None:
        self.broker, self.topic, self.options, self.pool, self.url = broker, topic, options, pool, url
        self._folder, self._output = folder, folder / "stream"
        self._stack = ExitStack()
        self._settings = FlinkSettings(slots=1, heap_mb=400, managed_mb=64)
        self.start_flink()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_flink(self) -> None:
        settings = self._settings
        self.cluster: FlinkCluster = self._stack.enter_context(
            start_cluster(self._folder / "cluster", settings=settings)
        )
        self.server: FlinkServer = self._stack.enter_context(
            start_job_server(self._folder / "server", flink_master=self.cluster.master, settings=settings)
        )

    def start(self, *more: object) -> Stream:
        """Start the process that submits the job or takes it up."""
        flink = ["--runner", "FlinkRunner", f"--job_endpoint={self.server.job_endpoint}", *QUICK]
        flink += [f"--flink_master={self.cluster.master}", *pool_options(self.pool)]
        options = [*self.options, *flink, *more]
        return Stream(self._output, self.broker.address, self.topic, *options, variables=SMALL)

    def job(self) -> str:
        """Identifier of the job that runs."""
        return flink_jobs.running_job(self.cluster.rest_url).job_id

    def check_offsets(self) -> int:
        """What is before the committed offsets has its results; give the number of such messages."""
        offsets = offsets_of(self.broker.address, self.topic)
        sent = messages_in(self.broker.address, self.topic)
        before = [message for message in sent if (message.offset() or 0) < offsets[message.partition() or 0]]
        done = public_candids(message.value() or b"" for message in before)
        assert done <= {row[0] for row in rows_in(self.url, {"detection": "candid"})["detection"]}
        return len(before)


@pytest.fixture
def trial(nights: Nights, kafka_broker: LocalBroker, worker_pool: WorkerPool, tmp_path: Path) -> Iterator[Trial]:
    topic = new_topic(kafka_broker, [], seed=5)
    with start_embedded(tmp_path / "database") as server:
        options = all_steps(nights, server.url, topic)
        with Trial(tmp_path, kafka_broker, topic, options, worker_pool, server.url) as trial:
            yield trial


def test_kills(trial: Trial, packets: list[bytes], undisturbed: Undisturbed) -> None:
    """Worker, task manager, the process that submitted, and the job are killed; all goes on from checkpoints."""
    parts = [packets[number::4] for number in range(4)]
    address = trial.broker.address

    def in_the_middle(part: int, stream: Stream) -> None:
        """Send a part, and wait until some of it is done, but nothing of it is committed."""
        before = sum(map(len, parts[:part]))
        if before:
            stream.wait_for_commits(before)
            assert trial.check_offsets() == before
        done = messages(address, f"{trial.topic}-alerts")
        send(address, trial.topic, parts[part], seed=part)
        stream.wait_for(lambda: messages(address, f"{trial.topic}-alerts") > done)

    with trial.start() as stream:
        in_the_middle(0, stream)
        job = trial.job()
        for pid in trial.pool.pids():
            psutil.Process(pid).kill()
        in_the_middle(1, stream)
        trial.cluster.task_managers[-1].kill()
        trial.cluster.start_task_manager()
        in_the_middle(2, stream)
        assert trial.job() == job
        assert flink_jobs.checkpoints(trial.cluster.rest_url, job).restored >= 1
        stream.kill()
    with trial.start() as stream:
        stream.wait_for(lambda: "is taken up" in stream.said)
        in_the_middle(3, stream)
        assert trial.job() == job
        trial.cluster.kill()
        checkpoint = last_checkpoint(trial.cluster.checkpoints, job)
        stream.kill()
    trial.check_offsets()
    trial.server.stop()
    trial.start_flink()
    with trial.start(f"--savepoint_path={checkpoint}", "--stop-at-end", *CAREFUL) as stream:
        ended = stream.end()
    assert ended.status == 0, ended.said
    assert trial.check_offsets() == len(packets)
    same_rows(trial.url, undisturbed.rows)
    check_alerts(list(alerts_in(address, f"{trial.topic}-alerts")), undisturbed.alerts)
    check_classes(messages_in(address, f"{trial.topic}-classes"), undisturbed.rows["probability"])
    # What a job leaves that is stopped: one savepoint, until somebody says that it is not needed.
    (savepoint,) = re.findall(r"--savepoint_path=file:(\S+)", ended.said)
    assert Path(savepoint, "_metadata").exists()
    flink_jobs.discard(trial.cluster.rest_url, f"file:{savepoint}")
    give_up_at = time.monotonic() + 30
    while Path(savepoint).exists():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
