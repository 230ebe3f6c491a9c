"""A backfill by the slots of a real Flink, whose driver is killed on the way."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from backfill_fixtures import (
    PROJECT,
    Nights,
    backfilled,
    command,
    contents,
    environment,
    make_nights,
    rows_of_tables,
    same_contents,
    units_of,
)
from workers_fixtures import Work

from pipelines.flink_backfill import BeamPipelines, BeamPool
from pipelines.flink_cluster import FlinkServer
from pipelines.usage import StoppedError
from run_folder.ledger import Ledger, UnitSpec

pytestmark = pytest.mark.flink


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def local(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("local") / "run"
    backfilled(run, *nights.archives, *nights.options, "--no-hats", "--workers", "2")
    return run


def on_flink(server: FlinkServer) -> list[str]:
    words = [f"--job_endpoint={server.job_endpoint}", "--environment_type=LOOPBACK", "--parallelism=2"]
    return ["--runner", "FlinkRunner", *words]


def test_a_killed_driver_goes_on(nights: Nights, local: Path, flink_server: FlinkServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*nights.archives, *nights.options, "--no-hats", *on_flink(flink_server)]
    process = subprocess.Popen(
        command(run, *words, "--quiet"), cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not list(run.glob("ledger/handed_out/*/*.answer")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert any(unit.state != "done" for unit in units_of(run, "read"))
    summary = backfilled(run, *words)
    assert summary["adds_up"]
    same_contents(contents(run), contents(local))
    assert rows_of_tables(run) == rows_of_tables(local)
    assert [(unit.name, unit.state) for unit in units_of(run)] == [(unit.name, "done") for unit in units_of(local)]
    assert max(unit.attempts for unit in units_of(run)) <= 2
    assert not list(run.glob("ledger/handed_out/*"))


def test_what_stops_the_run_ends_the_job(flink_server: FlinkServer, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    stop = {"deed": "stop", "notes": str(notes), "others": 3, "times": 1}
    runner, options = on_flink(flink_server)[1], on_flink(flink_server)[2:]
    with Ledger.open(tmp_path / "ledger") as ledger, BeamPipelines(runner, options, tmp_path) as new_pipeline:
        specs = [UnitSpec("a", {}), UnitSpec("b", {"deed": "hang", "times": 1}), UnitSpec("c", stop)]
        units = ledger.add("read", specs)
        pool = BeamPool(ledger, new_pipeline=new_pipeline, versions={})
        with pytest.raises(StoppedError, match=r"^the database is gone$"):
            pool.run(units, Work(notes))
        assert {unit.name: (unit.state, unit.attempts) for unit in ledger.units()} == {
            "a": ("done", 1),
            "b": ("waiting", 0),
            "c": ("waiting", 0),
        }
        # The slots are free again.
        outcome = pool.run(ledger.units(state="waiting"), Work(notes))
        assert sorted(done.unit.name for done in outcome.done) == ["b", "c"]
