"""Enriched alerts: the packet, byte for byte, with its crossmatches behind it, as plain fastavro reads it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from alerts_fixtures import ALERT, ALERT_TEXT, alert, good_packets, schemaless
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alerts_batch import RECORDS, batch_of

from alerts import reader
from alerts.batch import AlertBatch
from alerts.container import MAGIC, HeaderCache
from alerts.enrich import CatalogMatches, encode_xmatches, enrich, enriched_schema_text
from alerts.reader import Limits, read_source
from alerts.sources import Source, find_sources
from alerts.writer import AlertFile
from schemas import load_schema

XMATCHES = {"type": "map", "values": {"type": "map", "values": ["string", "float", "null"]}}
HYPOTHESIS = settings(deadline=None, max_examples=100)


def some_matches(rows: int) -> list[CatalogMatches]:
    """Two catalogues: one matches two of three alerts, the other one of two."""
    number = np.arange(rows)
    first = {
        "angDist": pa.array(number / 7),
        "AllWISE": pa.array([f"J{k:06d}.00+{k:06d}.0" for k in number]),
        "W4mag": pa.array([None if k % 4 else 8.25 + k for k in number], pa.float64()),
        "Jmag": pa.array([math.nan if k % 5 else 12.5 for k in number], pa.float64()),
        "ID": pa.array(number + 2**40, pa.int64()),
    }
    second = {"name": pa.chunked_array([pa.array(["é" * (k % 200) for k in number])])}
    return [CatalogMatches("allwise", number % 3 != 0, first), CatalogMatches("gäia", number % 2 == 0, second)]


def expected_matches(matches: list[CatalogMatches], row: int, double: bool) -> dict[str, Any] | None:
    found = {}
    for match in matches:
        if not match.matched[row]:
            continue
        values: dict[str, Any] = {}
        for name, column in match.columns.items():
            value = column[row].as_py()
            if isinstance(value, float | int):
                value = None if math.isnan(value) else float(value) if double else float(np.float32(value))
            values[name] = value
        found[match.name] = values
    return found or None


def write(path: Path, batch: AlertBatch, matches: list[CatalogMatches], precision: str, **how: Any) -> list[Any]:
    enriched = enrich(batch, matches, precision)
    with AlertFile(path, enriched.schema_text, **how) as file:
        file.write(enriched)
    with path.open("rb") as file_read:
        return list(fastavro.reader(file_read))


def packets_as_batch(data: bytes, name: str) -> AlertBatch:
    portion = reader.Portion(np.frombuffer(data, dtype=np.uint8), 0, [name], [0], [len(data)])
    (batch,) = reader.decode_portion(portion, Source("n", "l", ("p",)), HeaderCache(), Limits())
    assert isinstance(batch, AlertBatch)
    return batch


# -- the enriched record -----------------------------------------------------------------------------------------------


def test_every_schema_of_the_reference_data(shared_data: Path, tmp_path: Path) -> None:
    seen: set[str] = set()
    for name, data in good_packets(shared_data):
        batch = packets_as_batch(data, name)
        if batch.schema.text in seen:
            continue
        seen.add(batch.schema.text)
        (original,) = fastavro.reader(io.BytesIO(data))
        assert isinstance(original, dict)
        for precision in ("float", "double"):
            matches = [CatalogMatches(m.name, np.array([True]), m.columns) for m in some_matches(1)]
            (record,) = write(tmp_path / "one.avro", batch, matches, precision, codec="null")
            assert record.pop("xmatches") == expected_matches(matches, 0, precision == "double")
            # Compared as text: a NaN is not equal to itself.
            assert repr(record) == repr(original), name
            enriched = enrich(batch, matches, precision)
            assert bytes(enriched.record(0)).startswith(bytes(batch.record(0)))
            check_schema(batch.schema.text, enriched.schema_text, precision)
    assert len(seen) > 10


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
@pytest.mark.parametrize("precision", ["float", "double"])
def test_matches_of_many_alerts(tmp_path: Path, codec: str, precision: str) -> None:
    batch, matches = batch_of(RECORDS), some_matches(12)
    records = write(tmp_path / "a.avro", batch, matches, precision, codec=codec)
    for row, record in enumerate(records):
        assert record.pop("xmatches") == expected_matches(matches, row, precision == "double")
        assert record == RECORDS[row]
    assert {row for row in range(12) if expected_matches(matches, row, False) is None} == {3, 9}


TEXTS = st.text(max_size=5) | st.sampled_from(["", "x" * 63, "x" * 64, "é" * 32, "€" * 3000, "x" * 8191, "x" * 8192])
NUMBERS = st.none() | st.floats(width=32)


@HYPOTHESIS
@given(data=st.data())
def test_encoded_matches_equal_what_fastavro_reads(data: Any) -> None:
    rows = data.draw(st.integers(0, 5))
    names = st.lists(TEXTS, unique=True, max_size=3)
    matches = []
    for name in data.draw(names):
        columns: dict[str, pa.Array] = {}
        for column in data.draw(names):
            kind, values = data.draw(st.sampled_from([(pa.string(), st.none() | TEXTS), (pa.float64(), NUMBERS)]))
            # An array that does not begin at its memory's beginning.
            drawn = data.draw(st.lists(values, min_size=rows + 1, max_size=rows + 1))
            columns[column] = pa.array(drawn, kind)[1:]
        matched = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=np.bool_)
        matches.append(CatalogMatches(name, matched, columns))
    precision = data.draw(st.sampled_from(["float", "double"]))
    out, offsets = encode_xmatches(rows, matches, precision)
    schema = fastavro.parse_schema([load_schema(f"xmatches_{precision}"), "null"])
    for row in range(rows):
        stream = io.BytesIO(out[offsets[row] : offsets[row + 1]].tobytes())
        assert fastavro.schemaless_reader(stream, schema, None) == expected_matches(matches, row, precision == "double")
        assert not stream.read()


def test_enriching_again_replaces_the_matches(tmp_path: Path) -> None:
    path = tmp_path / "first.avro"
    write(path, batch_of(RECORDS), some_matches(12), "float", codec="deflate")
    (source,) = find_sources([str(path)])
    (batch,) = read_source(source)
    assert isinstance(batch, AlertBatch)
    other = [CatalogMatches("other", np.arange(12) == 4, {"angDist": pa.array(np.full(12, 0.5))})]
    for records in (
        write(tmp_path / "second.avro", batch, other, "double", codec="null"),
        write(tmp_path / "third.avro", batch.take(np.arange(12)), other, "float", codec="null"),
    ):
        assert [record.pop("xmatches") for record in records] == [None] * 4 + [{"other": {"angDist": 0.5}}] + [None] * 7
        assert records == RECORDS
    assert enriched_schema_text(batch.schema.text) == enriched_schema_text(ALERT_TEXT)


# -- its schema --------------------------------------------------------------------------------------------------------


def check_schema(text: str, enriched: str, precision: str) -> None:
    """The packet's own fields in their order, then the seed's xmatches; every default a value of its type."""
    before, after = json.loads(text), json.loads(enriched)
    *fields, last = after["fields"]
    assert last["name"] == "xmatches"
    expected = [json.loads(json.dumps(XMATCHES).replace("float", precision)), "null"]
    assert [without_doc(branch) for branch in last["type"]] == expected
    assert without_defaults(fields) == without_defaults(before["fields"])
    check_defaults(after, {}, "")
    fastavro.parse_schema(after)


def without_doc(schema: Any) -> Any:
    return {key: value for key, value in schema.items() if key != "doc"} if isinstance(schema, dict) else schema


def without_defaults(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_defaults(item) for item in schema]
    if isinstance(schema, dict):
        return {key: without_defaults(value) for key, value in schema.items() if key != "default"}
    return schema


def check_defaults(schema: Any, names: dict[str, Any], space: str) -> None:
    """Fail on a default that is not a value of its field's type, in a union of the first branch."""
    if isinstance(schema, list):
        for branch in schema:
            check_defaults(branch, names, space)
        return
    if not isinstance(schema, dict):
        return
    if schema["type"] in ("record", "enum", "fixed"):
        name = schema["name"]
        space = name.rpartition(".")[0] or schema.get("namespace", space)
        names[name] = names[f"{space}.{name.rpartition('.')[2]}"] = schema
    for key in ("items", "values", "type"):
        check_defaults(schema.get(key), names, space)
    for item in schema.get("fields", []):
        check_defaults(item["type"], names, space)
        if "default" in item:
            assert is_default(item["default"], item["type"], names), item


