"""Light curves from tables: names, forms, errors, bounded reading; and the points that features are computed from."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from features_fixtures import golden_curves
from lightcurves_fixtures import random_packets, tables

from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.features.prepare import prepare
from lightcurves.tables import TableError, detection_rows, non_detection_rows, read_light_curves


@pytest.fixture
def rows() -> tuple[pa.Table, pa.Table]:
    detections, non_detections = tables(random_packets(5, objects=9))
    own = detections.filter(detections["has_stamp"])
    return tuple(table.drop_columns(["alert_mjd", "alert_candid"]).sort_by("oid") for table in (own, non_detections))


def joined(batches: list[LightCurveBatch]) -> dict[str, pa.Table]:
    return {name: pa.concat_tables([b.to_arrow()[name] for b in batches]) for name in batches[0].to_arrow()}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz"])
@pytest.mark.parametrize("objects", [1, 2, 100])
def test_sorted_files_are_read_some_objects_at_a_time(
    rows: tuple[pa.Table, pa.Table], tmp_path: Path, suffix: str, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightcurves.tables._ROWS_PER_READ", 7)
    paths = [write(table, tmp_path / f"{k}.{suffix}") for k, table in enumerate(rows)]
    batches = list(read_light_curves(*paths, objects_per_batch=objects))
    assert len(batches) == -(-9 // objects)
    whole = assemble(*rows)
    for name, table in joined(batches).items():
        assert table.drop_columns([c for c in table.column_names if c == "procstatus"]).equals(
            whole.to_arrow()[name].drop_columns([c for c in table.column_names if c == "procstatus"])
        )


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".gz":
        with pa.CompressedOutputStream(str(path), "gzip") as file:
            pacsv.write_csv(table, file)
    else:
        pacsv.write_csv(table, path)
    return path


def test_files_in_any_order_are_read_whole(rows: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    mixed = [table.take(np.random.default_rng(1).permutation(table.num_rows)) for table in rows]
    paths = [write(table, tmp_path / f"{k}.parquet") for k, table in enumerate(mixed)]
    (batch,) = read_light_curves(*paths, objects_per_batch=1)
    assert batch.detections.equals(assemble(*rows).detections)
    (alone,) = read_light_curves(paths[0])
    assert alone.non_detections.num_rows == 0
    assert alone.detections.equals(batch.detections)


def test_names_of_packets_and_of_the_database_mean_the_same(rows: tuple[pa.Table, pa.Table]) -> None:
    own, limits = rows
    packets = own.rename_columns({"oid": "objectId", "mjd": "jd", "mjdendref": "jdendref"})
    for name in ("jd", "jdendref"):
        shifted = (packets[name].to_numpy() + 2400000.5).tolist()
        packets = packets.set_column(packets.column_names.index(name), name, pa.array(shifted))
    for true, false in (("t", "f"), ("1", "0"), (1, -1), (1.0, 0.0), (True, False)):
        sign = [true if value > 0 else false for value in own["isdiffpos"].to_pylist()]
        table = packets.set_column(packets.column_names.index("isdiffpos"), "isdiffpos", pa.array(sign))
        found = assemble(detection_rows(table), non_detection_rows(limits)).detections
        expected = assemble(*rows).detections
        assert found.drop_columns(["mjd", "mjdendref"]).equals(expected.drop_columns(["mjd", "mjdendref"]))
        np.testing.assert_allclose(found["mjd"].to_numpy(), expected["mjd"].to_numpy(), atol=1e-9)


def test_missing_columns_are_named(rows: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    own, limits = rows
    for name, message in (
        ("mjd", "detections.csv lacks the column mjd .or jd."),
        ("rb", "lacks the column rb"),
        ("oid", "lacks the column oid .or objectId."),
    ):
        path = write(own.drop_columns([name]), tmp_path / "detections.csv")
        with pytest.raises(TableError, match=message):
            list(read_light_curves(path))
    bare = own.drop_columns(["corrected", "distnr", "magnr"])
    with pytest.raises(TableError, match=r"lacks the columns distnr, magnr .or corrected, magpsf_corr"):
        detection_rows(bare)
    with pytest.raises(TableError, match="lacks the column diffmaglim"):
        non_detection_rows(limits.drop_columns(["diffmaglim"]))


def test_what_cannot_be_understood_is_refused(rows: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    own, _ = rows
    index = own.column_names.index("isdiffpos")
    with pytest.raises(TableError, match=r"isdiffpos must be .* not 'maybe'"):
        detection_rows(own.set_column(index, "isdiffpos", pa.array(["maybe"] * own.num_rows)))
    floats = own["candid"].cast(pa.float64(), safe=False)
    index = own.column_names.index("candid")
    scaled = pa.array(floats.to_numpy() * 1e6)
    with pytest.raises(TableError, match="candid is stored in floating point"):
        detection_rows(own.set_column(index, "candid", scaled))
    with pytest.raises(TableError, match="must end in"):
        list(read_light_curves(tmp_path / "table.txt"))
    (tmp_path / "page.parquet").write_text("<html>")
    with pytest.raises(TableError, match=r"page.parquet cannot be read"):
        list(read_light_curves(tmp_path / "page.parquet"))


def test_two_sources_of_one_exposure_stay_two_without_candid(rows: tuple[pa.Table, pa.Table]) -> None:
    own = rows[0].slice(0, 1).drop_columns(["candid"])
    second = own.set_column(own.column_names.index("magpsf"), "magpsf", pa.array([19.5]))
    batch = assemble(detection_rows(pa.concat_tables([own, second, own])), tables([])[1])
    assert batch.detections.num_rows == 2


def test_prepared_points_equal_those_of_alerce(shared_data: Path) -> None:
    folder = shared_data / "features"
    paths = [folder / f"{name}_sample.parquet" for name in ("detections", "non_detections")]
    (batch,) = read_light_curves(*paths)
    info = pd.read_parquet(folder / "object_info_sample.parquet")
    assert info.index.tolist() == batch.oid.to_pylist()
    assert info.corrected.tolist() == batch.objects["corrected"].to_pylist()
    oids, expected = golden_curves(shared_data)
    found = prepare(batch)
    assert oids == batch.oid.to_pylist()
    for name in ("offsets", "mjd", "non_offsets", "non_mjd", "non_limit", "sgscore1", "enough", "positive"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    different = np.zeros(len(found.mjd), bool)
    for name in ("magnitude", "error", "difference_magnitude", "difference_error", "ra", "dec", "rb"):
        different |= np.abs(getattr(found, name) - getattr(expected, name)) > 1e-9
    # 27 exposures hold two good detections; ALeRCE keeps the one that an unstable sort happens to put first.
    points = pd.read_parquet(paths[0]).reset_index()
    good = points[(points.rb >= 0.55) & points.sigmapsf_corr_ext.between(0, 1, inclusive="neither")]
    twice = good.groupby(["oid", "mjd"]).magpsf.nunique()
    assert (twice > 1).sum() == 27
    owner = np.repeat(oids, np.diff(found.offsets[::2]))
    for oid, mjd in zip(owner[different], found.mjd[different], strict=True):
        assert twice[oid, mjd] > 1
    assert different.sum() <= 7


def one_object(**columns: list) -> LightCurveBatch:
    ((own, *_), _), *_ = random_packets(1, objects=1, alerts=1)
    count = len(next(iter(columns.values())))
    good = {"rb": 0.9, "sigmapsf": 0.1, "magpsf": 18.0, "fid": 1, "distnr": 5.0, "sgscore1": None}
    made = [
        own | good | {"candid": k, "mjd": 58000.0 + k} | {name: values[k] for name, values in columns.items()}
        for k in range(count)
    ]
    return assemble(*tables([(made, [])]))


def test_rows_that_are_filtered() -> None:
    found = prepare(
        one_object(
            rb=[0.55, 0.5499, None, 0.9, 0.9, 0.9, 0.9, 0.9],
            sigmapsf=[0.1, 0.1, 0.1, 0.0, 1.0, 0.999, 0.1, None],
            fid=[1, 1, 1, 1, 1, 2, 3, 1],
            mjd=[58009.0 - k for k in range(8)],
        )
    )
    assert found.mjd.tolist() == [58009.0, 58004.0]
    assert found.offsets.tolist() == [0, 1, 2]
    assert not found.enough[0]


def test_of_one_exposure_the_best_stays() -> None:
    found = prepare(one_object(rb=[0.6, 0.8, 0.8, 0.7], mjd=[58000.0] * 4, magpsf=[17.0, 18.0, 19.0, 20.0]))
    assert found.difference_magnitude.tolist() == [18.0]


def test_enough_needs_six_points_in_a_band() -> None:
    assert not prepare(one_object(fid=[1] * 5 + [2] * 5)).enough[0]
    assert prepare(one_object(fid=[1] * 6)).enough[0]
    assert not prepare(one_object(fid=[3] * 9)).enough[0]


def test_forced_photometry_counts_if_asked_for() -> None:
    batch = one_object(
        forced=[False, True, True], rb=[0.9, None, None], mjd=[58000.0, 58000.0, 58001.0], candid=[1, None, None]
    )
    assert prepare(batch).mjd.tolist() == [58000.0]
    found = prepare(batch, forced=True)
    assert found.mjd.tolist() == [58000.0, 58001.0]
    assert found.rb[0] == pytest.approx(0.9)


def test_apparent_magnitudes_need_every_band_corrected() -> None:
    columns = {"magnr": [17.0] * 2, "isdiffpos": [1] * 2, "fid": [1, 2]}
    both = prepare(one_object(distnr=[0.1, 0.1], **columns))
    assert (both.magnitude < both.difference_magnitude).all()
    one = prepare(one_object(distnr=[0.1, 5.0], **columns))
    assert (one.magnitude == one.difference_magnitude).all()


def test_score_is_the_median_of_known_ones() -> None:
    score = [0.1, 0.5, 0.3, None, -999.0]
    assert prepare(one_object(sgscore1=score)).sgscore1[0] == pytest.approx(0.3)
    assert prepare(one_object(sgscore1=[0.4, None], rb=[0.1, 0.9])).sgscore1[0] == pytest.approx(0.4)
    assert np.isnan(prepare(one_object(sgscore1=[-999.0, None])).sgscore1[0])


def test_prepared_points_of_an_object_do_not_depend_on_its_neighbours() -> None:
    packets = random_packets(8, objects=5, alerts=30)
    together = prepare(assemble(*tables(packets)))
    oids = sorted({packet[0][0]["oid"] for packet in packets})
    for i, oid in enumerate(oids):
        alone = prepare(assemble(*tables([packet for packet in packets if packet[0][0]["oid"] == oid])))
        start, end = together.offsets[2 * i], together.offsets[2 * i + 2]
        assert alone.magnitude.tobytes() == together.magnitude[start:end].tobytes()
        assert alone.enough[0] == together.enough[i]
