"""Correction and assembly against ALeRCE's values and against the slow reference, and their laws."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightcurves_fixtures import random_packets, tables

from lightcurves import reference
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.correction import correct, is_dubious, is_stellar
from lightcurves.forced import forced_magnitudes
from storage.buckets import bucket_of

CORRECTED = ("magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext")


def same(a: LightCurveBatch, b: LightCurveBatch) -> bool:
    return all(a.to_arrow()[name].equals(b.to_arrow()[name]) for name in a.to_arrow())


@pytest.fixture(scope="module")
def ten_objects(shared_data: Path) -> LightCurveBatch:
    folder = shared_data / "correction"
    rows = pd.read_parquet(folder / "10_objects_detections.parquet").rename(columns={"objectId": "oid"})
    rows["isdiffpos"] = rows.isdiffpos.map({"t": 1, "1": 1, "f": -1, "0": -1})
    rows["has_stamp"] = rows.parent_candid == 0
    for name in ("jd", "jdendref"):
        rows[name.replace("jd", "mjd")] = rows[name] - 2400000.5
    limits = pd.read_parquet(folder / "10_objects_non_detections.parquet").rename(columns={"objectId": "oid"})
    limits["mjd"] = limits.jd - 2400000.5
    rows = rows.drop(columns="parent_candid").sample(frac=1, random_state=3)
    return assemble(*(pa.Table.from_pandas(table, preserve_index=False) for table in (rows, limits)))


def test_corrected_magnitudes_equal_those_of_alerce(ten_objects: LightCurveBatch, shared_data: Path) -> None:
    expected = pd.read_parquet(shared_data / "correction" / "10_objects_corrected.parquet").set_index("candid")
    found = ten_objects.detections.to_pandas().set_index("candid").loc[expected.index]
    assert len(expected) == ten_objects.detections.num_rows == 1381
    for name in CORRECTED:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-9, equal_nan=True)
    for name in ("corrected", "dubious", "has_stamp"):
        assert (found[name] == expected[name]).all()


def test_band_statistics_equal_those_of_alerce(ten_objects: LightCurveBatch, shared_data: Path) -> None:
    expected = pd.read_parquet(shared_data / "correction" / "10_objects_magstats.parquet").sort_index()
    found = ten_objects.magstats.to_pandas().set_index(["oid", "fid"])
    assert expected.index.tolist() == found.index.tolist()
    # lc_correction stores these two under each other's names.
    expected = expected.rename(columns={"stellarZTF": "stellarPS1", "stellarPS1": "stellarZTF"})
    for name in ("corrected", "stellar", "nearZTF", "nearPS1", "stellarZTF", "stellarPS1", "ndet", "ndubious", "nrfid"):
        assert (expected[name] == found[name]).all(), name
    for name, pattern in {"magpsf": "mag{}", "magpsf_corr": "mag{}_corr", "magap": "magap{}"}.items():
        # The file's statistics of float32 columns were computed in float32.
        tolerance = 1e-9 if name == "magpsf_corr" else 5e-6
        for statistic in ("mean", "median", "max", "min", "first", "last"):
            ours, theirs = found[pattern.format(statistic)], expected[f"{name}_{statistic}"]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
    for ours, theirs in (("firstmjd", "first_mjd"), ("lastmjd", "last_mjd"), ("sigmapsf_first", "sigmapsf_first")):
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((5.0, 0.1, 200.0, 0.1, 0.5, 1), (True, 5.0, 0.1, 0.1)),
        ((18.0, 0.1, 17.0, 0.02, 1.4, 1), (False, math.nan, math.nan, math.nan)),
        ((18.0, 0.1, 17.0, 0.02, math.nan, 1), (False, math.nan, math.nan, math.nan)),
        ((18.0, 0.1, -999.0, 0.02, 0.1, 1), (True, math.nan, math.nan, math.nan)),
        ((-1.0, 0.1, 17.0, 0.02, 0.1, 1), (True, math.nan, math.nan, math.nan)),
        ((18.0, 0.1, math.nan, 0.02, 0.1, 1), (True, math.nan, math.nan, math.nan)),
        ((16.0, 0.1, 17.0, 0.02, 0.1, -1), (True, 100.0, 100.0, 100.0)),
        ((17.0, 0.1, 17.0, 0.02, 0.1, -1), (True, 100.0, 100.0, 100.0)),
    ],
)
def test_cases_of_the_correction(values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = correct(*([value] for value in values))
    assert found.corrected[0] == expected[0]
    for name, value in zip(CORRECTED, expected[1:], strict=True):
        np.testing.assert_allclose(getattr(found, name)[0], value, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_correction_equals_the_reference_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 50
    magpsf, sigmapsf = rng.uniform(-2, 25, n), rng.uniform(0, 2, n)
    magnr, sigmagnr = rng.uniform(-2, 25, n), rng.uniform(0, 1, n)
    distnr, sign = rng.uniform(0, 3, n), rng.choice([-1, 1], n)
    found = correct(magpsf, sigmapsf, magnr, sigmagnr, distnr, sign)
    rows = zip(magpsf, sigmapsf, magnr, sigmagnr, distnr, sign, strict=True)
    expected = np.array([reference.correct(*row) for row in rows], float)
    assert (found.corrected == expected[:, 0]).all()
    for k, name in enumerate(CORRECTED):
        np.testing.assert_allclose(getattr(found, name), expected[:, k + 1], rtol=1e-12)
    part = correct(*(values[7:11] for values in (magpsf, sigmapsf, magnr, sigmagnr, distnr, sign)))
    assert all(np.array_equal(getattr(part, name), getattr(found, name)[7:11], equal_nan=True) for name in CORRECTED)


def test_dubious_and_stellar_cases() -> None:
    corrected = np.array([True, True, False, False, False, False])
    first = np.array([True, False, True, True, False, False])
    sign = np.array([1, 1, 1, -1, -1, 1])
    assert is_dubious(corrected, sign, first).tolist() == [False, True, True, True, True, False]
    star = is_stellar(
        [0.5, 0.5, 0.5, 2.0, 0.5], [0.5, 0.5, 3.0, 0.5, -999], [0.9, 0.1, 0.1, 0.9, 0.9], [1, 1, 1, 1, 3], [0] * 5
    )
    assert star.tolist() == [True, False, True, False, False]


def assert_equals_reference(batch: LightCurveBatch, packets: list, as_of_mjd: float | None = None) -> None:
    detections, non_detections = tables(packets)
    expected = reference.assemble(detections.to_pylist(), non_detections.to_pylist(), as_of_mjd)
    assert batch.oid.to_pylist() == list(expected)
    found = {name: rows.to_pylist() for name, rows in batch.to_arrow().items()}
    want: dict[str, list] = {name: [] for name in found}
    for oid, (points, limits, bands, of_object) in expected.items():
        want["detections"] += points
        want["non_detections"] += limits
        want["magstats"] += [{"oid": oid, **band} for band in bands]
        want["objects"].append({"oid": oid, **of_object})
    for name, rows in want.items():
        assert len(rows) == len(found[name]), name
        for row, mine in zip(rows, found[name], strict=True):
            for key, value in row.items():
                close = isinstance(value, float) and mine[key] is not None
                assert mine[key] == (pytest.approx(value, rel=1e-9, abs=1e-9) if close else value), (name, key, row)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_assembly_equals_the_reference(seed: int) -> None:
    packets = random_packets(seed)
    assert_equals_reference(assemble(*tables(packets)), packets)


@given(seed=st.integers(0, 10_000), as_of_mjd=st.floats(58190, 58300))
@settings(max_examples=15, deadline=None)
def test_as_of_gives_what_the_alerts_until_then_gave(seed: int, as_of_mjd: float) -> None:
    packets = random_packets(seed)
    batch = assemble(*tables(packets), as_of_mjd=as_of_mjd)
    assert_equals_reference(batch, packets, as_of_mjd)
    early = [packet for packet in packets if packet[0][0]["alert_mjd"] <= as_of_mjd]
    # Rows of a packet may lie after its own time only in this test's data: forced photometry never does.
    assert same(batch, assemble(*tables(early), as_of_mjd=as_of_mjd))


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=25, deadline=None)
def test_assembly_is_independent_of_order_repetition_and_batches(seed: int, data: st.DataObject) -> None:
    packets = random_packets(seed)
    expected = assemble(*tables(packets))
    mixed = data.draw(st.permutations(packets + packets[:5]))
    rows = [rows.take(np.random.default_rng(seed).permutation(rows.num_rows)) for rows in tables(mixed)]
    assert same(assemble(*rows), expected)
    # Each object alone gives the same as among others.
    for row, oid in enumerate(expected.oid.to_pylist()):
        alone = assemble(*tables([packet for packet in packets if packet[0][0]["oid"] == oid]))
        assert alone.objects.equals(expected.objects.slice(row, 1))
        assert alone.light_curve(oid).detections.equals(expected.light_curve(oid).detections.reset_index(drop=True))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_assembly_of_what_was_assembled_changes_nothing(seed: int) -> None:
    batch = assemble(*tables(random_packets(seed)))
    assert same(assemble(batch.detections, batch.non_detections), batch)
    again = LightCurveBatch.from_arrow(batch.to_arrow())
    assert same(again, batch)
    assert again.detection_offsets.tolist() == batch.detection_offsets.tolist()
    assert again.non_detection_offsets.tolist() == batch.non_detection_offsets.tolist()


def test_rows_that_differ_only_in_their_values_are_settled_alike_in_any_order() -> None:
    ((own, *_), _), *_ = random_packets(1, objects=1, alerts=1)
    rows = [own | {"rb": rb, "rbversion": text} for rb in (0.5, None, 0.9) for text in ("b", "a")]
    limits = [
        {"oid": own["oid"], "fid": 1, "mjd": 58000.0, "diffmaglim": limit, "alert_mjd": 58001.0}
        for limit in (20.0, 19.0)
    ]
    batches = [assemble(*tables([(rows[k:] + rows[:k], limits[:: (-1) ** k])])) for k in range(6)]
    assert all(same(batch, batches[0]) for batch in batches)
    assert batches[0].detections.num_rows == batches[0].non_detections.num_rows == 1
    assert batches[0].detections["rbversion"].to_pylist() == ["a"]


def test_the_alerts_own_row_wins_and_the_earliest_alert_next() -> None:
    ((own, *_), _), *_ = random_packets(1, objects=1, alerts=1)
    # Not so in real alerts, but the stamp must decide, not the time.
    early = own | {"has_stamp": False, "alert_mjd": own["mjd"] - 1, "alert_candid": 5, "parent_candid": 5, "drb": None}
    late = early | {"alert_mjd": own["mjd"] + 2, "alert_candid": 6, "parent_candid": 6}
    assert assemble(*tables([([late, early, own], [])])).detections["has_stamp"].to_pylist() == [True]
    assert assemble(*tables([([late, early], [])])).detections["parent_candid"].to_pylist() == [5]


def test_empty_input_and_objects_without_detections() -> None:
    batch = assemble(*tables([]))
    assert len(batch) == 0
    assert batch.objects.num_rows == batch.magstats.num_rows == 0
    limit = {"oid": "ZTF1", "fid": 1, "mjd": 58000.0, "diffmaglim": 20.0, "alert_mjd": None, "alert_candid": None}
    assert len(assemble(*tables([([], [limit])]))) == 0


def test_mean_position_across_the_meridian() -> None:
    ((own, *_), _), *_ = random_packets(2, objects=1, alerts=1)
    rows = [own | {"candid": k, "ra": ra} for k, ra in enumerate((359.9999, 0.0001, 0.0003))]
    objects = assemble(*tables([(rows, [])])).objects
    assert objects["meanra"][0].as_py() == pytest.approx(0.0001, abs=1e-9)
    assert objects["sigmara"][0].as_py() == pytest.approx(0.0002, abs=1e-9)


def test_wise_magnitudes_come_from_the_nearest_match() -> None:
    packets = random_packets(3, objects=2)
    oid = sorted({packet[0][0]["oid"] for packet in packets})
    rows = pa.table(
        {
            "oid": [oid[0], oid[0], oid[0], "ZTF_other"],
            "angDist": [0.5, 0.2, 0.2, 0.1],
            "candid": [1, 3, 2, 1],
            "jd": [2458200.0] * 4,
            "W1mag": [1.0, 2.0, 3.0, 4.0],
            "W2mag": [1.5, 2.5, None, 4.5],
            "W3mag": [1.7, 2.7, 3.7, 4.7],
        }
    )
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        objects = assemble(*tables(packets), crossmatches=rows.take(order)).objects.to_pylist()
        assert [objects[0][name] for name in ("W1mag", "W2mag", "W3mag")] == [3.0, None, 3.7]
        assert objects[1]["W1mag"] is None
    assert assemble(*tables(packets), crossmatches=rows, as_of_mjd=1.0).oid.to_pylist() == []


def test_light_curve_gives_frames_or_names_what_is_missing() -> None:
    batch = assemble(*tables(random_packets(4)))
    oid = batch.oid[1].as_py()
    found = batch.light_curve(oid)
    assert set(found.detections.oid) == {oid}
    assert found.detections.mjd.is_monotonic_increasing
    with pytest.raises(KeyError, match="no object nobody"):
        batch.light_curve("nobody")


def test_a_column_of_a_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match="column mjd"):
        assemble(pa.table({"oid": ["a"], "fid": [1], "mjd": ["yesterday"]}), tables([])[1])


def test_forced_magnitudes() -> None:
    magpsf, sigmapsf, sign = forced_magnitudes(
        [100.0, -100.0, 0.0, math.nan, 5.0], [10.0, 10.0, 1.0, 1.0, 0.0], [26.0] * 5
    )
    assert magpsf[:2].tolist() == [21.0, 21.0]
    assert sigmapsf[:2] == pytest.approx(0.10857362)
    assert sign[:2].tolist() == [1, -1]
    assert np.isnan(magpsf[2:]).all()
    assert np.isnan(sigmapsf[2:]).all()


@given(st.lists(st.text(max_size=12), max_size=30), st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_a_bucket_depends_on_the_name_alone(names: list[str], buckets: int) -> None:
    found = bucket_of(pa.array(names, pa.string()), buckets)
    assert ((found >= 0) & (found < buckets)).all()
    for start in range(len(names)):
        assert bucket_of(pa.array(names, pa.string()).slice(start), buckets).tolist() == found[start:].tolist()


def test_buckets_are_even_and_stay_the_same() -> None:
    names = pa.array([f"ZTF18aa{k:05d}" for k in range(20_000)])
    counts = np.bincount(bucket_of(names, 16), minlength=16)
    assert counts.min() > 1000
    # FNV-1a of "a", folded: what a store on disk relies on.
    assert bucket_of(pa.array(["a"]), 1 << 20).tolist() == [
        (0xAF63DC4C8601EC8C ^ (0xAF63DC4C8601EC8C >> 32)) % (1 << 20)
    ]
