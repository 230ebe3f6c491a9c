"""``alertbeam show``: what is found, and what is drawn of it."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_fixtures import Sample, make_sample
from run_fixtures import VERSION, make_run

from lightcurves import plot
from pipelines.cli import main
from run_folder import open_run
from run_folder.layout import RunLayout
from simulation.light_curves import simulate_light_curves


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What is drawn, in place of the picture."""
    calls: list[dict] = []

    def draw(path, title, detections, non_detections, **options):
        calls.append({"title": title, "detections": detections, "non_detections": non_detections, **options})
        Path(path).write_bytes(b"picture")

    monkeypatch.setattr(plot, "draw_light_curve", draw)
    return calls


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A small night."""
    return make_sample(tmp_path_factory.mktemp("night"), alerts=80, cutouts=False)


@pytest.fixture(scope="module")
def run_folder(sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run with crossmatches, features and probabilities."""
    folder = tmp_path_factory.mktemp("show") / "run"
    common = ["--quiet", "--json", "--max-dead-letters", "9", "--database", "none"]
    night = [str(sample.archive), "--catalog", str(sample.catalog)]
    assert main(["xmatch", *night, "--output", str(folder), *common]) == 0
    assert main(["features", str(folder / "alerts"), "--output", str(folder / "features.parquet"), *common]) == 0
    return folder


@pytest.fixture(scope="module")
def rr_lyrae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str, float]:
    """Tables of simulated objects, and an RR Lyrae star among them with its period."""
    folder = tmp_path_factory.mktemp("stars")
    simulated = simulate_light_curves(1, seed=5, days=600)
    paths = folder / "detections.parquet", folder / "limits.csv"
    pq.write_table(simulated.detections, paths[0])
    simulated.non_detections.to_pandas().to_csv(paths[1], index=False)
    star = simulated.objects.to_pandas().set_index("class").loc["RRL"]
    return *paths, star.oid, star.period_days


def matched_object(run_folder: Path) -> pd.Series:
    """Crossmatch of an object that has features with a period."""
    matches = pd.read_parquet(run_folder / "crossmatches.parquet").query("status == 'matched'")
    features = pd.read_parquet(run_folder / "features.parquet").dropna(subset="Multiband_period").set_index("oid")
    row = matches[matches.oid.isin(features.index)].sort_values(["oid", "angDist", "candid"]).iloc[0]
    return row.copy().combine_first(features.loc[row.oid, ["Multiband_period"]])


def test_a_run_knows_match_period_and_class(run_folder, alertbeam, drawn, tmp_path) -> None:
    row = matched_object(run_folder)
    model = {"classifier_name": ["lc"], "classifier_version": ["1"]}
    probabilities = {"oid": [row.oid], "RRL": [0.9], "E": [0.1], "class": ["RRL"], "class_probability": [0.9], **model}
    file = tmp_path / "probabilities.parquet"
    pq.write_table(pa.table(probabilities), file)
    answer = alertbeam("show", row.oid, run_folder, "--probabilities", file, "--output", tmp_path / "a.png")
    assert answer["status"] == 0, answer["err"]
    (picture,) = drawn
    assert picture["title"] == row.oid
    assert picture["period_days"] == pytest.approx(row.Multiband_period)
    notes = " ".join(picture["notes"])
    assert f"allwise {row.AllWISE} at {row.angDist:.2f}″" in notes
    assert "class RRL with probability 0.90 (lc 1)" in notes
    assert f"W1 {row.W1mag:.2f}" in notes
    assert len(picture["detections"]) > 5
    assert (tmp_path / "a.png").read_bytes() == b"picture"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_class_in_rows_is_understood_too(run_folder, alertbeam, drawn, tmp_path) -> None:
    oid = matched_object(run_folder).oid
    rows = [("lc", "RRL", 0.3, 2), ("lc", "E", 0.7, 1), ("lc_top", "Periodic", 1.0, 1)]
    names, classes, probabilities, ranking = zip(*rows, strict=True)
    table = {"oid": [oid] * 3, "classifier_name": names, "classifier_version": ["2"] * 3, "class_name": classes}
    pq.write_table(pa.table({**table, "probability": probabilities, "ranking": ranking}), tmp_path / "p.parquet")
    alertbeam("show", oid, run_folder, "--probabilities", tmp_path / "p.parquet", "--output", tmp_path / "a.png")
    assert "class E with probability 0.70 (lc 2)" in drawn[0]["notes"]


