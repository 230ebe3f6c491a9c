"""Messages of a topic as batches: containers, bare records, JSON, and whatever is none of them."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from alerts_fixtures import ALERT, ALERT_TEXT, alert, container, good_packets, schemaless
from classify_fixtures import container as feature_container
from classify_fixtures import message_schema, random_rows, records_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from alerts.enrich import CatalogMatches, enrich
from alerts.json_records import JsonError, JsonRecords, parse_object
from alerts.reader import EmptyContainer, Limits, read_source
from alerts.sources import Source, find_sources
from classifier.inputs import FeatureRows, newest_candid
from messaging.consumer import Message
from schemas import load_schema
from transforms.feature_batch import FeatureBatch
from transforms.message_reading import AlertDecoder, FeatureDecoder

HYPOTHESIS = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
SOURCE = Source("ztf_1_000000000100", "kafka:ztf/1", ("kafka:ztf/1",))
FIRST = 100
FEATURES = ("Amplitude_1", "g-r_max", "n_det_1", "PPE", "Power_rate_1/2")
WANTED = frozenset(FEATURES)


def messages_of(values: Iterable[bytes | None]) -> list[Message]:
    return [Message("ztf", 1, FIRST + number, 0, b"key", value) for number, value in enumerate(values)]


def decoded(decoder: Any, values: Iterable[bytes | None], source: Source = SOURCE) -> list[Any]:
    return list(decoder(messages_of(values), source))


def batches(items: Iterable[Any]) -> list[AlertBatch]:
    return [item for item in items if isinstance(item, AlertBatch)]


def letters(items: Iterable[Any]) -> dict[int, DeadLetter]:
    """Dead letters by the number of their message."""
    return {int(item.member) - FIRST: item for item in items if isinstance(item, DeadLetter)}


def candids(items: Iterable[Any]) -> list[int]:
    return [int(candid) for batch in batches(items) for candid in batch.candid]


def contents(items: Iterable[Any]) -> dict[tuple[str, int], tuple[bytes, str]]:
    """Every alert's record and columns as text, by schema and candid."""
    found: dict[tuple[str, int], tuple[bytes, str]] = {}
    for batch in batches(items):
        rows = batch.to_arrow().to_pylist()
        for row, candid in enumerate(batch.candid.tolist()):
            found[batch.schema.text, candid] = bytes(batch.record(row)), repr(rows[row])
    return found


def as_json(value: Any) -> bytes:
    """JSON of a record, bytes in base64, as Python's own module writes it."""
    return json.dumps(value, default=lambda data: base64.b64encode(data).decode(), sort_keys=True).encode()


ALERTS = [alert(number, previous=number % 4 - 1) for number in range(1, 31)]
VALUES = {
    "container": [container([[schemaless(ALERT, record)]]) for record in ALERTS],
    "schemaless": [schemaless(ALERT, record) for record in ALERTS],
    "json": [as_json(record) for record in ALERTS],
}


def alert_decoder(form: str, limits: Limits = Limits()) -> AlertDecoder:  # noqa: B008
    return AlertDecoder(form, "" if form == "container" else ALERT_TEXT, limits)


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_messages_equal_the_same_packets_read_from_files(shared_data: Path) -> None:
    (source,) = find_sources([str(shared_data / "alerts" / "night_20181129")])
    expected = contents(read_source(source))
    items = decoded(AlertDecoder(), [Path(path).read_bytes() for path in source.paths])
    assert len(expected) == 150
    assert contents(items) == expected
    names = [name for batch in batches(items) for name in batch.members]
    assert sorted(names) == sorted(str(FIRST + number) for number in range(150))
    assert {(batch.source, batch.unit) for batch in batches(items)} == {(SOURCE.location, SOURCE.name)}


def test_schemas_that_change_in_mid_stream_give_several_batches(shared_data: Path) -> None:
    packets = [data for _, data in good_packets(shared_data)][::9]
    items = decoded(AlertDecoder(), packets)
    expected = {}
    for number, data in enumerate(packets):
        expected |= contents(decoded(AlertDecoder(), [data], Source(f"u{number}", "l", ("p",))))
    assert not letters(items)
    assert contents(items) == expected
    assert len({batch.schema.text for batch in batches(items)}) > 3


