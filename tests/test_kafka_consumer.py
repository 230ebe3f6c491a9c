"""The consumer, the commits and the outages, with librdkafka's mock broker; what that lacks, with a real one."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from hypothesis import given
from hypothesis import strategies as st
from kafka_sink_fixtures import mock_broker, topics_of

import messaging.consumer
import messaging.offsets
from messaging.connection import BrokerError, Outage
from messaging.consumer import Message, PartitionConsumer, share_of
from messaging.local_broker import LocalBroker
from messaging.offsets import commit_offsets, readable_offset, start_time_ms
from messaging.settings import ConsumerSettings, Kafka
from messaging.topics import DailyTopics

QUICK = (("fetch.wait.max.ms", "10"),)
PARTITIONS = 4


@pytest.fixture
def broker() -> Iterator[str]:
    with mock_broker() as address:
        yield address


def settings(address: str, *topics: str, **more: Any) -> ConsumerSettings:
    return ConsumerSettings(Kafka(address, options=QUICK), more.pop("topics", topics or ("t",)), "group", **more)


def send(address: str, topic: str, values: Iterable[bytes | None], partitions: int = PARTITIONS) -> None:
    """Send messages to the partitions in turn."""
    producer = Producer({"bootstrap.servers": address, "linger.ms": 0, "message.max.bytes": 16_000_000, "log_level": 0})
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % partitions)
    assert producer.flush(30) == 0


def numbered(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last)]


def read(consumer: PartitionConsumer, until: Callable[[], bool] | None = None) -> list[Message]:
    """Read until something holds; else, until all partitions are at their ends."""
    found: list[Message] = []
    give_up = time.monotonic() + 30
    while not (until or consumer.at_end)():
        assert time.monotonic() < give_up, "it does not end"
        found += consumer.poll()
    return found


def reading(given: ConsumerSettings, *args: Any, **more: Any) -> tuple[list[Message], dict[tuple[str, int], int]]:
    """Read to the end with a consumer of its own; give also the positions."""
    consumer = PartitionConsumer(given, *args, **more)
    try:
        while not consumer.is_started():
            early = consumer.poll()
        return early + read(consumer), consumer.positions()
    finally:
        consumer.close()


def values(messages: Iterable[Message]) -> set[bytes | None]:
    return {message.value for message in messages}


# -- reading ----------------------------------------------------------------------------------------------------------


def test_everything_is_read_once_and_in_order(broker: str) -> None:
    send(broker, "t", numbered(0, 400))
    consumer = PartitionConsumer(settings(broker, max_messages=30))
    messages = []
    while not consumer.at_end():
        taken = consumer.poll()
        assert len(taken) <= 30
        messages += taken
    by_partition: dict[int, list[Message]] = {}
    for message in messages:
        by_partition.setdefault(message.partition, []).append(message)
    for partition in range(PARTITIONS):
        some = by_partition[partition]
        assert [message.offset for message in some] == list(range(100))
        assert [message.value for message in some] == numbered(0, 400)[partition::PARTITIONS]
        assert all(message.topic == "t" and message.timestamp_ms > 0 for message in some)
    assert consumer.positions() == {("t", partition): 100 for partition in range(PARTITIONS)}
    assert consumer.lag() == {("t", partition): 0 for partition in range(PARTITIONS)}
    send(broker, "t", [b"later"])
    assert values(read(consumer, lambda: consumer.positions()["t", 0] == 101)) == {b"later"}
    consumer.close()


def test_a_message_without_value_or_key_is_a_message(broker: str) -> None:
    send(broker, "t", [None, b""])
    messages, _ = reading(settings(broker))
    assert [(message.key, message.value) for message in sorted(messages)] == [(None, None), (None, b"")]


def test_only_one_message_is_waited_for(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = PartitionConsumer(settings(broker))
    asked = []

    class Spy:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def consume(self, number: int, timeout: float) -> Any:
            asked.append((number, timeout))
            return self._inner.consume(number, timeout)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    monkeypatch.setattr(consumer, "_consumer", Spy(consumer._consumer))
    send(broker, "t", numbered(0, 50))
    read(consumer, lambda: consumer.is_started() and consumer.at_end())
    assert {number for number, timeout in asked if timeout > 0} == {1}
    assert any(number > 1 for number, timeout in asked if timeout == 0)
    consumer.close()


def test_no_more_bytes_are_taken_at_once_than_can_be_held(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging.consumer, "POLL_BYTES", 1_000_000)
    monkeypatch.setattr(messaging.consumer, "_STEP", 2)
    send(broker, "t", [b"x" * 300_000] * 16)
    consumer = PartitionConsumer(settings(broker))
    sizes = []
    while not consumer.at_end():
        sizes.append(len(consumer.poll()))
    assert max(sizes) <= 5
    assert sum(sizes) == 16
    consumer.close()


def test_shares_are_disjoint_and_complete(broker: str) -> None:
    send(broker, "a", numbered(0, 40))
    send(broker, "b", numbered(40, 80))
    given = settings(broker, "a", "b")
    shares = [reading(given, index, 3)[1] for index in range(3)]
    assert all(share_of(partition, 3) == index for index, share in enumerate(shares) for partition in share)
    everything = sorted(partition for share in shares for partition in share)
    assert everything == [(topic, number) for topic in "ab" for number in range(PARTITIONS)]


@given(st.text(max_size=8), st.integers(1, 40), st.integers(1, 12))
def test_partitions_of_a_topic_are_spread_evenly(topic: str, partitions: int, splits: int) -> None:
    """So that each of the readers has something to read."""
    shares = Counter(share_of((topic, number), splits) for number in range(partitions))
    assert max(shares.values()) - min(shares[index] for index in range(splits)) <= 1


def test_the_share_of_a_partition_stays_the_same_in_all_versions() -> None:
    assert [share_of(("ztf_20261121_programid1", number), 4) for number in range(8)] == [1, 2, 3, 0, 1, 2, 3, 0]


# -- where it starts --------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_committed(broker: str) -> None:
    send(broker, "t", numbered(0, 20))
    first, positions = reading(settings(broker))
    assert values(first) == set(numbered(0, 20))
    assert commit_offsets(settings(broker), positions)
    send(broker, "t", numbered(20, 30))
    assert values(reading(settings(broker))[0]) == set(numbered(20, 30))
    assert values(reading(settings(broker, start="earliest"))[0]) == set(numbered(0, 30))
    assert reading(settings(broker, start="latest"))[0] == []
    assert commit_offsets(settings(broker), {("t", 0): 0})
    again, _ = reading(settings(broker))
    assert {message.offset for message in again if message.partition == 0} == set(range(8))


@pytest.mark.parametrize("start", ["earliest", "latest", "committed"])
def test_positions_win_over_the_start(broker: str, start: str) -> None:
    send(broker, "t", numbered(0, 40))
    positions = {("t", number): 5 for number in range(PARTITIONS - 1)}
    messages, _ = reading(settings(broker, start=start), positions=positions)
    offsets = [[message.offset for message in messages if message.partition == number] for number in range(PARTITIONS)]
    # The last partition is not named: it appeared later, and is read whole.
    assert offsets == [list(range(5, 10))] * 3 + [list(range(10))]


def test_positions_are_kept_while_no_broker_answers() -> None:
    consumer = PartitionConsumer(settings("127.0.0.1:1"), positions={("t", 1): 7})
    assert (consumer.positions(), consumer.is_started(), consumer.at_end()) == ({("t", 1): 7}, False, False)
    consumer.close()


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-02", 86_400_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.25Z", 250),
        ("committed", None),
        ("latest", None),
        ("earliest", None),
    ],
)
def test_times_to_start_at(text: str, milliseconds: int | None) -> None:
    assert start_time_ms(text) == milliseconds


def test_a_start_that_is_none() -> None:
    with pytest.raises(ValueError, match="'yesterday' is no start: name committed, earliest, latest, or a time"):
        PartitionConsumer(settings("127.0.0.1:1", start="yesterday"))


def test_offsets_that_cannot_be_read_any_more(caplog: pytest.LogCaptureFixture) -> None:
    assert [readable_offset(("t", 0), offset, (10, 20)) for offset in (10, 15, 20)] == [10, 15, 20]
    assert not caplog.messages
    assert readable_offset(("t", 0), 3, (10, 20)) == 10
    assert caplog.messages == ["t/0: 7 messages expired before they were read; it goes on at offset 10"]
    assert readable_offset(("t", 0), 21, (10, 20)) == 10
    assert "made anew" in caplog.messages[1]


def test_it_goes_on_at_the_earliest_when_its_next_message_is_gone(
    broker: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send(broker, "t", numbered(0, 8))
    # The brokers answer one thing, and the message is gone when it is fetched.
    monkeypatch.setattr(messaging.consumer, "first_offsets", lambda _, new, *rest: dict.fromkeys(new, 1000))
    messages, positions = reading(settings(broker))
    assert sorted(int(message.value or b"") for message in messages) == list(range(8))
    assert set(positions.values()) == {2}
    assert sum("made anew" in text for text in caplog.messages) == PARTITIONS


# -- topics that come and go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["latest", "committed"])
def test_a_topic_that_appears_later_is_read_whole(broker: str, start: str, caplog: pytest.LogCaptureFixture) -> None:
    consumer = PartitionConsumer(settings(broker, "there", "later", start=start), refresh_s=0.05)
    send(broker, "there", numbered(0, 4))
    read(consumer, lambda: bool(consumer.partitions()))
    assert sum("topic later does not exist" in text for text in caplog.messages) == 1
    assert topics_of(broker) == {"there"}
    send(broker, "later", numbered(4, 8))
    found = read(consumer, lambda: sum(consumer.positions().values()) == 8 and len(consumer.partitions()) == 8)
    assert values(message for message in found if message.topic == "later") == set(numbered(4, 8))
    consumer.close()


def test_without_any_topic_it_is_at_its_end(broker: str) -> None:
    assert reading(settings(broker, "nowhere")) == ([], {})


def test_daily_topics_come_and_go(broker: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = [datetime(2026, 11, 21, 12, tzinfo=UTC)]
    given = settings(broker, topics=DailyTopics("ztf_%s", retention_days=1), max_messages=1)
    send(broker, "ztf_20261121", numbered(0, 40))
    consumer = PartitionConsumer(given, refresh_s=0.0, now=lambda: clock[0])
    found = read(consumer, lambda: consumer.is_started())
    assert {topic for topic, _ in consumer.partitions()} == {"ztf_20261121"}
    # Midnight: the topic of the day before is no longer in the list, and is read to its end all the same.
    clock[0] += timedelta(hours=13)
    send(broker, "ztf_20261122", numbered(40, 60))
    found += read(consumer, lambda: {topic for topic, _ in consumer.partitions()} == {"ztf_20261122"})
    found += read(consumer)
    assert values(found) == set(numbered(0, 60))
    assert len(found) == 60
    found += read(consumer, lambda: len(consumer.positions()) == PARTITIONS)
    assert {topic for topic, _ in consumer.positions()} == {"ztf_20261122"}
    assert "no longer reading ztf_20261121" in caplog.messages
    consumer.close()


def test_positions_of_a_topic_no_longer_in_the_list_are_read_to_their_end(broker: str) -> None:
    clock = datetime(2026, 11, 22, 12, tzinfo=UTC)
    given = settings(broker, topics=DailyTopics("ztf_%s", retention_days=1))
    send(broker, "ztf_20261121", numbered(0, 8), partitions=2)
    messages, _ = reading(given, positions={("ztf_20261121", 0): 1, ("gone", 0): 5}, now=lambda: clock)
    assert values(messages) == {b"2", b"4", b"6"}


# -- outages ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def outage(**more: Any) -> tuple[Outage, Clock]:
    clock = Clock()
    return Outage(Kafka("kafka:9092", **more), 30.0, clock), clock


def test_an_outage_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    it, clock = outage()
    for _ in range(3):
        it.heard(KafkaError(KafkaError._TRANSPORT, "Connection refused"))
        it.heard(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        assert it.suspected
        it.failed(KafkaError(KafkaError._TIMED_OUT))
        it.check()
        clock.s += 100
    assert it.lasts
    it.over()
    it.over()
    assert not it.lasts
    assert not it.suspected
    first, second = caplog.messages
    assert "kafka:9092 does not answer" in first
    assert "Connection refused" in first
    assert second == "Kafka at kafka:9092 answers again, after 300 s"


def test_one_broken_connection_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    it, _ = outage()
    it.heard(KafkaError(KafkaError._TRANSPORT, "Disconnected"))
    it.check()
    assert not it.lasts
    assert not it.suspected
    assert not caplog.messages


def test_an_outage_that_is_heard_of_when_it_is_over_is_none(caplog: pytest.LogCaptureFixture) -> None:
    it, clock = outage()
    it.heard(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    clock.s = 100.0
    it.check()
    assert not it.lasts
    it.over()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError._AUTHENTICATION, "refuses the login of the user 'me': check name and password"),
        (KafkaError._RESOLVE, "none of the hosts kafka:9092 is known: check the names"),
        (KafkaError._SSL, "no encrypted connection to Kafka at kafka:9092: check that the port"),
    ],
)
def test_what_waiting_does_not_mend_is_given_up(code: int, remedy: str) -> None:
    it, clock = outage(username="me", password="secret")
    it.heard(KafkaError(code, "why"))
    it.heard(KafkaError(KafkaError._TRANSPORT, "Disconnected"))
    it.heard(KafkaError(code, "why"))
    it.heard(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    it.failed(KafkaError(KafkaError._TIMED_OUT))
    clock.s = 29.0
    it.check()
    clock.s = 31.0
    with pytest.raises(BrokerError, match=remedy) as raised:
        it.check()
    assert "secret" not in str(raised.value)
    assert "(why)" in str(raised.value)


def test_a_name_that_vanishes_for_a_while_is_outlasted() -> None:
    it, clock = outage()
    it.over()
    it.heard(KafkaError(KafkaError._RESOLVE, "why"))
    it.failed(KafkaError(KafkaError._TIMED_OUT))
    clock.s = 3600.0
    it.check()
    assert it.lasts


def test_what_a_user_may_not_do_is_told_at_once() -> None:
    it, _ = outage(username="me")
    with pytest.raises(BrokerError, match="refuses the user 'me', who must be granted"):
        it.failed(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))


def test_a_coordinator_that_is_being_chosen_is_no_outage() -> None:
    it, _ = outage()
    for _ in range(5):
        it.failed(KafkaError(KafkaError.NOT_COORDINATOR))
    assert not it.lasts
    for _ in range(50):
        it.failed(KafkaError(KafkaError.NOT_COORDINATOR))
    assert it.lasts


def test_a_host_that_nobody_knows_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging.consumer, "REQUEST_S", 0.3)
    monkeypatch.setattr(messaging.consumer, "Outage", partial(Outage, give_up_s=0.0))
    consumer = PartitionConsumer(settings("no-such-host.invalid:9092"))
    with pytest.raises(BrokerError, match=r"no-such-host\.invalid:9092 is known"):
        read(consumer)
    consumer.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KafkaError(KafkaError._FATAL, "why", fatal=True), "ended the reading for good: why"),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "topic t"), "must be granted what is asked for: topic t"),
    ],
)
def test_what_ends_the_reading_of_no_partition_in_particular(error: KafkaError, told: str) -> None:
    class Raw:
        def error(self) -> KafkaError:
            return error

        def topic(self) -> None:
            return None

        partition = topic

    consumer = PartitionConsumer(settings("127.0.0.1:1"))
    with pytest.raises(BrokerError, match=told):
        consumer._event(Raw())
    consumer.close()


def test_options_that_are_none_are_told(broker: str) -> None:
    with pytest.raises(BrokerError, match=r"options .* wrong: .*no\.such\.option"):
        PartitionConsumer(ConsumerSettings(Kafka(broker, options=(("no.such.option", "1"),)), ("t",), "group"))


def test_options_cannot_let_messages_be_skipped(broker: str) -> None:
    send(broker, "t", numbered(0, 8))
    options = (("auto.offset.reset", "latest"), ("enable.auto.commit", "true"), ("enable.partition.eof", "false"))
    given = ConsumerSettings(Kafka(broker, options=options), ("t",), "group")
    for _ in range(2):
        assert len(reading(given)[0]) == 8


# -- commits ----------------------------------------------------------------------------------------------------------


class FakeConsumer:
    """Takes commits, or fails as it is told."""

    def __init__(self) -> None:
        self.commits: list[dict[tuple[str, int], int]] = []
        self.failures: list[int] = []
        self.topics = {"t": None}
        self._inside = threading.Lock()

    def __call__(self, *_: Any, **__: Any) -> FakeConsumer:
        return self

    def poll(self, _: float) -> None:
        return None

    def list_topics(self, timeout: float) -> FakeConsumer:
        return self

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        assert self._inside.acquire(blocking=False), "two commits at a time"
        try:
            if self.failures:
                raise KafkaException(KafkaError(self.failures.pop(0)))
            if any(offset.topic not in self.topics for offset in offsets):
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            self.commits.append({(offset.topic, offset.partition): offset.offset for offset in offsets})
            return offsets
        finally:
            self._inside.release()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    made = FakeConsumer()
    monkeypatch.setattr(messaging.offsets, "new_consumer", made)
    monkeypatch.setattr(messaging.offsets, "_COMMITTERS", {})
    monkeypatch.setattr(messaging.offsets.time, "sleep", lambda _: None)
    return made


COMMIT = settings("127.0.0.1:1")


def test_only_what_moved_is_committed(fake: FakeConsumer) -> None:
    assert commit_offsets(COMMIT, {})
    assert commit_offsets(COMMIT, {("t", 0): 5, ("t", 1): 5})
    assert commit_offsets(COMMIT, {("t", 0): 5, ("t", 1): 6})
    assert commit_offsets(COMMIT, {("t", 0): 5, ("t", 1): 6})
    assert fake.commits == [{("t", 0): 5, ("t", 1): 5}, {("t", 1): 6}]


def test_commits_are_tried_again(fake: FakeConsumer, caplog: pytest.LogCaptureFixture) -> None:
    fake.failures = [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TRANSPORT]
    assert commit_offsets(COMMIT, {("t", 0): 5})
    assert fake.commits == [{("t", 0): 5}]
    assert not caplog.messages


def test_what_cannot_be_committed_is_committed_later(fake: FakeConsumer, caplog: pytest.LogCaptureFixture) -> None:
    fake.failures = [KafkaError._TRANSPORT] * 3
    assert not commit_offsets(COMMIT, {("t", 0): 5}, patience_s=0.0)
    assert not commit_offsets(COMMIT, {("t", 0): 7}, patience_s=0.0)
    assert not commit_offsets(COMMIT, {("t", 1): 2}, patience_s=0.0)
    assert commit_offsets(COMMIT, {})
    assert fake.commits == [{("t", 0): 7, ("t", 1): 2}]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[1] == "offsets of group group are committed again"


def test_offsets_of_deleted_topics_do_not_stop_the_others(fake: FakeConsumer) -> None:
    assert commit_offsets(COMMIT, {("deleted", 0): 5, ("t", 0): 5})
    assert fake.commits == [{("t", 0): 5}]


def test_a_group_that_others_use_is_told(fake: FakeConsumer, caplog: pytest.LogCaptureFixture) -> None:
    fake.failures = [KafkaError.UNKNOWN_MEMBER_ID]
    assert not commit_offsets(COMMIT, {("t", 0): 5})
    assert "other consumers are active in it; stop them or name another group" in caplog.text


def test_threads_commit_one_after_another(fake: FakeConsumer) -> None:
    threads = [
        threading.Thread(target=commit_offsets, args=(COMMIT, {("t", number): 10 * number})) for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    committed: dict[tuple[str, int], int] = {}
    for commit in fake.commits:
        committed |= commit
    assert committed == {("t", number): 10 * number for number in range(16)}


# -- with a real broker -----------------------------------------------------------------------------------------------


def test_it_starts_at_a_time(kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
    name = topic()
    send(kafka_broker.address, name, numbered(0, 5), 1)
    everything, _ = reading(settings(kafka_broker.address, name, start="earliest"))
    time.sleep(0.01)
    send(kafka_broker.address, name, numbered(5, 10), 1)
    moment = datetime.fromtimestamp((everything[-1].timestamp_ms + 1) / 1000, UTC).isoformat()
    assert values(reading(settings(kafka_broker.address, name, start=moment))[0]) == set(numbered(5, 10))
    assert reading(settings(kafka_broker.address, name, start="2100-01-01"))[0] == []
    assert len(reading(settings(kafka_broker.address, name, start="1990-01-01"))[0]) == 10


def test_large_messages_get_through(kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
    name = topic()
    sent = [b"small", b"x" * 10_000_000, b"small too", b"y" * 10_000_000]
    send(kafka_broker.address, name, sent, 1)
    assert [message.value for message in reading(settings(kafka_broker.address, name))[0]] == sent


def test_partitions_that_are_added_are_read_whole(kafka_broker: LocalBroker, topic: Callable[..., str]) -> None:
    name = topic(2)
    send(kafka_broker.address, name, numbered(0, 4), 2)
    given = settings(kafka_broker.address, name, start="latest")
    consumer = PartitionConsumer(given, refresh_s=0.05)
    read(consumer, consumer.is_started)
    admin = AdminClient({"bootstrap.servers": kafka_broker.address})
    admin.create_partitions([NewPartitions(name, 3)])[name].result()
    send(kafka_broker.address, name, numbered(4, 7), 3)
    found = read(consumer, lambda: consumer.positions() == {(name, 0): 3, (name, 1): 3, (name, 2): 1})
    assert values(found) == set(numbered(4, 7))
    consumer.close()


def test_messages_that_expired_are_counted(
    kafka_broker: LocalBroker, topic: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    send(kafka_broker.address, name, numbered(0, 10), 1)
    consumer = PartitionConsumer(settings(kafka_broker.address, name, max_messages=1), positions={(name, 0): 3})
    admin = AdminClient({"bootstrap.servers": kafka_broker.address})
    for answer in admin.delete_records([TopicPartition(name, 0, 6)]).values():
        answer.result()
    assert values(read(consumer)) == set(numbered(6, 10))
    assert f"{name}/0: 3 messages expired before they were read; it goes on at offset 6" in caplog.messages
    consumer.close()


def test_a_broker_that_dies_is_waited_for(
    kafka_broker: LocalBroker, topic: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    given = settings(kafka_broker.address, name)
    send(kafka_broker.address, name, numbered(0, 5), 1)
    consumer = PartitionConsumer(given)
    found = read(consumer)
    kafka_broker.kill()
    found += read(consumer, lambda: not consumer.answers())
    kafka_broker.start()
    send(kafka_broker.address, name, numbered(5, 10), 1)
    found += read(consumer, lambda: consumer.positions() == {(name, 0): 10} and consumer.answers())
    assert [message.value for message in found] == numbered(0, 10)
    assert sum("does not answer" in text for text in caplog.messages) == 1
    assert sum("answers again" in text for text in caplog.messages) == 1
    give_up = time.monotonic() + 30
    while not commit_offsets(given, consumer.positions()):
        assert time.monotonic() < give_up
    consumer.close()
    assert reading(given)[0] == []
