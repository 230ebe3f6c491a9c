"""``open_run``: what a notebook reads of a run is what the run was made of."""

import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy import units
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_fixtures import alerts_of
from run_fixtures import BUCKETS, VERSION, MadeRun, make_run, put

from run_folder import NotThereError, Run, RunError, UnknownObjectError, open_run
from run_folder.formats import in_format, to_astropy, to_pandas, unit_of
from run_folder.layout import RunLayout
from run_folder.moments import mjd_of, name_of
from run_folder.object_light_curve import ObjectLightCurve
from storage.buckets import bucket_of
from storage.object_tables import ObjectTable

JD_MINUS_MJD = 2400000.5
mpl.use("Agg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(tmp_path_factory.mktemp("open_run"))


@pytest.fixture(scope="module")
def run(made: MadeRun) -> Run:
    return open_run(made.folder)


@pytest.fixture
def copy(made: MadeRun, tmp_path: Path) -> Path:
    """A run to be damaged."""
    return Path(shutil.copytree(made.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def best(made: MadeRun) -> str:
    """Name of the object with the most detections among those with apparent magnitudes."""
    objects = made.light_curves.objects.to_pandas()
    return objects[objects.corrected].set_index("oid").ndet.idxmax()


# -- alerts --------------------------------------------------------------------------------------------------------


def test_alerts_are_those_of_the_files_with_their_counterparts(made, run) -> None:
    expected = {alert["candid"]: alert for alert in alerts_of(made.folder)}
    alerts = run.alerts().set_index("candid")
    assert set(alerts.index) == set(expected)
    assert alerts.index.dtype == np.int64
    found_some = False
    for candid, row in alerts.iterrows():
        packet = expected[candid]
        assert row.objectId == packet["objectId"]
        for name in ("jd", "ra", "dec", "magpsf", "fid", "isdiffpos", "rb"):
            assert row[name] == packet["candidate"][name]
        matches = packet["xmatches"] or {}
        if "allwise" in matches:
            found_some = True
            assert row.allwise_status == "matched"
            assert row.allwise_AllWISE == matches["allwise"]["AllWISE"]
            assert row.allwise_angDist == pytest.approx(matches["allwise"]["angDist"], rel=1e-6)
        else:
            assert row.allwise_status == "no match"
            assert np.isnan(row.allwise_angDist)
            assert pd.isna(row.allwise_AllWISE)
    assert found_some


def test_alerts_can_be_chosen(run) -> None:
    alerts = run.alerts()
    pd.testing.assert_frame_equal(run.alerts(limit=7), alerts.head(7))
    assert len(run.alerts(limit=0)) == 0
    names = ["magpsf", "allwise_W1mag"]
    pd.testing.assert_frame_equal(run.alerts(names), alerts[["objectId", "candid", *names]])
    oids = alerts.objectId.unique()[[3, 9]]
    wanted = alerts[alerts.objectId.isin(oids)].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.alerts(oids=list(oids)), wanted)
    assert run.alerts(oids=oids[0]).objectId.unique().tolist() == [oids[0]]
    assert run.alerts(["jd"], oids="ZTF99nothing").empty


def test_alerts_as_of_a_date_are_the_earlier_ones(made, run) -> None:
    alerts = run.alerts()
    middle = float(alerts.jd.median())
    then = open_run(made.folder, as_of=middle - JD_MINUS_MJD)
    early = then.alerts()
    assert 0 < len(early) < len(alerts)
    assert set(early.candid) == set(alerts.candid[alerts.jd <= middle])
    assert set(then.crossmatches(status=None).candid) == set(early.candid)


def test_an_unknown_column_is_told_with_names_like_it(run) -> None:
    with pytest.raises(RunError, match=r"no column magspf; names like it: magpsf"):
        run.alerts(["magspf"])
    with pytest.raises(RunError, match="names like it: Multiband_period"):
        run.features(columns=["multiband_period"])
    with pytest.raises(RunError, match="given as a list"):
        run.features(columns="Multiband_period")


def test_only_files_that_may_hold_an_object_are_read(copy, run) -> None:
    layout = RunLayout(copy)
    ours, theirs = (pq.read_table(path)["oid"] for path in sorted(layout.crossmatches.iterdir()))
    oid = next(oid for oid in ours.to_pylist() if oid not in theirs.to_pylist())
    for path in layout.alerts.glob("b-*.avro"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 100])
    damaged = open_run(copy)
    with pytest.raises(RunError, match=r"damaged.*/b-"):
        damaged.alerts()
    pd.testing.assert_frame_equal(damaged.alerts(oids=oid), run.alerts(oids=oid))


# -- tables --------------------------------------------------------------------------------------------------------


def test_crossmatches_are_the_same_in_a_file_and_in_parts(made, run) -> None:
    whole = pd.read_parquet(made.xmatch / "crossmatches.parquet")
    everything = run.crossmatches(status=None)
    pd.testing.assert_frame_equal(everything, whole)
    pd.testing.assert_frame_equal(open_run(made.xmatch).crossmatches(status=None), whole)
    matched = run.crossmatches("allwise")
    assert len(matched) == (whole.status == "matched").sum() > 0
    assert set(run.crossmatches(status="no match").status) == {"no match"}
    oid = matched.oid.iloc[0]
    chosen = run.crossmatches(oids=oid, columns=["angDist", "candid"])
    assert list(chosen) == ["angDist", "candid"]
    assert set(chosen.candid) == set(matched.candid[matched.oid == oid])
    with pytest.raises(RunError, match="no catalogue 'gaia' in this run; there is allwise"):
        run.crossmatches("gaia")


def test_several_catalogues_keep_to_their_own_columns(copy) -> None:
    layout = RunLayout(copy)
    for path in layout.crossmatches.glob("*.parquet"):
        rows = pq.read_table(path)
        keys = rows.select(rows.column_names[: rows.column_names.index("angDist")]).drop_columns(["catalog", "status"])
        count = len(rows)
        gaia = {"catalog": ["gaia"] * count, "status": ["matched"] * count, "angDist": np.full(count, 0.5)}
        gaia |= {"Source": np.arange(count) + (1 << 60)}
        more = pa.table({**dict(zip(keys.column_names, keys.columns, strict=True)), **gaia})
        pq.write_table(pa.concat_tables([rows, more], promote_options="permissive"), path)
    shutil.rmtree(layout.ledger)
    run = open_run(copy)
    assert run.catalogs == ["allwise", "gaia"]
    alerts = run.alerts()
    assert set(alerts.gaia_status) == {"matched"}
    assert set(alerts.allwise_status) == {"matched", "no match"}
    assert alerts.gaia_Source.dtype == np.int64
    assert not {"gaia_W1mag", "allwise_Source"} & {*alerts}
    assert alerts.allwise_W1mag.notna().sum() == len(run.crossmatches("allwise").W1mag.dropna())


def test_tables_of_objects_are_read_by_name(made, run) -> None:
    expected = made.light_curves.objects.to_pandas().set_index("oid")
    pd.testing.assert_frame_equal(run.objects(), to_pandas(made.light_curves.objects).set_index("oid"))
    oids = expected.index[[5, 50, 20]]
    some = run.objects(oids=oids, columns=["ndet"])
    assert some.index.tolist() == sorted(oids)
    assert some.ndet.tolist() == expected.ndet[sorted(oids)].tolist()
    assert run.objects(oids=[], columns=["ndet"]).empty
    assert run.objects(oids="ZTF99nothing").empty
    probabilities = run.probabilities()
    assert probabilities.index.tolist() == run.features().index.tolist()
    leaves = probabilities.columns[1 : probabilities.columns.get_loc("class")]
    np.testing.assert_allclose(probabilities[leaves].sum(axis=1), 1.0)
    assert (probabilities[leaves].idxmax(axis=1) == probabilities["class"]).all()


def test_only_the_bucket_of_an_object_is_read(copy) -> None:
    run = open_run(copy)
    oid = run.features().index[0]
    own = int(bucket_of(pa.array([oid]), BUCKETS)[0])
    for path in run.layout.results().features(VERSION).iterdir():
        if path.stem != f"bucket={own:04d}":
            path.write_bytes(b"damaged")
    assert run.features(oids=oid).index.tolist() == [oid]
    with pytest.raises(RunError, match="cannot be read"):
        run.features()


def test_of_several_versions_that_of_the_run_counts(copy) -> None:
    results = RunLayout(copy).results()
    new = pa.table({"oid": ["ZTF1"], "Amplitude_1": [1.0]})
    put(ObjectTable(results.features("2"), BUCKETS), new)
    put(ObjectTable(results.probabilities("other", "9"), BUCKETS), new)
    run = open_run(copy)
    assert run.feature_versions == ["2", VERSION]
    assert [name for name, _ in run.classifiers] == ["other", "lc_classifier"]
    assert len(run.features()) > 1
    assert run.features("2").index.tolist() == ["ZTF1"]
    assert run.probabilities("other").index.tolist() == ["ZTF1"]
    assert run.probabilities(version="9").index.tolist() == ["ZTF1"]
    assert len(run.probabilities("lc_classifier")) > 1
    with pytest.raises(RunError, match=f"no features of version '3'; there are 2, {VERSION}"):
        run.features("3")
    with pytest.raises(RunError, match="no classifier 'other 1'; there is other 9, lc_classifier demo"):
        run.probabilities("other", "1")
    # Without a ledger, that which was changed last.
    shutil.rmtree(run.layout.ledger)
    assert open_run(copy).feature_versions == [VERSION, "2"]


def test_files_of_other_commands_in_a_folder_are_found(made, tmp_path) -> None:
    results = RunLayout(made.folder).results()
    features = pa.concat_tables(ObjectTable(results.features(VERSION), BUCKETS).read_all())
    probabilities = pa.concat_tables(ObjectTable(results.probabilities("lc_classifier", "demo"), BUCKETS).read_all())
    pq.write_table(features.replace_schema_metadata({"feature_version": "x"}), tmp_path / "features.parquet")
    pq.write_table(probabilities, tmp_path / "probabilities.parquet")
    run, whole = open_run(tmp_path), open_run(made.folder)
    assert run.feature_versions == ["x"]
    assert run.classifiers == [("lc_classifier", "demo")]
    pd.testing.assert_frame_equal(run.features(), whole.features())
    pd.testing.assert_frame_equal(run.probabilities(), whole.probabilities())


# -- what is not there ---------------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_with_the_command_that_makes_it(made, tmp_path) -> None:
    run = open_run(made.xmatch)
    for ask, told in (
        (run.features, "has no features: run 'alertbeam backfill' or 'alertbeam features'"),
        (run.probabilities, "has no probabilities: run 'alertbeam backfill --model MODEL' or 'alertbeam classify'"),
        (run.objects, "has no table of objects: run 'alertbeam backfill'"),
        (lambda: run.light_curve("ZTF1"), "has no light curves: run 'alertbeam backfill'"),
        (lambda: run.status, "has no ledger: run 'alertbeam backfill'"),
    ):
        with pytest.raises(NotThereError, match=told):
            ask()
    then = open_run(made.folder, as_of="2020-04-01")
    with pytest.raises(NotThereError, match=r"no features as of 2020-04-01: run '.*--only pass2 --as-of 2020-04-01'"):
        then.features()
    (tmp_path / "alerts").mkdir()
    with pytest.raises(NotThereError, match="no crossmatches"):
        open_run(tmp_path).crossmatches()
    assert open_run(tmp_path).alerts(["jd"]).empty


def test_a_folder_that_is_no_run_is_told(tmp_path) -> None:
    with pytest.raises(NotThereError, match="there is no folder"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "file")
    with pytest.raises(NotThereError, match=r"not the folder of a run.*alertbeam backfill INPUT"):
        open_run(tmp_path)
    (tmp_path / "features.parquet").write_text("no table")
    with pytest.raises(RunError, match="cannot be read as a Parquet file"):
        open_run(tmp_path)


def test_an_unknown_object_is_told_with_names_like_it(run, best) -> None:
    with pytest.raises(UnknownObjectError) as told:
        run.light_curve(best[:-1] + "0")
    assert isinstance(told.value, KeyError)
    assert str(told.value).startswith(f"there is no {best[:-1]}0 in")
    assert best in str(told.value).partition("names like it: ")[2]
    with pytest.raises(UnknownObjectError) as told:
        run.light_curve("something")
    assert "names like it" not in str(told.value)


@pytest.mark.parametrize(
    ("as_of", "mjd", "name"),
    [
        ("2020-04-01", 58940.0, "2020-04-01"),
        ("2020-04-01T12:00", 58940.5, "mjd58940.5"),
        ("58940.25", 58940.25, "mjd58940.25"),
        (58940, 58940.0, "mjd58940"),
    ],
)
def test_dates_and_mjds_are_understood(as_of, mjd, name) -> None:
    assert mjd_of(as_of) == mjd
    assert name_of(as_of) == name


@pytest.mark.parametrize("as_of", ["yesterday", "nan", -1, 2458940.5])
def test_what_is_no_date_is_told(as_of, made) -> None:
    with pytest.raises(RunError, match=r"2020-04-01"):
        open_run(made.folder, as_of=as_of)


# -- summary -------------------------------------------------------------------------------------------------------


def test_the_summary_counts(made, run) -> None:
    text, objects = repr(run), len(made.light_curves)
    assert str(made.folder) in text
    for told in ("120 in 4 files", "120 rows with allwise", f"objects        {objects}", f"of version {VERSION}"):
        assert told in text
    assert f"{len(run.probabilities())} by lc_classifier demo" in text
    html = run._repr_html_()
    assert html.count("<tr>") == len(text.splitlines())
    assert "features       none" in repr(open_run(made.xmatch))
    status = run.status
    assert status["read"]["units"]["done"] == 1
    assert status["features"]["units"] == {"waiting": 1, "running": 0, "done": 1, "aside": 0}
    assert status["features"]["counts"]["objects"] == objects
    assert run.settings["feature_version"] == VERSION


def test_opening_a_run_loads_little() -> None:
    heavy = ("apache_beam", "numba", "astropy", "matplotlib")
    code = f"import sys; from run_folder import open_run; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


# -- light curves --------------------------------------------------------------------------------------------------


def test_light_curves_are_those_of_the_alerts(made, run) -> None:
    for oid in made.light_curves.oid.to_pylist()[::7]:
        expected, found = made.light_curves.light_curve(oid), run.light_curve(oid)
        assert found.oid == oid
        for name in ("detections", "non_detections"):
            pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name), check_dtype=False)
        row = made.light_curves.objects.filter(pc.equal(made.light_curves.objects["oid"], oid)).to_pylist()[0]
        assert found.statistics == row