@pytest.mark.parametrize("form", ["schemaless", "json"])
def test_other_forms_give_the_columns_and_records_of_the_container(form: str) -> None:
    expected = contents(decoded(AlertDecoder(), VALUES["container"]))
    assert len(expected) == len(ALERTS)
    assert contents(decoded(alert_decoder(form), VALUES[form])) == expected


def test_real_alerts_as_json_are_the_same_records(shared_data: Path) -> None:
    seen: dict[str, int] = {}
    for _, data in good_packets(shared_data):
        (expected,) = batches(decoded(AlertDecoder(), [data]))
        text = expected.schema.text
        seen[text] = seen.get(text, 0) + 1
        # Of a time stamp, fastavro makes a date.
        if seen[text] > 2 or "logicalType" in text:
            continue
        (record,) = fastavro.reader(io.BytesIO(data))
        items = decoded(AlertDecoder("json", text), [as_json(record)])
        assert list(contents(items).values()) == [
            (schemaless(json.loads(text), record), repr(expected.to_arrow().to_pylist()[0]))
        ]
    assert len(seen) > 10


def minimal(schema: Any) -> Any:
    """Value with what cannot be null alone."""
    if isinstance(schema, dict) and schema["type"] == "record":
        fields = [item for item in schema["fields"] if not isinstance(item["type"], list)]
        return {item["name"]: minimal(item["type"]) for item in fields}
    return {"string": "ZTF18test", "double": 1.5, "float": 2.5}.get(schema, 7)


def test_json_needs_no_more_than_what_cannot_be_null() -> None:
    schema = load_schema("ztf_alert_4.02")
    record = minimal(schema)
    items = decoded(AlertDecoder("json"), [as_json({**record, "unknown": {"a": [1]}, "rb": None})])
    (batch,) = batches(items)
    assert len(items) == 1
    assert bytes(batch.record(0)) == schemaless(schema, record)
    assert (batch.candid[0], batch.jd[0], batch.object_id[0].as_py()) == (7, 1.5, "ZTF18test")
    assert math.isnan(batch.numbers("candidate.rb")[0])
    assert not batch.values["prv_candidates"].valid[0]


@pytest.mark.parametrize("form", ["schemaless", "json"])
def test_enriched_alerts_are_the_records_and_the_matches(form: str) -> None:
    (batch,) = batches(decoded(alert_decoder(form), VALUES[form]))
    matched = np.arange(len(batch)) % 2 == 0
    columns = {"angDist": pa.array([0.25] * len(batch)), "AllWISE": pa.array(["J0"] * len(batch))}
    enriched = enrich(batch, [CatalogMatches("allwise", matched, columns)])
    schema = fastavro.parse_schema(json.loads(enriched.schema_text))
    for row, record in enumerate(ALERTS):
        found: Any = fastavro.schemaless_reader(io.BytesIO(enriched.record(row)), schema, None)
        assert found.pop("xmatches") == ({"allwise": {"angDist": 0.25, "AllWISE": "J0"}} if matched[row] else None)
        assert found == record


@pytest.mark.parametrize("form", ["container", "schemaless", "json"])
def test_batches_stay_within_limits_and_hold_the_same(form: str) -> None:
    whole = contents(decoded(alert_decoder(form), VALUES[form]))
    for limits in (Limits(alerts=7), Limits(alerts=1), Limits(bytes=3 * len(VALUES[form][0]))):
        found = batches(decoded(alert_decoder(form, limits), VALUES[form]))
        assert len(found) > 3
        assert contents(found) == whole
        assert all(len(batch) <= limits.alerts for batch in found)
        assert candids(found) == [record["candid"] for record in ALERTS]
    small = Limits(bytes=10)
    assert [len(batch) for batch in batches(decoded(alert_decoder(form, small), VALUES[form]))] == [1] * len(ALERTS)


def test_a_container_of_several_records_gives_all_of_them() -> None:
    bodies = VALUES["schemaless"]
    for codec in ("null", "deflate"):
        value = container([bodies[:5], bodies[5:9]], codec=codec)
        items = decoded(AlertDecoder(), [VALUES["container"][9], value])
        assert sorted(candids(items)) == [record["candid"] for record in ALERTS[:10]]
        assert sorted(name for batch in batches(items) for name in batch.members) == ["100"] + ["101"] * 9


