"""A pool of worker processes that do the units of work of a run; one that dies is replaced.

A worker is a fresh interpreter, not a fork of this process: forks of a process with threads can hang, and a fresh one
has its numbers of threads set before any library is imported. Unlike those of ``multiprocessing`` it does not import
the main module again, so that scripts, notebooks and console scripts may use a pool alike. It takes seconds to import
what a pipeline needs, so it stays for many units, and in a :class:`WorkerPool` for many stages.

Each worker has one pipe to the parent. When the parent closes it or dies in any way, the worker ends at once.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import queue
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pipelines.usage import StoppedError
from run_folder.ledger import Ledger, LedgerError, Unit
from storage.files import readable

Work = Callable[[Unit], Mapping[str, int]]

ERRORS_LOG: Final = "errors.log"
WORKERS_LOG: Final = "workers.log"

_MOST_LOG_BYTES: Final = 4 << 20
_MOST_REASON: Final = 500
_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_TO_END: Final = 5.0
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PROGRAM: Final = (
    "import sys; number, sys.path[:] = sys.argv[1], sys.argv[2:]; sys.argv[1:] = []; "
    "from pipelines.workers import serve; serve(int(number))"
)
_PR_SET_PDEATHSIG: Final = 1


class Answer(StrEnum):
    """First word of what a worker answers."""

    DONE = "done"
    FAILED = "failed"
    STOP = "stop"
    UNUSABLE = "unusable"


class StopWork(StoppedError):
    """Raised by work for what must stop the whole run; its message is for people."""


@dataclass(frozen=True)
class Done:
    """A unit that was done, what it counted, its duration in seconds, and the largest resident memory meanwhile."""

    unit: Unit
    counts: dict[str, int]
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Outcome:
    """Units that were done, in the order in which they were, and those that were set aside, with their reasons."""

    done: tuple[Done, ...]
    aside: tuple[Unit, ...]


def run_units(
    units: Sequence[Unit],
    work: Work,
    ledger: Ledger,
    *,
    workers: int,
    attempts: int = 3,
    versions: Mapping[str, Any],
    on_change: Callable[[], None] | None = None,
    units_per_process: int = 200,
) -> Outcome:
    """Do units of work in processes of their own, that end with the last unit.

    Parameters are those of :class:`WorkerPool` and of its method :meth:`~WorkerPool.run`.
    """
    with WorkerPool(ledger, workers=workers, versions=versions, units_per_process=units_per_process) as pool:
        return pool.run(units, work, attempts=attempts, on_change=on_change)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    work: bytes = b""
    unit: Unit | None = None
    begun: int = 0


@dataclass(eq=False)
class Task:
    """Units that are being done, what became of the others, and what the ledger is told of each.

    Attributes
    ----------
    ledger : Ledger
    versions : Mapping
        Noted with each unit.
    waiting : deque of Unit
    attempts : int
        A unit is set aside when it failed and had so many.
    on_change : callable
        Called after each change in the ledger.
    """

    ledger: Ledger
    versions: Mapping[str, Any]
    waiting: deque[Unit]
    attempts: int
    on_change: Callable[[], None]
    _done: list[Done] = field(default_factory=list)
    _aside: list[Unit] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """What became of the units so far."""
        return Outcome(tuple(self._done), tuple(self._aside))

    def done(self, done: Done) -> None:
        """Note that a unit that runs is done."""
        unit = done.unit
        self.ledger.finish(unit.stage, unit.name, done.counts, done.seconds, done.peak_bytes, self.versions)
        self._done.append(done)
        self.on_change()

    def failed(self, unit: Unit, reason: str, trace: str) -> None:
        """Note that a unit that runs failed: it waits again, or is set aside."""
        so_far = self.ledger.failed(unit.stage, unit.name, reason)
        log_error(self.ledger, f"{unit.stage} {unit.name}, attempt {so_far}: {reason}\n{trace}")
        if so_far < self.attempts:
            self.waiting.append(unit)
        else:
            self.ledger.set_aside(unit.stage, unit.name, reason)
            self._aside.append(self.ledger.unit(unit.stage, unit.name) or unit)
        self.on_change()


class WorkerPool:
    """Processes that do units of work, and stay for the next call until the pool is closed.

    To be used by the thread that opened the ledger, and not to outlive it: on Linux the workers end with the thread.

    Parameters
    ----------
    ledger : Ledger
        Written by this process alone. What the workers print goes to ``workers.log`` beside it, and the traces of
        errors to ``errors.log``; of each the last megabytes are kept, the older ones under ``….1``.
    workers : int
        Most processes at a time. They share the processor's cores: libraries get as many threads as there are cores
        for each worker.
    versions : Mapping
        Of code, catalogues and model, noted with each unit.
    units_per_process : int
        After so many a process is replaced by a fresh one, so that its memory stays bounded.
    """

    def __init__(
        self, ledger: Ledger, *, workers: int, versions: Mapping[str, Any], units_per_process: int = 200
    ) -> None:
        if workers < 1 or units_per_process < 1:
            raise ValueError("a pool needs a worker at least, and each a unit")
        self._ledger = ledger
        self._most = workers
        self._versions = dict(versions)
        self._units_per_process = units_per_process
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._end(self._workers)

    def run(
        self,
        units: Sequence[Unit],
        work: Work,
        *,
        attempts: int = 3,
        on_change: Callable[[], None] | None = None,
    ) -> Outcome:
        """Do units of work; what fails is tried again when the others have been begun.

        Parameters
        ----------
        units : sequence of Unit
            All waiting.
        work : callable
            Does a unit and gives what it counted. It can be pickled, and imported by its module's name.
        attempts : int
            A unit is set aside when it failed and had so many.
        on_change : callable, optional
            Called after each change in the ledger, and twice a second at least.

        Raises
        ------
        StoppedError
            If the work raised :class:`StopWork` or StoppedError, with its message.
        RuntimeError
            If a worker cannot import the work.

        Whatever is raised, and so when the user interrupts, no worker is left then, and what they did waits again.
        """
        task = Task(self._ledger, self._versions, deque(units), attempts, on_change or _nothing)
        pickled = pickle.dumps(work)
        try:
            while task.waiting or self._busy():
                self._hand_out(task, pickled)
                self._take_in(task)
        except BaseException:
            self._end(self._workers, at_once=True)
            # Where this fails, the ledger does the same when it is opened again.
            with suppress(OSError, LedgerError):
                self._ledger.put_back()
            raise
        return task.outcome

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.unit is not None]

    def _hand_out(self, task: Task, work: bytes) -> None:
        self._end([worker for worker in self._workers if worker.unit is None and self._is_used_up(worker)])
        while task.waiting:
            worker = next((worker for worker in self._workers if worker.unit is None), None)
            if worker is None:
                if len(self._workers) >= self._most:
                    return
                worker = self._started()
            self._give(worker, task, work)

    def _is_used_up(self, worker: _Worker) -> bool:
        return worker.begun >= self._units_per_process or worker.process.poll() is not None

    def _give(self, worker: _Worker, task: Task, work: bytes) -> None:
        unit = task.waiting[0]
        self._ledger.start(unit.stage, unit.name)
        worker.unit = task.waiting.popleft()
        worker.begun += 1
        try:
            if worker.work != work:
                worker.connection.send(work)
                worker.work = work
            worker.connection.send(unit)
        except OSError:
            self._died(worker, task)
        task.on_change()

    def _started(self) -> _Worker:
        threads = max(1, _cores() // self._most)
        worker = _Worker(*start_process(self._ledger.folder / WORKERS_LOG, threads))
        self._workers.append(worker)
        return worker

    def _take_in(self, task: Task) -> None:
        busy = self._busy()
        ready = wait([worker.connection for worker in busy], _SECONDS_BETWEEN_LOOKS)
        task.on_change()
        _bounded(self._ledger.folder / WORKERS_LOG)
        for worker in busy:
            # A process may be gone and its end of the pipe still open, in a process that it started itself.
            gone = worker.connection not in ready and worker.process.poll() is not None
            if worker.connection in ready or (gone and worker.connection.poll()):
                self._answered(worker, task)
            elif gone:
                self._died(worker, task)

    def _answered(self, worker: _Worker, task: Task) -> None:
        try:
            word, *values = worker.connection.recv()
        except (EOFError, OSError):
            self._died(worker, task)
            return
        unit = _unit_of(worker)
        if word == Answer.STOP:
            raise StoppedError(*values)
        if word == Answer.UNUSABLE:
            raise RuntimeError(f"a worker cannot import the work: {values[0]}")
        worker.unit = None
        if word == Answer.FAILED:
            reason, trace = values
            task.failed(unit, reason, trace)
            return
        task.done(Done(unit, *values))

    def _died(self, worker: _Worker, task: Task) -> None:
        self._end([worker])
        task.failed(_unit_of(worker), death(worker.process), "")

    def _end(self, workers: Sequence[_Worker], at_once: bool = False) -> None:
        """End processes, those that do nothing by closing their pipes, and wait until none is left."""
        ending = list(workers)
        for worker in ending:
            worker.connection.close()
            if at_once:
                worker.process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for worker in ending:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._workers.remove(worker)


def start_process(log: Path, threads: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a worker; it ends when the connection is closed, or the thread that started it is gone.

    It takes pickled work, and then units, and gives an :class:`Answer` for each: ``(DONE, counts, seconds, peak
    bytes)``, ``(FAILED, reason, trace)``, ``(STOP, message)`` or ``(UNUSABLE, reason)``.

    Parameters
    ----------
    log : Path
        Where to what it prints goes.
    threads : int
        Of each library.
    """
    here, there = Pipe()
    path = [entry for entry in sys.path if isinstance(entry, str)]
    with there, open(_bounded(log), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _PROGRAM, str(there.fileno()), *path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[there.fileno()],
            env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))},
        )
    return process, here


