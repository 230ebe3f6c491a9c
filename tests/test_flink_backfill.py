"""Units of work done by jobs of Beam: here by its local runner, and by Flink where it is."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from apache_beam.runners.runner import PipelineRunner
from ledger_fixtures import VERSIONS, children
from workers_fixtures import Work, begun, wait_begun

import pipelines.flink_backfill
import pipelines.unit_exchange
from messaging.child_process import free_port
from pipelines import __version__
from pipelines.flink_backfill import BeamPipelines, BeamPool, DoUnits
from pipelines.unit_exchange import Exchange, Taking, take_back_left
from pipelines.usage import StoppedError, UsageError
from pipelines.workers import ERRORS_LOG, Answer, Outcome
from run_folder.ledger import Ledger, Unit, UnitSpec


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for those who are gone."""
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_TO_LEAVE", 0.5)


@dataclass
class Local:
    """Pipelines for one slot, of a runner that is here."""

    runner: str | PipelineRunner = "FnApiRunner"
    parallelism: int = 1
    jobs: int = 0
    cancelled: int = 0

    def __call__(self) -> beam.Pipeline:
        self.jobs += 1
        return beam.Pipeline(runner=self.runner)

    def slots(self) -> str:
        return "; there is one"

    def cancel(self) -> None:
        self.cancelled += 1


class Pool:
    """A pool of workers for one call of it."""

    def __init__(self, ledger: Ledger, runner: str | PipelineRunner = "FnApiRunner") -> None:
        self.ledger, self.pipelines = ledger, Local(runner)
        self.said: list[str] = []

    def run(self, *arguments: Any, **named: Any) -> Outcome:
        with BeamPool(self.ledger, pipelines=self.pipelines, versions=VERSIONS, say=self.said.append) as pool:
            return pool.run(*arguments, **named)


def added(ledger: Ledger, **payloads: dict[str, Any]) -> list[Unit]:
    return ledger.add("read", [UnitSpec(name, payload) for name, payload in payloads.items()])


def states(ledger: Ledger) -> dict[str, tuple[str, int]]:
    return {unit.name: (unit.state, unit.attempts) for unit in ledger.units()}


def test_each_unit_is_done_once(ledger: Ledger, work: Work) -> None:
    changes: list[int] = []
    units = added(ledger, **{f"u{n:02d}": {"n": n} for n in range(12)})
    outcome = Pool(ledger).run(units, work, on_change=lambda: changes.append(1))
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
    outcome = Pool(ledger).run(added(ledger, **payloads), work)
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
        Pool(ledger).run(added(ledger, a={}, b=stop, c={"deed": "hang"}), work)
    assert states(ledger) == {"a": ("done", 1), "b": ("waiting", 0), "c": ("waiting", 0)}


