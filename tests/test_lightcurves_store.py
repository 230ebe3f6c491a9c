"""The light-curve store against a slow de-duplication, its laws, and what killed processes leave."""

import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightcurves_fixtures import random_packets, tables
from test_lightcurves_assembly import assert_equals_reference, same

from alerts.batch import AlertBatch
from alerts.reader import Limits, read_source
from alerts.sources import find_sources
from lightcurves import segments, store
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.store import FoldCounts, LightCurveStore, StoreError, StoreRows
from lightcurves.store_tables import CROSSMATCHES, DETECTIONS, NON_DETECTIONS, TABLES
from simulation import simulate_sample
from storage.buckets import bucket_of
from transforms.light_curves import slim_rows

BUCKETS = 3
Row = dict[str, Any]


def rows_of_packets(packets: list, seed: int) -> StoreRows:
    """Rows of packets, some of them disturbed as no survey should, with matches of the alerts."""
    detections, non_detections = tables(packets)
    rng = np.random.default_rng(seed)
    points, limits = detections.to_pylist(), non_detections.to_pylist()
    for row in [*points, *limits]:
        if rng.uniform() < 0.05:
            row["alert_mjd"] += rng.choice([-40.0, 3.0])
        if rng.uniform() < 0.05:
            row["mjd"] += rng.choice([9e-6, 5.0])
        if rng.uniform() < 0.02:
            row[rng.choice(["mjd", "fid", "oid", "alert_candid", "alert_mjd"])] = None
    again = [row | {"magnr": -999.0, "rb": None} for row in points if rng.uniform() < 0.1]
    matches = [
        {
            "oid": row["oid"],
            "candid": row["candid"],
            "jd": row["alert_mjd"] and row["alert_mjd"] + 2400000.5,
            "angDist": float(rng.choice([0.1, 0.2, np.nan])),
            "W1mag": float(rng.choice([11.0, 12.0, np.nan])),
            "W2mag": 11.5,
            "W3mag": None,
        }
        for row in points
        if row["has_stamp"] and row["oid"] is not None and rng.uniform() < 0.7
    ]
    order = rng.permutation(len(points) + len(again))
    points = [[*points, *again][place] for place in order]
    return StoreRows(
        DETECTIONS.conform(pa.Table.from_pylist(points, detections.schema)),
        NON_DETECTIONS.conform(pa.Table.from_pylist(limits, non_detections.schema)),
        pa.Table.from_pylist([*matches, *matches[:2]], CROSSMATCHES.schema),
    )


def split(rows: StoreRows, parts: int, seed: int) -> list[StoreRows]:
    rng = np.random.default_rng(seed)
    places = [rng.integers(0, parts, len(t)) for t in parts_of(rows)]
    return [
        StoreRows(*(t.filter(pa.array(place == part)) for t, place in zip(parts_of(rows), places, strict=True)))
        for part in range(parts)
    ]


def parts_of(rows: StoreRows) -> tuple[pa.Table, pa.Table, pa.Table]:
    return rows.detections, rows.non_detections, rows.crossmatches


def append(to: LightCurveStore, unit: str, *rows: StoreRows, buffer_bytes: int = 1 << 20) -> None:
    with to.append(unit, buffer_bytes) as appender:
        for some in rows:
            appender.add(some)
        appender.commit()


def fold_all(to: LightCurveStore, generation: int, units: Iterable[str]) -> FoldCounts:
    units = list(units)
    return sum((to.fold(bucket, generation, units) for bucket in range(to.buckets)), FoldCounts())


def read_all(of: LightCurveStore) -> StoreRows:
    every = [parts_of(of.read(bucket)) for bucket in range(of.buckets)]
    return StoreRows(*(pa.concat_tables(found) for found in zip(*every, strict=True)))


def plain(rows: pa.Table) -> list[tuple]:
    """Rows as tuples, by whatever order; NaN as null."""
    found = [tuple(None if v != v else v for v in row.values()) for row in rows.to_pylist()]
    return sorted(found, key=lambda row: [(v is None, v if v is not None else 0) for v in row])


