"""The producer: what arrives, what is refused, and that no loss goes unnoticed."""

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka_sink_fixtures import messages_in, mock_broker

from messaging import producer as producing
from messaging.local_broker import LocalBroker
from messaging.producer import DeliveryError, Producer, Refused, borrow, give_back
from messaging.settings import COMPRESSIONS, Kafka, ProducerSettings
from messaging.topics import DailyTopics

NOWHERE = Kafka("127.0.0.1:9")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with mock_broker() as address:
        yield address


@pytest.fixture
def opened() -> Iterator[Callable[[ProducerSettings], Producer]]:
    made: list[Producer] = []

    def make(settings: ProducerSettings) -> Producer:
        made.append(Producer(settings))
        return made[-1]

    yield make
    for producer in made:
        producer.close()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_all_messages_arrive_in_order(broker: str, opened: Any, compression: str) -> None:
    topic = f"all-{compression}"
    producer = opened(ProducerSettings(Kafka(broker), topic, compression=compression))
    sent = [(f"k{number % 7}".encode(), f"{number:05}".encode() * 20) for number in range(2000)]
    for key, value in sent:
        producer.send(topic, key, value)
    assert producer.pending
    assert producer.flush() == []
    assert producer.pending == 0
    found = messages_in(broker, topic)
    assert sorted(found) == sorted(sent)
    for name in {key for key, _ in sent}:
        assert [value for key, value in found if key == name] == [value for key, value in sent if key == name]


def test_a_full_queue_holds_up_the_sender(broker: str, opened: Any) -> None:
    kafka = Kafka(broker, options=(("queue.buffering.max.messages", "10"), ("linger.ms", "1")))
    producer = opened(ProducerSettings(kafka, "held"))
    for number in range(300):
        producer.send("held", b"k", b"%d" % number)
        # The client counts events that wait for being heard as well, of which there are few.
        assert producer.pending <= 20
    producer.flush()
    assert [value for _, value in messages_in(broker, "held")] == [b"%d" % number for number in range(300)]


def test_sizes(broker: str, opened: Any) -> None:
    producer = opened(ProducerSettings(Kafka(broker), "sizes", max_message_bytes=50_000))
    assert producer.fits(49_990, 10)
    assert not producer.fits(49_991, 10)
    # The limit counts before compression, and a message of just that size does arrive.
    producer.send("sizes", b"k" * 10, b"v" * 49_990)
    assert producer.flush() == []
    assert [len(value) for _, value in messages_in(broker, "sizes")] == [49_990]


def test_what_the_client_finds_too_large_is_refused_and_its_neighbours_arrive(broker: str, opened: Any) -> None:
    producer = opened(ProducerSettings(Kafka(broker, options=(("message.max.bytes", "20000"),)), "refused"))
    for number in range(20):
        producer.send("refused", b"k", b"%02d" % number * (20_000 if number in (3, 11) else 10), number)
    refused = producer.flush()
    assert [token for token, _ in refused] == [3, 11]
    assert refused[0].reason == "40,001 bytes are more than topic refused takes"
    assert len(messages_in(broker, "refused")) == 18
    assert producer.flush() == []


def test_a_broker_refuses_requests_for_one_of_their_messages(
    kafka_broker: LocalBroker, topic: Any, opened: Any
) -> None:
    """Messages that fit are not lost with those that do not, though requests of several are refused whole."""
    name = topic(max_message_bytes="200000")
    producer = opened(ProducerSettings(Kafka(kafka_broker.address), name, compression="none"))
    sizes = [300_000 if number in (7, 30) else 72_000 for number in range(40)]
    for number, size in enumerate(sizes):
        producer.send(name, b"%d" % number, bytes(size), number)
    assert [token for token, _ in producer.flush()] == [7, 30]
    arrived = [int(key) for key, _ in messages_in(kafka_broker.address, name)]
    assert sorted(arrived) == [number for number in range(40) if number not in (7, 30)]


def send_many(producer: Producer, topic: str, number: int) -> None:
    for _ in range(number):
        producer.send(topic, b"k", b"v")


class SmallBroker:
    """A client whose broker refuses whole requests: all that is queued between two flushes is one."""

    def __init__(self, limit: int) -> None:
        self.limit, self.queue, self.taken = limit, list[tuple[bytes, Any]](), list[bytes]()

    def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Any) -> None:
        self.queue.append((value, on_delivery))

    def flush(self, timeout: float = 0) -> int:
        queue, self.queue = self.queue, []
        if sum(len(value) for value, _ in queue) <= self.limit:
            self.taken += [value for value, _ in queue]
            return 0
        for value, report in queue:
            report(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), SmallMessage(value))
        return 0


class SmallMessage:
    def __init__(self, value: bytes) -> None:
        self._value = value

    def topic(self) -> str:
        return "t"

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return self._value