def test_interrupt(ledger: Ledger, work: Work) -> None:
    def interrupt() -> None:
        wait_begun(work.notes, 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Pool(ledger).run(added(ledger, a={}, b={"deed": "hang in spite"}, c={}), work)
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


def scripted(ledger: Ledger, *script: Callable[[Path], None]) -> Pool:
    return Pool(ledger, Scripted(ledger, *script))


def doing(folder: Path, work: Work, version: str = __version__) -> DoUnits:
    return DoUnits(folder, pickle.dumps(work), version)


def fails(_: Path) -> None:
    raise RuntimeError("no machine is left\nand more")


def begin(taking: Taking, key: str) -> None:
    """Begin a unit; a job runs before any is handed out."""
    while taking.begin(key) is None:
        time.sleep(0.01)


def fails_in_the_middle(folder: Path) -> None:
    taking = Taking(folder)
    begin(taking, "000000")
    begin(taking, "000001")
    taking.answer("000000", [Answer.DONE, {"n": 7}, 1.0, 1])
    fails(folder)


def is_cancelled(_: Path) -> None:
    raise RuntimeError("Pipeline x failed in state CANCELLED: nothing")


def does_nothing(folder: Path) -> None:
    while (folder / "alive").exists():
        time.sleep(0.01)


def test_a_lost_job_is_followed_by_another(ledger: Ledger, work: Work, quick: None) -> None:
    units = added(ledger, a={}, b={}, c={})
    outcome = scripted(ledger, fails_in_the_middle, lambda folder: doing(folder, work).process(0)).run(units, work)
    assert [done.unit.name for done in outcome.done] == ["a", "b", "c"]
    assert states(ledger) == {"a": ("done", 1), "b": ("done", 2), "c": ("done", 1)}
    errors = (ledger.folder / ERRORS_LOG).read_text()
    assert "read b, attempt 1: the worker died (with its machine, or its job)" in errors
    assert "a job of Beam failed: RuntimeError: no machine is left" in errors


def test_what_a_lost_machine_had_begun_is_done_by_others(
    ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the runner does not notice, or lets the job go on."""
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_BETWEEN_BEATS", 0.1)
    seen = []

    def with_a_machine_less(folder: Path) -> None:
        lost = Taking(folder)
        begin(lost, "000000")
        doing(folder, work).process(0)
        seen.append(lost.keep("000000"))

    outcome = scripted(ledger, with_a_machine_less).run(added(ledger, a={}, b={}), work)
    assert [done.unit.name for done in outcome.done] == ["b", "a"]
    assert states(ledger) == {"a": ("done", 2), "b": ("done", 1)}
    assert seen == [False]


def test_a_worker_leaves_what_is_revoked(ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_BETWEEN_BEATS", 0.2)
    exchange = Exchange(ledger.folder)
    key = exchange.hand_out(*added(ledger, a={"deed": "hang", "times": 1}))
    (thread := threading.Thread(target=doing(exchange.folder, work).process, args=[0])).start()
    (pid,) = wait_begun(work.notes, 1)
    time.sleep(1)
    assert psutil.pid_exists(pid)
    assert exchange.silent([key]) == []
    exchange.revoke(key)
    while psutil.pid_exists(pid):
        time.sleep(0.02)
    again = exchange.hand_out(*ledger.units())
    while exchange.answer(again) is None:
        time.sleep(0.02)
    exchange.take_back()
    thread.join(20)
    assert not thread.is_alive()
    exchange.remove()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (fails, "^the job of Beam failed: RuntimeError: no machine is left$"),
        (lambda _: None, "its workers did nothing that is seen in .*: put the run on a file system"),
        (
            lambda folder: doing(Path("/nowhere/ledger/handed_out/1"), Work(folder)).process(0),
            "^the run folder /nowhere is not",
        ),
        (lambda folder: doing(folder, Work(folder), "0.0").process(0), "has alertbeam .*, and the driver 0.0: install"),
        (does_nothing, "^no worker of Beam has begun for .* s: 1 slots must be free; there is one, and"),
        (is_cancelled, "^the job of Beam was cancelled; start again"),
    ],
)
def test_a_job_that_cannot_begin(
    ledger: Ledger, work: Work, script: Callable[[Path], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.flink_backfill, "_SECONDS_TO_SAY", 0.5)
    monkeypatch.setattr(pipelines.flink_backfill, "_SECONDS_TO_BEGIN", 1.0)
    pool = scripted(ledger, script)
    with pytest.raises(StoppedError, match=reason):
        pool.run(added(ledger, a={}, b={}), work)
    assert states(ledger) == {"a": ("waiting", 0), "b": ("waiting", 0)}
    assert len(pool.said) == (script is does_nothing)


def test_a_job_that_does_not_end_is_cancelled(ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits for slots when the user interrupts."""
    monkeypatch.setattr(pipelines.flink_backfill, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(pipelines.flink_backfill, "_SECONDS_TO_CANCEL", 0.1)
    interrupt = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    pool = scripted(ledger, lambda _: time.sleep(3))
    with pytest.raises(KeyboardInterrupt):
        pool.run(added(ledger, a={}), work)
    assert pool.pipelines.cancelled == 1
    assert states(ledger) == {"a": ("waiting", 0)}


def test_one_job_serves_until_the_work_is_another(ledger: Ledger, work: Work, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    other, pipelines = Work(tmp_path / "others"), Local()
    with BeamPool(ledger, pipelines=pipelines, versions=VERSIONS, say=print) as pool:
        pool.run(added(ledger, a={}), work)
        pool.run(added(ledger, b={}, c={}), work)
        assert len({*begun(work.notes).values()}) == pipelines.jobs == 1
        pool.run(added(ledger, d={}), other)
        assert pipelines.jobs == 2
    assert list(begun(work.notes)) == ["a.0", "b.0", "c.0"]
    assert list(begun(other.notes)) == ["d.0"]


@pytest.fixture
def two_slots(ledger: Ledger, work: Work) -> Iterator[tuple[Exchange, list[threading.Thread]]]:
    """Five units in two slots: the first has one that does not end."""
    exchange = Exchange(ledger.folder)
    for unit in added(ledger, a={"deed": "hang in spite"}, b={}, c={}, d={}, e={}):
        exchange.hand_out(unit)
    threads = [threading.Thread(target=doing(exchange.folder, work).process, args=[n]) for n in range(2)]
    threads[0].start()
    wait_begun(work.notes, 1)
    threads[1].start()
    deadline = time.monotonic() + 20
    while len(exchange.answered()) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield exchange, threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_no_slot_is_idle(two_slots: tuple[Exchange, list[threading.Thread]]) -> None:
    exchange, _ = two_slots
    keys = {f"{number:06d}" for number in range(5)}
    assert exchange.begun() == keys
    assert exchange.answered() == keys - {"000000"}
    exchange.take_back()
    assert exchange.answer("000000") is not None
    exchange.remove()


def test_workers_of_a_killed_driver_leave(ledger: Ledger, two_slots: tuple[Exchange, list[threading.Thread]]) -> None:
    """The next driver waits for them, and no longer than it must."""
    two_slots[0]._ended.set()
    two_slots[0]._beating.join()
    began = time.monotonic()
    take_back_left(ledger.folder)
    assert children()[1:] == []
    assert time.monotonic() - began < 4


def test_workers_of_a_driver_that_does_not_move_leave(
    ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_WITHOUT_BEAT", 1.0)
    monkeypatch.setattr(pipelines.unit_exchange, "_SECONDS_BETWEEN_BEATS", 0.2)
    exchange = Exchange(ledger.folder)
    for unit in added(ledger, a={"deed": "hang"}, b={}):
        exchange.hand_out(unit)
    (thread := threading.Thread(target=doing(exchange.folder, work).process, args=[0])).start()
    wait_begun(work.notes, 1)
    # While it beats, the worker stays.
    thread.join(2)
    assert thread.is_alive()
    exchange._ended.set()
    thread.join(20)
    found = exchange.answer("000000")
    assert found is not None
    assert found[1][:2] == ["failed", "the worker left: its job had ended, or its driver was not to be seen"]
    exchange.take_back()
    exchange.remove()


def test_what_does_not_answer(tmp_path: Path) -> None:
    """A sentence, before anything is handed out."""
    nobody = f"127.0.0.1:{free_port()}"
    slots = ["--parallelism=2", "--environment_type=LOOPBACK"]
    with (
        BeamPipelines("FlinkRunner", [f"--job_endpoint={nobody}", *slots], tmp_path) as new_pipeline,
        pytest.raises(StoppedError, match=f"^no job server of Beam answers at {nobody}$"),
    ):
        new_pipeline()
    with BeamPipelines("FlinkRunner", [f"--flink_master={nobody}", *slots], tmp_path) as new_pipeline:
        assert new_pipeline.parallelism == 2
        assert new_pipeline.slots() == ""
        with pytest.raises(StoppedError, match=f"http://{nobody}/overview: .*refused"):
            new_pipeline()
    with pytest.raises(UsageError, match="--parallelism=N"):
        BeamPipelines("FlinkRunner", [f"--job_endpoint={nobody}"], tmp_path)
