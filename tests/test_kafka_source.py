"""The source: marks, watermarks and records by hand; then in pipelines on FnApiRunner."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from alerts_fixtures import packet
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners import create_runner
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from kafka_sink_fixtures import mock_broker

from alerts.batch import AlertBatch
from alerts.reader import Limits
from alerts.sources import Source
from messaging.consumer import Message, PartitionConsumer
from messaging.monitor import Monitor, monitor
from messaging.settings import ConsumerSettings, Kafka, MonitorSettings
from transforms.counts import counters
from transforms.kafka_source import (
    Finalized,
    KafkaMark,
    KafkaReader,
    KafkaSource,
    MarkCoder,
    ReadFromKafka,
    Watermark,
    alert_time_s,
    by_partition,
    event_time_s,
    unit_of,
)
from transforms.message_reading import AlertDecoder

QUICK = (("fetch.wait.max.ms", "10"),)
PARTITIONS = 4
NOW = 1_795_000_000.0
HOUR = 3600.0

# What pipelines left behind, in order; they run in this process.
SEEN: list[Any] = []


@pytest.fixture
def broker() -> Iterator[str]:
    SEEN.clear()
    with mock_broker() as address:
        yield address


def settings(address: str, **more: Any) -> ConsumerSettings:
    return ConsumerSettings(Kafka(address, options=QUICK), ("t",), "group", timeout_s=0.05, **more)


def send(address: str, values: Iterable[bytes | None]) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 0, "log_level": 0})
    for number, value in enumerate(values):
        producer.produce("t", value, partition=number % PARTITIONS)
    assert producer.flush(30) == 0


def committed(address: str) -> dict[tuple[str, int], int]:
    """Offsets that the brokers have for the group."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "group", "log_level": 0})
    found = consumer.committed([TopicPartition("t", number) for number in range(PARTITIONS)], timeout=10)
    consumer.close()
    return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}


def as_they_are(messages: Sequence[Message], source: Source) -> Iterator[list[Message]]:
    """Decode nothing: an item holds messages."""
    half = len(messages) // 2
    yield from ([*some] for some in (messages[:half], messages[half:]) if some)


# -- plain functions --------------------------------------------------------------------------------------------------


def message(partition: int = 0, offset: int = 0, timestamp_ms: int = 0, topic: str = "t") -> Message:
    return Message(topic, partition, offset, timestamp_ms, None, b"")


def test_messages_by_partition_keep_their_order() -> None:
    messages = [message(1, 5), message(0, 2), message(1, 6), message(1, 7, topic="u"), message(0, 3)]
    found = by_partition(messages)
    assert {key: [one.offset for one in some] for key, some in found.items()} == {
        ("t", 1): [5, 6],
        ("t", 0): [2, 3],
        ("u", 1): [7],
    }


def test_a_unit_is_named_by_its_first_message() -> None:
    source = unit_of([message(3, 42, topic="ztf_20261121.programid1"), message(3, 43)])
    # What stands before the first dot of a file's name is the unit.
    assert source.name == "ztf_20261121_programid1-3-000000000042"
    assert source.location == "kafka:ztf_20261121.programid1/3"
    assert not source.loose


def batch_of(*numbers: int) -> AlertBatch:
    messages = [Message("t", 0, number, 0, None, packet(number)) for number in numbers]
    (batch,) = AlertDecoder()(messages, unit_of(messages))
    assert isinstance(batch, AlertBatch)
    return batch


class FakeBatch(AlertBatch):
    """Alerts of which only the dates are known."""

    def __init__(self, *jd: float) -> None:
        object.__setattr__(self, "_jd", np.array(jd, dtype=float))

    @property
    def jd(self) -> Any:
        return vars(self)["_jd"]


def test_the_event_time_is_that_of_the_newest_alert() -> None:
    # Number n of the fixture is of JD 2458000.5 + n; JD 2458000.5 is 2017-09-04.
    assert alert_time_s(batch_of(3, 9, 4)) == 1_504_483_200 + 9 * 86400
    assert event_time_s([batch_of(1), "other", batch_of(2)], [message(timestamp_ms=5)], NOW) == (
        1_504_483_200 + 2 * 86400
    )


@pytest.mark.parametrize("jd", [np.nan, np.inf * -1, -1.0, 0.0, 58000.5])
def test_senseless_dates_are_passed_over(jd: float) -> None:
    assert event_time_s([FakeBatch(jd, 2_458_000.5)], [message()], NOW) == 1_504_483_200
    assert event_time_s([FakeBatch(jd)], [message(timestamp_ms=5000), message(timestamp_ms=4000)], NOW) == 5.0


