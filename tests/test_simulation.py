"""The sample data: reproducible, readable by fastavro, within the ranges of real packets, with a true crossmatch."""

import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import load_schema
from simulation import NightSummary, SampleSummary, night_objects, simulate_catalog, simulate_night, simulate_sample
from simulation.encode import RecordEncoder, zigzag
from simulation.night import BAD_KINDS, SCHEMA_VERSIONS, TRUTH_COLUMNS
from simulation.population import KINDS, OBJECTS_PER_BLOCK, object_block, offset_position, relative_flux
from simulation.sky import COLUMNS, designations, separation_arcsec

ALERTS = 400
BAD = 7


@dataclass
class Sample:
    folder: Path
    summary: SampleSummary
    members: list[tarfile.TarInfo] = field(default_factory=list)
    packets: list[dict[str, Any]] = field(default_factory=list)
    schemas: list[Any] = field(default_factory=list)
    bad: dict[str, bytes] = field(default_factory=dict)
    truth: list[dict[str, str]] = field(default_factory=list)


def read_members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def read_truth(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    summary = simulate_sample(
        folder, alerts=ALERTS, seed=11, field_sources=2_000, bad_members=BAD, private_fraction=0.05
    )
    out = Sample(folder, summary, truth=read_truth(summary.night.truth))
    good = {row["candid"] for row in out.truth}
    with tarfile.open(summary.night.archive) as archive:
        out.members = archive.getmembers()
    for name, data in read_members(summary.night.archive).items():
        if name.removesuffix(".avro") in good:
            reader = fastavro.reader(io.BytesIO(data))
            records = list(reader)
            assert len(records) == 1
            assert reader.codec == "null"
            out.packets += records
            out.schemas.append(json.loads(reader.metadata["avro.schema"]))
        else:
            out.bad[name] = data
    return out


def column(sample: Sample, name: str) -> list[Any]:
    return [p["candidate"][name] for p in sample.packets]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# --- whole sample


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate_sample(tmp_path / name, alerts=60, seed=seed, field_sources=100, bad_members=5)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 3
    assert not set(a.values()) & set(c.values())


def test_names_and_no_leftovers(sample: Sample) -> None:
    names = sorted(p.name for p in sample.folder.iterdir())
    assert names == ["allwise_sample.csv", "truth.csv", "ztf_public_20260101.tar.gz"]
    assert list(sample.truth[0]) == list(TRUTH_COLUMNS)


def test_summary_adds_up(sample: Sample) -> None:
    night = sample.summary.night
    assert night.alerts == ALERTS == len(sample.packets) == len(sample.truth)
    assert sum(night.by_schema.values()) == ALERTS
    assert night.by_schema == Counter(p["schemavsn"] for p in sample.packets)
    assert sum(night.bad_members.values()) == BAD == len(sample.bad)
    assert len(sample.members) == ALERTS + BAD
    assert night.objects == night_objects(ALERTS, 0.2) == len({p["objectId"] for p in sample.packets})
    assert night.matched == sum(row["AllWISE"] != "" for row in sample.truth)
    good = {row["candid"] + ".avro" for row in sample.truth}
    assert night.member_bytes == sum(m.size for m in sample.members if m.name in good)
    assert night.archive_bytes == night.archive.stat().st_size


def test_members_are_as_in_the_public_archive(sample: Sample) -> None:
    good = [m for m in sample.members if m.name not in sample.bad]
    assert [m.name for m in good] == [f"{p['candid']}.avro" for p in sample.packets]
    times = [m.mtime for m in sample.members]
    assert times == sorted(times)
    assert all(m.isreg() for m in sample.members)


@pytest.mark.parametrize("version", SCHEMA_VERSIONS)
def test_header_is_the_project_schema(sample: Sample, version: str) -> None:
    headers = [s for s, p in zip(sample.schemas, sample.packets, strict=True) if p["schemavsn"] == version]
    assert headers
    assert all(header == load_schema(f"ztf_alert_{version}") for header in headers)


def test_broken_members_are_broken(sample: Sample) -> None:
    outcomes: Counter[str] = Counter()
    for data in sample.bad.values():
        try:
            records = list(fastavro.reader(io.BytesIO(data)))
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:
            assert records == []
            outcomes["no record"] += 1
    assert outcomes["no record"] == sample.summary.night.bad_members["no_record"] == 1
    assert sum(outcomes.values()) == BAD
    assert set(sample.summary.night.bad_members) == set(BAD_KINDS)


# --- packets


def test_names_follow_the_survey(sample: Sample) -> None:
    for packet in sample.packets:
        c = packet["candidate"]
        assert re.fullmatch(r"ZTF\d\d[a-z]{7}", packet["objectId"])
        assert packet["candid"] == c["candid"]
        assert c["pid"] == c["candid"] // 1_000_000
        assert c["pid"] % 10_000 == c["rcid"] * 100 + 15
        assert c["nid"] == c["pid"] // 10**9
        assert abs(c["jd"] - 2457754.5 - c["pid"] // 10_000 / 1e5) < 2e-5
        assert c["candid"] % 1_000_000 // 1000 == (15 if c["isdiffpos"] in ("t", "1") else 10)
        stem = f"ztf_\\d{{14}}_{c['field']:06d}_z{'_gri'[c['fid']]}_c\\d\\d_o_q[1-4]_scimrefdiffimg\\.fits"
        assert c["pdiffimfilename"] is None or re.fullmatch(stem, c["pdiffimfilename"])
    candids = column(sample, "candid")
    assert len(set(candids)) == len(candids)


def test_ranges(sample: Sample) -> None:
    lowest_highest = {
        "jd": (2461041.5, 2461042.5),
        "ra": (0.0, np.nextafter(360.0, 0.0)),
        "dec": (-31.01, 90.0),
        "magpsf": (10.0, 21.5),
        "sigmapsf": (0.01, 0.3),
        "rb": (0.0, 1.0),
        "drb": (0.0, 1.0),
        "rcid": (0, 63),
        "xpos": (0.0, 3072.0),
        "ypos": (0.0, 3080.0),
        "diffmaglim": (15.0, 21.5),
        "scorr": (5.0, 1e5),
        "distnr": (0.0, 30.0),
        "sgscore1": (-999.0, 1.0),
        "ndethist": (1, 10_000),
        "elong": (1.0, 3.0),
        "programid": (1, 3),
    }
    for name, (low, high) in lowest_highest.items():
        values = [v for v in column(sample, name) if v is not None]
        assert values
        assert min(values) >= low, name
        assert max(values) <= high, name
    jd = column(sample, "jd")
    assert jd == sorted(jd)
    assert set(column(sample, "isdiffpos")) == {"t", "f", "0", "1"}
    assert {1, 2} <= set(column(sample, "fid")) <= {1, 2, 3}
    assert 0 < sum(p > 1 for p in column(sample, "programid")) < ALERTS * 0.15
    assert not [c for p in sample.packets for c in p["candidate"].values() if isinstance(c, float) and np.isnan(c)]
    nulls = Counter(name for p in sample.packets for name, value in p["candidate"].items() if value is None)
    assert nulls["ssnamenr"] > ALERTS * 0.15
    assert len(nulls) > 15


def test_positions_include_the_hard_places(sample: Sample) -> None:
    ra, dec = np.array(column(sample, "ra")), np.array(column(sample, "dec"))
    assert (ra < 0.01).any()
    assert (ra > 359.99).any()
    assert (dec > 89.5).any()
    assert (dec < 0).any()


def test_repeated_objects_have_both_bands(sample: Sample) -> None:
    by_object: dict[str, set[int]] = {}
    for packet in sample.packets:
        by_object.setdefault(packet["objectId"], set()).add(packet["candidate"]["fid"])
    counts = Counter(p["objectId"] for p in sample.packets)
    assert sum(n - 1 for n in counts.values()) == ALERTS - sample.summary.night.objects > 0
    assert any({1, 2} <= fids for fids in by_object.values())


def test_history(sample: Sample) -> None:
    upper_limits, detections, lengths = 0, 0, []
    for packet in sample.packets:
        jd, previous = packet["candidate"]["jd"], packet["prv_candidates"]
        lengths.append(None if previous is None else len(previous))
        times = [q["jd"] for q in previous or []]
        assert times == sorted(times)
        assert all(jd - 31.0 < t < jd for t in times)
        for q in previous or []:
            measured = {name: q[name] for name in ("isdiffpos", "ra", "dec", "magpsf", "sigmapsf", "magap", "rb")}
            if q["candid"] is None:
                upper_limits += 1
                assert set(measured.values()) == {None}
                assert 15.0 < q["diffmaglim"] < 21.5
            else:
                detections += 1
                assert None not in measured.values()
                assert q["magpsf"] < q["diffmaglim"] + 0.1
    assert upper_limits > 100
    assert detections > 100
    assert None in lengths
    assert max(n or 0 for n in lengths) <= 40


def test_repeats_tell_the_same_history(sample: Sample) -> None:
    """Entries of one candid are equal everywhere; an earlier alert of the night is in the later one's history."""
    entries: dict[int, dict[str, Any]] = {}
    alerts: dict[int, dict[str, Any]] = {p["candid"]: p for p in sample.packets}
    seen_tonight = 0
    for packet in sample.packets:
        for q in packet["prv_candidates"] or []:
            if q["candid"] is None:
                continue
            assert entries.setdefault(q["candid"], q) == q
            if q["candid"] in alerts:
                earlier = alerts[q["candid"]]
                assert earlier["objectId"] == packet["objectId"]
                for name in ("jd", "fid", "ra", "dec", "magpsf", "sigmapsf", "isdiffpos", "pid", "rcid"):
                    assert q[name] == earlier["candidate"][name]
                seen_tonight += 1
    counts = Counter(p["objectId"] for p in sample.packets)
    assert seen_tonight == sum(n * (n - 1) // 2 for n in counts.values()) > 0


def test_forced_photometry(sample: Sample) -> None:
    newest = [p for p in sample.packets if p["schemavsn"] == "4.02"]
    assert all("fp_hists" not in p for p in sample.packets if p["schemavsn"] == "3.3")
    entries = [q for p in newest for q in p["fp_hists"] or []]
    assert {q["procstatus"] for q in entries} == {"0", "56", "61"}
    for packet in newest:
        times = [q["jd"] for q in packet["fp_hists"] or []]
        assert times == sorted(times, reverse=True)
        past = [q["jd"] for q in packet["prv_candidates"] or [] if packet["candidate"]["jd"] - q["jd"] > 0.5]
        assert times == past[::-1]
    for q in entries:
        assert (q["forcediffimflux"] == -99999.0) == (q["procstatus"] == "61")


def test_forced_photometry_agrees_with_detections(sample: Sample) -> None:
    compared = 0
    for packet in sample.packets:
        forced = {q["jd"]: q for q in packet.get("fp_hists") or [] if q["procstatus"] == "0"}
        for q in packet["prv_candidates"] or []:
            if q["candid"] is None or q["jd"] not in forced:
                continue
            fp = forced[q["jd"]]
            magnitude = fp["magzpsci"] - 2.5 * np.log10(abs(fp["forcediffimflux"]))
            assert abs(magnitude - q["magpsf"]) < 1e-3
            assert (fp["forcediffimflux"] > 0) == (q["isdiffpos"] in ("t", "1"))
            compared += 1
    assert compared > 100


def test_cutouts_are_stamps(sample: Sample) -> None:
    sizes = [len(p[c]["stampData"]) for p in sample.packets for c in ("cutoutScience", "cutoutDifference")]
    assert min(sizes) > 8_000
    assert max(sizes) < 18_000
    packet = sample.packets[0]
    for kind in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        assert packet[kind]["fileName"].startswith(f"candid{packet['candid']}_")
        with fits.open(io.BytesIO(gzip.decompress(packet[kind]["stampData"]))) as hdus:
            assert hdus[0].data.shape == (63, 63)
            assert hdus[0].data.dtype == np.dtype(">f4")


def test_difference_stamp_has_the_sign_of_the_alert(sample: Sample) -> None:
    for packet in sample.packets[:40]:
        data = fits.getdata(io.BytesIO(gzip.decompress(packet["cutoutDifference"]["stampData"])))
        centre = data[30:33, 30:33].mean()
        assert (centre > 0) == (packet["candidate"]["isdiffpos"] in ("t", "1"))


def test_without_cutouts(tmp_path: Path) -> None:
    summary = simulate_night(tmp_path, alerts=20, cutouts=False, schema_mix={"3.3": 1.0, "4.02": 1.0})
    for data in read_members(summary.archive).values():
        (packet,) = fastavro.reader(io.BytesIO(data))
        assert packet["cutoutScience"] is packet["cutoutTemplate"] is packet["cutoutDifference"] is None
    assert summary.mean_member_bytes < 40_000


def test_schema_mix_of_one_version(tmp_path: Path) -> None:
    summary = simulate_night(tmp_path, alerts=10, cutouts=False, schema_mix={"3.3": 1.0})
    assert summary.by_schema == {"3.3": 10}


# --- truth and catalogue


def test_truth_is_the_brute_force_answer(sample: Sample) -> None:
    table = pacsv.read_csv(sample.summary.catalog.path)
    names = table["AllWISE"].to_pylist()
    ra, dec = table["RAJ2000"].to_numpy(), table["DEJ2000"].to_numpy()
    unmatched, with_neighbour, just_outside = 0, 0, 0
    for row, packet in zip(sample.truth, sample.packets, strict=True):
        c = packet["candidate"]
        assert row["candid"] == str(packet["candid"])
        assert (row["objectId"], row["schemavsn"]) == (packet["objectId"], packet["schemavsn"])
        assert [float(row[k]) for k in ("ra", "dec", "jd", "fid")] == [c["ra"], c["dec"], c["jd"], c["fid"]]
        separation = separation_arcsec(c["ra"], c["dec"], ra, dec)
        order = np.argsort(separation)
        if separation[order[0]] <= 1.0:
            assert row["AllWISE"] == names[order[0]]
            assert abs(float(row["separation_arcsec"]) - separation[order[0]]) < 1e-6
            with_neighbour += separation[order[1]] <= 1.0
        else:
            assert (row["AllWISE"], row["separation_arcsec"]) == ("", "")
            unmatched += 1
            just_outside += separation[order[0]] < 1.5
    assert 0.55 < 1 - unmatched / ALERTS < 0.85
    assert with_neighbour > 5
    assert just_outside > 5


def test_catalogue_has_vizier_columns_and_unique_names(sample: Sample) -> None:
    table = pacsv.read_csv(sample.summary.catalog.path)
    assert tuple(table.column_names) == COLUMNS
    names = table["AllWISE"].to_pylist()
    assert len(set(names)) == len(names) == sample.summary.catalog.sources
    assert all(re.fullmatch(r"J\d{6}\.\d\d[+-]\d{6}\.\d", name) for name in names)
    assert table["Jmag"].null_count > table["W1mag"].null_count
    assert table["e_W4mag"].null_count > table["W4mag"].null_count
    assert 2_000 < sample.summary.catalog.sources < 2_000 + night_objects(ALERTS, 0.2)
    assert sample.summary.catalog.beside_objects == sample.summary.catalog.sources - 2_000


def test_catalogue_formats_hold_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("c.csv", "c.csv.gz", "c.parquet")]
    for path in paths:
        simulate_catalog(path, objects=50, field_sources=50, seed=3)
    plain, gz = (pacsv.read_csv(path).to_pydict() for path in paths[:2])
    assert plain == gz == pq.read_table(paths[2]).to_pydict()


def test_designations_of_a_real_catalogue(shared_data: Path) -> None:
    with open(shared_data / "xmatch/cds_allwise_best_1arcsec.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ra = np.array([float(row["RAJ2000"]) for row in rows])
    dec = np.array([float(row["DEJ2000"]) for row in rows])
    ours = [name.decode() for name in designations(ra, dec)]
    agree = sum(o == row["AllWISE"] for o, row in zip(ours, rows, strict=True))
    assert agree > 0.98 * len(rows)


def test_object_without_catalogue_has_no_counterpart(tmp_path: Path) -> None:
    summary = simulate_night(tmp_path, alerts=10, cutouts=False)
    assert summary.matched == 0
    assert {row["AllWISE"] for row in read_truth(summary.truth)} == {""}


@settings(deadline=None, max_examples=60)
@given(
    ra=st.floats(0, 360, exclude_max=True),
    dec=st.floats(-89.9999, 89.9999),
    east=st.floats(-2, 2),
    north=st.floats(-2, 2),
)
def test_offset_has_its_length_everywhere(ra: float, dec: float, east: float, north: float) -> None:
    moved = offset_position(np.array([ra]), np.array([dec]), np.array([east]), np.array([north]))
    assert 0.0 <= moved[0][0] < 360.0
    separation = separation_arcsec(np.array([ra]), np.array([dec]), *moved)[0]
    assert abs(separation - np.hypot(east, north)) < 1e-3


# --- objects


def test_light_curves_are_what_their_kinds_say() -> None:
    objects = object_block(1, 0)
    days = np.linspace(-30.0, 1.0, 200)

    def curve(kind: str, fid: int = 1) -> np.ndarray:
        members = np.flatnonzero(objects.kind == KINDS.index(kind))
        index = np.repeat(members, len(days))
        return relative_flux(objects, index, np.tile(days, len(members)), np.full(len(index), fid)).reshape(-1, 200)

    assert np.ptp(curve("constant"), axis=1).max() == 0.0
    flares = curve("flare")
    assert (flares[:, days < -0.5] == 1.0).all()
    assert (flares >= 1.0).all()
    supernovae = curve("supernova")
    assert (supernovae >= 1.0).all()
    assert (np.diff(np.sign(np.diff(supernovae, axis=1)), axis=1) > 0).sum() == 0
    members = np.flatnonzero(objects.kind == KINDS.index("periodic"))
    start, later = np.full(len(members), -7.0), -7.0 + 3 * objects.period_days[members]
    fid = np.full(len(members), 2)
    np.testing.assert_allclose(
        relative_flux(objects, members, start, fid), relative_flux(objects, members, later, fid), rtol=1e-9
    )
    assert (np.std(-2.5 * np.log10(curve("stochastic")), axis=1) > 0.02).all()


def test_object_names_are_unique_across_blocks() -> None:
    names = np.concatenate([object_block(2, block).object_id for block in range(5)])
    assert len(np.unique(names)) == 5 * OBJECTS_PER_BLOCK


# --- encoder


RECORD = {
    "type": "record",
    "name": "row",
    "fields": [
        {"name": "number", "type": "long"},
        {"name": "maybe", "type": ["null", "int"]},
        {"name": "flux", "type": ["float", "null"]},
        {"name": "angle", "type": "double"},
        {"name": "word", "type": ["string", "null"]},
    ],
}
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "number": st.integers(-(2**63), 2**63 - 1),
            "maybe": st.none() | st.integers(-(2**31), 2**31 - 1),
            "flux": st.none() | st.floats(width=32, allow_nan=False),
            "angle": st.floats(allow_nan=False),
            "word": st.none() | st.text("abcdefgh_ ", max_size=200),
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
def test_encoder_writes_what_fastavro_writes(rows: list[dict[str, Any]]) -> None:
    def masked(name: str, fill: Any, dtype: Any) -> np.ndarray:
        values = [row[name] for row in rows]
        filled = np.array([fill if v is None else v for v in values], dtype=dtype)
        return np.ma.array(filled, mask=[v is None for v in values])

    columns = {
        "number": np.array([row["number"] for row in rows], dtype=np.int64),
        "maybe": masked("maybe", 0, np.int64),
        "flux": masked("flux", 0.0, np.float64),
        "angle": np.array([row["angle"] for row in rows]),
        "word": masked("word", "", "S200"),
    }
    encoded = RecordEncoder(RECORD).encode(columns)
    for i, row in enumerate(rows):
        expected = io.BytesIO()
        fastavro.schemaless_writer(expected, RECORD, row)
        assert encoded.rows(i, i + 1) == expected.getvalue()


def test_encoder_refuses_null_where_there_is_no_null() -> None:
    columns = {name: np.ma.array([1.0], mask=True) for name in ("number", "maybe", "flux", "angle")}
    with pytest.raises(ValueError, match="number cannot be null"):
        RecordEncoder(RECORD).encode(columns | {"word": np.array([b"x"])})


@settings(deadline=None)
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_zigzag_is_avro_long(value: int) -> None:
    expected = io.BytesIO()
    fastavro.schemaless_writer(expected, "long", value)
    assert zigzag(value) == expected.getvalue()


# --- size, arguments, failure


def test_memory_does_not_grow_with_alerts(tmp_path: Path) -> None:
    def peak(alerts: int) -> int:
        tracemalloc.start()
        try:
            simulate_night(tmp_path / str(alerts), alerts=alerts, cutouts=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one_block = OBJECTS_PER_BLOCK * 5 // 4
    peak(10)
    assert peak(3 * one_block) < 1.3 * peak(one_block)


def test_large_night_has_unique_candids_and_one_order(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    summary = simulate_night(
        tmp_path, alerts=6_000, cutouts=False, repeat_fraction=0.5, progress=lambda *p: progress.append(p)
    )
    truth = read_truth(summary.truth)
    assert len({row["candid"] for row in truth}) == len(truth) == 6_000
    jd = [float(row["jd"]) for row in truth]
    assert jd == sorted(jd)
    assert {row["fid"] for row in truth} == {"1", "2", "3"}
    assert progress[-1] == (6_000, 6_000)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alerts": 0}, "1 to"),
        ({"date": "2026-01-01"}, "YYYYMMDD"),
        ({"date": "20100101"}, "before the survey"),
        ({"repeat_fraction": 0.9}, "0 to 0.6"),
        ({"schema_mix": {"3.2": 1.0}}, "3.3 and 4.02"),
        ({"schema_mix": {}}, "3.3 and 4.02"),
        ({"bad_members": -1}, "0 or more"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_night(tmp_path / "night", **arguments)
    assert not list(tmp_path.rglob("*.gz"))


def test_unknown_catalogue_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\*\.csv"):
        simulate_catalog(tmp_path / "c.fits", objects=1)


def test_interrupted_night_leaves_no_files(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_night(tmp_path, alerts=10, cutouts=False, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_summary_of_every_bad_kind(tmp_path: Path) -> None:
    summary: NightSummary = simulate_night(tmp_path, alerts=10, bad_members=10, cutouts=False)
    assert summary.bad_members == dict.fromkeys(BAD_KINDS, 2)
    assert len(read_members(summary.archive)) == 20
