"""The outcome of writing does not depend on the order of rows or batches, and writing again changes nothing."""

import datetime
import math

import pyarrow as pa
import pytest
from database_fixtures import execute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from database.rules import known_rules
from database.upsert import TableCounts

LAW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
OIDS = ("ZTF1", "ztf1", "ZTF é")
FLOATS = st.sampled_from([None, -1.5, 0.0, 0.1, 2.5, math.inf, -math.inf, math.nan])
MJDS = st.sampled_from([58000.0, 58000.5, 58001.25, 58003.0])
MOMENTS = [None, *(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2013, 2024))]

object_rows = st.fixed_dictionaries(
    {
        "oid": st.sampled_from(OIDS),
        "ndethist": st.sampled_from([None, 1, 7]),
        "mjdendhist": FLOATS,
        "meanra": FLOATS,
        "mjd": MJDS,
        "stellar": st.sampled_from([None, False]),
    }
).map(lambda row: row | {"firstmjd": row["mjd"], "lastmjd": row.pop("mjd"), "deltajd": 0.0, "step_id_corr": "0.0.0"})
allwise_rows = st.fixed_dictionaries(
    {
        "oid_catalog": st.sampled_from(["J1", "J2"]),
        "ra": st.sampled_from([0.1, 0.2]),
        "dec": st.just(1.0),
        "w1mpro": FLOATS,
        "k_msig_2mass": FLOATS,
    }
)
# One class per key: of different ones only the better row's is sure to stay.
match_rows = st.fixed_dictionaries(
    {
        "oid": st.sampled_from(OIDS),
        "catid": st.sampled_from(["allwise", "gaia"]),
        "oid_catalog": st.sampled_from(["J1", "j2", "É"]),
        "dist": st.sampled_from([0.0, 0.25, 0.5, math.nan]),
        "class_catalog": st.sampled_from([None, "QSO"]),
        "period": st.sampled_from([None, 1.5]),
        "candid": st.sampled_from([None, 1, 2**62]),
        "catalog_version": st.sampled_from([None, "", "1"]),
        "catalog_created": st.sampled_from(MOMENTS),
    }
)


light_curve_rows = st.fixed_dictionaries(
    {
        "oid": st.sampled_from(OIDS),
        "rows": st.sampled_from([b"", b"\0", b"\xff\0\\x", b"LC" * 4000, b"LD" * 4000]),
        "known_alerts": st.sampled_from([0, 1, 7]),
        "lastmjd": st.sampled_from([None, 58000.0, 58001.25]),
    }
)


def write_in_batches(database, name, rows, sizes):
    """Write the rows, cut into batches of the given sizes."""
    start = 0
    for size in [*sizes, len(rows)]:
        part = rows[start : start + size]
        start += size
        if part:
            assert database.write({name: pa.Table.from_pylist(part)}).refused == ()


def stored_rows(database, name):
    rule = known_rules()[name]
    found = execute(database.url, f"SELECT * FROM {name} ORDER BY {', '.join(rule.key)}")
    return [tuple(repr(bytes(v) if isinstance(v, memoryview) else v) for v in row) for row in found]


def assert_order_is_irrelevant(database, name, rows, data):
    outcomes = []
    for order in (rows, data.draw(st.permutations(rows))):
        execute(database.url, f"TRUNCATE {name} CASCADE")
        if name == "xmatch":
            database.write({"object": pa.table({"oid": OIDS})})
        write_in_batches(database, name, order, data.draw(st.lists(st.integers(1, 4), max_size=4)))
        outcomes.append(stored_rows(database, name))
    assert outcomes[0] == outcomes[1]
    keys = {tuple(row[key] for key in known_rules()[name].key) for row in rows}
    assert len(outcomes[0]) == len(keys)
    again = database.write({name: pa.Table.from_pylist(rows)})
    assert again.counts == {name: TableCounts(unchanged=len(rows))}
    return outcomes[0]


@LAW
@given(rows=st.lists(object_rows, min_size=2, max_size=8), data=st.data())
def test_objects(database, rows, data):
    assert_order_is_irrelevant(database, "object", rows, data)
    query = "SELECT oid, firstmjd, lastmjd, deltajd, ndethist FROM object"
    for oid, firstmjd, lastmjd, deltajd, ndethist in execute(database.url, query):
        own = [row for row in rows if row["oid"] == oid]
        assert firstmjd == min(row["firstmjd"] for row in own)
        assert lastmjd == max(row["lastmjd"] for row in own)
        assert deltajd == lastmjd - firstmjd
        assert ndethist in [row["ndethist"] for row in own if row["lastmjd"] == lastmjd]


