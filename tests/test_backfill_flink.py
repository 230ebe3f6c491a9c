"""A backfill in the slots of a real Flink: as on one machine, whatever is killed on the way."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
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
from flink_fixtures import pool_options

import pipelines.unit_exchange
from pipelines.flink_cluster import FlinkCluster, FlinkSettings, start_cluster, start_job_server
from pipelines.worker_pool import WorkerPool

pytestmark = pytest.mark.flink

FLINK = ("--runner", "FlinkRunner", "--parallelism=2")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def local(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("local") / "run"
    backfilled(run, *nights.archives, *nights.options, "--workers", "2")
    return run


def same(run: Path, local: Path) -> None:
    """All files, the store of light curves, the tables, the units and what they counted."""
    same_contents(contents(run), contents(local))
    assert rows_of_tables(run) == rows_of_tables(local)
    assert counted(run) == counted(local)
    assert not list(run.glob("ledger/handed_out/*"))


def counted(run: Path) -> list[tuple[str, str, dict[str, int]]]:
    """Counts of each unit, without rows: a unit that is done again finds its rows in the tables."""
    return [
        (unit.name, unit.state, {name: n for name, n in unit.counts.items() if not name.startswith("rows:")})
        for unit in units_of(run)
    ]


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_flink_and_workers_started_here(nights: Nights, local: Path, flink_components: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = backfilled(run, *nights.archives, *nights.options, *FLINK, "--flink_master=[local]")
    assert summary["adds_up"]
    assert {unit.attempts for unit in units_of(run)} == {1}
    same(run, local)
    assert not (run / "ledger" / "errors.log").exists()


def test_a_worker_the_driver_and_a_task_manager_are_killed(
    nights: Nights,
    local: Path,
    flink_components: None,
    worker_pool: WorkerPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flink goes on in spite of the first, the next start in spite of the second, with another in the third's place."""
    run = tmp_path / "run"
    settings = FlinkSettings(slots=2, heap_mb=400, managed_mb=64)
    with (
        start_cluster(tmp_path / "cluster", settings=settings) as cluster,
        start_job_server(tmp_path / "server", flink_master=cluster.master, settings=settings) as server,
    ):
        flink = [*FLINK, f"--job_endpoint={server.job_endpoint}", *pool_options(worker_pool)]
        words = [*nights.archives, *nights.options, *flink]
        with subprocess.Popen(
            command(run, *words, "--quiet"), cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True
        ) as driver:
            until(lambda: list(run.glob("ledger/handed_out/*/*.begun")))
            (worker,) = worker_pool.pids()
            os.kill(worker, signal.SIGKILL)
            until(lambda: any(unit.state == "done" for unit in units_of(run, "read")))
            driver.kill()
        assert driver.returncode == -signal.SIGKILL
        assert worker_pool.counts().started == 2
        (handed_out,) = run.glob("ledger/handed_out/*")
        killer = threading.Thread(target=replace_task_manager, args=[run, cluster, handed_out], daemon=True)
        killer.start()
        # It knows sooner than usual who is gone.
        monkeypatch.setattr(pipelines.unit_exchange, "_LOOKS_WITHOUT_BEAT", 3)
        summary = backfilled(run, *words)
        killer.join()
        assert len(cluster.task_managers) == 2
    assert summary["adds_up"]
    assert max(unit.attempts for unit in units_of(run)) > 1
    same(run, local)


def replace_task_manager(run: Path, cluster: FlinkCluster, before: Path) -> None:
    until(lambda: [path for path in run.glob("ledger/handed_out/*/*.begun") if path.parent != before])
    cluster.task_managers[0].kill()
    cluster.start_task_manager()
