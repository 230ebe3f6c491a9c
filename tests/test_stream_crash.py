"""Streams that are killed, lose their broker or database, or are told to end: nothing is lost, and no row is wrong."""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from backfill_fixtures import DEMO_MODEL, Nights
from confluent_kafka import Message
from database_fixtures import execute, new_database
from kafka_fixtures import messages_in, produce
from left_fixtures import ONE_STEP, Undisturbed, alerts_in, check_alerts, check_classes, public_candids
from live_stream_fixtures import rows_in, streamed
from remote_fixtures import FakeCds, Sky, serving
from stream_process_fixtures import GROUP, Stream, committed_offsets, logs_as_before, offsets_of  # noqa: F401

from database.embedded import EmbeddedServer, start_embedded
from messaging.admin import create_topic
from messaging.local_broker import LocalBroker
from pipelines.running import locked

Run = Callable[..., dict[str, Any]]
PARTITIONS = 3
# Many small bundles.
SMALL = {**ONE_STEP, "CONSUME_MESSAGES": "3"}
BUNDLES = ["--bundle-seconds", "0.01"]


@pytest.fixture(scope="module")
def undisturbed(
    nights: Nights,
    packets: list[bytes],
    kafka_broker: LocalBroker,
    database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    create_topic(kafka_broker.address, "undisturbed", PARTITIONS)
    fill(kafka_broker.address, "undisturbed", packets, seed=1)
    with new_database(database_url) as url:
        options = [*all_steps(nights, url), "--alerts-topic", "undisturbed-alerts"]
        streamed(tmp_path_factory.mktemp("stream"), kafka_broker.address, "undisturbed", *options, variables=ONE_STEP)
        return Undisturbed(rows_in(url), dict(alerts_in(kafka_broker.address, "undisturbed-alerts")))


def all_steps(nights: Nights, url: str) -> list[object]:
    return ["--step", "all", "--catalog", nights.catalog, "--model", DEMO_MODEL, "--database", url]


def fill(address: str, topic: str, packets: Iterable[bytes], seed: int) -> None:
    """Put packets in some order into a topic, some into each partition."""
    packets = list(packets)
    random.Random(seed).shuffle(packets)
    produce(address, topic, [(str(number).encode(), packet) for number, packet in enumerate(packets)])
    assert {message.partition() for message in messages_in(address, topic)} == {*range(PARTITIONS)}


@dataclass
class Trial:
    """A stream that is disturbed, and all that it needs."""

    broker: LocalBroker
    server: EmbeddedServer
    options: list[object]
    output: Path
    topic: str
    servers: list[EmbeddedServer] = field(default_factory=list)

    @property
    def alerts_topic(self) -> str:
        """Of the crossmatched alerts."""
        return f"{self.topic}-alerts"

    @property
    def classes_topic(self) -> str:
        """Of the classifications."""
        return f"{self.topic}-classes"

    def start(self) -> Stream:
        """Start the stream, with small bundles."""
        return Stream(self.output, self.broker.address, self.topic, *self.options, *BUNDLES, variables=SMALL)

    def finish(self) -> dict[str, Any]:
        """Run the stream to the end of the topic; give its summary."""
        return streamed(self.output, self.broker.address, self.topic, *self.options, variables=ONE_STEP)

    def interrupt_broker(self, seconds: float) -> None:
        self.broker.kill()
        time.sleep(seconds)
        self.broker.start()

    def interrupt_database(self, seconds: float) -> None:
        self.kill_database()
        time.sleep(seconds)
        self.start_database()

    def kill_database(self) -> None:
        pid_file = self.server.folder / "data" / "postmaster.pid"
        psutil.Process(int(pid_file.read_text().splitlines()[0])).kill()

    def start_database(self) -> None:
        # The first handle keeps its way to the socket.
        self.servers.append(start_embedded(self.server.folder))

    def check_offsets(self, sent: Iterable[Message]) -> int:
        """What is before the committed offsets has its results; give the number of such messages."""
        offsets = offsets_of(self.broker.address, self.topic)
        before = [message for message in sent if (message.offset() or 0) < offsets[message.partition() or 0]]
        done = public_candids(message.value() or b"" for message in before)
        stored = {candid for (candid,) in execute(self.server.url, "SELECT candid FROM detection")}
        assert done <= stored
        assert done <= {candid for candid, _ in alerts_in(self.broker.address, self.alerts_topic)}
        return len(before)


@pytest.fixture
def trial(nights: Nights, kafka_broker: LocalBroker, tmp_path: Path) -> Iterator[Trial]:
    with start_embedded(tmp_path / "database") as server:
        options = all_steps(nights, server.url)
        trial = Trial(kafka_broker, server, options, tmp_path / "stream", f"disturbed-{uuid.uuid4().hex}")
        options += ["--alerts-topic", trial.alerts_topic, "--classifications-topic", trial.classes_topic]
        yield trial
        for joined in trial.servers:
            joined.stop()


def nothing(_: float) -> None:
    """Disturb nobody."""


def disturbed(
    trial: Trial,
    packets: list[bytes],
    wanted: Undisturbed,
    chance: random.Random,
    disturbances: Iterable[Callable[[float], None]],
    most_away_s: float,
) -> None:
    """Kill a stream again and again, each time after something that it must bear; let it end, and look at all."""
    address = trial.broker.address
    create_topic(address, trial.topic, PARTITIONS)
    fill(address, trial.topic, packets, seed=chance.randrange(1000))
    sent = messages_in(address, trial.topic)
    done = 0
    for disturb in disturbances:
        with trial.start() as stream:
            done = stream.wait_for_commits(done + chance.randint(1, 30))
            disturb(chance.uniform(0.2, most_away_s))
            if disturb is not nothing:
                stream.wait_for_commits(done + 1)
            time.sleep(chance.uniform(0.0, 0.5))
            stream.kill()
        done = trial.check_offsets(sent)
        print(f"killed after {disturb.__name__}: {done} of {len(sent)} messages are committed")
    summary = trial.finish()
    assert summary["received"] == summary["committed"] == len(sent) - done > 0
    assert trial.check_offsets(sent) == len(sent)
    for table, rows in wanted.rows.items():
        assert rows, table
        assert rows_in(trial.server.url, {table: "*"})[table] == rows, table
    check_alerts(list(alerts_in(address, trial.alerts_topic)), wanted.alerts)
    check_classes(messages_in(address, trial.classes_topic), wanted.rows["probability"])


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    return random.Random(seed)


def test_kills_with_broker_and_database_away_in_between(
    trial: Trial, packets: list[bytes], undisturbed: Undisturbed, chance: random.Random
) -> None:
    disturbances = [nothing, trial.interrupt_broker, trial.interrupt_database]
    chance.shuffle(disturbances)
    disturbed(trial, packets, undisturbed, chance, disturbances, most_away_s=2.0)


@pytest.mark.long
def test_twenty_kills(trial: Trial, packets: list[bytes], undisturbed: Undisturbed, chance: random.Random) -> None:
    """Run it by ``python -m pytest -m long tests/test_stream_crash.py -s``; it takes some minutes."""
    choices = [nothing, nothing, trial.interrupt_broker, trial.interrupt_database]
    disturbances = [chance.choice(choices) for _ in range(20)]
    # Enough for so many: what comes twice changes nothing.
    disturbed(trial, packets * 3, undisturbed, chance, disturbances, most_away_s=10.0)


@pytest.mark.usefixtures("impatient", "logs_as_before")
def test_a_database_that_is_gone_for_good_ends_the_stream(
    trial: Trial, packets: list[bytes], alertbeam: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, half = trial.broker.address, len(packets) // 2
    create_topic(address, trial.topic, PARTITIONS)
    fill(address, trial.topic, packets[:half], seed=3)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)

    def run() -> dict[str, Any]:
        words = ["stream", "--server", address, "--topics", trial.topic, "--group", GROUP, "--output", trial.output]
        return alertbeam(*words, *trial.options, "--quiet", *BUNDLES)

    def kill_soon() -> None:
        with committed_offsets(address, trial.topic) as offsets:
            while not sum(offsets().values()):
                time.sleep(0.02)
        trial.kill_database()
        # However fast it was, there is something left that cannot be written.
        fill(address, trial.topic, packets[half:], seed=4)

    killer = threading.Thread(target=kill_soon)
    killer.start()
    ended = run()
    killer.join()
    for _ in range(2):
        *log, told = ended["err"].splitlines()
        assert ended["status"] == 3
        assert told.startswith("alertbeam stream: stopped: The database postgresql")
        assert "start again when the database is back" in told
        assert not any("Traceback" in line for line in log), ended["err"]
        # It is away from the start on.
        ended = run()
    trial.start_database()
    assert 0 < trial.check_offsets(messages_in(address, trial.topic)) < len(packets)


def test_a_signal_finishes_what_was_read(
    nights: Nights, packets: list[bytes], kafka_broker: LocalBroker, topic: Callable[..., str], tmp_path: Path
) -> None:
    address, incoming, outgoing = kafka_broker.address, topic(PARTITIONS), topic()
    options = ["--step", "xmatch", "--catalog", nights.catalog, "--database", "none", "--alerts-topic", outgoing]
    done = 0
    for part, number in enumerate((signal.SIGTERM, signal.SIGINT)):
        fill(address, incoming, packets[part::3], seed=part)
        with Stream(tmp_path, address, incoming, *options, *BUNDLES, variables=SMALL) as stream:
            stream.wait_for_commits(done + 1)
            ended = stream.end(number)
        assert ended.status == 0, ended.said
        assert f"{number.name}: finishing what was read" in ended.said
        assert ended.summary["received"] == ended.summary["committed"] > 0
        done += ended.summary["committed"]
        assert sum(offsets_of(address, incoming).values()) == done
    fill(address, incoming, packets[2::3], seed=2)
    summary = streamed(tmp_path, address, incoming, *options)
    assert summary["committed"] == len(packets) - done
    candids = [candid for candid, _ in alerts_in(address, outgoing)]
    assert len(candids) == len({*candids}) == len(public_candids(packets))


def test_a_second_signal_ends_at_once(
    packets: list[bytes], kafka_broker: LocalBroker, topic: Callable[..., str], tmp_path: Path
) -> None:
    address, incoming = kafka_broker.address, topic(PARTITIONS)
    fill(address, incoming, packets, seed=4)
    service = FakeCds(Sky([]), work_s=300.0)
    with serving(service) as url:
        options = ["--step", "xmatch", "--matcher", "cds", "--catalog", "allwise", "--service-url", url]
        with Stream(tmp_path, address, incoming, *options, "--database", "none") as stream:
            stream.wait_for(lambda: service.most_at_once)
            stream.process.send_signal(signal.SIGTERM)
            stream.wait_for(lambda: "once more ends at once" in stream.said)
            began = time.monotonic()
            ended = stream.end(signal.SIGTERM)
    assert ended.status == 143, ended.said
    assert time.monotonic() - began < 60
    assert sum(offsets_of(address, incoming).values()) == 0


def test_two_streams_do_not_share_a_folder(
    nights: Nights, kafka_broker: LocalBroker, alertbeam: Run, tmp_path: Path
) -> None:
    words = ["stream", "--server", kafka_broker.address, "--topics", "any", "--group", GROUP, "--output", tmp_path]
    with locked(tmp_path):
        ended = alertbeam(*words, "--step", "xmatch", "--catalog", nights.catalog, "--database", "none")
    assert ended["status"] == 2
    assert f"another run is writing to {tmp_path}" in ended["err"]