@pytest.mark.parametrize("jd", [np.inf, 1e300, 2_600_000.5])
def test_dates_of_the_future_are_now(jd: float) -> None:
    assert event_time_s([FakeBatch(jd, 2_458_000.5)], [message()], NOW) == NOW


def test_without_alerts_and_timestamps_it_is_now() -> None:
    assert event_time_s([], [message(timestamp_ms=-1)], NOW) == NOW
    assert event_time_s(["features"], [message(timestamp_ms=7000)], NOW) == 7.0


A, B, C = ("t", 0), ("t", 1), ("t", 2)
NONE: frozenset[tuple[str, int]] = frozenset()


def test_the_watermark_follows_the_partition_that_is_farthest_behind() -> None:
    it, both = Watermark(HOUR), frozenset({A, B})
    assert it.at(both, NONE, NOW) == -np.inf
    it.saw(A, NOW - 1000, NOW)
    # Nobody knows what B holds.
    assert it.at(both, NONE, NOW) == -np.inf
    it.saw(B, NOW - 2000, NOW)
    assert it.at(both, NONE, NOW) == NOW - 2000 - HOUR
    it.saw(B, NOW - 500, NOW)
    assert it.at(both, NONE, NOW) == NOW - 1000 - HOUR
    it.saw(A, NOW - 9000, NOW)
    assert it.at(both, NONE, NOW) == NOW - 1000 - HOUR


def test_an_idle_partition_holds_no_other_back() -> None:
    it, both = Watermark(HOUR), frozenset({A, B})
    it.saw(A, NOW - 90_000, NOW)
    it.saw(B, NOW - 500, NOW)
    assert it.at(both, frozenset({A}), NOW) == NOW - 500 - HOUR
    # Nor does one that was empty from the beginning on.
    assert it.at(both | {C}, frozenset({A, C}), NOW) == NOW - 500 - HOUR
    assert it.at(both | {C}, NONE, NOW) == NOW - 500 - HOUR


def test_a_reader_without_partitions_holds_no_other_back() -> None:
    assert Watermark(HOUR).at(frozenset(), NONE, NOW) == NOW - HOUR


def test_while_all_are_idle_time_passes_as_on_the_clock() -> None:
    it, both = Watermark(HOUR), frozenset({A, B})
    assert it.at(both, both, NOW) == -np.inf
    it.saw(A, NOW - 90_000, NOW)
    it.saw(B, NOW - 500, NOW + 10)
    assert it.at(both, both, NOW + 60) == NOW - 450 - HOUR
    assert it.at(both, both, NOW + 600) == NOW + 90 - HOUR


@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, B, C]), st.floats(0, 1e6), st.sets(st.sampled_from([A, B, C])), st.floats(0, 1000)
        )
    )
)
def test_the_watermark_never_goes_back_nor_reaches_the_clock(
    steps: list[tuple[tuple[str, int], float, set[tuple[str, int]], float]],
) -> None:
    it, now, before = Watermark(HOUR), NOW, -np.inf
    for partition, age_s, idle, passed_s in steps:
        now += passed_s
        it.saw(partition, now - age_s, now)
        found = it.at(frozenset({A, B, C}), frozenset(idle), now)
        assert before <= found <= now - HOUR
        before = found


POSITIONS = st.dictionaries(
    st.tuples(st.text("abc._-", min_size=1, max_size=5), st.integers(0, 500)), st.integers(0, 2**62), max_size=20
)


@given(st.lists(st.sampled_from(["end", "end", "barrier", "complete"]), max_size=60), st.randoms())
def test_what_is_committed_is_covered_by_a_complete_checkpoint(steps: list[str], chance: random.Random) -> None:
    """Whatever the order of bundles' ends, barriers and completions, which finalize all that has ended."""
    finalized, committed = Finalized(), 0
    outstanding: list[KafkaMark] = []
    # Bundles that had ended at the barrier of the checkpoint that is under way, and of the last complete one.
    ended = at_barrier = covered = 0
    for now, step in enumerate(steps, 1):
        match step:
            case "end":
                ended += 1
                mark = KafkaMark(settings("kafka:9092"), None, {A: ended}, made_at_s=now - chance.random() / 2)
                outstanding.append(mark)
            case "barrier" if not at_barrier:
                at_barrier = ended + 1
            case "complete" if at_barrier:
                covered, at_barrier = at_barrier - 1, 0
                chance.shuffle(outstanding)
                for place, mark in enumerate(outstanding):
                    found = [one.positions[A] for one in finalized.take(mark, now + place / 100) if one.positions]
                    assert found == list(range(committed + 1, committed + 1 + len(found)))
                    committed += len(found)
                    assert committed <= covered
                outstanding.clear()


