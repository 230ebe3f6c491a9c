"""Packed rows against the rows themselves: nothing is lost, whatever the order, repetition and thinning."""

from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightcurves_fixtures import random_packets, tables

from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.packed import (
    KEY_BYTES,
    PACKED_TABLES,
    Chunk,
    PackedRowsError,
    lasting_rows,
    pack_by_alert,
    pack_by_object,
    thinned,
    unpack,
)
from lightcurves.store import StoreRows

LAW = settings(max_examples=40, deadline=None)
NO_MATCHES = PACKED_TABLES[2].schema.empty_table()


def rows_of(seed: int, **options: int) -> StoreRows:
    detections, non_detections = tables(random_packets(seed, **options))
    rng = np.random.default_rng(seed)
    alerts = detections.filter(detections["has_stamp"]).select(["oid", "candid"]).to_pylist()
    matches = [row | {"angDist": float(rng.choice([0.1, 0.2])), "W1mag": 12.0, "jd": 2459000.5} for row in alerts[::2]]
    found = (detections, non_detections, pa.Table.from_pylist(matches))
    # Packets have no more digits than the store.
    return StoreRows(*(table.conform(part) for table, part in zip(PACKED_TABLES, found, strict=True)))


def assembled(rows: StoreRows) -> LightCurveBatch:
    return assemble(rows.detections, rows.non_detections, crossmatches=rows.crossmatches)


def same(one: LightCurveBatch, other: LightCurveBatch) -> bool:
    return all(one.to_arrow()[name].equals(table) for name, table in other.to_arrow().items())


def plain(table: pa.Table) -> list[str]:
    """Rows as texts, sorted, in which 0.0 and -0.0 differ."""
    return sorted(map(repr, table.to_pylist()))


identity = {
    "oid": st.sampled_from(["ZTF1", "ZTF é"]),
    "fid": st.sampled_from([1, 2]),
    "mjd": st.sampled_from([58000.0, 58000.000005, 58001.5]),
    "alert_candid": st.sampled_from([None, 1, 2, 3]),
    "alert_mjd": st.sampled_from([None, 58000.0, 58001.5, 58009.0]),
    "diffmaglim": st.sampled_from([None, -0.0, 20.5]),
}
detection_rows = st.fixed_dictionaries(
    identity
    | {
        "candid": st.sampled_from([None, 1, 2]),
        "forced": st.sampled_from([None, False, True]),
        "has_stamp": st.sampled_from([None, False, True]),
        "magpsf": st.sampled_from([18.0, 18.1 + 1e-9]),
        "sigmapsf": st.just(0.1),
        "ra": st.just(10.0),
        "dec": st.just(-3.0),
        "isdiffpos": st.sampled_from([None, 1, -1]),
        "rbversion": st.sampled_from([None, "", "t17", "ü" * 90, "a\0b"]),
        "procstatus": st.sampled_from([None, "0", "56,63"]),
        "pid": st.sampled_from([None, 2**62]),
    }
)
match_rows = st.fixed_dictionaries(
    {"oid": identity["oid"], "candid": st.sampled_from([None, 1, 2]), "angDist": st.sampled_from([None, 0.5])}
)


@st.composite
def any_rows(draw: Any) -> StoreRows:
    kinds = zip((detection_rows, st.fixed_dictionaries(identity), match_rows), PACKED_TABLES, strict=True)
    found = [draw(st.lists(row, max_size=12)) for row, _ in kinds]
    return StoreRows(*(pa.Table.from_pylist(r, t.schema) for r, t in zip(found, PACKED_TABLES, strict=True)))


@LAW
@given(any_rows())
def test_every_value_comes_back(rows: StoreRows) -> None:
    chunks = pack_by_alert(rows)
    for found in (unpack(chunk.blob for chunk in chunks), unpack(pack_by_object(rows).values())):
        for table, part, expected in zip(PACKED_TABLES, found.tables, rows.tables, strict=True):
            assert part.schema == table.schema
            part.validate(full=True)
            if not chunk_repeats(rows):
                assert plain(part) == plain(expected)
            assert {*plain(part)} == {*plain(expected)}


def chunk_repeats(rows: StoreRows) -> bool:
    own = [
        (row["oid"], row["alert_candid"] or row["candid"]) for row in rows.detections.to_pylist() if row["has_stamp"]
    ]
    return len({*own}) < len(own)