def test_a_light_curve_as_of_a_date_is_the_beginning(made, run, best) -> None:
    whole = run.light_curve(best)
    # All that was known came with the last alert but one, or before.
    times = sorted(whole.detections.alert_mjd.unique())
    with pytest.raises(UnknownObjectError, match=r"as of mjd"):
        open_run(made.folder, as_of=times[0] - 1).light_curve(best)
    then = open_run(made.folder, as_of=times[0]).light_curve(best)
    assert len(then.detections) == (whole.detections.alert_mjd <= times[0]).sum()


def test_points_have_magnitudes_and_fluxes(run, best) -> None:
    curve = run.light_curve(best)
    assert curve.magnitudes == "apparent"
    assert len(curve.points()) == (~curve.detections.forced).sum() > 5
    points = curve.points(forced=True)
    assert len(points) == len(curve.detections) > len(curve.points())
    np.testing.assert_array_equal(points.mag, curve.detections.magpsf_corr)
    fluxes = (points.mag.to_numpy() * units.ABmag).to(units.uJy)
    np.testing.assert_allclose(points.flux, fluxes.value, rtol=1e-12)
    # To first order, a change of the magnitude by its error changes the flux by its error.
    brighter = ((points.mag - 1e-6 * points.mag_err).to_numpy() * units.ABmag).to(units.uJy)
    np.testing.assert_allclose((brighter - fluxes).value, 1e-6 * points.flux_err, rtol=1e-3)
    by_band = pd.concat([curve.points("g", forced=True), curve.points("r", forced=True)])
    assert sorted(zip(by_band.mjd, by_band.band, strict=True)) == sorted(zip(points.mjd, points.band, strict=True))
    difference = curve.points(magnitudes="difference", forced=True)
    np.testing.assert_array_equal(np.sign(difference.flux), curve.detections.isdiffpos)
    with pytest.raises(ValueError, match="band 'z' is not one of g, r, i"):
        curve.points("z")
    with pytest.raises(ValueError, match="not one of apparent, difference"):
        curve.points(magnitudes="absolute")


