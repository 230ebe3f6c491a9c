"""APF's metrics messages, through the mock broker of librdkafka."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from messaging.metrics import MAX_MESSAGE_BYTES, MetricsSender, metrics_message, utc_text
from messaging.monitor import Committed, Monitor
from messaging.settings import ExtraEntry, Kafka, MetricsSettings, MonitorSettings

CANDIDS = [1131373451315015003, 1131373451315015004]
SETTINGS = MetricsSettings(Kafka("127.0.0.1:1"), "metrics", "XmatchStep", "ZTF", ("candid", "oid"))


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (found,) = cluster.list_topics(timeout=10).brokers.values()
    yield f"{found.host}:{found.port}"
    cluster.flush()


def read_all(servers: str, topic: str, number: int) -> list[dict]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "log_level": 0})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    found: list[dict] = []
    end = time.monotonic() + 20
    while len(found) < number and time.monotonic() < end:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(json.loads(message.value() or b""))
    consumer.close()
    return sorted(found, key=lambda message: message["timestamp_sent"])


def assert_valid(message: dict) -> None:
    # alerce.md 3.4: two required texts, times of UTC; anything may be added.
    received, sent = (datetime.fromisoformat(message[name]) for name in ("timestamp_received", "timestamp_sent"))
    assert received.utcoffset() == sent.utcoffset() == datetime.now(UTC).utcoffset()
    assert message["execution_time"] == pytest.approx((sent - received).total_seconds(), abs=2e-6)
    assert isinstance(message["source"], str)
    assert isinstance(message["survey"], str)
    assert isinstance(message["n_messages"], int)


def test_message_holds_what_apf_sends() -> None:
    values: dict[str, Any] = {"candid": CANDIDS, "oid": ["ZTF18a", "ZTF18b"], "fid": [1, 2]}
    message = json.loads(metrics_message(SETTINGS, 2, 1_700_000_000.25, 1_700_000_001.5, values))
    assert_valid(message)
    assert message == {
        "timestamp_received": "2023-11-14T22:13:20.250000+00:00",
        "timestamp_sent": "2023-11-14T22:13:21.500000+00:00",
        "execution_time": 1.25,
        "source": "XmatchStep",
        "survey": "ZTF",
        "n_messages": 2,
        "candid": CANDIDS,
        "oid": ["ZTF18a", "ZTF18b"],
    }


def test_extra_entries_have_aliases_and_formats() -> None:
    extra = (ExtraEntry("candid", "candids", "{}"), ExtraEntry("mjd", format="{:.1f}"), "oid", "source")
    values: dict[str, Any] = {
        "candid": np.array(CANDIDS),
        "mjd": [58000.123],
        "oid": [b"ZTF18a", None],
        "source": ["other"],
    }
    message = json.loads(metrics_message(replace(SETTINGS, extra=extra), 2, 1.0, 2.0, values))
    assert message["candids"] == [str(candid) for candid in CANDIDS]
    assert message["mjd"] == ["58000.1"]
    assert message["oid"] == ["ZTF18a", None]
    # An entry never stands for one that readers need.
    assert message["source"] == "XmatchStep"
    assert "candid" not in message


def test_values_of_numpy_and_missing_ones() -> None:
    values: dict[str, Any] = {"candid": list(np.array(CANDIDS)), "oid": np.array([1.5, np.nan])}
    message = json.loads(metrics_message(SETTINGS, 2, 1.0, 2.0, values))
    assert message["candid"] == CANDIDS
    assert message["oid"] == [1.5, None]


def test_lists_are_left_out_of_a_message_that_no_broker_takes() -> None:
    values: dict[str, Any] = {"candid": CANDIDS[:1] * 100_000}
    message = metrics_message(SETTINGS, 100_000, 1.0, 2.0, values)
    assert len(message) <= MAX_MESSAGE_BYTES
    assert_valid(json.loads(message))
    assert json.loads(message)["n_messages"] == 100_000
    assert "candid" not in json.loads(message)


@pytest.mark.parametrize("entry", [{"key": ""}, {"key": "candid", "format": "x"}, {"key": "c", "format": "{}{}"}])
def test_entries_that_make_no_sense_are_refused(entry: dict) -> None:
    with pytest.raises(ValueError, match="extra entry"):
        ExtraEntry(**entry)


def test_messages_reach_the_topic(broker: str) -> None:
    sender = MetricsSender(replace(SETTINGS, kafka=Kafka(broker)))
    now = time.time()
    for number in range(1, 4):
        sender.send(number, now - 1, now + number, {"candid": CANDIDS[:1] * number})
    sender.close()
    assert (sender.sent, sender.lost) == (3, 0)
    found = read_all(broker, "metrics", 3)
    for message in found:
        assert_valid(message)
    assert [message["n_messages"] for message in found] == [1, 2, 3]
    assert [len(message["candid"]) for message in found] == [1, 2, 3]


def test_a_monitor_sends_a_message_for_each_bundle(broker: str) -> None:
    settings = replace(SETTINGS, kafka=Kafka(broker), topic="of_monitor")
    told = Monitor(MonitorSettings(metrics=settings))
    received_at = time.time() - 2
    stamps = np.zeros(2, np.int64)
    told.committed(Committed(2, stamps, received_at, {"candid": CANDIDS, "oid": ["ZTF18a", "ZTF18b"]}))
    told.committed(Committed(1, stamps[:1], received_at, {"candid": CANDIDS[:1], "oid": ["ZTF18a"]}))
    told.close()
    first, second = read_all(broker, "of_monitor", 2)
    for message in (first, second):
        assert_valid(message)
        assert message["timestamp_received"] == utc_text(received_at)
        assert message["execution_time"] >= 2
    assert (first["n_messages"], first["candid"], first["oid"]) == (2, CANDIDS, ["ZTF18a", "ZTF18b"])
    assert (second["n_messages"], second["candid"]) == (1, CANDIDS[:1])


def test_an_outage_is_told_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    # Nothing listens at this port; the first options make the client give up at once.
    options = (("queue.buffering.max.messages", "10"), ("message.timeout.ms", "100"))
    sender = MetricsSender(replace(SETTINGS, kafka=Kafka("127.0.0.1:1", options=options)))
    with caplog.at_level(logging.INFO, "messaging.metrics"):
        for _ in range(500):
            sender.send(1, 1.0, 2.0)
        sender.close(10.0)
    assert sender.sent == 0
    assert sender.lost == 500
    assert len(caplog.records) == 1
    assert "topic metrics at 127.0.0.1:1" in caplog.text


def test_the_end_of_an_outage_is_told(broker: str, caplog: pytest.LogCaptureFixture) -> None:
    sender = MetricsSender(replace(SETTINGS, kafka=Kafka(broker), extra=(ExtraEntry("oid", format="{:d}"),)))
    with caplog.at_level(logging.INFO, "messaging.metrics"):
        for _ in range(3):
            sender.send(1, 1.0, 2.0, {"oid": ["no number"]})
        sender.send(1, 1.0, 2.0, {"oid": [5]})
        sender.close()
    assert (sender.sent, sender.lost) == (1, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "3 were lost" in caplog.messages[1]


def test_settings_that_no_client_understands_are_refused() -> None:
    kafka = Kafka("127.0.0.1:1", options=(("no.such.property", "1"),))
    with pytest.raises(ValueError, match="metrics messages cannot be sent"):
        MetricsSender(replace(SETTINGS, kafka=kafka))