def is_default(value: Any, schema: Any, names: dict[str, Any]) -> bool:
    if isinstance(schema, list):
        return is_default(value, schema[0], names)
    if isinstance(schema, str) and schema in names:
        schema = names[schema]
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, dict | list):
        return is_default(value, kind, names)
    if kind == "record":
        return isinstance(value, dict) and all(
            is_default(value.get(f["name"], f.get("default", ...)), f["type"], names) for f in schema["fields"]
        )
    python = {
        "null": type(None),
        "boolean": bool,
        "int": int,
        "long": int,
        "float": (int, float),
        "double": (int, float),
        "string": str,
        "bytes": str,
        "fixed": str,
        "enum": str,
        "array": list,
        "map": dict,
    }[kind]
    return isinstance(value, python) and (kind == "boolean" or not isinstance(value, bool))


@pytest.mark.parametrize("name", ["ztf_alert_3.3", "ztf_alert_4.02"])
@pytest.mark.parametrize("precision", ["float", "double"])
def test_the_projects_own_schemas(name: str, precision: str) -> None:
    text = json.dumps(load_schema(name))
    check_schema(text, enriched_schema_text(text, precision), precision)


def test_good_defaults_stay_and_wrong_ones_go() -> None:
    enum = {"type": "enum", "name": "E", "symbols": ["A"]}
    inner = {"type": "record", "name": "I", "fields": [{"name": "x", "type": "int", "default": 1.5}]}
    cases: list[tuple[Any, Any, bool]] = [
        (["null", "int"], None, True),
        (["int", "null"], None, False),
        (["float", "null"], "null", False),
        ("string", "null", True),
        ("int", 2**31, False),
        ("long", 2**31, True),
        ("int", True, False),
        ("float", 1, True),
        (enum, "A", True),
        ("E", "B", False),
        ({"type": "array", "items": "int"}, [], True),
        ({"type": "array", "items": "int"}, ["a"], False),
        ({"type": "map", "values": "int"}, {"a": 1}, True),
        (inner, {"x": 1}, True),
        ("I", {}, False),
        ("bytes", "\u00ff", True),
        ("bytes", "\u0100", False),
        ({"type": "fixed", "name": "F", "size": 2}, "abc", False),
    ]
    fields = [{"name": f"f{k}", "type": kind, "default": value} for k, (kind, value, _) in enumerate(cases)]
    text = json.dumps({"type": "record", "name": "R", "fields": fields})
    after = json.loads(enriched_schema_text(text))
    assert ["default" in item for item in after["fields"][:-1]] == [good for *_, good in cases]
    assert "default" not in after["fields"][13]["type"]["fields"][0]
    check_defaults(after, {}, "")