def test_packets_and_enriched_alerts_show_the_same(sample, run_folder, alertbeam, drawn, tmp_path) -> None:
    oid = matched_object(run_folder).oid
    for place in (sample.archive, run_folder):
        assert alertbeam("show", oid, place, "--no-fold", "--output", tmp_path / "a.svg")["status"] == 0
    for name in ("detections", "non_detections"):
        pd.testing.assert_frame_equal(drawn[0][name], drawn[1][name])
    assert set(drawn[0]["detections"].oid) == {oid}
    assert drawn[0]["period_days"] is None


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run that keeps light curves."""
    return make_run(tmp_path_factory.mktemp("backfilled"), alerts=80).folder


def classified_object(folder: Path) -> str:
    """Name of an object that was classified and has a match."""
    run = open_run(folder)
    matched = run.crossmatches().oid
    return run.probabilities().index.intersection(matched)[0]


def test_a_run_that_keeps_light_curves_needs_no_alerts(backfilled, alertbeam, drawn, tmp_path) -> None:
    oid = classified_object(backfilled)
    without = shutil.copytree(backfilled, tmp_path / "without", ignore=shutil.ignore_patterns("alerts"))
    answer = alertbeam("show", oid, without, "--output", tmp_path / "a.png")
    assert answer["status"] == 0, answer["err"]
    run = open_run(backfilled)
    (picture,) = drawn
    expected = run.light_curve(oid)
    pd.testing.assert_frame_equal(picture["detections"], expected.detections, check_dtype=False)
    pd.testing.assert_frame_equal(picture["non_detections"], expected.non_detections, check_dtype=False)
    row = run.probabilities().loc[oid]
    match = run.crossmatches(oids=oid).sort_values(["angDist", "candid"]).iloc[0]
    notes = " ".join(picture["notes"])
    assert f"class {row['class']} with probability {row.class_probability:.2f} (lc_classifier demo)" in notes
    assert f"allwise {match.AllWISE} at {match.angDist:.2f}″" in notes


def test_a_stored_light_curve_is_that_of_its_alerts(backfilled, alertbeam, drawn, tmp_path) -> None:
    oid = classified_object(backfilled)
    for place in (backfilled, backfilled / "alerts"):
        assert alertbeam("show", oid, place, "--no-fold", "--output", tmp_path / "a.png")["status"] == 0
    for name in ("detections", "non_detections"):
        pd.testing.assert_frame_equal(drawn[0][name], drawn[1][name])


def test_the_period_is_that_of_the_newest_features(backfilled, alertbeam, drawn, tmp_path) -> None:
    oid = classified_object(backfilled)
    features = pq.read_table(RunLayout(backfilled).results().features(VERSION), partitioning=None)
    periods = pa.array([3.25] * len(features))
    changed = features.set_column(features.column_names.index("Multiband_period"), "Multiband_period", periods)
    run = shutil.copytree(backfilled, tmp_path / "run", ignore=shutil.ignore_patterns("ledger", "version=*"))
    pq.write_table(changed.replace_schema_metadata({"feature_version": "2"}), run / "features.parquet")
    assert alertbeam("show", oid, run, "--output", tmp_path / "a.png")["status"] == 0
    assert drawn[0]["period_days"] == 3.25


def test_an_object_that_no_store_has_is_told(backfilled, sample, alertbeam, tmp_path) -> None:
    oid = open_run(backfilled).objects(columns=[]).index[3]
    answer = alertbeam("show", oid[:-1] + "0", backfilled, "--output", tmp_path / "a.png")
    assert answer["status"] == 2
    assert f"among the {len(open_run(backfilled).objects())} objects" in answer["err"]
    assert oid in answer["err"].partition("names like it: ")[2]


def test_a_damaged_table_of_a_run_is_told(backfilled, alertbeam, drawn, tmp_path) -> None:
    oid = classified_object(backfilled)
    run = shutil.copytree(backfilled, tmp_path / "run")
    for path in RunLayout(run).crossmatches.iterdir():
        path.write_bytes(b"damaged")
    answer = alertbeam("show", oid, run, "--output", tmp_path / "a.png")
    assert answer["status"] == 2
    assert "cannot be read as a Parquet file" in answer["err"]


def test_the_period_of_a_table_is_computed(rr_lyrae, alertbeam, drawn, tmp_path) -> None:
    detections, limits, oid, period = rr_lyrae
    arguments = ("show", oid, detections, "--non-detections", limits, "--output", tmp_path / "a.pdf")
    assert alertbeam(*arguments)["status"] == 0
    assert drawn[0]["period_days"] == pytest.approx(period, rel=0.01)
    assert drawn[0]["apparent"]
    frame = pd.read_parquet(detections)
    assert len(drawn[0]["detections"]) == (frame.oid == oid).sum()
    assert len(drawn[0]["non_detections"]) == (pd.read_csv(limits).oid == oid).sum()
    alertbeam(*arguments, "--period", "1.5", "--magnitudes", "difference")
    assert drawn[1]["period_days"] == 1.5
    assert not drawn[1]["apparent"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_real_picture_is_written(rr_lyrae, alertbeam, tmp_path, ending) -> None:
    detections, limits, oid, _ = rr_lyrae
    output = tmp_path / "new" / f"star.{ending}"
    answer = alertbeam("show", oid, detections, "--non-detections", limits, "--output", output)
    assert answer["status"] == 0
    assert str(output) in answer["out"]
    assert output.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_an_unknown_object_is_told_with_names_like_it(rr_lyrae, sample, alertbeam, tmp_path) -> None:
    detections, _, oid, _ = rr_lyrae
    answer = alertbeam("show", oid[:-1] + "9", detections, "--output", tmp_path / "a.png")
    assert answer["status"] == 2
    objects = pd.read_parquet(detections).oid.nunique()
    assert f"among the {objects} objects" in answer["err"]
    assert "names like it: ZTF18sim" in answer["err"]
    answer = alertbeam("show", "ZTF99nothing", sample.archive, "--output", tmp_path / "a.png")
    assert answer["status"] == 2
    assert "there is no ZTF99nothing" in answer["err"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["TABLE", "--output", "a.gif"], "must end in .png"),
        (["TABLE", "--output", "a.png", "--period", "-1"], "positive"),
        (["TABLE", "nights", "--output", "a.png"], "must be the only INPUT"),
        (["nowhere", "--output", "a.png"], "there is no such file"),
        (["TABLE", "--output", "a.png", "--features", "nowhere.parquet"], "cannot be read"),
    ],
)
def test_wrong_usage_is_told(arguments, told, rr_lyrae, alertbeam, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [str(rr_lyrae[0]) if text == "TABLE" else text for text in arguments]
    answer = alertbeam("show", rr_lyrae[2], *texts)
    assert answer["status"] == 2
    assert told in answer["err"]
    assert not list(tmp_path.iterdir())