def death(process: subprocess.Popen[bytes]) -> str:
    """Sentence on how a worker ended that nobody had told to."""
    status = process.wait()
    return f"the worker died ({f'signal {-status}' if status < 0 else f'exit status {status}'})"


def log_error(ledger: Ledger, text: str) -> None:
    """Write to ``errors.log`` beside the ledger."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with open(_bounded(ledger.folder / ERRORS_LOG), "a", encoding="utf-8", errors="replace") as file:
        file.write(f"{now} {text}\n")


def _unit_of(worker: _Worker) -> Unit:
    if worker.unit is None:
        raise AssertionError("a worker without a unit was waited for")
    return worker.unit


def _nothing() -> None:
    pass


def _cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bounded(path: Path) -> Path:
    """Empty a log that has become large, after setting a copy aside: others go on writing to the same file."""
    if path.exists() and path.stat().st_size > _MOST_LOG_BYTES:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
    return path


# What follows runs in a worker.


def serve(descriptor: int) -> None:
    """Do the units of work that come through a pipe, and answer each, until the other end is closed.

    Parameters
    ----------
    descriptor : int
        Of this process's end of the pipe.
    """
    # An interrupt from the terminal reaches all processes; what it means is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    faulthandler.enable()
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    work: Work | None = None
    while True:
        message = messages.get()
        if isinstance(message, bytes):
            work, answer = _loaded(message)
            if work is None:
                connection.send(answer)
        elif work is not None:
            connection.send(_answer_of(work, message))


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone, where it can: no code of it runs after that.

    The pipe tells it as well, but not before the interpreter lets another thread run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _listen(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            messages.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _loaded(message: bytes) -> tuple[Work | None, tuple[str, ...]]:
    try:
        return pickle.loads(message), ()
    except Exception as error:
        traceback.print_exc()
        return None, (Answer.UNUSABLE, _first_line(error))


def _answer_of(work: Work, unit: Unit) -> tuple[Any, ...]:
    _reset_peak()
    began = time.monotonic()
    try:
        counts = {str(name): int(number) for name, number in work(unit).items()}
    except StoppedError as error:
        traceback.print_exc()
        return Answer.STOP, readable(str(error))
    except BaseException as error:
        return Answer.FAILED, _first_line(error), readable(traceback.format_exc())
    return Answer.DONE, counts, time.monotonic() - began, _peak_bytes()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return readable(f"{name}: {lines[0]}" if lines else name)[:_MOST_REASON]


def _reset_peak() -> None:
    """Let the kernel count the peak of resident memory anew, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Largest resident memory since the last reset, or of the process where there is no reset."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