@LAW
@given(rows=st.lists(allwise_rows, min_size=2, max_size=8), data=st.data())
def test_allwise_sources(database, rows, data):
    assert_order_is_irrelevant(database, "allwise", rows, data)


@LAW
@given(rows=st.lists(light_curve_rows, min_size=2, max_size=8), data=st.data())
def test_light_curves(database, rows, data):
    assert_order_is_irrelevant(database, "light_curve", rows, data)
    query = "SELECT oid, known_alerts, lastmjd, rows FROM light_curve"
    for oid, *found in execute(database.url, query):
        ranked = [
            (row["known_alerts"], row["lastmjd"] or 0.0, len(row["rows"]), row["rows"])
            for row in rows
            if row["oid"] == oid
        ]
        assert (found[0], found[1] or 0.0, len(found[2]), bytes(found[2])) == max(ranked)


@LAW
@given(rows=st.lists(match_rows, min_size=2, max_size=8), data=st.data())
def test_matches(database, rows, data):
    assert_order_is_irrelevant(database, "xmatch", rows, data)
    query = "SELECT oid, catid, catalog_created, dist, class_catalog FROM xmatch"
    for oid, catid, created, dist, class_catalog in execute(database.url, query):
        own = [row for row in rows if (row["oid"], row["catid"]) == (oid, catid)]
        known = [row["catalog_created"] for row in own if row["catalog_created"]]
        assert created == max(known, default=None)
        dists = [row["dist"] for row in own if row["catalog_created"] == created]
        assert repr(dist) == repr(min(dists, key=lambda value: (math.isnan(value), value)))
        assert class_catalog == ("QSO" if any(row["class_catalog"] for row in own) else None)


def test_objects_of_the_correction_step_are_never_touched(database, rows_of):
    execute(
        database.url,
        "INSERT INTO object (oid, step_id_corr, ndet, firstmjd, lastmjd, deltajd) VALUES "
        "('corrected', 'correction 1', 9, 58000, 58001, 1), ('unknown', NULL, 8, 58000, 58001, 1)",
    )
    before = rows_of("SELECT *, xmin::text FROM object ORDER BY oid")
    rows = [
        {"oid": oid, "firstmjd": 1.0, "lastmjd": 99999.0, "step_id_corr": "0.0.0"} for oid in ("corrected", "unknown")
    ]
    assert database.write({"object": pa.Table.from_pylist(rows)}).counts == {"object": TableCounts(unchanged=2)}
    assert rows_of("SELECT *, xmin::text FROM object ORDER BY oid") == before


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"catalog_created": MOMENTS[2], "dist": 0.9}, {"catalog_created": MOMENTS[1], "dist": 0.1}),
        ({"catalog_created": MOMENTS[1], "dist": 0.9}, {"catalog_created": None, "dist": 0.1}),
        ({"dist": 0.1}, {"dist": 0.2}),
        ({"dist": 0.1, "oid_catalog": "A"}, {"dist": 0.1, "oid_catalog": "B"}),
        ({"candid": 1}, {"candid": 2}),
        ({"candid": 1}, {"candid": None}),
    ],
)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("better_first", [True, False])
def test_which_match_stays(database, rows_of, better, worse, together, better_first):
    common = {"oid": "a", "catid": "c", "oid_catalog": "J", "dist": 0.5, "candid": 5, "catalog_created": MOMENTS[1]}
    rows = [common | better | {"class_catalog": None}, common | worse | {"class_catalog": "QSO"}]
    database.write({"object": pa.table({"oid": ["a"]})})
    write_in_batches(database, "xmatch", rows if better_first else rows[::-1], [] if together else [1])
    expected = rows[0] | {"class_catalog": "QSO"}
    assert rows_of(f"SELECT {', '.join(expected)} FROM xmatch") == [tuple(expected.values())]


def test_the_more_complete_source_stays(database, rows_of):
    rows = [
        {"oid_catalog": "J1", "ra": 1.0, "dec": 1.0, "w1mpro": 9.0, "w2mpro": None, "w3mpro": None},
        {"oid_catalog": "J1", "ra": 0.5, "dec": 1.0, "w1mpro": 8.0, "w2mpro": 7.0, "w3mpro": None},
    ]
    for order in (rows, rows[::-1]):
        execute(database.url, "TRUNCATE allwise")
        write_in_batches(database, "allwise", order, [1])
        assert rows_of("SELECT ra, w1mpro, w2mpro, w3mpro FROM allwise") == [(0.5, 8.0, 7.0, None)]
