"""What streams leave in PostgreSQL and in topics, and whether it is what one leaves that nobody disturbs."""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
from confluent_kafka import Message
from kafka_fixtures import messages_in
from live_stream_fixtures import Rows

# Tables name the step that wrote them.
ONE_STEP = {"STEP_ID": "same", "STEP_NAME": "same"}


@dataclass(frozen=True)
class Undisturbed:
    """What a stream leaves that nobody disturbs."""

    rows: Rows
    alerts: dict[int, bytes]


def record_of(value: bytes) -> dict[str, Any] | None:
    """Record in a container; None if there is none."""
    try:
        return next(fastavro.reader(io.BytesIO(value)), None)  # type: ignore[return-value]
    except Exception:
        return None


def public_candids(packets: Iterable[bytes]) -> set[int]:
    """Candids of alerts that are processed: those of other programmes are left out."""
    records = [record_of(packet) for packet in packets]
    return {record["candid"] for record in records if record and record["candidate"]["programid"] == 1}


def alerts_in(address: str, topic: str) -> Iterator[tuple[int, bytes]]:
    """Candid and content of each message."""
    for message in messages_in(address, topic):
        record = record_of(message.value() or b"")
        assert record is not None
        assert message.key() == record["objectId"].encode()
        yield record["candid"], message.value() or b""


def check_alerts(found: list[tuple[int, bytes]], wanted: dict[int, bytes]) -> None:
    """Each is there, and what is there again, as what was on its way at a kill may be, is the same."""
    for candid, value in found:
        assert value == wanted[candid]
    assert {candid for candid, _ in found} == wanted.keys()


def check_classes(found: list[Message], rows: list[tuple[Any, ...]]) -> None:
    """The last message of an object says what the table says, in its 32 bits."""
    latest: dict[str, dict[str, float]] = {}
    for message in found:
        record = record_of(message.value() or b"")
        assert record is not None
        latest[record["oid"]] = record["lc_classification"]["probabilities"]
    stored: dict[str, dict[str, float]] = defaultdict(dict)
    for oid, class_name, classifier, _, probability, _ in rows:
        if classifier == "lc_classifier":
            stored[oid][class_name] = float(np.float32(probability))
    assert latest == stored
