"""The pool of worker processes: each unit is done once, whatever dies; and nothing outlives the parent."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from ledger_fixtures import VERSIONS, children
from workers_fixtures import Work, begun, wait_begun

import pipelines.workers
from messaging.child_process import lives
from pipelines.usage import StoppedError
from pipelines.workers import ERRORS_LOG, WORKERS_LOG, WorkerPool, run_units
from run_folder.ledger import Ledger, Unit, UnitSpec

PROJECT = Path(__file__).resolve().parents[1]


def added(ledger: Ledger, **payloads: dict[str, Any]) -> list[Unit]:
    return ledger.add("read", [UnitSpec(name, payload) for name, payload in payloads.items()])


def added_like(ledger: Ledger, number: int, **payload: Any) -> list[Unit]:
    return added(ledger, **{f"u{part:02d}": payload | {"n": part} for part in range(number)})


def test_each_unit_is_done_once(ledger: Ledger, work: Work) -> None:
    changes: list[int] = []
    outcome = run_units(
        added_like(ledger, 12),
        work,
        ledger,
        workers=2,
        versions=VERSIONS,
        on_change=lambda: changes.append(len(children())),
        units_per_process=4,
    )
    assert outcome.aside == ()
    assert {done.unit.name: done.counts["n"] for done in outcome.done} == {f"u{n:02d}": n for n in range(12)}
    assert len(begun(work.notes)) == 12
    assert max(changes) <= 2
    assert len(changes) >= 24
    # Nobody does more than four, and nobody is replaced before.
    assert 3 <= len(set(begun(work.notes).values())) <= 4
    for unit, done in zip(ledger.units("read", "done"), sorted(outcome.done, key=lambda d: d.unit.name), strict=True):
        assert (unit.name, unit.counts, unit.versions) == (done.unit.name, done.counts, VERSIONS)
        assert unit.seconds == done.seconds > 0
        assert unit.peak_bytes == done.peak_bytes > 5e6


def test_what_fails_is_tried_again_and_then_set_aside(ledger: Ledger, work: Work) -> None:
    chance = random.Random(2)
    payloads = {
        f"u{n:02d}": {"deed": chance.choice(["raise", "count"]), "times": chance.choice([1, 2, 99])} for n in range(15)
    }
    payloads |= {
        "killed once": {"deed": "kill", "times": 1},
        "killed always": {"deed": "kill"},
        "ends twice": {"deed": "exit", "times": 2},
        "quits": {"deed": "quit"},
        "counts nothing": {"n": None},
    }
    units = added(ledger, **payloads)
    outcome = run_units(units, work, ledger, workers=3, versions=VERSIONS)
    hopeless = {
        name
        for name, payload in payloads.items()
        if payload.get("deed") in ("raise", "kill", "exit", "quit") and payload.get("times", 99) == 99
    } | {"counts nothing"}
    assert {unit.name for unit in outcome.aside} == {unit.name for unit in ledger.units(state="aside")} == hopeless
    assert {done.unit.name for done in outcome.done} == {unit.name for unit in ledger.units(state="done")}
    assert len(outcome.done) == len(payloads) - len(hopeless)
    reasons = {unit.name: unit.reason for unit in outcome.aside}
    assert reasons["killed always"] == "the worker died (signal 9)"
    assert reasons["quits"] == "SystemExit: 4"
    assert reasons["counts nothing"].startswith("TypeError: int() argument")
    raising = next(name for name in hopeless if payloads[name].get("deed") == "raise")
    assert reasons[raising] == f"OSError: cannot read {raising}"
    for unit in ledger.units():
        fails = unit.payload["times"] if unit.payload.get("deed", "count") != "count" and "times" in unit.payload else 0
        tries = 3 if unit.name in hopeless else fails + 1
        assert unit.attempts == len(list(work.notes.glob(f"{unit.name}.*"))) == tries, unit.name
    errors = (ledger.folder / ERRORS_LOG).read_text()
    assert f"read {raising}, attempt 3: OSError: cannot read {raising}\nTraceback" in errors
    assert "in raises" in errors
    assert "read killed once, attempt 1: the worker died (signal 9)" in errors
    assert "read ends twice, attempt 2: the worker died (exit status 3)" in errors


def test_the_last_in_line_is_what_failed(ledger: Ledger, work: Work) -> None:
    units = added(ledger, a={"deed": "exit", "times": 1}, b={}, c={"deed": "raise", "times": 1}, d={})
    run_units(units, work, ledger, workers=1, versions=VERSIONS)
    assert list(begun(work.notes)) == ["a.0", "b.0", "c.0", "d.0", "a.1", "c.1"]


def test_workers_stay_for_the_next_stage_and_end_with_the_pool(ledger: Ledger, work: Work) -> None:
    with WorkerPool(ledger, workers=3, versions=VERSIONS) as pool:
        pool.run(ledger.add("read", [UnitSpec("a", {})]), work)
        (worker,) = children()
        pool.run(ledger.add("fold", [UnitSpec("b", {})]), work)
        assert children() == [worker]
        # One that died meanwhile costs no attempt.
        worker.kill()
        worker.wait()
        pool.run(ledger.add("export", [UnitSpec("c", {}), UnitSpec("d", {})]), work)
        assert len(children()) == 2
    assert {unit.attempts for unit in ledger.units(state="done")} == {1}
    assert len(ledger.units(state="done")) == 4
    assert len(set(begun(work.notes).values())) <= 3


def test_work_that_stops_the_run(ledger: Ledger, work: Work) -> None:
    stop = {"deed": "stop", "notes": str(work.notes), "others": 3}
    units = added(ledger, a={}, b={"deed": "hang"}, c=stop, d={})
    with pytest.raises(StoppedError, match=r"^the database is gone$"):
        run_units(units, work, ledger, workers=2, versions=VERSIONS)
    assert children() == []
    states = {unit.name: (unit.state, unit.attempts) for unit in ledger.units()}
    assert states == {"a": ("done", 1), "b": ("waiting", 0), "c": ("waiting", 0), "d": ("waiting", 0)}


@pytest.mark.parametrize("deed", ["hang", "hang in spite"])
def test_interrupt(ledger: Ledger, work: Work, deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.workers, "_SECONDS_TO_END", 0.5)
    pids: list[int] = []

    def interrupt() -> None:
        pids.extend(wait_begun(work.notes, 2))
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        assert all(map(psutil.pid_exists, pids))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_units(added_like(ledger, 3, deed=deed), work, ledger, workers=2, versions=VERSIONS)
    thread.join()
    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))
    assert {(unit.state, unit.attempts) for unit in ledger.units()} == {("waiting", 0)}


# As users write it: there is no guard against being imported again.
SCRIPT = """
import sys
from pathlib import Path
from workers_fixtures import Work
from pipelines.workers import run_units
from run_folder.ledger import Ledger, UnitSpec
folder, deed = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger.open(folder / "ledger")
units = ledger.add("read", [UnitSpec("a", {}), UnitSpec("b", {"deed": deed}), UnitSpec("c", {"deed": deed})])
print(run_units(units, Work(folder / "notes"), ledger, workers=2, versions={}).done)
"""


@pytest.mark.parametrize("deed", ["hang in spite", "keep"])
def test_killed_parent(work: Work, tmp_path: Path, deed: str) -> None:
    if deed == "keep" and sys.platform != "linux":
        pytest.skip("only Linux ends a process that lets no other thread run")
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), deed]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    pids = wait_begun(work.notes, 3)
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    try:
        deadline = time.monotonic() + 5
        while any(map(lives, pids)):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.02)
    finally:
        for pid in filter(lives, pids):
            os.kill(pid, signal.SIGKILL)
    with Ledger.open(tmp_path / "ledger") as ledger:
        states = [(unit.name, unit.state, unit.attempts, unit.reason) for unit in ledger.units()]
    killed = ("waiting", 1, "the run was killed")
    assert states == [("a", "done", 1, ""), ("b", *killed), ("c", *killed)]


def test_peak_memory_is_that_of_the_unit(ledger: Ledger, work: Work) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the kernel does not count the peak anew")
    payloads = {name: {"deed": "memory", "bytes": size} for name, size in {"a": 1, "b": 200 << 20, "c": 1}.items()}
    outcome = run_units(added(ledger, **payloads), work, ledger, workers=1, versions=VERSIONS)
    a, b, c = (done.peak_bytes for done in outcome.done)
    assert b - a > 150 << 20
    assert b - c > 150 << 20
    assert len(set(begun(work.notes).values())) == 1


def test_cores_are_shared(ledger: Ledger, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.workers, "_cores", lambda: 6)
    file = tmp_path / "threads"
    run_units(added_like(ledger, 1, deed="threads", file=str(file)), work, ledger, workers=2, versions=VERSIONS)
    assert file.read_text() == "3 3"


def test_what_workers_print(
    ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipelines.workers, "_MOST_LOG_BYTES", 40_000)
    monkeypatch.setattr(pipelines.workers, "_SECONDS_BETWEEN_LOOKS", 0.02)
    run_units(added_like(ledger, 3, deed="print"), work, ledger, workers=1, versions=VERSIONS)
    log, older = ledger.folder / WORKERS_LOG, ledger.folder / f"{WORKERS_LOG}.1"
    assert "little is meant" in older.read_text()
    assert log.stat().st_size < 110_000
    assert capfd.readouterr() == ("", "")


def test_work_that_no_worker_can_import(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("made_here")
    exec("def work(unit): return {}", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", module)
    with pytest.raises(RuntimeError, match="a worker cannot import the work: ModuleNotFoundError: No module named"):
        run_units(added_like(ledger, 2), module.work, ledger, workers=2, versions=VERSIONS)
    assert {(unit.state, unit.attempts) for unit in ledger.units()} == {("waiting", 0)}


def test_full_disk_of_the_ledger(ledger: Ledger, work: Work) -> None:
    """When the parent cannot note what was done it stops; a later run does what is not noted."""
    units = added_like(ledger, 12)
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(OSError, match="no space is left on the disk for the ledger"):
        run_units(units, work, ledger, workers=2, versions={"text": "x" * 1500})
    assert children() == []
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    ledger.put_back()
    outcome = run_units(ledger.units(state="waiting"), work, ledger, workers=2, versions=VERSIONS)
    assert 0 < len(outcome.done) < 12
    assert len(ledger.units(state="done")) == 12
