"""Batches of alerts, the set of candids that passed, and dead letters."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from alerts_fixtures import ALERT, ALERT_TEXT, alert, schemaless
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.batch import AlertBatch, decode_batch
from alerts.container import writer_schema
from alerts.dead_letters import DeadLetter, read_dead_letters, write_dead_letters
from alerts.layout import STANDARD_FIELDS, compile_layout
from alerts.reader import read_source
from alerts.seen import SeenCandids
from alerts.sources import find_sources

HYPOTHESIS = settings(deadline=None, max_examples=100)


def batch_of(records: list[dict[str, Any]], schema: Any = ALERT) -> AlertBatch:
    bodies = [schemaless(schema, record) for record in records]
    names = tuple(f"{number}.avro" for number in range(len(records)))
    sizes = np.array([len(body) for body in bodies], dtype=np.int64)
    return decode_batch(writer_schema(json.dumps(schema)), "source", "unit", names, 7, b"".join(bodies), sizes)


RECORDS = [alert(number, previous=number % 4 - 1) for number in range(1, 13)]


def expected_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `to_arrow`, from the dictionaries."""
    rows = []
    for record in records:
        row = {name: record[name] for name in ("schemavsn", "objectId", "candid")}
        row |= {f"candidate.{name}": value for name, value in record["candidate"].items()}
        rows.append(row | {"prv_candidates": record["prv_candidates"]})
    return rows


def test_to_arrow_holds_the_records() -> None:
    table = batch_of(RECORDS).to_arrow()
    table.validate(full=True)
    assert table.to_pylist() == expected_rows(RECORDS)
    frame = batch_of(RECORDS).to_pandas()
    assert frame["candid"].tolist() == [record["candid"] for record in RECORDS]
    assert frame["candidate.magpsf"].isna().tolist() == [record["candidate"]["magpsf"] is None for record in RECORDS]


def test_numbers_are_not_copied() -> None:
    batch = batch_of(RECORDS)
    table = batch.to_arrow()
    for path in ("candid", "candidate.jd", "candidate.magpsf", "candidate.fid"):
        assert table[path].buffers()[1].address == batch.values[path].data.ctypes.data
    inner = table["prv_candidates"].values.field("magpsf")
    assert inner.buffers()[1].address == batch.values["prv_candidates.magpsf"].data.ctypes.data
    assert batch.candid.ctypes.data == batch.values["candid"].data.ctypes.data


@HYPOTHESIS
@given(data=st.data())
def test_taking_rows_takes_their_items(data: Any) -> None:
    batch = batch_of(RECORDS)
    if data.draw(st.booleans()):
        rows = np.array(data.draw(st.lists(st.booleans(), min_size=12, max_size=12)))
        wanted = np.flatnonzero(rows)
    else:
        rows = wanted = np.array(data.draw(st.lists(st.integers(0, 11), max_size=20)), dtype=np.int64)
    part = batch.take(rows)
    assert len(part) == len(wanted)
    assert part.members == tuple(batch.members[row] for row in wanted)
    assert part.to_arrow().to_pylist() == expected_rows([RECORDS[row] for row in wanted])
    assert [bytes(part.record(k)) for k in range(len(part))] == [bytes(batch.record(row)) for row in wanted]
    again = data.draw(st.integers(0, len(part)))
    assert part.take(np.arange(again)).to_arrow().to_pylist() == expected_rows([RECORDS[row] for row in wanted[:again]])


@pytest.mark.parametrize("kept", [slice(0, 12), slice(3, 9, 2), slice(0, 0)])
def test_pickled_and_back(kept: slice) -> None:
    batch = batch_of(RECORDS).take(np.arange(12)[kept])
    back = pickle.loads(pickle.dumps(batch))
    assert back.to_arrow().equals(batch.to_arrow())
    assert (back.source, back.unit, back.members, back.first) == (batch.source, batch.unit, batch.members, batch.first)
    assert back.schema.text == batch.schema.text
    assert [bytes(back.record(k)) for k in range(len(back))] == [bytes(batch.record(k)) for k in range(len(batch))]
    assert len(pickle.dumps(batch)) < sum(batch.end - batch.start) + len(ALERT_TEXT) + 2000


def test_real_packets_pickled_taken_and_in_arrow(shared_data: Path) -> None:
    count = 0
    for source in find_sources(
        [str(shared_data / "alerts" / "by_schema"), str(shared_data / "alerts" / "schema_4.02")]
    ):
        for item in read_source(source):
            assert isinstance(item, AlertBatch)
            table = item.to_arrow()
            table.validate(full=True)
            assert pickle.loads(pickle.dumps(item)).to_arrow().equals(table)
            backwards = np.arange(len(item))[::-1].copy()
            assert item.take(backwards).take(backwards).to_arrow().equals(table)
            assert len(item.offsets("fp_hists")) == len(item) + 1
            for row in range(len(item)):
                (record,) = fastavro.reader(io.BytesIO(item.packet(row)))
                assert isinstance(record, dict)
                candidate: Any = record["candidate"]
                assert item.candid[row] == candidate["candid"]
                assert item.object_id[row].as_py() == record["objectId"]
                assert (item.ra[row], item.dec[row], item.jd[row]) == (
                    candidate["ra"],
                    candidate["dec"],
                    candidate["jd"],
                )
                assert item.programid[row] == candidate["programid"] == 1
            count += len(item)
    assert count == 39


