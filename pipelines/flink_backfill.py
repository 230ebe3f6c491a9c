"""Units of work of a run done by a job of Beam, so that a cluster's slots share them; the driver keeps the ledger.

There is a job for each stage, and another for what failed in it. The job has one transform, that does units: each slot
those that the runner gave it, and then what no other slot has begun, so that none is idle while units are left. A unit
is done by a process of its own beside the worker of Beam, as on one machine: what kills it costs an attempt, not the
job, its memory is its own, and no lock of the interpreter is shared.
"""

from __future__ import annotations

import logging
import pickle
import re
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import apache_beam as beam
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.runner import PipelineResult

from pipelines.flink_cluster import FlinkServer, FlinkSettings, start_job_server
from pipelines.flink_options import flink_options, is_flink, master_to_serve, parallelism
from pipelines.running import make_runner
from pipelines.unit_exchange import LEFT, SECONDS_BETWEEN_LOOKS, Handed, Taking
from pipelines.usage import StoppedError, UsageError
from pipelines.workers import Answer, Done, Outcome, Task, Work, death, log_error, start_process
from run_folder.ledger import Ledger, LedgerError, Unit

_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_TO_CANCEL: Final = 10.0
_SECONDS_TO_END: Final = 5.0
_UNITS_PER_PROCESS: Final = 200
# A slot of a cluster stands for a core.
_THREADS: Final = 1
_MOST_REASON: Final = 500
_UNREACHABLE: Final = re.compile(r"the run folder .+? share\b", re.DOTALL)


def _is_no_message_of_a_job(record: logging.LogRecord) -> bool:
    """Say whether a record is none of the job server's: those of failed jobs are in ``errors.log``."""
    return record.module != "portable_runner"


