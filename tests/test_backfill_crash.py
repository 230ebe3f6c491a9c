"""Backfills that are killed, lose their database or find the disk full: the next start makes the run whole."""

import random
import resource
import signal
import subprocess
import threading
import time
from itertools import count
from pathlib import Path

import psutil
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


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture(scope="module")
def undisturbed(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    backfilled(run, *nights.archives, *nights.options)
    return run


def start(nights: Nights, run: Path, *options: str, limit: int | None = None) -> "subprocess.Popen[str]":
    words = command(run, *nights.archives, *nights.options, "--quiet", "--json", "--max-dead-letters", "99", *options)
    return subprocess.Popen(
        words,
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "pipelines.workers" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def at_work(process: "subprocess.Popen[str]") -> bool:
    """Wait until there is a worker; say whether there is one."""
    while process.poll() is None:
        if workers_of(process):
            return True
        time.sleep(0.02)
    return False


def killed(nights: Nights, run: Path, chance: random.Random, victims: list[str]) -> None:
    """Start a run again and again, and kill a worker or the whole of it, until it ends by itself; cross them off."""
    while True:
        process = start(nights, run, "--hats", "--attempts", "1000")
        while victims and at_work(process):
            # Workers take some seconds until they begin.
            time.sleep(chance.uniform(0.0, 5.0))
            workers = workers_of(process)
            if victims[-1] == "worker" and workers:
                chance.choice(workers).kill()
                victims.pop()
            elif victims[-1] == "run" and process.poll() is None:
                process.kill()
                victims.pop()
                break
        _, said = process.communicate(timeout=120)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, said
            return


def alerts_counted(run: Path) -> list[dict[str, int]]:
    """Counts of the archives, without rows: a unit that is done again finds its rows in the tables."""
    return [
        {name: number for name, number in unit.counts.items() if not name.startswith("rows:")}
        for unit in units_of(run, "read")
    ]


def test_twenty_random_kills(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    """Of workers and of whole runs; each run must end as if nothing had been."""
    chance = random.Random(11)
    victims = ["worker", "run"] * 10
    chance.shuffle(victims)
    for number in count():
        run = tmp_path / f"run{number}"
        killed(nights, run, chance, victims)
        same_contents(contents(run), contents(undisturbed))
        assert {unit.state for unit in units_of(run)} == {"done"}
        assert not [path for path in run.rglob(".*") if path.name != ".lock" and "database" not in path.parts]
        if not victims:
            break
    assert rows_of_tables(run) == rows_of_tables(undisturbed)
    assert alerts_counted(run) == alerts_counted(undisturbed)


@pytest.mark.usefixtures("impatient")
def test_lost_database(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def kill_soon() -> None:
        while not any((run / "alerts").glob("*")):
            time.sleep(0.05)
        server = int((run / "database" / "data" / "postmaster.pid").read_text().splitlines()[0])
        psutil.Process(server).send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_soon, daemon=True)
    killer.start()
    said = backfilled(run, *nights.archives, *nights.options, "--workers", "2", status=3)["said"]
    killer.join()
    assert "stopped: The database" in said
    assert "start again" in said
    backfilled(run, *nights.archives)
    same_contents(contents(run), contents(undisturbed))
    assert rows_of_tables(run) == rows_of_tables(undisturbed)


def test_full_disk(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes writing fail as a full disk does."""
    run = tmp_path / "run"
    largest = max(path.stat().st_size for path in (undisturbed / "alerts").iterdir())
    process = start(nights, run, "--database", "none", limit=largest // 2)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "File too large" in said
    assert "Traceback" not in said
    backfilled(run, *nights.archives, "--database", "none")
    same_contents(contents(run), contents(undisturbed))


def test_an_interrupt_ends_it_and_the_next_start_goes_on(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(nights, run, "--database", "none")
    assert at_work(process)
    time.sleep(4.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; start the same command again to go on" in said
    backfilled(run, "--resume")
    same_contents(contents(run), contents(undisturbed))
