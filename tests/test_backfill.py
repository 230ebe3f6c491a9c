"""The backfill: two passes, the ledger, more nights, other models, other dates, and what is fed again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import lsdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from backfill_fixtures import (
    DATES,
    DEMO_MODEL,
    Nights,
    backfilled,
    contents,
    copied,
    frame,
    make_nights,
    rows_of_tables,
    same_contents,
    units_of,
)
from pipeline_fixtures import alerts_of, letters_of

from classifier.package import read_model, write_model
from pipelines.backfill_run import _cut
from pipelines.cli import main
from run_folder import open_run
from run_folder.layout import RunLayout


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def time_of(alert: dict[str, Any]) -> tuple[float, int]:
    return alert["candidate"]["jd"], alert["candid"]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def together(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over all nights at once, with tables."""
    run = tmp_path_factory.mktemp("together") / "run"
    summary = backfilled(run, *nights.archives, *nights.options, "--hats", "--workers", "2")
    assert summary["adds_up"]
    return run


def test_counts_add_up_to_the_unit(nights: Nights, together: Path) -> None:
    units = units_of(together, "read")
    assert [unit.state for unit in units] == ["done"] * len(nights.archives)
    for unit in units:
        counts = {**dict.fromkeys(("filtered", "repeated", "failed", "empty"), 0), **unit.counts}
        undecoded = counts.get("dead_letters:read", 0) + counts.get("dead_letters:decode", 0)
        # Three broken members each, of which none is an empty container.
        assert (counts["read"], undecoded, counts["empty"]) == (120, 3, 0)
        assert counts["read"] == counts["written"] + counts["filtered"] + counts["repeated"] + counts["failed"]
        assert counts["filtered"] > 0
    assert len(alerts_of(together)) == sum(unit.counts["written"] for unit in units)
    assert len(letters_of(together)) == 9
    assert pq.read_table(together / "crossmatches.parquet").num_rows == len(alerts_of(together))


def test_equal_to_the_single_commands(nights: Nights, together: Path, tmp_path: Path) -> None:
    archives, catalog = [str(path) for path in nights.archives], str(nights.catalog)
    features, told = tmp_path / "features.parquet", tmp_path / "probabilities.parquet"
    quiet = ["--quiet", "--json", "--max-dead-letters", "99"]
    assert main(["features", *archives, "--catalog", catalog, "--output", str(features), *quiet]) == 0
    assert main(["classify", str(features), "--model", str(DEMO_MODEL), "--output", str(told), *quiet]) == 0
    ours = frame(RunLayout(together).results().all_features)
    pd.testing.assert_frame_equal(ours, pd.read_parquet(features).set_index("oid"), check_exact=True)
    ours = frame(RunLayout(together).results().all_probabilities)
    theirs = pd.read_parquet(told).set_index("oid").sort_index()
    # A table of features does not know the alerts that they are of.
    assert theirs.pop("candid").isna().all()
    newest = {alert["objectId"]: alert["candid"] for alert in sorted(alerts_of(together), key=time_of)}
    assert ours.pop("candid").to_dict() == {oid: newest[oid] for oid in theirs.index}
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert len(theirs) > 50


def test_nights_added_one_by_one_in_any_order(nights: Nights, together: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    backfilled(run, nights.archives[2], *nights.options, "--batch-alerts", "17", "--workers", "1")
    # The options of the first start hold for the next.
    backfilled(run, nights.archives[0])
    backfilled(run, nights.archives[1])
    assert [unit.attempts for unit in units_of(run)] == [1] * len(units_of(run))
    now, then = contents(run), contents(together)
    same_contents(
        {name: now[name] for name in now if not name.startswith("alerts/")},
        {name: then[name] for name in then if not name.startswith("alerts/")},
    )
    # The blocks of the files were cut elsewhere, the alerts are the same.
    assert sorted(map(repr, alerts_of(run))) == sorted(map(repr, alerts_of(together)))
    assert rows_of_tables(run) == rows_of_tables(together)


def test_units_done_by_a_runner_of_beam(nights: Nights, together: Path, tmp_path: Path) -> None:
    """As on a cluster, here with the local runner; Flink has tests of its own."""
    run = tmp_path / "run"
    summary = backfilled(run, *nights.archives, *nights.options, "--hats", "--runner", "FnApiRunner")
    assert summary["adds_up"]
    same_contents(contents(run), contents(together))
    assert rows_of_tables(run) == rows_of_tables(together)
    ours, theirs = units_of(run), units_of(together)
    assert [(unit.name, unit.state, unit.attempts) for unit in ours] == [(unit.name, "done", 1) for unit in theirs]


def test_nothing_is_done_twice(nights: Nights, together: Path, tmp_path: Path) -> None:
    run = copied(together, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if path.suffix in (".avro", ".parquet")}
    backfilled(run, "--resume", "--database", "none")
    backfilled(run, *nights.archives, "--database", "none")
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if path.suffix in (".avro", ".parquet")}
    assert after == before
    assert all(unit.attempts == 1 for unit in units_of(run))


