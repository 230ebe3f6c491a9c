"""Units of work done by jobs of Beam: here by its local runner, and by Flink where it is."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from apache_beam.runners.runner import PipelineRunner
from workers_fixtures import Work, begun, wait_begun

import pipelines.unit_exchange
from pipelines.flink_backfill import BeamPool, DoUnits
from pipelines.unit_exchange import Handed, Taking, take_back_left
from pipelines.usage import StoppedError
from pipelines.workers import ERRORS_LOG, Answer
from run_folder.ledger import Ledger, Unit, UnitSpec

VERSIONS = {"code": "1.2.3"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        # Only matters when the power fails.
        opened._connection.execute("PRAGMA synchronous = OFF")
        yield opened
    assert children() == []
    assert list((tmp_path / "ledger" / "handed_out").glob("*")) == []


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "notes").mkdir()
    return Work(tmp_path / "notes")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for those who are gone."""
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_TO_LEAVE", 0.5)


def children() -> list[psutil.Process]:
    """Workers that are left."""
    found = []
    for process in psutil.Process().children():
        try:
            found += [process] * any("pipelines.workers" in word for word in process.cmdline())
        except psutil.Error:
            continue
    return found


def pool(ledger: Ledger, runner: str = "FnApiRunner") -> BeamPool:
    return BeamPool(ledger, new_pipeline=lambda: beam.Pipeline(runner=runner), versions=VERSIONS)


def added(ledger: Ledger, **payloads: dict[str, Any]) -> list[Unit]:
    return ledger.add("read", [UnitSpec(name, payload) for name, payload in payloads.items()])


def states(ledger: Ledger) -> dict[str, tuple[str, int]]:
    return {unit.name: (unit.state, unit.attempts) for unit in ledger.units()}


def test_each_unit_is_done_once(ledger: Ledger, work: Work) -> None:
    changes: list[int] = []
    units = added(ledger, **{f"u{n:02d}": {"n": n} for n in range(12)})
    outcome = pool(ledger).run(units, work, on_change=lambda: changes.append(1))
    assert outcome.aside == ()
    assert {done.unit.name: done.counts["n"] for done in outcome.done} == {f"u{n:02d}": n for n in range(12)}
    assert list(begun(work.notes)) == [f"u{n:02d}.0" for n in range(12)]
    # One process of its own does them all.
    (worker,) = set(begun(work.notes).values())
    assert worker != os.getpid()
    assert len(changes) > 12
    for unit, done in zip(ledger.units("read", "done"), sorted(outcome.done, key=lambda d: d.unit.name), strict=True):
        assert (unit.name, unit.counts, unit.versions, unit.attempts) == (done.unit.name, done.counts, VERSIONS, 1)
        assert unit.seconds == done.seconds > 0
        assert unit.peak_bytes == done.peak_bytes > 5e6


def test_what_fails_is_tried_again_and_then_set_aside(ledger: Ledger, work: Work) -> None:
    payloads: dict[str, dict[str, Any]] = {
        "raises once": {"deed": "raise", "times": 1},
        "raises": {"deed": "raise"},
        "killed once": {"deed": "kill", "times": 1},
        "killed": {"deed": "kill"},
        "ends twice": {"deed": "exit", "times": 2},
        "fine": {},
    }
    outcome = pool(ledger).run(added(ledger, **payloads), work)
    assert {unit.name: unit.reason for unit in outcome.aside} == {
        "raises": "OSError: cannot read raises",
        "killed": "the worker died (signal 9)",
    }
    tries = {"raises once": 2, "killed once": 2, "ends twice": 3, "fine": 1}
    assert states(ledger) == {name: ("done", tries[name]) if name in tries else ("aside", 3) for name in payloads}
    assert {done.unit.name for done in outcome.done} == {*tries}
    errors = (ledger.folder / ERRORS_LOG).read_text()
    assert "read raises, attempt 3: OSError: cannot read raises\nTraceback" in errors
    assert "read ends twice, attempt 2: the worker died (exit status 3)" in errors


def test_work_that_stops_the_run(ledger: Ledger, work: Work) -> None:
    stop = {"deed": "stop", "notes": str(work.notes), "others": 2}
    with pytest.raises(StoppedError, match=r"^the database is gone$"):
        pool(ledger).run(added(ledger, a={}, b=stop, c={"deed": "hang"}), work)
    assert states(ledger) == {"a": ("done", 1), "b": ("waiting", 0), "c": ("waiting", 0)}


