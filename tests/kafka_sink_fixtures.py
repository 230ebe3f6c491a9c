"""A mock broker, and the messages that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition


@contextmanager
def mock_broker() -> Iterator[str]:
    """Address of a broker within this process; other processes reach it too."""
    client = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    try:
        (broker,) = client.list_topics(timeout=10).brokers.values()
        yield f"{broker.host}:{broker.port}"
    finally:
        client.close()


def messages_in(address: str, topic: str) -> list[tuple[bytes, bytes]]:
    """Key and value of all messages of a topic, by partition and offset."""
    options = {"enable.partition.eof": True, "fetch.wait.max.ms": 10, "log_level": 0}
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test", **options})
    found: dict[Any, list[Any]] = {}
    try:
        partitions = set(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        while partitions:
            message = consumer.poll(10)
            assert message is not None, "the broker does not answer"
            error, partition = message.error(), message.partition()
            if error is None:
                found.setdefault(partition, []).append((message.key(), message.value()))
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error.str()
                partitions.discard(partition)
    finally:
        consumer.close()
    return [one for _, some in sorted(found.items()) for one in some]


def topics_of(address: str) -> set[str]:
    """Names of all topics."""
    client = Producer({"bootstrap.servers": address, "log_level": 0})
    try:
        return set(client.list_topics(timeout=10).topics)
    finally:
        client.close()