def test_marks_are_committed_one_checkpoint_later() -> None:
    finalized = Finalized()
    marks = [KafkaMark(settings("kafka:9092"), None, {A: number}, made_at_s=float(number)) for number in range(5)]
    assert finalized.take(marks[0], 2.5) == finalized.take(marks[1], 2.51) == finalized.take(marks[2], 2.52) == []
    assert finalized.take(marks[3], 4.5) == marks[:3]
    assert finalized.take(marks[4], 4.51) == []


@given(st.none() | POSITIONS, st.randoms())
def test_marks_are_the_same_bytes_in_any_order(
    positions: dict[tuple[str, int], int] | None, chance: random.Random
) -> None:
    coder = MarkCoder(settings("kafka:9092"), None)
    mark = KafkaMark(settings("kafka:9092"), None, positions)
    encoded = coder.encode(mark)
    assert coder.decode(encoded).positions == positions
    if positions is not None:
        rows = list(positions.items())
        chance.shuffle(rows)
        assert coder.encode(replace(mark, positions=dict(rows))) == encoded


# -- the reader -------------------------------------------------------------------------------------------------------


def handed_out(reader: KafkaReader) -> list[Message]:
    return [one for _, item in reader.get_current() for one in item]


def test_every_message_is_handed_out_once_over_any_rebuilds(broker: str) -> None:
    chance = random.Random(8)
    send(broker, (str(number).encode() for number in range(600)))
    (source,) = KafkaSource(settings(broker, stop_at_end=True, max_messages=17), as_they_are).split(20)
    coder = source.get_checkpoint_mark_coder()
    mark, rebuilt = None, 0
    found: list[Message] = []
    while True:
        # What lives is another reader, which knows nothing but the bytes of the mark.
        reader = source.create_reader(None, mark)
        more, last = reader.start(), reader.get_watermark()
        for _ in range(chance.randrange(8)):
            if not more:
                break
            found += handed_out(reader)
            more, last = reader.advance(), reader.get_watermark()
        if more:
            found += handed_out(reader)
        cut = reader.get_checkpoint_mark()
        reader.close()
        next_offsets: dict[tuple[str, int], int] = {}
        for one in found:
            next_offsets[one[:2]] = one.offset + 1
        # Never ahead of what was handed out, never behind.
        assert {key: offset for key, offset in (cut.positions or {}).items() if offset} == next_offsets
        if last >= MAX_TIMESTAMP:
            break
        mark = coder.decode(coder.encode(cut))
        rebuilt += 1
    assert rebuilt > 3
    for partition in range(PARTITIONS):
        assert [one.offset for one in found if one.partition == partition] == list(range(150))


def test_a_mark_cut_before_the_brokers_answer_keeps_what_was_known() -> None:
    source = KafkaSource(settings("127.0.0.1:1"), as_they_are)
    for positions in (None, {}, {("t", 1): 9}):
        reader = source.create_reader(None, KafkaMark(source.settings, None, positions))
        assert reader.get_checkpoint_mark().positions == positions
        reader.close()
    reader = source.create_reader(None, None)
    assert reader.get_checkpoint_mark().positions is None
    reader.close()


def test_the_stop_file_ends_the_reading(broker: str, tmp_path: Path) -> None:
    send(broker, [b"x"] * 8)
    stop = tmp_path / "stop"
    source = KafkaSource(settings(broker, stop_file=str(stop)), as_they_are)
    reader = source.create_reader(None, None)
    found = reader.start()
    while not found:
        found = reader.advance()
    assert reader.get_watermark() < MAX_TIMESTAMP
    before = reader.get_checkpoint_mark().positions
    stop.touch()
    assert not reader.advance()
    assert reader.get_watermark() == MAX_TIMESTAMP
    assert reader.get_checkpoint_mark().positions == before
    # Once it has ended, it has ended.
    stop.unlink()
    assert not reader.advance()
    assert reader.get_watermark() == MAX_TIMESTAMP
    reader.close()