class BeamPipelines:
    """Makes empty pipelines for a runner; for a Flink without a job server it starts one with the first.

    To be used in a ``with`` block, which ends the job server.

    Parameters
    ----------
    runner : str
    options : sequence of str
        Beam's.
    folder : Path
        For the job server.

    Raises
    ------
    UsageError
        If the options cannot be used.
    """

    def __init__(self, runner: str, options: Sequence[str], folder: Path) -> None:
        self._runner, self._options, self._folder = runner, options, folder
        self._master: str | None = None
        self._server: FlinkServer | None = None
        self.parallelism = 1
        if is_flink(runner):
            self._master = master_to_serve(options)
            given = flink_options(options, streaming=False, job_endpoint=self._master)
            if not any(option.startswith("--parallelism=") for option in options):
                raise UsageError("--parallelism=N: say how many slots of Flink are to be used")
            self.parallelism = parallelism(given)
        else:
            make_runner("backfill", runner, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()

    def __call__(self) -> beam.Pipeline:
        """Make a pipeline."""
        if not is_flink(self._runner):
            runner, options = make_runner("backfill", self._runner, self._options)
            return beam.Pipeline(runner=runner, options=options)
        if self._master is not None and self._server is None:
            settings = FlinkSettings(slots=self.parallelism)
            self._server = start_job_server(self._folder, flink_master=self._master, settings=settings)
        endpoint = self._server.job_endpoint if self._server is not None else None
        return beam.Pipeline(runner=FlinkRunner(), options=flink_options(self._options, False, endpoint))


class BeamPool:
    """Does units of work by jobs of Beam; of the interface of :class:`~pipelines.workers.WorkerPool`.

    Parameters
    ----------
    ledger : Ledger
        Written by this process alone. What the processes print goes to ``workers.HOST.log`` beside it, and the traces
        of errors to ``errors.log``.
    new_pipeline : callable
        Gives an empty pipeline with its runner and options.
    versions : Mapping
        Of code, catalogues and model, noted with each unit.
    """

    def __init__(
        self, ledger: Ledger, *, new_pipeline: Callable[[], beam.Pipeline], versions: Mapping[str, Any]
    ) -> None:
        self._ledger = ledger
        self._new_pipeline = new_pipeline
        self._versions = dict(versions)

    def run(
        self,
        units: Sequence[Unit],
        work: Work,
        *,
        attempts: int = 3,
        on_change: Callable[[], None] | None = None,
    ) -> Outcome:
        """Do units of work; what fails is tried again when the others are done.

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
            If the work raised :class:`~pipelines.workers.StopWork` or StoppedError, with its message; if the job could
            not begin; if the workers do not see the folder of the run.
        RuntimeError
            If a worker cannot import the work.

        Whatever is raised, and so when the user interrupts, what was not done waits again.
        """
        task = Task(self._ledger, self._versions, deque(units), attempts, on_change or (lambda: None))
        try:
            while task.waiting:
                taken = tuple(task.waiting)
                task.waiting.clear()
                self._do(taken, pickle.dumps(work), task)
        except BaseException:
            with suppress(OSError, LedgerError):
                self._ledger.put_back()
            raise
        return task.outcome

    def _do(self, units: Sequence[Unit], work: bytes, task: Task) -> None:
        """Do units by one job; what is to be done again is put into the task."""
        handed = Handed.out(self._ledger.folder, units)
        job = _Job(self._new_pipeline(), handed, work)
        wave = _Wave(handed, task)
        root = logging.getLogger()
        root.addFilter(_is_no_message_of_a_job)
        try:
            job.start()
            while job.is_alive():
                job.join(_SECONDS_BETWEEN_LOOKS)
                handed.beat()
                wave.look()
            handed.take_back()
            self._explain(job, wave)
        except BaseException:
            handed.take_back()
            job.cancel()
            with suppress(OSError, LedgerError):
                wave.keep_done()
            raise
        finally:
            root.removeFilter(_is_no_message_of_a_job)
            handed.remove()

    def _explain(self, job: _Job, wave: _Wave) -> None:
        """See to what has no answer though the job has ended."""
        begun = wave.close()
        reason = "" if job.error is None else str(job.error).strip()
        if job.error is not None:
            log_error(self._ledger, f"a job of Beam failed: {reason}\n")
        if found := _UNREACHABLE.search(reason):
            raise StoppedError(found[0])
        first = reason.partition("\n")[0][:_MOST_REASON]
        if not begun and job.error is not None:
            raise StoppedError(f"the job of Beam failed: {first or type(job.error).__name__}")
        if not begun:
            raise StoppedError(
                f"the job of Beam ended, and its workers did nothing that is seen in {wave.handed.folder.parents[2]}: "
                "put the run on a file system that the driver and all workers share"
            )


@dataclass(eq=False)
class _Wave:
    """What the driver knows of units that are handed out."""

    handed: Handed
    task: Task
    begun: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Tell the ledger what happened since the last look."""
        answered = self.handed.answered()
        for key in sorted(self.handed.begun() | answered):
            self._begin(key)
        for key in sorted(answered):
            self._take(key)
        self.task.on_change()

    def close(self) -> bool:
        """Tell it all, when no worker is left: what was not begun waits again. Say whether anything was begun."""
        for key, unit in self.handed.units.items():
            self._take(key)
            if key in self.answered:
                continue
            if key in self.begun or self.handed.is_begun(key):
                self._begin(key)
                self.task.failed(unit, "the worker died (with its job)", "")
            else:
                self.task.waiting.append(unit)
        return bool(self.begun)

    def keep_done(self) -> None:
        """Tell the ledger of what is done, and nothing else."""
        for key in self.handed.units:
            if (found := self.handed.answer(key)) is not None and found[1][0] == Answer.DONE:
                self._take(key)

    def _begin(self, key: str) -> None:
        if key not in self.begun:
            unit = self.handed.units[key]
            self.task.ledger.start(unit.stage, unit.name)
            self.begun.add(key)

    def _take(self, key: str) -> None:
        if key in self.answered or (found := self.handed.answer(key)) is None:
            return
        self._begin(key)
        self.answered.add(key)
        unit = self.handed.units[key]
        host, (word, *values) = found
        where = "" if host == socket.gethostname() else f" (on {host})"
        if word == Answer.STOP:
            raise StoppedError(f"{values[0]}{where}")
        if word == Answer.UNUSABLE:
            raise RuntimeError(f"a worker cannot import the work: {values[0]}{where}")
        if word == Answer.DONE:
            self.task.done(Done(unit, *values))
        else:
            reason, trace = values
            self.task.failed(unit, f"{reason}{where}", trace)


class _Job(threading.Thread):
    """A job, from its submission to its end; some runners only come back then."""

    def __init__(self, pipeline: beam.Pipeline, handed: Handed, work: bytes) -> None:
        super().__init__(daemon=True, name="job of Beam")
        (
            pipeline
            | "Units" >> beam.Create([*handed.units], reshuffle=False)
            | "To all slots" >> beam.Reshuffle()
            | "Do units" >> beam.ParDo(DoUnits(handed.folder, work))
        )
        self._pipeline = pipeline
        self._result: PipelineResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._pipeline.run()
            self._result.wait_until_finish()
        except BaseException as error:
            self.error = error

    def cancel(self) -> None:
        """End it, if it has not ended."""
        if self.is_alive() and self._result is not None:
            with suppress(Exception):
                self._result.cancel()
        if self.is_alive():
            self.join(_SECONDS_TO_CANCEL)


# What follows runs in a worker of Beam.


@dataclass(eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    begun: int = 0


class DoUnits(beam.DoFn):
    """Do units that are handed out, given by their keys; the answers go to the folder.

    Parameters
    ----------
    folder : Path
        :attr:`~pipelines.unit_exchange.Handed.folder`.
    work : bytes
        Pickled.
    """

    def __init__(self, folder: Path, work: bytes) -> None:
        self._folder, self._work = folder, work
        self._child: _Child | None = None
        self._nothing_left = False

    def process(self, key: str) -> None:
        """Do a unit, and then all that nobody has begun."""
        taking = Taking(self._folder)
        if not self._nothing_left and taking.is_open():
            self._do(key, taking)
            for other in taking.free():
                self._do(other, taking)
            self._nothing_left = True

    def teardown(self) -> None:
        """End the process."""
        self._end()

    def _do(self, key: str, taking: Taking) -> None:
        if taking.is_open() and (unit := taking.begin(key)) is not None:
            taking.answer(key, self._answer(unit, taking))

    def _answer(self, unit: Unit, taking: Taking) -> tuple[Any, ...]:
        try:
            child = self._ready(taking)
            child.begun += 1
            child.connection.send(unit)
            while not child.connection.poll(SECONDS_BETWEEN_LOOKS):
                if not taking.is_open():
                    self._end(at_once=True)
                    return LEFT, "the driver was not to be seen for a while", ""
                if child.process.poll() is not None and not child.connection.poll():
                    raise EOFError
            answer: tuple[Any, ...] = child.connection.recv()
            return answer
        except (EOFError, OSError) as error:
            return Answer.FAILED, self._end() or f"no worker could be started: {error}", ""

    def _ready(self, taking: Taking) -> _Child:
        child = self._child
        if child is not None and (child.begun >= _UNITS_PER_PROCESS or child.process.poll() is not None):
            self._end()
        if self._child is None:
            log = taking.ledger_folder / f"workers.{socket.gethostname()}.log"
            self._child = _Child(*start_process(log, _THREADS))
            self._child.connection.send(self._work)
        return self._child

    def _end(self, at_once: bool = False) -> str:
        """End the process; give a sentence on how it ended, nothing if there was none."""
        child, self._child = self._child, None
        if child is None:
            return ""
        child.connection.close()
        try:
            child.process.wait(0.0 if at_once else _SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.process.kill()
        return death(child.process)