def test_columns_that_the_schema_lacks() -> None:
    batch = batch_of(RECORDS)
    assert not batch.has("candidate.drb")
    assert np.isnan(batch.numbers("candidate.drb")).all()
    assert batch.integers("candidate.nid").tolist() == [-1] * 12
    assert batch.offsets("fp_hists").tolist() == [0] * 13
    magnitudes = batch.numbers("candidate.magpsf")
    assert np.isnan(magnitudes).tolist() == [record["candidate"]["magpsf"] is None for record in RECORDS]
    assert batch.programid.tolist() == [1] * 12


def test_an_identifier_of_32_bits_is_widened() -> None:
    schema = json.loads(ALERT_TEXT)
    schema["fields"][2] = {"name": "candid", "type": "int"}
    batch = batch_of(RECORDS, schema)
    assert batch.candid.dtype == np.int64
    assert SeenCandids().add(batch.candid).all()


def test_nan_is_a_value_and_null_is_none() -> None:
    record = alert(1)
    record["candidate"]["magpsf"] = float("nan")
    batch = batch_of([record, alert(3)])
    column = batch.arrow("candidate.magpsf")
    assert column.null_count == 1
    assert np.isnan(column[0].as_py())
    assert column[1].as_py() is None


def test_enum_boolean_and_fixed_columns() -> None:
    fields = [
        {"name": "e", "type": ["null", {"type": "enum", "name": "E", "symbols": ["A", "B"]}]},
        {"name": "b", "type": ["boolean", "null"]},
        {"name": "f", "type": {"type": "fixed", "name": "F", "size": 2}},
    ]
    schema = {"type": "record", "name": "R", "fields": fields}
    from alerts.decode import Decoder, to_arrow_array

    rows = [
        {"e": "B", "b": True, "f": b"ab"},
        {"e": None, "b": None, "f": b"\0\xff"},
        {"e": "A", "b": False, "f": b"  "},
    ]
    buf = np.frombuffer(b"".join(schemaless(schema, row) for row in rows), dtype=np.uint8)
    found = Decoder(compile_layout(schema, None)).decode(buf, np.array([0]), np.array([len(buf)]), np.array([3]))
    table = {name: to_arrow_array(values, buf).to_pylist() for name, values in found.columns.items()}
    assert [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)] == rows


def test_standard_fields_name_what_they_stand_for() -> None:
    assert {"objectId", "candidate.jd", "prv_candidates.magpsf", "fp_hists.forcediffimflux"} <= STANDARD_FIELDS


# -- candids that passed -----------------------------------------------------------------------------------------------

SOME = st.sampled_from([-1, 0, 1, -(2**63), 2**63 - 1, -2, 2**32]) | st.integers(-(2**63), 2**63 - 1)


@HYPOTHESIS
@given(batches=st.lists(st.lists(SOME, max_size=30), max_size=8))
def test_seen_candids_are_a_set(batches: list[list[int]]) -> None:
    seen, expected = SeenCandids(), set()
    for batch in batches:
        new = seen.add(np.array(batch, dtype=np.int64))
        wanted = []
        for candid in batch:
            wanted.append(candid not in expected)
            expected.add(candid)
        assert new.tolist() == wanted
        assert len(seen) == len(expected)


def test_seen_candids_grow() -> None:
    seen = SeenCandids()
    values = np.arange(-100_000, 200_000, dtype=np.int64) * 1_000_003
    for part in np.array_split(np.random.default_rng(1).permutation(values), 37):
        assert seen.add(part).all()
    assert not seen.add(values).any()
    assert len(seen) == 300_000
    assert seen.add(np.array([-1, -1])).tolist() == [True, False]


# -- dead letters ------------------------------------------------------------------------------------------------------

LETTERS = st.builds(
    DeadLetter,
    stage=st.sampled_from(["read", "decode", "crossmatch", "write"]),
    reason=st.text(),
    source=st.text(),
    member=st.text(),
    payload=st.binary(),
    position=st.integers(-1, 2**63 - 1),
    candid=st.none() | st.integers(-(2**63), 2**63 - 1),
)


@HYPOTHESIS
@given(letters=st.lists(LETTERS, max_size=5))
def test_dead_letters_come_back(tmp_path_factory: Any, letters: list[DeadLetter]) -> None:
    path = tmp_path_factory.mktemp("letters") / "unit.avro"
    assert write_dead_letters(path, letters) == len(letters)
    assert list(read_dead_letters(path)) == letters
    first = path.read_bytes()
    write_dead_letters(path, letters)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["unit.avro"]


def test_names_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    folder.joinpath("bad\udce9.avro").write_bytes(b"nonsense")
    (source,) = find_sources([str(folder)])
    (letter,) = read_source(source)
    assert isinstance(letter, DeadLetter)
    write_dead_letters(tmp_path / "unit.avro", [letter])
    (back,) = read_dead_letters(tmp_path / "unit.avro")
    assert (back.member, back.payload) == ("bad?.avro", b"nonsense")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        write_dead_letters(tmp_path / "unit.avro", [DeadLetter("read", "r", "s", "m", b"", position=2**70)])
    assert not list(tmp_path.iterdir())


def test_arrow_types_of_the_identifying_columns() -> None:
    table = batch_of(RECORDS).to_arrow()
    assert (table["candid"].type, table["objectId"].type, table["candidate.ra"].type) == (
        pa.int64(),
        pa.string(),
        pa.float64(),
    )