@LAW
@given(any_rows(), st.randoms(use_true_random=False))
def test_thinning_keeps_what_any_date_needs(rows: StoreRows, random: Any) -> None:
    for oid in pack_by_object(rows):
        blobs = [chunk.blob for chunk in pack_by_alert(rows) if chunk.oid == oid]
        every = unpack(blobs)
        expected = lasting_rows(every)
        blobs += random.choices(blobs, k=2)
        random.shuffle(blobs)
        cut = random.randrange(len(blobs))
        found = lasting_rows(unpack([thinned([thinned([*blobs[:cut], blobs[0]]), *blobs[cut:]])]))
        assert [plain(part) for part in found.tables] == [plain(part) for part in expected.tables]
        assert same(assembled(found), assembled(every))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_thinned_at_any_moment_give_the_same_light_curves(seed: int, random: Any) -> None:
    rows = rows_of(seed)
    chunks = pack_by_alert(rows)
    chunks += random.choices(chunks, k=len(chunks) // 2)
    random.shuffle(chunks)
    states: dict[str, list[bytes]] = {}
    for chunk in chunks:
        blobs = states.setdefault(chunk.oid, [])
        blobs.append(chunk.blob)
        if random.random() < 0.3:
            states[chunk.oid] = [thinned(blobs)]
    joined = [b"".join(blobs) for blobs in states.values()]
    random.shuffle(joined)
    assert same(assembled(unpack(joined)), assembled(rows))
    assert same(assembled(lasting_rows(unpack(joined))), assembled(rows))


def test_thinned_rows_are_little_more_than_the_points() -> None:
    rows = rows_of(5, objects=1, alerts=40)
    blob = thinned(chunk.blob for chunk in pack_by_alert(rows))
    points = assembled(rows)
    found = unpack([blob])
    assert rows.detections.num_rows > 5 * points.detections.num_rows
    assert found.detections.num_rows == points.detections.num_rows
    assert found.non_detections.num_rows == lasting_rows(found).non_detections.num_rows
    assert thinned([blob]) == blob


def test_keys_depend_on_what_an_alert_brings_alone() -> None:
    packets = random_packets(11, objects=8)

    def chunks(chosen: list) -> dict[bytes, Chunk]:
        found = pack_by_alert(StoreRows(*tables(chosen), NO_MATCHES))
        return {chunk.key: chunk for chunk in found}

    every = chunks(packets)
    assert len(every) == len(packets)
    assert all(len(key) == KEY_BYTES for key in every)
    one_by_one = {key: chunk for packet in reversed(packets) for key, chunk in chunks([packet]).items()}
    assert one_by_one == every
    assert chunks([*packets, *packets[:7], *packets[3:9]]) == every
    shorter = [(packets[0][0][:1], packets[0][1]), *packets[1:]]
    assert len({*chunks(shorter)} - {*every}) == (len(packets[0][0]) > 1)


def test_corrected_magnitudes_that_are_given_are_kept() -> None:
    row = {"oid": "a", "candid": 1, "mjd": 58000.0, "fid": 1, "magpsf": 18.0, "sigmapsf": 0.1, "isdiffpos": 1}
    given_row = row | {"corrected": True, "magpsf_corr": 17.25, "sigmapsf_corr": 0.2, "sigmapsf_corr_ext": 0.3}
    found = []
    for rows in ([given_row], [row]):
        detections = pa.Table.from_pylist(rows)
        packed = pack_by_object(StoreRows(detections, pa.table({"oid": []}), NO_MATCHES))
        found.append(assembled(unpack(packed.values())).detections.to_pylist()[0])
    assert [point["magpsf_corr"] for point in found] == [17.25, None]
    assert [point["corrected"] for point in found] == [True, False]


def test_rows_that_no_light_curve_has_are_left_out() -> None:
    row = {"oid": "a", "candid": 1, "mjd": 58000.0, "fid": 1, "magap": float("nan")}
    rows = pa.Table.from_pylist([row, row | {"oid": None}, row | {"mjd": None}, row | {"fid": None}])
    found = unpack(pack_by_object(StoreRows(rows, pa.table({"oid": []}), NO_MATCHES)).values()).detections
    assert found.num_rows == 1
    assert found["magap"][0].as_py() is None


def test_nothing_is_packed_and_unpacked() -> None:
    empty = StoreRows(*(table.schema.empty_table() for table in PACKED_TABLES))
    assert pack_by_alert(empty) == []
    assert [part.num_rows for part in unpack([b""]).tables] == [0, 0, 0]
    with pytest.raises(PackedRowsError, match="one object"):
        thinned([])


@pytest.fixture(scope="module")
def blob() -> bytes:
    return pack_by_alert(rows_of(3))[0].blob


def test_damaged_bytes_are_refused(blob: bytes) -> None:
    for length in (*range(1, 40), len(blob) // 2, len(blob) - 1):
        with pytest.raises(PackedRowsError):
            unpack([blob[:length]])
    with pytest.raises(PackedRowsError, match="format 1"):
        unpack([b"XX" + blob[2:]])
    with pytest.raises(PackedRowsError, match="format 1"):
        unpack([blob[:2] + b"\x02" + blob[3:]])


def test_flipped_bits_never_reach_other_memory(blob: bytes) -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(blob)
        damaged[rng.integers(3, 60 if rng.uniform() < 0.5 else len(blob))] ^= 1 << rng.integers(8)
        with suppress(PackedRowsError):
            unpack([bytes(damaged)])


def test_rows_of_two_objects_are_not_thinned_together() -> None:
    with pytest.raises(PackedRowsError, match="of 2"):
        thinned(pack_by_object(rows_of(3, objects=2)).values())