def test_points_without_a_magnitude_are_left_out() -> None:
    detections = pd.DataFrame(
        {
            "oid": "ZTF1",
            "mjd": [1.0, 2.0, 3.0, 4.0],
            "fid": [1, 1, 2, 3],
            "isdiffpos": [1, -1, 1, -1],
            "magpsf": [18.0, 19.0, 18.0, 17.0],
            "sigmapsf": [0.1, 0.1, np.nan, 0.1],
            "magpsf_corr": [17.0, 100.0, 17.0, np.nan],
            "sigmapsf_corr_ext": [0.1, 100.0, 100.0, 0.1],
            "forced": [False, True, None, False],
        }
    )
    curve = ObjectLightCurve("ZTF1", detections, detections.iloc[:0], {"corrected": True})
    assert curve.points().mjd.tolist() == [1.0]
    assert curve.points(magnitudes="difference").mjd.tolist() == [1.0, 4.0]
    difference = curve.points(magnitudes="difference", forced=True)
    assert difference.mjd.tolist() == [1.0, 2.0, 4.0]
    assert difference.band.tolist() == ["g", "g", "i"]
    assert difference.forced.tolist() == [False, True, False]
    assert (difference.flux < 0).tolist() == [False, True, True]


@settings(max_examples=30, deadline=None)
@given(period=st.floats(1e-2, 1e3), epoch=st.none() | st.floats(5e4, 7e4))
def test_folding_keeps_the_times(run, best, period, epoch) -> None:
    curve = run.light_curve(best)
    folded = curve.fold(period, epoch_mjd=epoch)
    assert folded.phase.is_monotonic_increasing
    assert ((folded.phase >= 0) & (folded.phase <= 1)).all()
    start = curve.detections.mjd.min() if epoch is None else epoch
    back = folded.assign(back=start + (folded.cycle + folded.phase) * period).sort_values("mjd")
    np.testing.assert_allclose(back.back, back.mjd, rtol=0, atol=1e-6)
    assert sorted(folded.mjd) == curve.points().mjd.tolist()