def test_decoders_can_be_pickled_and_keep_nothing_of_what_they_read() -> None:
    features = features_decoder("schemaless")
    for decoder, values in (
        (AlertDecoder(), VALUES["container"]),
        (alert_decoder("json", Limits(alerts=4)), VALUES["json"]),
        (features, feature_values("schemaless", random_rows(3, names=FEATURES))),
    ):
        before = len(pickle.dumps(decoder))
        expected = [len(item) for item in decoded(decoder, values)]
        text = pickle.dumps(decoder)
        assert len(text) == before
        again = pickle.loads(text)
        assert again == decoder
        assert [len(item) for item in decoded(again, values)] == expected


def test_settings_that_cannot_be_are_told_of_at_once() -> None:
    for how, expected in (
        (("avro", ""), "must be one of container, schemaless, json"),
        (("schemaless", ""), "only if their schema is given"),
        (("schemaless", "{"), "not JSON"),
        (("json", json.dumps(message_schema())), "not the schema of a ZTF alert"),
    ):
        with pytest.raises(ValueError, match=expected):
            AlertDecoder(*how)
    with pytest.raises(ValueError, match="not a message of the feature step"):
        FeatureDecoder(WANTED, "schemaless", ALERT_TEXT)


# -- what cannot be decoded --------------------------------------------------------------------------------------------


def test_bad_files_among_good_packets(shared_data: Path) -> None:
    bad = [path.read_bytes() for path in sorted((shared_data / "alerts" / "bad").iterdir())]
    good = VALUES["container"]
    values = [value for pair in zip(good, bad, strict=False) for value in pair]
    items = decoded(AlertDecoder(), values)
    assert sorted(candids(items)) == [record["candid"] for record in ALERTS[: len(bad)]]
    found = letters(items)
    empty = [item for item in items if isinstance(item, EmptyContainer)]
    assert (len(found), len(empty)) == (15, 5)
    assert {item.stage for item in found.values()} == {"decode"}
    for number, letter in found.items():
        assert letter.payload == values[number]
        assert letter.source == SOURCE.location
        assert letter.reason
    # In the other forms, none of them is anything.
    for form in ("schemaless", "json"):
        items = decoded(alert_decoder(form), bad)
        assert len(letters(items)) == len(bad) == len(items)


POISON = {
    "nothing": (None, "a message without a value"),
    "empty": (b"", "an empty message"),
    "page": (b"<!DOCTYPE html><html></html>", "HTML page"),
    "registry": (b"\0\0\0\0\7" + b"x" * 50, "schema registry"),
    "cut": (VALUES["container"][0][:-30], "cut off"),
    "another schema": (feature_container(message_schema(), []), "not a ZTF alert"),
    "no schema": (b"Obj\x01\x00" + b"\0" * 16, "no schema"),
    "huge length": (VALUES["container"][0][: -16 - len(VALUES["schemaless"][0]) - 3] + b"\xfe" * 9 + b"\x01", ""),
}


@pytest.mark.parametrize("case", POISON)
def test_poison_is_set_aside_and_its_neighbours_go_on(case: str) -> None:
    value, reason = POISON[case]
    items = decoded(AlertDecoder(), [VALUES["container"][0], value, VALUES["container"][1]])
    assert candids(items) == [record["candid"] for record in ALERTS[:2]]
    ((number, letter),) = letters(items).items()
    assert (number, letter.stage, letter.payload) == (1, "decode", value or b"")
    assert reason in letter.reason


