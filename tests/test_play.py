"""Archived packets as a stream: what is sent, in which order, and when."""

import io
import itertools
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import fastavro
import pytest
from kafka_fixtures import consume_all
from pipeline_fixtures import packets_of, write_packet

from alerts.sources import find_sources
from messaging import play as playing
from messaging.local_broker import LocalBroker
from messaging.play import Pace, PlayCounts, Played, play
from messaging.settings import Kafka, ProducerSettings
from pipelines.play_command import Packets
from simulation import simulate_sample

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_sample(tmp_path_factory.mktemp("night"), alerts=40, bad_members=3, cutouts=False).night.archive


def members(archive: Path) -> list[bytes]:
    with tarfile.open(archive) as tar:
        return [tar.extractfile(member).read() for member in tar if member.isfile()]  # type: ignore[union-attr]


def record_of(data: bytes) -> dict[str, Any]:
    return next(fastavro.reader(io.BytesIO(data)))  # type: ignore[return-value]


class TestPackets:
    def test_they_are_those_of_the_archive(self, night: Path) -> None:
        """Byte for byte, in their order, the broken ones among them."""
        sent = list(Packets(find_sources([str(night)]), keyed=True))
        assert [message.value for message in sent] == members(night)
        known = [message for message in sent if not math.isnan(message.jd)]
        assert len(known) == 40
        for message in known:
            record = record_of(message.value)
            assert (message.key.decode(), message.jd) == (record["objectId"], record["candidate"]["jd"])
        assert {message.key for message in sent if math.isnan(message.jd)} == {b""}
        assert {message.key for message in Packets(find_sources([str(night)]))} == {b""}

    def test_loose_files_and_many_alerts_in_one(self, night: Path, tmp_path: Path) -> None:
        packets = list(itertools.islice(packets_of(night), 6))
        schema = packets[0][0]
        records = [record for other, record in packets if other == schema]
        assert len(records) > 1
        with open(tmp_path / "b.avro", "wb") as file:
            fastavro.writer(file, fastavro.parse_schema(dict(schema)), records, codec="deflate")
        (tmp_path / "c.avro").write_bytes(b"<html>")
        write_packet(tmp_path / "a.avro", packets[0])
        sent = list(Packets(find_sources([str(tmp_path)]), keyed=True))
        assert sent[0].value == (tmp_path / "a.avro").read_bytes()
        assert sent[-1] == Played(b"", b"<html>", sent[-1].jd)
        assert [record_of(message.value)["candid"] for message in sent[1:-1]] == [r["candid"] for r in records]
        assert [message.key.decode() for message in sent[1:-1]] == [r["objectId"] for r in records]

    def test_members_of_one_name(self, night: Path, tmp_path: Path) -> None:
        some = [data for data in members(night) if data.startswith(b"Obj")][:3]
        with tarfile.open(tmp_path / "same.tar", "w") as tar:
            for data in some:
                info = tarfile.TarInfo("same.avro")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        sent = list(Packets(find_sources([str(tmp_path / "same.tar")]), keyed=True))
        assert [message.value for message in sent] == some
        assert [message.key.decode() for message in sent] == [record_of(data)["objectId"] for data in some]

    def test_what_cannot_be_read_is_told_once(self, night: Path, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes(night.read_bytes()[:-2000])
        packets = Packets(find_sources([str(damaged)]))
        first, second = list(packets), list(packets)
        assert len(first) == len(second) > 0
        assert len(packets.unreadable) == 1
        assert "damaged.tar.gz" in next(iter(packets.unreadable))


class TestPace:
    """With a clock that stands still but for sleeping."""

    @pytest.fixture
    def mock(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Kafka, list[float]]:
        now, sleeps = [100.0], []

        def sleep(seconds: float) -> None:
            now[0] += seconds
            sleeps.append(seconds)

        clock = type("Clock", (), {"monotonic": staticmethod(lambda: now[0]), "sleep": staticmethod(sleep)})
        monkeypatch.setattr(playing, "time", clock)
        self.now = now
        self.cluster = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(self.cluster.list_topics(timeout=10).brokers.values()))
        return Kafka(f"{broker.host}:{broker.port}"), sleeps

    def times(self, kafka: Kafka, pace: Pace, jds: list[float]) -> list[float]:
        """Seconds after the start at which each message is sent."""
        found: list[float] = []
        counts = PlayCounts()

        def note() -> None:
            if counts.messages > len(found):
                found.append(self.now[0] - 100.0)

        play(ProducerSettings(kafka, "t"), [Played(b"", b"x", jd) for jd in jds], pace, counts, note)
        assert (counts.messages, counts.bytes, counts.refused) == (len(jds), len(jds), 0)
        return found

    def test_as_fast_as_possible(self, mock: tuple[Kafka, list[float]]) -> None:
        assert self.times(mock[0], Pace(), [5.0, 1.0, math.nan]) == [0, 0, 0]
        assert mock[1] == []

    def test_rate(self, mock: tuple[Kafka, list[float]]) -> None:
        assert self.times(mock[0], Pace(rate=2), [1.0] * 4) == pytest.approx([0, 0.5, 1.0, 1.5], abs=0.002)
        assert max(mock[1]) <= 0.1
        fast = self.times(mock[0], Pace(rate=10_000), [1.0] * 101)
        assert fast[-1] - fast[0] == pytest.approx(0.01, abs=0.002)

    def test_speed(self, mock: tuple[Kafka, list[float]]) -> None:
        hours = [math.nan, 0.0, 1.0, 3.0, 2.0, 4.0]
        jds = [2460000.5 + hour / 24 for hour in hours]
        assert self.times(mock[0], Pace(speed=3600), jds) == pytest.approx([0, 0, 1, 3, 3, 4], abs=0.003)

    def test_both_hold(self, mock: tuple[Kafka, list[float]]) -> None:
        jds = [2460000.5 + hour / 24 for hour in (0.0, 5.0, 5.0, 5.0)]
        assert self.times(mock[0], Pace(rate=0.5, speed=3600), jds) == pytest.approx([0, 5, 5, 6], abs=0.003)

    def test_too_large(self, mock: tuple[Kafka, list[float]]) -> None:
        counts = PlayCounts()
        settings = ProducerSettings(mock[0], "t", max_message_bytes=2000)
        play(settings, [Played(b"", bytes(size)) for size in (10, 3000, 20)], Pace(), counts)
        assert (counts.messages, counts.bytes, counts.refused) == (2, 30, 1)

    @pytest.mark.parametrize("values", [{"rate": -1.0}, {"speed": math.inf}, {"rate": math.nan}], ids=str)
    def test_no_pace(self, values: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(values))):
            Pace(**values)