def test_another_model_needs_no_archive(nights: Nights, together: Path, tmp_path: Path) -> None:
    run, model = copied(together, tmp_path / "run"), tmp_path / "model"
    write_model(replace(read_model(DEMO_MODEL), version="second"), model)
    backfilled(run, "--only", "pass2", "--model", model, "--no-hats")
    folder = RunLayout(run).results().all_probabilities
    assert sorted(path.name for path in folder.glob("*/*")) == ["version=demo", "version=second"]
    assert all(unit.ended and unit.attempts == 1 for unit in units_of(run, "read"))
    assert len(units_of(run, "features")) == len(units_of(together, "features"))
    rows = rows_of_tables(run)["probability"]
    versions = pd.Series([next(value for value in row if value in ("demo", "second")) for row in rows]).value_counts()
    assert versions["demo"] == versions["second"] > 0


def test_as_of_gives_what_was_known_then(nights: Nights, together: Path, tmp_path: Path) -> None:
    run, early = copied(together, tmp_path / "run"), tmp_path / "early"
    date = f"{DATES[1][:4]}-{DATES[1][4:6]}-{DATES[1][6:]}"
    backfilled(run, "--only", "pass2", "--as-of", date, "--no-hats")
    backfilled(early, nights.archives[0], *nights.options, "--database", "none")
    now, then = RunLayout(run).results(date), RunLayout(early).results()
    for ours, theirs in (
        (now.objects, then.objects),
        (now.all_features, then.all_features),
        (now.all_probabilities, then.all_probabilities),
    ):
        pd.testing.assert_frame_equal(frame(ours), frame(theirs), check_exact=True)
    same_contents(contents(run), contents(together))
    versions = set(rows_of_tables(run)["feature_version"])
    assert {str(row[0]) for row in versions} == {"1.0.0-alerce", f"1.0.0-alerce-as-of-{date}"}


def test_what_changed_is_said(nights: Nights, together: Path, tmp_path: Path) -> None:
    run = copied(together, tmp_path / "run")
    before = contents(run)
    none = ["--database", "none"]
    said = backfilled(run, *none, "--catalog", nights.catalog, "--radius", "2", status=2)["said"]
    assert "the radius was 1.0, now it is 2.0" in said
    assert "--fresh" in said
    moved = tmp_path / "moved" / nights.archives[0].name
    moved.parent.mkdir()
    shutil.copy(nights.archives[0], moved)
    other = tmp_path / "other"
    backfilled(other, moved, *nights.options, *none, "--only", "pass1")
    moved.write_bytes(nights.archives[1].read_bytes())
    said = backfilled(other, moved, *none, status=2)["said"]
    assert f"{moved} changed since it was read" in said
    same_contents(contents(run), before)
    assert backfilled(other, moved, *nights.options, *none, "--only", "pass1", "--fresh")["adds_up"]


def test_an_archive_that_cannot_be_had_is_set_aside(nights: Nights, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*nights.options, "--database", "none", "--attempts", "1"]
    with served(tmp_path) as url:
        summary = backfilled(run, nights.archives[0], f"{url}ztf_public_20260102.tar.gz", *options, status=1)
    assert summary["adds_up"]
    (aside,) = [unit for unit in units_of(run, "read") if unit.state == "aside"]
    assert "127.0.0.1" in aside.reason
    assert "404" in aside.reason
    assert len(frame(RunLayout(run).results().all_features)) > 0
    assert not list((run / "alerts").glob(f"{aside.name}*"))