def test_bare_records_that_are_damaged_are_set_aside_as_they_came() -> None:
    good = VALUES["schemaless"]
    poison = [None, b"", good[0][:-1], good[0] + b"\0", b"\xff" * 40, b"\x02a\x02" + b"\xfe\xff\xff\xff\x0f" * 9]
    values = [value for pair in zip(good, poison, strict=False) for value in pair]
    items = decoded(alert_decoder("schemaless"), values)
    assert candids(items) == [record["candid"] for record in ALERTS[: len(poison)]]
    assert {number: letter.payload for number, letter in letters(items).items()} == {
        2 * number + 1: value or b"" for number, value in enumerate(poison)
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (b'{"candid": 5', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        ({"candid": "five"}, "candid is no long but 'five'"),
        ({"candid": 1.5}, "candid is no long but 1.5"),
        ({"candid": True}, "candid is no long but True"),
        ({"candid": 1 << 63}, "candid is no long"),
        ({"candidate": [1]}, "candidate is no object but list"),
        ({"candidate": {**ALERTS[0]["candidate"], "jd": None}}, "candidate.jd is missing"),
        ({"candidate": {**ALERTS[0]["candidate"], "fid": 1 << 31}}, "candidate.fid is no int"),
        ({"candidate": {**ALERTS[0]["candidate"], "magpsf": 1e39}}, "candidate.magpsf is no float"),
        ({"prv_candidates": [ALERTS[0]["candidate"], {"jd": 1}]}, "prv_candidates[1].fid is missing"),
        ({"cutoutScience": "***"}, "cutoutScience is no base64"),
        ({"cutoutScience": "é"}, "cutoutScience is no base64"),
        ({"objectId": "\ud800"}, "not JSON"),
        ({"candid": None}, "candid is null"),
    ],
)
def test_json_that_is_no_alert_is_set_aside_with_the_field_at_fault(change: Any, reason: str) -> None:
    value = as_json({**ALERTS[0], **change}) if isinstance(change, dict) else change
    items = decoded(alert_decoder("json"), [VALUES["json"][1], value, VALUES["json"][2]])
    assert candids(items) == [record["candid"] for record in ALERTS[1:3]]
    ((number, letter),) = letters(items).items()
    assert number == 1
    assert reason in letter.reason
    if letter.reason != "candid is null":
        assert letter.payload == value


def test_an_alert_whose_schema_lets_its_candid_be_null_is_set_aside_as_a_packet() -> None:
    body = schemaless(ALERT, {**ALERTS[0], "candid": None})
    for form, value in (("container", container([[body]])), ("schemaless", body)):
        (letter,) = decoded(alert_decoder(form), [value])
        assert letter.reason == "candid is null"
        assert list(fastavro.reader(io.BytesIO(letter.payload))) == [{**ALERTS[0], "candid": None}]


DECODERS = {
    **{form: alert_decoder(form) for form in VALUES},
    "features container": FeatureDecoder(WANTED),
    "features schemaless": FeatureDecoder(WANTED, "schemaless", json.dumps(message_schema())),
    "features json": FeatureDecoder(WANTED, "json"),
}


@HYPOTHESIS
@given(values=st.lists(st.none() | st.binary(max_size=300), min_size=1, max_size=8))
def test_random_bytes_never_raise(values: list[bytes | None]) -> None:
    for decoder in DECODERS.values():
        found = letters(decoded(decoder, values))
        assert set(found) >= {number for number, value in enumerate(values) if not value}


@HYPOTHESIS
@given(data=st.data())
def test_damaged_messages_never_raise_and_spare_their_neighbours(data: st.DataObject) -> None:
    for form in VALUES:
        value = bytearray(VALUES[form][data.draw(st.integers(2, 6))])
        for _ in range(data.draw(st.integers(1, 4))):
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(1, len(value)))
        items = decoded(alert_decoder(form), [VALUES[form][0], bytes(value[:cut]), VALUES[form][1]])
        around = [int(c) for b in batches(items) for c, m in zip(b.candid, b.members, strict=True) if m != "101"]
        assert around == [record["candid"] for record in ALERTS[:2]]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@HYPOTHESIS
@given(
    st.dictionaries(st.sampled_from([*ALERTS[0], "oid", "features"]), JSON_VALUES),
    st.dictionaries(st.sampled_from(FEATURES), JSON_VALUES),
)
def test_any_json_never_raises(change: dict[str, Any], features: dict[str, Any]) -> None:
    for value in (as_json(change), as_json({**ALERTS[0], **change})):
        assert len(decoded(DECODERS["json"], [value])) == 1
    for record in (change, {"oid": "a", "candid": 5, "features": features}):
        assert len(decoded(DECODERS["features json"], [as_json(record)])) == 1