def test_readers_that_take_turns_share_a_connection(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Flink, where copies of a transform go on with a split in turn; one that goes back reads once more."""
    made: list[PartitionConsumer] = []

    class Counted(PartitionConsumer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if arguments[0] == source.settings:
                made.append(self)

    source = KafkaSource(settings(broker, max_messages=2), as_they_are)
    monkeypatch.setattr("transforms.kafka_source.PartitionConsumer", Counted)
    send(broker, [bytes([number]) for number in range(12)])

    def read(reader: KafkaReader) -> list[tuple[int, int]]:
        while not reader.advance():
            pass
        return [(message.partition, message.offset) for _, item in reader.get_current() for message in item]

    first = source.create_reader(None, None)
    assert isinstance(first, KafkaReader)
    before = read(first)
    found = [*before]
    begin = first.get_checkpoint_mark()
    second = source.create_reader(None, begin)
    assert isinstance(second, KafkaReader)
    later = read(second)
    third = source.create_reader(None, second.get_checkpoint_mark())
    assert isinstance(third, KafkaReader)
    found += [*later, *read(third)]
    assert len(made) == 1
    # A failure lets the first one go on where it was.
    again = read(first)
    assert len(made) == 2
    while not {*later} <= {*again}:
        again += read(first)
    assert not {*again} & {*before}
    second.close()
    while len(found) < 12:
        found += read(third)
    assert len(set(found)) == len(found) == 12
    first.close()
    third.close()


def test_the_reader_tells_the_watermark_and_the_time_of_its_alerts(broker: str) -> None:
    send(broker, [packet(number) for number in (5, 6, 7, 8)])
    reader = KafkaSource(settings(broker), AlertDecoder()).create_reader(None, None)
    assert reader.get_watermark() == MIN_TIMESTAMP
    newest = []
    more = reader.start()
    while len(newest) < 4:
        if more:
            newest += [alert_time_s(item) for _, item in reader.get_current()]
            assert reader.get_current_timestamp() == max(newest[-len(reader.get_current()) :])
        more = reader.advance()
    assert reader.get_watermark() == min(newest) - HOUR
    reader.close()


def test_a_mark_tells_the_monitor_what_was_done(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(Monitor, "committed", lambda _, done: told.append(done))
    began_s = time.time()
    send(broker, [packet(number) for number in range(8)])
    watched = MonitorSettings(stalled_after_s=12.0)
    source = KafkaSource(settings(broker, stop_at_end=True), AlertDecoder(), watched)
    reader = source.create_reader(None, None)
    monkeypatch.setattr(reader, "_key_names", ("oid", "candid", "schemavsn", "nothing"))
    reader.start()
    while reader.get_watermark() < MAX_TIMESTAMP:
        reader.advance()
    mark = reader.get_checkpoint_mark()
    assert committed(broker) == {}
    mark.finalize_checkpoint()
    reader.get_checkpoint_mark().finalize_checkpoint()
    reader.close()
    assert committed(broker) == dict.fromkeys((("t", number) for number in range(PARTITIONS)), 2)
    (done,) = told
    assert done.messages == len(done.timestamps_ms) == 8
    assert began_s - 1 <= done.timestamps_ms.min() / 1000 <= done.received_at <= time.time()
    assert sorted(done.keys["candid"]) == [1_000_000 * number for number in range(8)]
    assert sorted(done.keys["oid"]) == [f"ZTF18test{number:04d}" for number in range(8)]
    assert done.keys["schemavsn"] == ["3.3"] * 8
    assert done.keys["nothing"] == []
    assert monitor(watched).snapshot().received == 8
    assert monitor(watched).snapshot().lag == 0


# -- pipelines --------------------------------------------------------------------------------------------------------


class Keep(beam.DoFn):
    """Keeps batches when their bundle is finished, as sinks do."""

    def start_bundle(self) -> None:
        self._batches: list[Any] = []

    def process(self, batch: AlertBatch, when: Any = beam.DoFn.TimestampParam) -> None:
        assert float(when) >= alert_time_s(batch)
        self._batches.append(batch)

    def finish_bundle(self) -> None:
        SEEN.append(("written", [int(candid) for batch in self._batches for candid in batch.candid]))


def note_letter(element: tuple[str, Any]) -> None:
    SEEN.append(("letter", element))


def fail(batch: AlertBatch) -> None:
    raise RuntimeError("the sink is broken")


def run(read: Callable[[], ReadFromKafka], sink: beam.PTransform | None = None) -> dict[str, int]:
    pipeline = beam.Pipeline(runner=create_runner("FnApiRunner"), options=PipelineOptions([]))
    found = pipeline | read()
    found["batches"] | "Sink" >> (sink or beam.ParDo(Keep()))
    found["dead_letters"] | "Letters" >> beam.Map(note_letter)
    result = pipeline.run()
    result.wait_until_finish()
    return counters(result)


def written() -> list[int]:
    return sorted(candid for kind, candids in SEEN if kind == "written" for candid in candids)


def test_a_pipeline_reads_a_topic_to_its_end(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = PartitionConsumer.__init__
    monkeypatch.setattr(PartitionConsumer, "__init__", lambda self, *a, **k: made.append(1) or begin(self, *a, **k))
    finalize = KafkaMark.finalize_checkpoint

    def note(mark: KafkaMark) -> None:
        SEEN.append(("committed", dict(mark.positions or {})))
        finalize(mark)

    monkeypatch.setattr(KafkaMark, "finalize_checkpoint", note)
    packets = [packet(number) for number in range(300)]
    packets[7], packets[120], packets[130] = b"no alert", None, packets[131]
    send(broker, packets)
    read = partial(
        ReadFromKafka,
        settings(broker, stop_at_end=True, max_messages=40),
        AlertDecoder(limits=Limits(alerts=10)),
        MonitorSettings(),
        programs=(1,),
        bundle_records=2,
    )
    counts = run(read)
    assert written() == sorted(
        1_000_000 * (131 if number == 130 else number) for number in range(300) if number not in (7, 120)
    )
    assert counts["read"] == 298
    letters = [element for kind, element in SEEN if kind == "letter"]
    assert sorted((letter.source, letter.member) for _, letter in letters) == [("kafka:t/0", "30"), ("kafka:t/3", "1")]
    assert all(unit.startswith("t-") for unit, _ in letters)
    assert committed(broker) == dict.fromkeys((("t", number) for number in range(PARTITIONS)), 75)
    kinds = [kind for kind, _ in SEEN if kind != "letter"]
    assert kinds.count("committed") > 3, "several bundles"
    # One reader lives through all bundles, and each is committed when its sinks are done.
    assert len(made) == 1
    so_far = 0
    for kind, what in SEEN:
        if kind == "written":
            so_far += len(what)
        elif kind == "committed":
            assert sum(what.values()) <= so_far + len(letters)
    SEEN.clear()
    assert run(read).get("read", 0) == 0
    assert written() == []


def test_nothing_is_committed_when_a_sink_fails(broker: str) -> None:
    send(broker, [packet(number) for number in range(40)])
    read = partial(ReadFromKafka, settings(broker, stop_at_end=True), AlertDecoder())
    with pytest.raises(RuntimeError, match="the sink is broken"):
        run(read, beam.Map(fail))
    assert committed(broker) == {}
    run(read)
    assert written() == [1_000_000 * number for number in range(40)]


def test_alerts_of_other_programmes_are_left_out(broker: str) -> None:
    send(broker, [packet(number) for number in range(8)])
    counts = run(partial(ReadFromKafka, settings(broker, stop_at_end=True), AlertDecoder(), programs=(2, 3)))
    assert (counts["read"], counts["filtered"]) == (8, 8)
    assert written() == []
    assert sum(committed(broker).values()) == 8


def test_several_splits_read_everything_once(broker: str) -> None:
    send(broker, [packet(number) for number in range(100)])
    run(partial(ReadFromKafka, settings(broker, stop_at_end=True), AlertDecoder(), splits=3))
    assert written() == [1_000_000 * number for number in range(100)]
    assert sum(committed(broker).values()) == 100


def test_parts_for_several_processes_are_everything_together(broker: str) -> None:
    send(broker, [packet(number) for number in range(100)])
    for part in range(3):
        reading = partial(ReadFromKafka, settings(broker, stop_at_end=True), AlertDecoder(), splits=3, part=part)
        run(reading)
        assert 0 < len(written()) < 100 or part == 2
    assert sorted(written()) == [1_000_000 * number for number in range(100)]


def test_there_is_no_shuffle_behind_the_source() -> None:
    pipeline = beam.Pipeline(runner=create_runner("FnApiRunner"))
    read = pipeline | ReadFromKafka(settings("127.0.0.1:1"), AlertDecoder())
    read["batches"] | beam.Map(fail)
    steps = pipeline.to_runner_api().components.transforms.values()
    urns = {step.spec.urn for step in steps}
    assert any(urn.endswith("pardo:v1") for urn in urns)
    assert not [urn for urn in urns if "group_by_key" in urn or "reshuffle" in urn]