def expected(rows: StoreRows) -> list[list[tuple]]:
    """What must be kept, by comparing every row with every other of its point."""
    found = []
    for table, given_rows in zip(TABLES, parts_of(rows), strict=True):
        names = table.schema.names
        distinct: dict[tuple, list[tuple]] = {}
        for values in set(plain(table.conform(given_rows))):
            row = dict(zip(names, values, strict=True))
            if row["oid"] is None or ("fid" in row and (row["fid"] is None or row["mjd"] is None)):
                continue
            distinct.setdefault(point(row, values), []).append(values)
        kept = []
        for of_point in distinct.values():
            ranked = [(*rank(dict(zip(names, values, strict=True)), values), values) for values in of_point]
            kept += [
                values
                for preference, since, values in ranked
                if not any(other < preference and known <= since for other, known, _ in ranked)
            ]
        found.append(sorted(kept, key=lambda row: [(v is None, v if v is not None else 0) for v in row]))
    return found


def point(row: Row, values: tuple) -> tuple:
    if "W1mag" in row:
        return values
    if "candid" not in row:
        return (row["oid"], row["fid"], row["mjd"])
    if row["candid"] is not None:
        return (row["oid"], bool(row["forced"]), row["candid"])
    if row["forced"]:
        return (row["oid"], True, row["fid"], row["mjd"])
    return tuple(row[name] for name in ("oid", "fid", "mjd", "magpsf", "ra", "dec"))


def rank(row: Row, values: tuple) -> tuple[tuple, float]:
    if "W1mag" in row:
        return (), 0.0
    time = row["mjd"] if row["alert_mjd"] is None else row["alert_mjd"]
    candid = row.get("candid") if row["alert_candid"] is None else row["alert_candid"]
    order = [(v is None, v if v is not None else 0) for v in values]
    return (not row.get("has_stamp"), time, candid or 1 << 62, order), max(time, row["mjd"])


def assert_holds(of: LightCurveStore, rows: StoreRows) -> None:
    found = read_all(of)
    assert [plain(table) for table in parts_of(found)] == expected(rows)
    for table in (found.detections, found.non_detections):
        keys = list(zip(map(of_bucket, table["oid"]), table["oid"].to_pylist(), table["mjd"].to_pylist(), strict=True))
        assert keys == sorted(keys)


def of_bucket(name: pa.Scalar) -> int:
    return int(bucket_of(pa.array([name.as_py()]), BUCKETS)[0])


def light_curves(rows: StoreRows, as_of_mjd: float | None = None) -> LightCurveBatch:
    return assemble(rows.detections, rows.non_detections, as_of_mjd=as_of_mjd, crossmatches=rows.crossmatches)


def segment_files(of: LightCurveStore) -> dict[str, bytes]:
    return {str(path.relative_to(of.folder)): path.read_bytes() for path in of.folder.rglob("*.parquet")}