# -- JSON to Avro ------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "type": "record",
    "name": "all",
    "namespace": "x",
    "fields": [
        {"name": "flag", "type": ["boolean", "null"]},
        {"name": "small", "type": "int"},
        {"name": "large", "type": "long"},
        {"name": "double", "type": "double"},
        {"name": "text", "type": ["null", "string"]},
        {"name": "raw", "type": "bytes"},
        {"name": "three", "type": {"type": "fixed", "name": "three", "size": 3}},
        {"name": "colour", "type": {"type": "enum", "name": "colour", "symbols": ["red", "green"]}},
        {"name": "many", "type": {"type": "map", "values": ["float", "string", "null", "long", "boolean"]}},
        {"name": "list", "type": {"type": "array", "items": ["null", "colour"]}},
        {"name": "inside", "type": ["null", "all"]},
    ],
}
FLOATS = st.floats(width=32, allow_nan=False)


def objects(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "flag": st.none() | st.booleans(),
            "small": st.integers(-(2**31), 2**31 - 1),
            "large": st.integers(-(2**63), 2**63 - 1),
            "double": st.floats(allow_nan=False),
            "text": st.none() | st.text(max_size=20),
            "raw": st.binary(max_size=20),
            "three": st.binary(min_size=3, max_size=3),
            "colour": st.sampled_from(["red", "green"]),
            "many": st.dictionaries(
                st.text(max_size=3),
                FLOATS | st.text(max_size=3) | st.none() | st.integers(-(2**63), 2**63 - 1) | st.booleans(),
                max_size=3,
            ),
            "list": st.lists(st.none() | st.sampled_from(["red", "green"]), max_size=3),
            "inside": inside,
        }
    )


@HYPOTHESIS
@given(st.recursive(st.none(), objects, max_leaves=3).filter(bool))
def test_json_becomes_the_record_that_it_was(value: dict[str, Any]) -> None:
    body = JsonRecords(json.dumps(EVERYTHING)).encode(parse_object(as_json(value)))
    found = fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(EVERYTHING), None)
    # Compared as text: 1 is not True, and -0.0 is not 0.0.
    assert as_json(found) == as_json(value)


def test_json_defaults_and_whole_numbers() -> None:
    schema = {
        "type": "record",
        "name": "r",
        "fields": [
            {"name": "given", "type": "int", "default": 5},
            {"name": "none", "type": ["string", "null"], "default": "null"},
            {"name": "whole", "type": "long"},
            {"name": "real", "type": "double"},
        ],
    }
    encoder = JsonRecords(json.dumps(schema))
    assert encoder.encode(parse_object(b'{"whole": 3.0, "real": NaN}'))[:3] == b"\x0a\x02\x06"
    with pytest.raises(JsonError, match=r"^whole is missing$"):
        encoder.encode({"real": 1})


# -- features ----------------------------------------------------------------------------------------------------------

NEWER: dict[str, Any] = {
    "type": "record",
    "name": "newer",
    "fields": [
        {"name": "oid", "type": "string"},
        {"name": "candid", "type": {"type": "array", "items": "string"}},
        {"name": "xmatches", "type": ["null", {"type": "map", "values": {"type": "map", "values": ["float", "null"]}}]},
    ],
}
FEATURE_FORMS = ("container", "schemaless", "json", "newer record", "newer map", "newer json", "text candid", "several")


def feature_schema(form: str) -> dict[str, Any]:
    fields = [{"name": name, "type": ["double", "null"]} for name in (*FEATURES, "Multiband_period_12")]
    record = {"type": "record", "name": "features", "fields": fields}
    map_of = {"type": "map", "values": ["boolean", "double", "null", "string"]}
    head = (
        list(NEWER["fields"]) if form.startswith("newer") else [NEWER["fields"][0], {"name": "candid", "type": "long"}]
    )
    if form == "text candid":
        head[1] = {"name": "candid", "type": ["null", "string"]}
    if form == "several":
        head[1] = {"name": "candid", "type": ["string", "long", "null"]}
    features = {"name": "features", "type": ["null", map_of] if form == "newer map" else ["null", record]}
    return {"type": "record", "name": "message", "fields": [*head, features]}


def feature_records(form: str, rows: FeatureRows) -> list[dict[str, Any]]:
    records = records_of(rows)
    for number, record in enumerate(records):
        record["features"]["Multiband_period_12"] = "text" if form == "newer map" else 0.5
        if form.startswith("newer"):
            candid = int(record["candid"])
            record["candid"] = [str(candid - 3), str(candid), str(candid - 1 - number)]
            record["xmatches"] = {"allwise": {"W1mag": 10.5}}
        elif form == "text candid":
            record["candid"] = str(record["candid"])
    return records


