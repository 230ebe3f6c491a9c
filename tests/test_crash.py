"""Runs that are killed or find the disk full: nothing partial under a final name, and the next run makes it whole."""

import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastavro
import psycopg2
import pyarrow.parquet as pq
import pytest
from pipeline_fixtures import Sample, digests, make_sample

from database.embedded import start_embedded

PROJECT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "object": "*",
    "allwise": "*",
    "xmatch": "*",
    "step": "step_id, name, version, comments",
}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("night"), alerts=3000, cutouts=False)


def start(night: Sample, run: Path, *options: str, **process: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipelines.cli", *night.arguments, "--output", str(run), "--max-dead-letters", "9"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], cwd=PROJECT, **pipes, **process)


def finished(night: Sample, run: Path, *options: str) -> None:
    process = start(night, run, *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def rows(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    with start_embedded(run / "database") as server:
        connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                found = {}
                for table, columns in COLUMNS.items():
                    cursor.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2")
                    found[table] = cursor.fetchall()
                return found
        finally:
            connection.close()


def check_whole(run: Path) -> None:
    """Every file under a final name can be read to its end."""
    for folder in ("alerts", "dead_letters"):
        for path in (run / folder).glob("[!.]*"):
            assert path.suffix == ".avro"
            with open(path, "rb") as file:
                assert sum(1 for _ in fastavro.reader(file)) > 0
    if (run / "crossmatches.parquet").exists():
        assert pq.read_table(run / "crossmatches.parquet").num_rows == 3000


def left_unfinished(run: Path) -> list[Path]:
    outside = [path for path in run.rglob("*") if "database" not in path.relative_to(run).parts]
    return [path for path in outside if path.name.startswith(".") and path.name != ".lock"]


def test_killed_runs_end_like_an_undisturbed_one(night: Sample, tmp_path: Path) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    began = time.monotonic()
    finished(night, undisturbed)
    seconds = time.monotonic() - began
    chance = random.Random(3)
    killed = 0
    for part in range(4):
        process = start(night, run)
        time.sleep(seconds * chance.uniform(0.2 + 0.2 * part, 0.4 + 0.2 * part))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        check_whole(run)
    # And once while alerts are being written, whatever the speed of the machine.
    process = start(night, run, "--batch-alerts", "20")
    deadline = time.monotonic() + 60
    while process.poll() is None and not list((run / "alerts").glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed += process.poll() is None
    process.kill()
    process.communicate()
    check_whole(run)
    assert killed >= 2

    finished(night, run)
    assert left_unfinished(run) == []
    assert digests(run) == digests(undisturbed)
    assert rows(run) == rows(undisturbed)


def test_full_disk(night: Sample, tmp_path: Path) -> None:
    """A limit on the size of files makes writing fail as a full disk does."""
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    finished(night, undisturbed, "--database", "none")
    largest = max(path.stat().st_size for path in (undisturbed / "alerts").iterdir())
    limit = largest // 2
    process = start(
        night,
        run,
        *("--database", "none"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "stopped: [Errno 27] File too large" in said
    assert "Traceback" not in said
    check_whole(run)
    assert left_unfinished(run) == []
    assert not (run / "crossmatches.parquet").exists()

    finished(night, run, "--database", "none")
    assert digests(run) == digests(undisturbed)
    shutil.rmtree(run)
