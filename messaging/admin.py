"""Asking a broker whether it is there, and for topics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from messaging.settings import Kafka

_TIMEOUT_S: Final = 30.0
_SECONDS_BETWEEN_LOOKS: Final = 0.02


class AdminError(RuntimeError):
    """A broker cannot be reached or refuses; the message is one sentence."""


def cluster_at(kafka: Kafka | str, timeout_s: float = 10.0) -> str:
    """Name of the cluster that answers.

    Raises
    ------
    AdminError
        If none does.
    """
    servers = kafka if isinstance(kafka, str) else kafka.servers
    try:
        found = _client(kafka).list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise AdminError(f"no broker answers at {servers} within {timeout_s:g} s ({error.args[0].str()})") from error
    if not found.brokers:
        raise AdminError(f"the broker at {servers} is not ready")
    return str(found.cluster_id)


def create_topic(kafka: Kafka | str, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> bool:
    """Make a topic and wait until it can be used; say whether it was made, False where there is one of that name.

    Parameters
    ----------
    kafka : Kafka or str
        Cluster, or ``host:port`` of a broker.
    name : str
    partitions : int
    config : Mapping, optional
        Properties of the topic, such as ``max.message.bytes``.

    Raises
    ------
    AdminError
        If the broker cannot be reached or refuses.
    """
    client = _client(kafka)
    topic = NewTopic(name, num_partitions=partitions, config=dict(config or {}))
    try:
        client.create_topics([topic], operation_timeout=_TIMEOUT_S)[name].result(_TIMEOUT_S)
        deadline = time.monotonic() + _TIMEOUT_S
        # The controller has noted the topic; a broker leads its partitions a moment later.
        while not _is_led(client, name, partitions):
            if time.monotonic() > deadline:
                raise AdminError(f"no broker leads the partitions of the new topic {name}")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise AdminError(f"topic {name} cannot be made: {reason.str()}") from error
    return True


def _is_led(client: AdminClient, name: str, partitions: int) -> bool:
    found = client.list_topics(name, timeout=_TIMEOUT_S).topics[name].partitions
    return len(found) == partitions and all(partition.leader >= 0 for partition in found.values())


def _client(kafka: Kafka | str) -> AdminClient:
    if isinstance(kafka, str):
        kafka = Kafka(kafka)
    # Otherwise librdkafka tells on standard error of every attempt to reach a broker that is not up.
    return AdminClient({"log_level": 0, "reconnect.backoff.max.ms": 200, **kafka.client_options()})
