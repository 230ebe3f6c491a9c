"""Messages that cannot be processed end as dead letters with their reasons; their neighbours are processed."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fastavro
import pytest
from backfill_fixtures import DEMO_MODEL
from database_fixtures import execute
from kafka_fixtures import messages_in, produce
from live_stream_fixtures import packets_of
from pipeline_fixtures import Sample, letters_of
from stream_process_fixtures import logs_as_before, offsets_of  # noqa: F401

from alerts.dead_letters import DeadLetter
from messaging.local_broker import LocalBroker

pytestmark = pytest.mark.usefixtures("logs_as_before")

Run = Callable[..., dict[str, Any]]
HTML = b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>\n"
TEN_MB = 10_000_000


@pytest.fixture(scope="module")
def good(sample: Sample) -> list[bytes]:
    """Packets that can be processed, of both schemas, each of another object."""
    found = {record_of(packet)["objectId"]: packet for packet in packets_of(sample.archive) if is_alert(packet)}
    return list(found.values())


def is_alert(packet: bytes) -> bool:
    try:
        return bool(record_of(packet))
    except Exception:
        return False


def record_of(packet: bytes | None) -> dict[str, Any]:
    return next(fastavro.reader(io.BytesIO(packet or b"")))  # type: ignore[return-value]


def changed(packet: bytes, changes: Mapping[str, Any] = MappingProxyType({}), cutout: bytes | None = None) -> bytes:
    """Packet with other values in its candidate, another name of the object, or another cutout."""
    reader = fastavro.reader(io.BytesIO(packet))
    record: dict[str, Any] = copy.deepcopy(next(reader))  # type: ignore[arg-type]
    for name, value in changes.items():
        for place in (record, record["candidate"]):
            if name in place:
                place[name] = value
    if cutout is not None:
        record["cutoutScience"] = {"fileName": "large.fits.gz", "stampData": cutout}
    out = io.BytesIO()
    assert reader.metadata is not None
    fastavro.writer(out, fastavro.parse_schema(json.loads(reader.metadata["avro.schema"])), [record])
    return out.getvalue()


def streamed(run: Run, address: str, topic: str, output: Path, *options: object) -> dict[str, Any]:
    words = ["stream", "--server", address, "--topics", topic, "--group", "ours", "--output", output]
    return run(*words, "--stop-at-end", "--json", "--quiet", *options)


def letters_by_offset(output: Path, topic: str) -> dict[int, DeadLetter]:
    """Letters that hold messages, one for each."""
    letters = [letter for letter in letters_of(output) if letter.source == f"kafka:{topic}/0"]
    found = {int(letter.member): letter for letter in letters}
    assert len(found) == len(letters)
    return found


def candid_of(record: dict[str, Any]) -> int:
    return record["candidate"]["candid"]


def between(good: Sequence[bytes], bad: Sequence[bytes | None]) -> list[bytes | None]:
    """Each bad message between good ones."""
    assert len(good) > len(bad)
    found: list[bytes | None] = []
    for neighbour, poison in zip(good, bad, strict=False):
        found += [neighbour, poison]
    return [*found, good[len(bad)]]


def test_poison_among_alerts(
    good: list[bytes],
    sample: Sample,
    kafka_broker: LocalBroker,
    topic: Callable[..., str],
    empty_url: str,
    alertbeam: Run,
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    nul = changed(good[-1], {"objectId": "ZTF\0nul", "candid": 17})
    large = changed(good[-2], cutout=chance.randbytes(TEN_MB))
    wanted: list[tuple[bytes | None, str, str]] = [
        (chance.randbytes(1000), "decode", "not an Avro object container"),
        (HTML, "decode", "an HTML page, not an alert"),
        (None, "decode", "a message without a value"),
        (good[-3][:-200], "decode", "is cut off"),
        (chance.randbytes(TEN_MB), "decode", "not an Avro object container"),
        (good[-4][:2000] + chance.randbytes(TEN_MB), "decode", "in the middle of its header"),
        (large, "send", "bytes is larger than the 6,291,456 allowed"),
        (nul, "write", "table object: invalid byte sequence"),
    ]
    messages = between(good, [value for value, _, _ in wanted])
    incoming, outgoing = topic(), topic()
    produce(kafka_broker.address, incoming, [(None, message) for message in messages])
    options = ["--step", "all", "--catalog", sample.catalog, "--model", DEMO_MODEL, "--database", empty_url]
    ended = streamed(alertbeam, kafka_broker.address, incoming, tmp_path / "out", *options, "--alerts-topic", outgoing)
    assert ended["status"] == 0, ended["err"]
    assert ended["received"] == ended["committed"] == len(messages)
    assert offsets_of(kafka_broker.address, incoming) == {0: len(messages)}
    letters = letters_by_offset(tmp_path / "out", incoming)
    assert [*sorted(letters)] == [*range(1, len(messages), 2)]
    for offset, (value, stage, reason) in zip(sorted(letters), wanted, strict=True):
        letter = letters[offset]
        assert letter.stage == stage
        assert reason in letter.reason
        assert letter.payload == (value or b"") or record_of(letter.payload) == record_of(value)
    # Rows of the light curve that the database refuses, too.
    rows = [letter for letter in letters_of(tmp_path / "out") if letter.source in ("features", "light_curves")]
    assert len(letters_of(tmp_path / "out")) == len(letters) + len(rows)
    assert {letter.stage for letter in rows} == {"write"}
    assert all("ZTF\0nul" in letter.member for letter in rows)
    assert {"features", "light_curves"} == {letter.source for letter in rows}
    processed = {record_of(packet)["candid"] for packet in good[: len(wanted) + 1]}
    enlarged = record_of(large)["candid"]
    stored = {candid for (candid,) in execute(empty_url, "SELECT candid FROM detection WHERE has_stamp")}
    assert processed | {enlarged} == stored
    sent = [candid_of(record_of(message.value())) for message in messages_in(kafka_broker.address, outgoing)]
    assert sorted(sent) == sorted([*processed, 17])


def test_the_bad_packets_and_every_schema(
    shared_data: Path,
    good: list[bytes],
    sample: Sample,
    kafka_broker: LocalBroker,
    topic: Callable[..., str],
    alertbeam: Run,
    tmp_path: Path,
) -> None:
    folder = shared_data / "alerts"
    bad = {path.name: path.read_bytes() for path in sorted((folder / "bad").iterdir())}
    others = [path.read_bytes() for path in sorted((folder / "by_schema").iterdir())]
    messages = [*between(good, list(bad.values())), *between(good[len(bad) + 1 :], others)]
    incoming, outgoing = topic(), topic()
    produce(kafka_broker.address, incoming, [(None, message) for message in messages])
    options = ["--step", "xmatch", "--catalog", sample.catalog, "--database", "none", "--alerts-topic", outgoing]
    ended = streamed(alertbeam, kafka_broker.address, incoming, tmp_path / "out", *options)
    assert ended["status"] == 0, ended["err"]
    assert offsets_of(kafka_broker.address, incoming) == {0: len(messages)}
    letters = letters_by_offset(tmp_path / "out", incoming)
    for offset, (name, packet) in zip(range(1, 2 * len(bad), 2), bad.items(), strict=True):
        if name.startswith("empty"):
            assert offset not in letters
            continue
        letter = letters.pop(offset)
        assert letter.stage == "decode"
        assert letter.reason
        assert letter.payload == packet
    assert not letters
    processed = [*messages[: 2 * len(bad)][::2], *messages[2 * len(bad) :]]
    wanted = {candid_of(record): record for record in map(record_of, processed)}
    assert len(wanted) == len(processed)
    found = [record_of(message.value()) for message in messages_in(kafka_broker.address, outgoing)]
    assert sorted(map(candid_of, found)) == sorted(wanted)
    for record in found:
        del record["xmatches"]
        assert repr(record) == repr(wanted[candid_of(record)])