class TestCommand:
    def test_a_night_twice(
        self,
        night: Path,
        alertbeam: Run,
        kafka_broker: LocalBroker,
        topic: Callable[..., str],
    ) -> None:
        name = f"{topic()}_played"
        options = ("--key", "objectId", "--partitions", 3, "--repeat", 2, "--rate", 1000)
        answer = alertbeam("play", night, "--server", kafka_broker.address, "--topic", name, *options)
        assert answer["status"] == 0, answer["err"]
        assert f"sent to {name}: 86 alerts" in answer["out"]
        found = consume_all(kafka_broker.address, name)
        assert sorted(value or b"" for _, value in found) == sorted(members(night) * 2)
        by_key = itertools.groupby(sorted(found, key=lambda pair: pair[0] or b""), key=lambda pair: pair[0])
        objects = {key: [record_of(value or b"") for _, value in pairs] for key, pairs in by_key if key}
        assert {key.decode() for key in objects} == {record["objectId"] for _, record in packets_of(night)}
        for records in objects.values():
            half = [record["candid"] for record in records][: len(records) // 2]
            assert [record["candid"] for record in records] == half * 2

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (["--rate", "-1"], "rate"),
            (["--speed", "nan"], "speed"),
            (["--repeat", "-1"], "--repeat"),
            (["--partitions", "0"], "--partitions"),
            (["--topic", "no/name"], "--topic"),
            (["absent.tar.gz"], "absent.tar.gz"),
        ],
        ids=" ".join,
    )
    def test_wrong_usage(self, night: Path, alertbeam: Run, changes: list[str], sentence: str) -> None:
        inputs = [text for text in changes[:1] if not text.startswith("-")]
        rest = changes[len(inputs) :]
        answer = alertbeam("play", night, *inputs, "--server", "127.0.0.1:1", "--topic", "t", *rest)
        assert (answer["status"], answer["out"]) == (2, "")
        assert sentence in answer["err"]

    def test_no_broker(self, night: Path, alertbeam: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from messaging.admin import cluster_at

        monkeypatch.setattr("pipelines.play_command.cluster_at", lambda kafka: cluster_at(kafka, 0.3))
        answer = alertbeam("play", night, "--server", "127.0.0.1:1", "--topic", "t")
        assert (answer["status"], answer["out"]) == (3, "")
        assert "no broker answers at 127.0.0.1:1" in answer["err"]