def test_nights_by_date_from_a_server(nights: Nights, together: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for archive in nights.archives:
        shutil.copy(archive, folder)
    run = tmp_path / "run"
    with served(folder) as url:
        dates = ["--from", "2026-01-01", "--to", "20260110", "--archive", url]
        summary = backfilled(run, *dates, *nights.options, "--database", "none")
    assert "2026-01-02" in summary["said"]
    assert summary["alerts"] == backfilled(together, "--resume")["alerts"]
    ours, theirs = RunLayout(run).results(), RunLayout(together).results()
    pd.testing.assert_frame_equal(frame(ours.all_probabilities), frame(theirs.all_probabilities), check_exact=True)
    # Nothing of the archives was stored.
    assert not [path for path in run.rglob("*") if path.suffix == ".gz"]


def test_objects_are_a_hats_catalogue(together: Path, tmp_path: Path) -> None:
    objects = frame(RunLayout(together).results().objects)
    catalog = lsdb.open_catalog(together / "hats", columns=["oid", "class", "Multiband_period", "ndet"])
    found = catalog.compute().set_index("oid").sort_index()
    assert found["ndet"].to_dict() == objects["ndet"].to_dict()
    assert found["class"].notna().sum() == len(frame(RunLayout(together).results().all_probabilities))
    run = copied(together, tmp_path / "run")
    backfilled(run, "--hats-light-curves", "--database", "none")
    nested = lsdb.open_catalog(run / "hats", columns=["oid", "ndet", "lightcurve"]).compute()
    assert len(nested) == len(objects)
    assert nested["lightcurve"].map(len).tolist() == nested["ndet"].tolist()
    assert (
        open_run(run).light_curve(nested["oid"].iloc[0]).detections["forced"].eq(False).sum() == nested["ndet"].iloc[0]
    )
    # The catalogue is always the one that was asked for last.
    backfilled(run, "--no-hats-light-curves", "--database", "none")
    assert "lightcurve" not in lsdb.open_catalog(run / "hats").columns


def test_real_packets_add_up(shared_data: Path, nights: Nights, tmp_path: Path) -> None:
    """All real packets: archives, folders, other schemas, and what is no packet at all."""
    run = tmp_path / "run"
    summary = backfilled(run, shared_data / "alerts", *nights.options, "--hats")
    assert summary["adds_up"]
    alerts = summary["alerts"]
    assert alerts["alerts_in"] == 650 + 15
    assert alerts["dead"] == 15 == len(letters_of(run))
    assert alerts["written"] == len(alerts_of(run)) == pq.read_table(run / "crossmatches.parquet").num_rows
    assert summary["rows"]["objects"] == len({alert["objectId"] for alert in alerts_of(run)})
    assert summary["rows"]["features"] > 20


def test_usage(nights: Nights, together: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: object) -> str:
        assert main(["backfill", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    output = tmp_path / "run"
    catalog = ("--catalog", nights.catalog, "--output", output)
    assert "name what to read" in said(*catalog)
    assert "holds no run to go on with" in said("--resume", "--output", output)
    assert "--only pass2 reads no archive" in said(nights.archives[0], *catalog, "--only", "pass2")
    assert "run pass 1 first" in said(*catalog, "--only", "pass2")
    assert "say --only pass2" in said(nights.archives[0], *catalog, "--as-of", "2026-01-02")
    assert "--workers must be at least 1" in said(nights.archives[0], *catalog, "--workers", "0")
    runner = ("--runner", "FlinkRunner", "--parallelism=2")
    assert "unknown option --job_endpoint=a:1; those of Beam need --runner" in said(*catalog, "--job_endpoint=a:1")
    assert "Flink is not named" in said(nights.archives[0], *catalog, *runner)
    assert "how many slots" in said(nights.archives[0], *catalog, *runner[:2], "--job_endpoint=a:1")
    assert "say --parallelism=N" in said(nights.archives[0], *catalog, *runner, "--workers", "2")
    assert "--without-tables allwise" in said(nights.archives[0], *catalog, "--without-tables", "allwise")
    assert "--from DATE, --to DATE and --archive" in said("--archive", nights.archives[0].parent, *catalog)
    assert "lies among the inputs" in said(
        nights.archives[0].parent, "--output", nights.archives[0].parent / "run", "--catalog", nights.catalog
    )
    assert not output.exists()
    assert main(["xmatch", str(nights.archives[0]), "--catalog", str(nights.catalog), "--output", str(together)]) == 2
    assert "is the folder of a backfill" in capsys.readouterr().err


def test_buckets_are_cut_by_size() -> None:
    assert _cut({}, 10) == []
    assert _cut({0: 5, 1: 5, 2: 1, 5: 30, 6: 1}, 10) == [[0, 1], [2], [5], [6]]
    sizes = {bucket: int(size) for bucket, size in enumerate(np.random.default_rng(1).integers(0, 9, 50))}
    assert [bucket for part in _cut(sizes, 12) for bucket in part] == list(range(50))