def feature_values(form: str, rows: FeatureRows) -> list[bytes]:
    records = feature_records(form, rows)
    if form.endswith("json"):
        return [as_json(record) for record in records]
    if form == "schemaless":
        return [schemaless(feature_schema(form), record) for record in records]
    schema = fastavro.parse_schema(feature_schema(form))
    return [feature_container(schema, [record]) for record in records]


def features_decoder(form: str) -> FeatureDecoder:
    if form == "schemaless":
        return FeatureDecoder(WANTED, "schemaless", json.dumps(feature_schema(form)))
    return FeatureDecoder(WANTED, "json" if form.endswith("json") else "container")


def found_rows(items: Sequence[Any]) -> tuple[list[Any], list[Any], np.ndarray]:
    assert all(isinstance(item, FeatureBatch) for item in items)
    rows = [item.rows for item in items]
    values = np.concatenate([row.matrix(FEATURES)[0] for row in rows])
    assert not any(row.matrix(FEATURES)[1].any() for row in rows)
    return [o for r in rows for o in r.oid.to_pylist()], [c for r in rows for c in r.candid.to_pylist()], values


@pytest.mark.parametrize("form", FEATURE_FORMS)
def test_features_are_the_same_in_every_form(form: str) -> None:
    rows = random_rows(20, seed=3, names=FEATURES)
    items = decoded(features_decoder(form), feature_values(form, rows))
    oid, candid, found = found_rows(items)
    assert oid == rows.oid.to_pylist()
    assert candid == rows.candid.to_pylist()
    np.testing.assert_array_equal(found, rows.matrix(FEATURES)[0])
    (batch,) = items
    assert (batch.unit, batch.source) == (SOURCE.name, SOURCE.location)


def test_features_with_poison_among_them() -> None:
    rows = random_rows(4, seed=5, names=FEATURES)
    poison: dict[str, list[bytes | None]] = {
        "container": [None, b"<html>", VALUES["container"][0], feature_values("container", rows)[0][:-20]],
        "schemaless": [None, b"", b"\x04a", b"\xff" * 30],
        "json": [None, b"[]", b'{"oid": 5}', b'{"oid": "a", "candid": ["x"], "features": {"PPE": [1]}}'],
        "newer map": [
            b"\0",
            *[
                feature_container(
                    feature_schema("newer map"),
                    [{**feature_records("newer map", rows)[0], "features": {"PPE": "text"}}],
                )
            ]
            * 3,
        ],
    }
    for form, bad in poison.items():
        good = feature_values(form, rows)
        values = [value for pair in zip(good, bad, strict=True) for value in pair]
        items = decoded(features_decoder(form), values)
        assert set(letters(items)) == {1, 3, 5, 7}
        oids = [oid for item in items if isinstance(item, FeatureBatch) for oid in item.rows.oid.to_pylist()]
        assert oids == rows.oid.to_pylist()
        if form in ("schemaless", "json"):
            assert [letter.payload for _, letter in sorted(letters(items).items())] == [value or b"" for value in bad]


def test_an_object_that_is_set_aside_later_takes_its_message_along() -> None:
    rows = random_rows(3, names=FEATURES)
    for form in ("container", "schemaless", "json"):
        values = feature_values(form, rows)
        (batch,) = decoded(features_decoder(form), values)
        letter = batch.take(np.array([False, True, True])).letter(1, "classify", "why not")
        assert (letter.member, letter.candid) == (str(FIRST + 2), rows.candid[2].as_py())
        assert letter.reason.endswith("why not")
        if form == "json":
            assert letter.payload == values[2]
        else:
            (record,) = fastavro.reader(io.BytesIO(letter.payload))
            assert isinstance(record, dict)
            assert record["oid"] == rows.oid[2].as_py()


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), ("5", 5), ([], None), (None, None), (["7", 9, None, "8"], 9), (-3, -3)]
)
def test_the_newest_candid(value: Any, expected: int | None) -> None:
    assert newest_candid(value) == expected


@pytest.mark.parametrize("value", [1.5, True, "x", {}, [[1]], 1 << 63, "9" * 5000])
def test_what_is_no_candid(value: Any) -> None:
    with pytest.raises(ValueError, match="candid"):
        newest_candid(value)