@given(
    seed=st.integers(0, 10_000),
    units=st.integers(1, 6),
    per_generation=st.integers(1, 3),
    merges=st.sets(st.integers(1, 6)),
    repeat=st.booleans(),
)
@settings(max_examples=7, deadline=None)
def test_whatever_the_order_the_store_holds_what_every_date_needs(
    seed: int,
    units: int,
    per_generation: int,
    merges: set[int],
    repeat: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = rows_of_packets(random_packets(seed, objects=4), seed)
    nights = LightCurveStore.open(tmp_path_factory.mktemp("store"), BUCKETS)
    for generation, first in enumerate(range(0, units, per_generation), 1):
        names = [f"unit-{number}" for number in range(first, min(first + per_generation, units))]
        for name in names:
            append(nights, name, *split(split(rows, units, seed)[int(name[5:])], 2, seed), buffer_bytes=20_000)
        fold_all(nights, generation, names)
        if generation in merges:
            for bucket in range(BUCKETS):
                nights.compact_all(bucket)
        if repeat:
            before = segment_files(nights)
            fold_all(nights, generation, reversed(names))
            assert segment_files(nights) == before
        nights.remove_incoming(names)
    assert nights.incoming_units() == set()
    assert_holds(nights, rows)
    stored = read_all(nights)
    times = [row for row in rows.detections["alert_mjd"].to_pylist() if row is not None]
    for as_of_mjd in (None, *np.quantile(times, [0.1, 0.5, 0.9])):
        assert same(light_curves(stored, as_of_mjd), light_curves(rows, as_of_mjd))


@given(seed=st.integers(0, 10_000), objects=st.integers(1, 4), group=st.integers(5, 40))
@settings(max_examples=6, deadline=None)
def test_batches_are_the_whole_in_the_order_of_names(
    seed: int, objects: int, group: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = rows_of_packets(random_packets(seed, objects=7, alerts=5), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "ROWS_PER_GROUP", group)
        whole = LightCurveStore.open(tmp_path_factory.mktemp("store"), 1)
        for generation, some in enumerate(split(rows, 3, seed), 1):
            append(whole, "unit", some)
            fold_all(whole, generation, ["unit"])
    names = whole.changed(0, 0)
    assert names.to_pylist() == sorted({*rows.detections["oid"].drop_null().to_pylist()})
    some = names.filter(pa.array(np.random.default_rng(seed).uniform(size=len(names)) < 0.5))
    for oids in (None, some.take(pc.array_sort_indices(some, order="descending"))):
        parts = list(whole.batches(0, oids, objects))
        counts = [
            len({*part.detections["oid"].to_pylist()} | {*part.non_detections["oid"].to_pylist()}) for part in parts
        ]
        assert all(count <= objects for count in counts)
        assert sum(counts) == len(names if oids is None else some)
        read = whole.read(0, oids)
        for number, table in enumerate(parts_of(read)):
            joined = pa.concat_tables([parts_of(part)[number] for part in parts] or [table.slice(0, 0)])
            assert joined.equals(table)
            if oids is not None:
                every = parts_of(whole.read(0))[number]
                assert table.equals(every.filter(pc.is_in(every["oid"], value_set=some)).combine_chunks())
    oid = names[0].as_py()
    for table, every in zip(parts_of(whole.rows_of(oid)), parts_of(whole.read(0)), strict=True):
        assert table.equals(every.filter(pc.equal(every["oid"], oid)).combine_chunks())
    assert len(whole.rows_of("ZTF00unknown").detections) == 0


def test_the_alerts_own_row_supersedes_what_a_later_alert_brought(tmp_path: Path) -> None:
    packets = [packet for packet in random_packets(3, objects=1, alerts=30) if len(packet[0]) > 1]
    detections, limits = tables(packets[-1:])
    early, late = detections.filter(pc.invert(detections["has_stamp"])), tables(packets)[0]
    own = late.filter(late["has_stamp"])
    own = own.filter(pc.is_in(own["candid"], value_set=early["candid"]))
    assert len(own)
    nights = LightCurveStore.open(tmp_path, 1)
    none = CROSSMATCHES.schema.empty_table()
    append(nights, "a", StoreRows(early, limits, none))
    append(nights, "b", StoreRows(own, limits, none))
    fold_all(nights, 1, ["a"])
    counts = fold_all(nights, 2, ["b"])
    assert (counts.rows, counts.new, counts.superseded) == (len(own) + len(limits), len(own), len(own))
    kept = nights.read(0).detections
    assert kept["has_stamp"].to_numpy()[kept["candid"].is_valid().to_numpy()].sum() == len(own)
    nights.compact_all(0)
    assert nights.statistics()["detections"].rows == len(kept)


def test_of_a_tie_the_least_value_counts_below_zero_too() -> None:
    # Forced photometry of one alert at two positions south of the equator.
    packets = random_packets(989)
    assert_equals_reference(assemble(*tables(packets)), packets)


@pytest.fixture
def nights(tmp_path: Path) -> tuple[LightCurveStore, list[StoreRows], StoreRows]:
    """A store of ten generations, their rows, and all of them."""
    rows = rows_of_packets(random_packets(11, objects=12), 11)
    some = split(rows, 10, 5)
    filled = LightCurveStore.open(tmp_path / "store", BUCKETS)
    for number, night in enumerate(some, 1):
        append(filled, f"night-{number}", night)
        fold_all(filled, number, [f"night-{number}"])
    return filled, some, rows


def test_what_is_not_committed_is_not_there(tmp_path: Path) -> None:
    rows = rows_of_packets(random_packets(1), 1)
    empty = LightCurveStore.open(tmp_path, BUCKETS)
    with empty.append("unit", 1) as appender:
        appender.add(rows)
    assert empty.incoming_units() == set()
    assert not [path for path in (tmp_path / "incoming").rglob("*") if path.is_file()]
    killed = empty.append("unit", 1)
    for _ in range(3):
        killed.add(rows)
    assert empty.incoming_units() == set()
    assert fold_all(empty, 1, ["unit"]) == FoldCounts()
    append(empty, "unit", rows)
    assert empty.incoming_units() == {"unit"}
    assert len([path for path in (tmp_path / "incoming").rglob("*") if path.is_file()]) == 3
    assert fold_all(empty, 1, ["unit"]).rows == sum(map(len, parts_of(rows)))


def test_a_repeated_unit_takes_the_place_of_an_earlier_attempt(tmp_path: Path) -> None:
    rows = rows_of_packets(random_packets(1), 1)
    again = LightCurveStore.open(tmp_path, BUCKETS)
    append(again, "unit", rows, rows, rows, buffer_bytes=1)
    append(again, "unit-2", rows)
    assert len(list((tmp_path / "incoming" / "detections").iterdir())) == 4
    append(again, "unit", rows)
    assert fold_all(again, 1, ["unit", "unit-2"]).rows == 2 * sum(map(len, parts_of(rows)))
    again.remove_incoming(["unit", "unknown"])
    again.remove_incoming(["unit"])
    assert again.incoming_units() == {"unit-2"}


def test_a_process_killed_between_merging_and_removing_leaves_each_row_once(nights: tuple) -> None:
    filled, _, rows = nights
    before, changed = read_all(filled), [filled.changed(bucket, 0) for bucket in range(BUCKETS)]
    for bucket in range(BUCKETS):
        for table in TABLES:
            folder = filled.folder / table.name / f"bucket={bucket:04d}"
            with segments.open_segments(table, folder) as opened:
                lasts = [segments.object_names(opened)[-1].as_py()]
                path = segments.segment_path(folder, 1, opened[-1].segment.last)
                segments.write_segment(path, table, segments.merged(table, opened, lasts))
    (filled.folder / "detections" / "bucket=0000" / ".000001-000009.parquet.partial").write_bytes(b"half")
    assert len(list((filled.folder / "detections" / "bucket=0000").glob("*.parquet"))) > 1
    assert filled.statistics()["detections"].segments == BUCKETS
    for found, known in zip(parts_of(read_all(filled)), parts_of(before), strict=True):
        assert found.equals(known)
    assert [filled.changed(bucket, 0) for bucket in range(BUCKETS)] == changed
    assert fold_all(filled, 4, ["night-4"]).new == 0
    for bucket in range(BUCKETS):
        assert filled.compact(bucket, 10) == 0
    assert len(list(filled.folder.glob("*/bucket=*/*.parquet"))) == 3 * BUCKETS
    assert_holds(filled, rows)


def test_a_merged_generation_takes_no_more_rows(nights: tuple) -> None:
    filled, _, _ = nights
    for bucket in range(BUCKETS):
        filled.compact_all(bucket)
    append(filled, "late", rows_of_packets(random_packets(99), 99))
    with pytest.raises(StoreError, match="merged"):
        fold_all(filled, 4, ["late"])
    assert fold_all(filled, 11, ["late"]).new > 0


def test_merging_is_done_by_size_and_up_to_a_generation(nights: tuple) -> None:
    filled, _, _ = nights
    assert filled.generation() == 10
    before = read_all(filled)
    assert filled.compact(0, 5) == 0
    assert sum(filled.compact(bucket, 9) for bucket in range(BUCKETS)) > 0
    names = sorted(path.name for path in (filled.folder / "detections" / "bucket=0000").iterdir())
    assert names == ["000001-000009.parquet", "000010-000010.parquet"]
    after = read_all(filled)
    assert all(a.equals(b) for a, b in zip(parts_of(before), parts_of(after), strict=True))
    assert {*filled.changed(0, 9).to_pylist()} < {*filled.changed(0, 0).to_pylist()}
    assert filled.changed(0, 10).to_pylist() == []


def test_rows_are_rewritten_as_often_as_the_logarithm_of_their_number() -> None:
    sizes: list[tuple[segments.Segment, int]] = []
    written = 0
    for number in range(1, 601):
        sizes.append((segments.Segment(number, number, Path(str(number))), 900 + number * 37 % 200))
        while chosen := store._to_merge(sizes):
            total = sum(rows for segment, rows in sizes if segment in chosen)
            written += total
            first = sizes.index(next(pair for pair in sizes if pair[0] == chosen[0]))
            merged = segments.Segment(chosen[0].first, chosen[-1].last, Path(f"{number}.{first}"))
            sizes[first : first + len(chosen)] = [(merged, total)]
    # Eight at a time: log(600) / log(8) is 3.1.
    assert written <= 5 * 600 * 1000
    assert len(sizes) <= 24


def test_a_night_reads_only_what_it_may_repeat(nights: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    filled, some, _ = nights
    later = rows_of_packets(random_packets(11, objects=12), 11)
    moved = []
    for table in parts_of(later)[:2]:
        for name in {"mjd", "candid", "alert_mjd", "alert_candid"} & {*table.column_names}:
            step = 1000 if "mjd" in name else 2 * 10**18
            table = table.set_column(table.column_names.index(name), name, pc.add(table[name], step))
        moved.append(table)
    append(filled, "later", StoreRows(*moved, CROSSMATCHES.schema.empty_table()))
    read: list[Any] = []
    whole = segments.OpenSegment.read
    monkeypatch.setattr(segments.OpenSegment, "read", lambda self, *args: read.append(args) or whole(self, *args))
    assert fold_all(filled, 11, ["later"]).new > 0
    forced = [args for args in read if args[1:] != (["candid", "mjd"],)]
    assert not forced, "only times and names of points without candid may be looked at"
    read.clear()
    append(filled, "again", some[3])
    assert fold_all(filled, 12, ["again"]).new == 0
    assert read


def _append_units(folder: Path, first: int) -> None:
    shared = LightCurveStore.open(folder, BUCKETS)
    for number in range(first, first + 4):
        append(shared, f"unit-{number}", rows_of_packets(random_packets(number), number), buffer_bytes=10_000)


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_units, args=(tmp_path / "store", first)) for first in (0, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    shared = LightCurveStore.open(tmp_path / "store")
    assert shared.incoming_units() == {f"unit-{number}" for number in range(8)}
    fold_all(shared, 1, shared.incoming_units())
    every = [parts_of(rows_of_packets(random_packets(number), number)) for number in range(8)]
    assert_holds(shared, StoreRows(*(pa.concat_tables(part) for part in zip(*every, strict=True))))


def test_pandas_reads_a_table_as_one(nights: tuple) -> None:
    filled, _, _ = nights
    for bucket in range(BUCKETS):
        filled.compact_all(bucket)
    found = read_all(filled)
    for table, rows in zip(TABLES, parts_of(found), strict=True):
        # Otherwise pandas makes floating point of a column of integers with nulls.
        frame = pd.read_parquet(filled.folder / table.name, dtype_backend="pyarrow")
        assert sorted(frame["bucket"].unique()) == list(range(BUCKETS))
        assert plain(pa.Table.from_pandas(frame[rows.column_names], table.schema, preserve_index=False)) == plain(rows)


def test_duckdb_reads_a_table_as_one(nights: tuple) -> None:
    filled, _, _ = nights
    for bucket in range(BUCKETS):
        filled.compact_all(bucket)
    pattern = str(filled.folder / "detections" / "*" / "*.parquet")
    query = (
        f"select count(*), count(distinct oid), max(bucket) from read_parquet('{pattern}', hive_partitioning = true)"
    )
    rows = read_all(filled).detections
    assert duckdb.sql(query).fetchall()[0][:2] == (len(rows), len(rows["oid"].unique()))


def assert_survives(packets: list[Path], folder: Path) -> None:
    """Light curves of packets' rows are the same, bit for bit, straight from them and through a store."""
    found = [item for source in find_sources(map(str, packets)) for item in read_source(source, Limits(40, 1 << 26))]
    slim = [slim_rows(batch) for batch in found if isinstance(batch, AlertBatch)]
    filled = LightCurveStore.open(folder, BUCKETS)
    none = CROSSMATCHES.schema.empty_table()
    for number in range(3):
        append(filled, f"unit-{number}", *(StoreRows(*rows, none) for rows in slim[number::3]))
        fold_all(filled, number + 1, [f"unit-{number}"])
    direct = StoreRows(
        *(pa.concat_tables(part, promote_options="permissive") for part in zip(*slim, strict=True)), none
    )
    stored = read_all(filled)
    assert len(stored.detections) <= len(direct.detections)
    assert stored.detections.schema == DETECTIONS.schema
    assert stored.non_detections.schema == NON_DETECTIONS.schema
    for as_of_mjd in (None, np.median(direct.detections["alert_mjd"].to_numpy())):
        whole = light_curves(direct, as_of_mjd)
        assert same(light_curves(stored, as_of_mjd), whole)
        # Of real alerts a detection needs one row for all dates.
        if as_of_mjd is None:
            assert len(stored.detections) == len(whole.detections)


def test_a_simulated_night_survives_bit_for_bit(tmp_path: Path) -> None:
    night = simulate_sample(tmp_path / "night", alerts=150, bad_members=0, cutouts=False, seed=2).night
    assert_survives([Path(night.archive)], tmp_path / "store")


@pytest.mark.parametrize("place", ["archive", "objects", "schema_4.02", "rewritten_by_fink_4.02", "by_schema", ""])
def test_real_packets_survive_bit_for_bit(place: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "alerts" / place
    packets = [path for path in folder.rglob("*") if path.name.endswith((".avro", ".gz")) and "bad" not in path.parts]
    assert_survives(packets, tmp_path)


@given(value=st.integers(-(1 << 62), 1 << 62))
@example(value=1 << 31)
@settings(max_examples=10)
def test_numbers_wider_than_the_column_are_null(value: int) -> None:
    rows = DETECTIONS.conform(pa.table({"nid": [value, 5], "fid": pa.array([1, None], pa.int64()), "rb": [0.5, 0.1]}))
    assert rows["nid"].to_pylist() == [value if -(1 << 31) <= value < 1 << 31 else None, 5]
    assert rows["rb"].to_pylist() == [0.5, float(np.float32(0.1))]
    assert rows["oid"].null_count == 2


def test_a_store_says_what_is_wrong(tmp_path: Path) -> None:
    assert LightCurveStore.open(tmp_path / "store").buckets == 128
    assert LightCurveStore.open(tmp_path / "store", 128).statistics()["detections"].rows == 0
    assert LightCurveStore.open(tmp_path / "store").generation() == 0
    with pytest.raises(StoreError, match="128 buckets, not 64"):
        LightCurveStore.open(tmp_path / "store", 64)
    with pytest.raises(StoreError, match="at least one"):
        LightCurveStore.open(tmp_path / "none", 0)
    opened = LightCurveStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="0 to 127"):
        opened.fold(128, 1, [])
    with pytest.raises(StoreError, match="from 1"):
        opened.fold(0, 0, [])
    with pytest.raises(StoreError, match="name of a unit"):
        opened.append("../unit")
    wrong = DETECTIONS.schema.empty_table().drop_columns("ra").append_column("ra", pa.array([], pa.list_(pa.int8())))
    wrong = pa.concat_tables([wrong, pa.table({"oid": ["a"]})], promote_options="default")
    with pytest.raises(StoreError, match="column ra"), opened.append("unit") as appender:
        appender.add(StoreRows(wrong, NON_DETECTIONS.schema.empty_table(), CROSSMATCHES.schema.empty_table()))
    (tmp_path / "store" / "store.json").write_text("{")
    with pytest.raises(StoreError, match="does not describe"):
        LightCurveStore.open(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text('{"format": 2, "buckets": 128}')
    with pytest.raises(StoreError, match="format 2"):
        LightCurveStore.open(tmp_path / "store")
