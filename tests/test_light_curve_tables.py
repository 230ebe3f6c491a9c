"""Light curves and features in the database: ALeRCE's names, and rules that do not depend on the order of writing."""

import numpy as np
import pyarrow as pa
import pytest
from database_fixtures import execute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightcurves_fixtures import random_packets, tables

from database.rules import PROVISIONAL_STEP_ID, known_rules
from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import FeatureBatch, feature_names, feature_schema
from lightcurves.features.curves import Mode
from transforms.light_curve_tables import feature_key, feature_tables, light_curve_tables

LAW = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NAMES = ("object", "detection", "non_detection", "magstat", "feature", "feature_version")


def made_up_features(batch: LightCurveBatch, seed: int = 0) -> FeatureBatch:
    rng = np.random.default_rng(seed)
    columns = [pa.array(rng.normal(size=len(batch)), mask=rng.uniform(size=len(batch)) < 0.3) for _ in feature_names()]
    schema = feature_schema()
    arrays = [column.cast(kind, safe=False) for column, kind in zip(columns, schema.types[1:], strict=True)]
    return FeatureBatch(pa.Table.from_arrays([batch.oid, *arrays], schema=schema), Mode.ALERCE, "1-test")


def all_tables(batch: LightCurveBatch) -> dict[str, pa.Table]:
    return light_curve_tables(batch, "correction 1") | feature_tables(made_up_features(batch), batch)


def stored(database) -> dict[str, list]:
    found = {}
    for name in NAMES:
        order = ", ".join(known_rules()[name].key)
        found[name] = [tuple(map(repr, row)) for row in execute(database.url, f"SELECT * FROM {name} ORDER BY {order}")]
    return found


def test_rows_are_written_once_and_read_back(database, rows_of):
    batch = assemble(*tables(random_packets(1)))
    rows = all_tables(batch)
    first, second = database.write(rows), database.write(rows)
    assert first.refused == ()
    assert {name: counts.inserted for name, counts in first.counts.items()} == {
        name: table.num_rows for name, table in rows.items()
    }
    assert all(counts.written == 0 for counts in second.counts.values())
    own = batch.detections.filter(pa.compute.invert(batch.detections["forced"])).sort_by(
        [("candid", "ascending"), ("oid", "ascending")]
    )
    names = ("candid", "oid", "mjd", "fid", "isdiffpos", "magpsf", "magpsf_corr", "corrected", "dubious", "has_stamp")
    found = rows_of(f"SELECT {', '.join(names)} FROM detection ORDER BY candid, oid")
    assert found == list(zip(*(own[name].to_pylist() for name in names), strict=True))
    objects = rows_of('SELECT oid, ndet, corrected, g_r_max, step_id_corr FROM object ORDER BY oid COLLATE "C"')
    expected = [batch.objects[name].to_pylist() for name in ("oid", "ndet", "corrected", "g_r_max")]
    assert objects == list(zip(*expected, ["correction 1"] * len(batch), strict=True))


def test_features_are_stored_under_alerces_names_and_none_collides(database, rows_of):
    batch = assemble(*tables(random_packets(2, objects=2)))
    features = made_up_features(batch)
    database.write(all_tables(batch))
    assert rows_of("SELECT count(*), count(DISTINCT (name, fid)) FROM feature") == [(2 * 178, 178)]
    oid = batch.oid[1].as_py()
    for feature in ("Amplitude_2", "Harmonics_mag_1_2", "Power_rate_3", "Power_rate_1/4", "W1-W2", "g-r_mean_corr"):
        name, fid = feature_key(feature)
        found = rows_of(f"SELECT value FROM feature WHERE oid = '{oid}' AND name = '{name}' AND fid = {fid}")
        assert found == [(features.table[feature][1].as_py(),)]
    assert rows_of("SELECT count(*) FROM feature WHERE value IS NULL") == [
        (sum(features.table[name].null_count for name in feature_names()),)
    ]
    assert rows_of("SELECT * FROM feature_version") == [("1-test", None, None)]