def test_xmatches_in_the_middle_is_refused() -> None:
    fields = [{"name": "xmatches", "type": "null"}, {"name": "last", "type": "int"}]
    with pytest.raises(ValueError, match="middle"):
        enriched_schema_text(json.dumps({"type": "record", "name": "R", "fields": fields}))
    with pytest.raises(ValueError, match="precision"):
        enriched_schema_text(ALERT_TEXT, "half")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_second_write_gives_the_same_bytes(tmp_path: Path) -> None:
    batch, matches = batch_of(RECORDS), some_matches(12)
    for codec in ("null", "deflate", "snappy", "zstandard"):
        paths = [tmp_path / folder / f"{codec}.avro" for folder in ("one", "two")]
        for path in paths:
            enriched = enrich(batch, matches)
            with AlertFile(path, enriched.schema_text, codec) as file:
                file.write(enriched)
                file.write(enriched)
            assert file.alerts == 24
            assert file.bytes == 2 * len(enriched.data)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        (source,) = find_sources([str(paths[0])])
        assert sum(len(item) for item in read_source(source) if isinstance(item, AlertBatch)) == 24


def test_large_batches_become_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alerts.writer.BLOCK_BYTES", 1000)
    path = tmp_path / "a.avro"
    records = write(path, batch_of(RECORDS), some_matches(12), "float", codec="null")
    assert [record["candid"] for record in records] == [record["candid"] for record in RECORDS]
    with path.open("rb") as file:
        assert sum(1 for _ in fastavro.block_reader(file)) == 3


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    enriched = enrich(batch_of(RECORDS), some_matches(12))
    folder = tmp_path / "alerts"
    path = folder / "a.avro"
    with pytest.raises(KeyError), AlertFile(path, enriched.schema_text) as file:  # noqa: PT012
        file.write(enriched)
        raise KeyError
    assert not list(folder.iterdir())
    with pytest.raises(ValueError, match="codec"), AlertFile(path, enriched.schema_text, "lzma") as file:
        file.write(enriched)
    assert not list(folder.iterdir())
    with AlertFile(path, enriched.schema_text) as file:
        assert not path.exists()
        file.write(enriched)
    assert [found.name for found in folder.iterdir()] == ["a.avro"]
    kept = path.read_bytes()
    assert kept.startswith(MAGIC)
    with pytest.raises(KeyError), AlertFile(path, enriched.schema_text):
        raise KeyError
    assert path.read_bytes() == kept


def test_a_recursive_packet_with_matches_is_enriched_again() -> None:
    """Such packets are read by fastavro, and their old matches are cut off all the same."""
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    xmatches = {"name": "xmatches", "type": [XMATCHES, "null"]}
    schema = {**ALERT, "fields": [*ALERT["fields"], {"name": "chain", "type": node}, xmatches]}
    record = {**alert(1), "chain": {"next": {"next": None}}, "xmatches": {"old": {"a": "b"}}}
    batch = batch_of([record, record], schema)
    assert not batch.schema.layout.compiled
    enriched = enrich(batch, some_matches(2))
    body = schemaless(schema, {**record, "xmatches": None})
    assert bytes(enriched.record(0)) == body[:-1] + bytes(enriched.record(0))[len(body) - 1 :]
    back = fastavro.schemaless_reader(
        io.BytesIO(enriched.record(1)), fastavro.parse_schema(json.loads(enriched.schema_text)), None
    )
    assert isinstance(back, dict)
    assert back["xmatches"] == expected_matches(some_matches(2), 1, False)