def test_a_period_must_be_positive(run, best) -> None:
    for period in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive number of days"):
            run.light_curve(best).fold(period)


def test_forms_of_astropy(run, best) -> None:
    curve = run.light_curve(best)
    table = curve.to_table()
    assert table.meta["oid"] == best
    assert len(table) == len(curve.detections)
    assert table["mjd"].unit == units.d
    assert table["magpsf_corr"].unit == units.mag
    assert [candid or pd.NA for candid in table["candid"].tolist()] == curve.detections.candid.tolist()
    series = curve.to_timeseries("g")
    points = curve.points("g")
    assert series.time.scale == "utc"
    np.testing.assert_array_equal(series.time.mjd, points.mjd)
    np.testing.assert_array_equal(series["flux"].to_value(units.uJy), points.flux)
    assert set(curve.to_timeseries()["band"]) == set(curve.points().band)
    period = 0.7
    folded = series.fold(period=period * units.d, epoch_time=series.time[0], normalize_phase=True, wrap_phase=1)
    ours = curve.fold(period, "g", epoch_mjd=points.mjd[0]).sort_values("mjd")
    np.testing.assert_allclose(np.exp(2j * np.pi * folded.time), np.exp(2j * np.pi * ours.phase), atol=1e-6)
    columns = curve.to_lightkurve_columns("r")
    assert list(columns) == ["time", "flux", "flux_err"]
    assert {len(values) for values in columns.values()} == {len(curve.points("r"))}
    assert columns["flux_err"].unit == units.uJy