@pytest.mark.parametrize(
    ("feature", "key"),
    [
        ("Amplitude_1", ("Amplitude", 1)),
        ("Harmonics_mag_1_2", ("Harmonics_mag_1", 2)),
        ("delta_period_2", ("delta_period", 2)),
        ("Multiband_period", ("Multiband_period", 12)),
        ("PPE", ("PPE", 12)),
        ("g-r_max_corr", ("g-r_max_corr", 12)),
        ("Power_rate_2", ("Power_rate_2", 12)),
        ("Power_rate_1/3", ("Power_rate_1/3", 12)),
        ("W1-W2", ("W1-W2", 0)),
        ("gal_b", ("gal_b", 0)),
        ("rb", ("rb", 0)),
        ("something", ("something", -99)),
    ],
)
def test_names_and_bands_of_features(feature, key):
    assert feature_key(feature) == key


def test_every_feature_has_a_key_of_its_own():
    keys = [feature_key(name) for name in feature_names()]
    assert len(set(keys)) == len(keys) == 178
    assert {fid for _, fid in keys} == {0, 1, 2, 12}


@LAW
@given(seed=st.integers(0, 1000), data=st.data())
def test_order_of_writing_is_irrelevant(database, seed, data):
    packets = random_packets(seed, objects=3, alerts=5)
    steps = sorted({packet[0][0]["mjd"] for packet in packets})
    parts = [
        all_tables(assemble(*tables(packets), as_of_mjd=mjd)) for mjd in (steps[0], steps[len(steps) // 2], steps[-1])
    ]
    provisional = pa.Table.from_pylist(
        [
            {
                "oid": row["oid"],
                "firstmjd": row["mjd"],
                "lastmjd": row["mjd"],
                "deltajd": 0.0,
                "ndet": 1,
                "step_id_corr": "0.0.0",
            }
            for (row, *_), _ in packets
        ]
    )
    parts.append({"object": provisional})
    outcomes = []
    for order in (parts, data.draw(st.permutations(parts))):
        execute(database.url, f"TRUNCATE {', '.join(NAMES)} CASCADE")
        for part in order:
            assert database.write(part).refused == ()
        outcomes.append(stored(database))
    assert outcomes[0] == outcomes[1]
    whole = assemble(*tables(packets), as_of_mjd=steps[-1])
    found = execute(database.url, 'SELECT oid, ndet, firstmjd FROM object ORDER BY oid COLLATE "C"')
    assert found == list(zip(*(whole.objects[name].to_pylist() for name in ("oid", "ndet", "firstmjd")), strict=True))
    again = [database.write(part) for part in parts]
    assert all(counts.written == 0 for result in again for counts in result.counts.values())


def test_the_row_that_saw_more_replaces_the_provisional_one_and_the_lesser(database, rows_of):
    row = {
        "oid": "a",
        "ndet": 3,
        "lastmjd": 58010.0,
        "firstmjd": 58001.0,
        "deltajd": 9.0,
        "step_id_corr": "correction 1",
    }
    provisional = row | {"ndet": 1, "firstmjd": 58000.0, "lastmjd": 58020.0, "step_id_corr": PROVISIONAL_STEP_ID}
    lesser = row | {"ndet": 2, "lastmjd": 58015.0, "firstmjd": 58000.0}
    for order in ([provisional, row, lesser], [row, lesser, provisional], [lesser, provisional, row]):
        execute(database.url, "TRUNCATE object CASCADE")
        for one in order:
            database.write({"object": pa.Table.from_pylist([one])})
        assert rows_of("SELECT ndet, firstmjd, lastmjd, step_id_corr FROM object") == [
            (3, 58001.0, 58010.0, "correction 1")
        ]
        execute(database.url, "TRUNCATE object CASCADE")
        database.write({"object": pa.Table.from_pylist(order)})
        assert rows_of("SELECT ndet, firstmjd, deltajd FROM object") == [(3, 58001.0, 9.0)]