@given(sizes=st.lists(st.integers(0, 12), max_size=12), limit=st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_only_what_is_too_large_by_itself_is_refused(sizes: list[int], limit: int) -> None:
    producer = Producer(ProducerSettings(NOWHERE, "t"))
    producer._client.close()
    client = producer._client = SmallBroker(limit)  # type: ignore[assignment]
    values = [bytes([number]) * size for number, size in enumerate(sizes)]
    for number, value in enumerate(values):
        producer.send("t", b"k", value, number)
    refused = [token for token, _ in producer.flush()]
    assert refused == [number for number, size in enumerate(sizes) if size > limit]
    assert sorted(client.taken) == sorted(value for value in values if len(value) <= limit)


def test_failed_deliveries_raise_one_sentence(opened: Any) -> None:
    producer = opened(ProducerSettings(NOWHERE, "lost", delivery_timeout_s=0.4))
    for _ in range(3):
        producer.send("lost", b"k", b"v")
    with pytest.raises(DeliveryError) as told:
        producer.flush()
    text = str(told.value)
    assert text.startswith("3 messages for topic lost did not reach Kafka at 127.0.0.1:9: ")
    assert "timed out" in text
    assert "Connection refused" in text
    assert "\n" not in text
    assert pickle.loads(pickle.dumps(told.value)).args == told.value.args


def test_failures_show_while_sending(opened: Any) -> None:
    kafka = replace(NOWHERE, options=(("queue.buffering.max.messages", "5"),))
    producer = opened(ProducerSettings(kafka, "lost", delivery_timeout_s=0.3))
    with pytest.raises(DeliveryError):
        send_many(producer, "lost", 100)


def test_an_outage_is_outlasted(opened: Any) -> None:
    """The broker comes when the message has waited for some time."""
    with mock_broker() as address:
        port = int(address.rpartition(":")[2])
        relay = Relay(port)
        producer = opened(ProducerSettings(Kafka(relay.address), "late", delivery_timeout_s=60))
        threading.Timer(0.5, relay.begin).start()
        producer.send("late", b"k", b"v")
        assert producer.flush() == []
        assert messages_in(address, "late") == [(b"k", b"v")]


class Relay:
    """A port that refuses connections until it begins to pass them on to a broker, which tells clients its own."""

    def __init__(self, port: int) -> None:
        self._port, self._socket = port, socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def begin(self) -> None:
        def copy(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(1 << 16):
                target.sendall(data)

        self._socket.listen()
        connection, _ = self._socket.accept()
        target = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=copy, args=(target, connection), daemon=True).start()
        threading.Thread(target=copy, args=(connection, target), daemon=True).start()


def test_daily_topics() -> None:
    topics = DailyTopics("ztf_%s_xmatch")
    producer = Producer(ProducerSettings(NOWHERE, topics))
    assert producer.topic(datetime(2026, 1, 31, 21, 59, tzinfo=UTC)) == "ztf_20260131_xmatch"
    assert producer.topic(datetime(2026, 1, 31, 22, 0, tzinfo=UTC)) == "ztf_20260201_xmatch"
    assert producer.topic() in {topics.to_write(datetime.now(UTC)), topics.to_write(datetime.now(UTC))}
    producer.close()
    assert Producer(ProducerSettings(NOWHERE, "t")).topic() == "t"


def test_producers_are_kept_and_never_shared(broker: str) -> None:
    chosen = ProducerSettings(Kafka(broker), "kept")
    one, other = borrow(chosen), borrow(chosen)
    assert one is not other
    give_back(one)
    assert borrow(pickle.loads(pickle.dumps(chosen))) is one
    assert borrow(replace(chosen, topic="another")) is not one
    # One with messages under way is not handed to others, who would be told what became of them.
    one.send("kept", b"k", b"v")
    give_back(one)
    give_back(other)
    assert borrow(chosen) is other
    assert borrow(chosen) is not one


def test_a_producer_that_failed_is_not_used_again() -> None:
    chosen = ProducerSettings(NOWHERE, "lost", delivery_timeout_s=0.2)
    one = borrow(chosen)
    one.send("lost", b"k", b"v")
    with pytest.raises(DeliveryError):
        one.flush()
    give_back(one)
    assert borrow(chosen) is not one
    assert not producing._idle.get(chosen)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="compression 'bzip2' is not one of"):
        ProducerSettings(NOWHERE, "t", compression="bzip2")
    with pytest.raises(ValueError, match="largest message"):
        ProducerSettings(NOWHERE, "t", max_message_bytes=10)
    with pytest.raises(ValueError, match="more time than 50 ms, not 0 s"):
        ProducerSettings(NOWHERE, "t", delivery_timeout_s=0)
    with pytest.raises(ValueError, match=r"no messages can be sent to Kafka: .*no\.such"):
        Producer(ProducerSettings(replace(NOWHERE, options=(("no.such", "1"),)), "t"))
    assert Refused(1, "why") == (1, "why")