def test_light_curves_are_drawn_like_those_of_show(run, best) -> None:
    from matplotlib import pyplot

    curve = run.light_curve(best)
    axes = curve.plot()
    assert axes.yaxis_inverted()
    assert axes.get_title() == best
    assert axes.get_ylabel() == "apparent magnitude"
    figure, (left, right) = pyplot.subplots(1, 2)
    assert curve.plot(left, magnitudes="difference") is left
    assert "difference" in left.get_ylabel()
    curve.plot(right, period_days=0.5)
    assert right.get_xlabel() == "phase, period 0.5 d"
    figure.canvas.draw()
    pyplot.close("all")
    text = repr(curve)
    assert f"{len(curve.points())} detections" in text
    assert best in text


# -- formats -------------------------------------------------------------------------------------------------------


def test_formats_agree(run) -> None:
    for ask in (run.alerts, run.crossmatches, run.objects, run.features, run.probabilities):
        arrow, table, frame = ask(format="arrow"), ask(format="astropy"), ask()
        assert table.colnames == arrow.column_names
        assert len(table) == len(arrow) == len(frame)
        for name in arrow.column_names:
            values = frame.index if frame.index.name == name else frame[name]
            assert [value for value in values if pd.notna(value)] == [
                value for value in arrow[name].to_pylist() if value is not None and value == value
            ]
    with pytest.raises(ValueError, match="format 'polars' is not one of pandas, astropy, arrow"):
        run.objects(format="polars")