def test_interrupt(ledger: Ledger, work: Work) -> None:
    def interrupt() -> None:
        wait_begun(work.notes, 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool(ledger).run(added(ledger, a={}, b={"deed": "hang in spite"}, c={}), work)
    thread.join()
    assert states(ledger) == {"a": ("done", 1), "b": ("waiting", 0), "c": ("waiting", 0)}


class Scripted(PipelineRunner):
    """In the place of a cluster: does with what is handed out what a script says, one line of it for each job."""

    def __init__(self, ledger: Ledger, *script: Callable[[Path], None]) -> None:
        super().__init__()
        self.folder, self.script = ledger.folder, list(script)

    def run_pipeline(self, pipeline: beam.Pipeline, options: Any) -> "Scripted":
        (alive,) = self.folder.glob("handed_out/*/alive")
        self.script.pop(0)(alive.parent)
        return self

    def wait_until_finish(self) -> None:
        assert self.script is not None


def scripted(ledger: Ledger, *script: Callable[[Path], None]) -> BeamPool:
    runner = Scripted(ledger, *script)
    return BeamPool(ledger, new_pipeline=lambda: beam.Pipeline(runner=runner), versions=VERSIONS)


def does_all(folder: Path, work: Work) -> None:
    doing = DoUnits(folder, pickle.dumps(work))
    doing.process("000000")
    doing.teardown()


def fails(_: Path) -> None:
    raise RuntimeError("no machine is left\nand more")


def fails_in_the_middle(folder: Path) -> None:
    taking = Taking(folder)
    taking.begin("000000")
    taking.begin("000001")
    taking.answer("000000", [Answer.DONE, {"n": 7}, 1.0, 1])
    fails(folder)


def test_a_lost_job_is_followed_by_another(ledger: Ledger, work: Work, quick: None) -> None:
    units = added(ledger, a={}, b={}, c={})
    outcome = scripted(ledger, fails_in_the_middle, lambda folder: does_all(folder, work)).run(units, work)
    assert [done.unit.name for done in outcome.done] == ["a", "b", "c"]
    assert states(ledger) == {"a": ("done", 1), "b": ("done", 2), "c": ("done", 1)}
    errors = (ledger.folder / ERRORS_LOG).read_text()
    assert "read b, attempt 1: the worker died (with its job)" in errors
    assert "a job of Beam failed: no machine is left" in errors


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (fails, "^the job of Beam failed: no machine is left$"),
        (lambda _: None, "its workers did nothing that is seen in .*: put the run on a file system"),
        (
            lambda folder: does_all(Path("/nowhere/ledger/handed_out/1"), Work(folder)),
            "^the run folder /nowhere is not",
        ),
    ],
)
def test_a_job_that_cannot_begin(ledger: Ledger, work: Work, script: Callable[[Path], None], reason: str) -> None:
    with pytest.raises(StoppedError, match=reason):
        scripted(ledger, script).run(added(ledger, a={}, b={}), work)
    assert states(ledger) == {"a": ("waiting", 0), "b": ("waiting", 0)}


@pytest.fixture
def two_slots(ledger: Ledger, work: Work) -> Iterator[tuple[Handed, list[threading.Thread]]]:
    """Five units in two slots: the first has one that does not end."""
    handed = Handed.out(ledger.folder, added(ledger, a={"deed": "hang in spite"}, b={}, c={}, d={}, e={}))
    slots = [DoUnits(handed.folder, pickle.dumps(work)) for _ in range(2)]
    threads = [
        threading.Thread(target=slot.process, args=[key]) for slot, key in zip(slots, handed.units, strict=False)
    ]
    threads[0].start()
    wait_begun(work.notes, 1)
    threads[1].start()
    threads[1].join(20)
    yield handed, threads
    threads[0].join(20)
    assert not threads[0].is_alive()
    for slot in slots:
        slot.teardown()


def test_no_slot_is_idle(two_slots: tuple[Handed, list[threading.Thread]]) -> None:
    handed, threads = two_slots
    assert threads[0].is_alive()
    assert not threads[1].is_alive()
    assert handed.begun() == {*handed.units}
    assert handed.answered() == {*handed.units} - {"000000"}
    handed.take_back()
    assert handed.answer("000000") is not None
    handed.remove()


def test_workers_of_a_killed_driver_leave(ledger: Ledger, two_slots: tuple[Handed, list[threading.Thread]]) -> None:
    """The next driver waits for them, and no longer than it must."""
    began = time.monotonic()
    take_back_left(ledger.folder)
    assert children()[1:] == []
    assert time.monotonic() - began < 4


def test_workers_of_a_driver_that_does_not_move_leave(
    ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_WITHOUT_BEAT", 0.5)
    handed = Handed.out(ledger.folder, added(ledger, a={"deed": "hang"}, b={}))
    does_all(handed.folder, work)
    found = handed.answer("000000")
    assert found is not None
    assert found[1][:2] == ["left", "the driver was not to be seen for a while"]
    handed.remove()
