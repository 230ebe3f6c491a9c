"""A real Kafka broker for the tests that need one; ``conftest.py`` gives its fixtures to all files.

Each process of pytest starts one when the first test asks for it.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from required_components import Component

from messaging.admin import create_topic
from messaging.local_broker import MAX_MESSAGE_BYTES, LocalBroker, missing_components, start_broker

Pairs = list[tuple[bytes | None, bytes | None]]

KAFKA = Component("Kafka (Java and Maven)", "kafka_components", missing_components)

_TIMEOUT_S = 30.0


@pytest.fixture(scope="session")
def kafka_components() -> None:
    """Skip where a broker cannot be run; what fails after this is a failure."""
    KAFKA.skip_where_absent()


@pytest.fixture(scope="session")
def kafka_broker(kafka_components: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """Give a broker; a test that kills it starts it again."""
    folder = tmp_path_factory.mktemp("kafka")
    with start_broker(folder) as broker:
        yield broker
    shutil.rmtree(folder / "data", ignore_errors=True)


@pytest.fixture
def topic(kafka_broker: LocalBroker) -> Callable[..., str]:
    """Give a function that makes a topic of its own and gives its name: ``topic(partitions=1, **config)``."""

    def make(partitions: int = 1, **config: str) -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        create_topic(kafka_broker.address, name, partitions, {key.replace("_", "."): config[key] for key in config})
        return name

    return make


def client_options(address: str) -> dict[str, str | int | float | bool]:
    """Properties of any client of librdkafka, which otherwise tells on standard error of a broker that ends."""
    return {"bootstrap.servers": address, "log_level": 0}


def produce(address: str, topic: str, messages: Iterable[tuple[bytes | None, bytes | None]]) -> None:
    """Write messages, and wait until they are there."""
    failed: list[str] = []
    producer = Producer({**client_options(address), "message.max.bytes": MAX_MESSAGE_BYTES, "linger.ms": 0})
    for key, value in messages:
        producer.produce(topic, value, key, on_delivery=lambda error, _: failed.append(str(error)) if error else None)
        producer.poll(0)
    left = producer.flush(_TIMEOUT_S)
    assert (left, failed) == (0, [])


def consume_all(address: str, topic: str) -> Pairs:
    """Read what is in a topic now: keys and values by partition and offset."""
    return [(message.key(), message.value()) for message in messages_in(address, topic)]


def messages_in(address: str, topic: str) -> list[Message]:
    """Read what is in a topic now, by partition and offset."""
    consumer = Consumer({**client_options(address), "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    try:
        wanted: dict[int, int] = {}
        for number in consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic].partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, number), _TIMEOUT_S)
            if first < end:
                wanted[number] = end
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in wanted])
        found: dict[int, list[Message]] = {number: [] for number in wanted}
        while wanted:
            message = consumer.poll(_TIMEOUT_S)
            assert message is not None, f"{topic} gave {found} and not what is before {wanted}"
            assert message.error() is None, message.error()
            number, offset = message.partition(), message.offset()
            found[number or 0].append(message)
            if (offset or 0) + 1 >= wanted.get(number or 0, math.inf):
                del wanted[number or 0]
        return [message for number in sorted(found) for message in found[number]]
    finally:
        consumer.close()