def test_gaps_cost_no_digits() -> None:
    large = (1 << 62) + 1
    table = pa.table(
        {
            "candid": pa.array([large, None, 3]),
            "mjd": pa.array([1.5, None, float("nan")]),
            "name": pa.array(["a", None, "ccc"]),
            "flag": pa.array([True, None, False]),
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
        }
    )
    frame = to_pandas(table)
    assert frame.candid[0] == large
    assert frame.candid.isna().tolist() == [False, True, False]
    astro = to_astropy(table)
    assert astro["candid"][0] == large
    assert astro["candid"].mask.tolist() == [False, True, False]
    assert astro["name"].tolist() == ["a", None, "ccc"]
    assert astro["kind"].tolist() == ["x", None, "x"]
    assert astro["flag"].tolist() == [True, None, False]
    assert np.isnan(astro["mjd"]).tolist() == [False, True, True]
    assert in_format(table, "pandas", "name").index.name == "name"


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("mjd", "d"),
        ("jdstartref", "d"),
        ("ra", "deg"),
        ("allwise_RAJ2000", "deg"),
        ("angDist", "arcsec"),
        ("allwise_angDist", "arcsec"),
        ("magpsf_corr", "mag"),
        ("e_W1mag", "mag"),
        ("allwise_Kmag", "mag"),
        ("Amplitude_1", None),
        ("ndet", None),
        ("fid", None),
    ],
)
def test_units(column, unit) -> None:
    assert unit_of(column) == unit
