"""Units of work of a run done in the slots of a cluster, by a job of Beam; the driver keeps the ledger.

One job serves a whole run: its elements are invitations, one of which reaches each slot, which then does units as the
driver hands them out, until there are none. So no slot is idle while units are left, what failed is tried again at
once, and a job is begun but once. A unit is done by a process of its own beside the worker of Beam, as on one machine:
what kills it costs an attempt, not the job, its memory is its own, and no lock of the interpreter is shared.
"""

from __future__ import annotations

import logging
import pickle
import re
import socket
import subprocess
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import apache_beam as beam
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.runner import PipelineResult

from messaging.child_process import ChildProcessFailed
from messaging.jars import JarsError
from pipelines import __version__
from pipelines.flink_cluster import FlinkServer
from pipelines.flink_jobs import ENDED, FlinkError, cancel, jobs, rest
from pipelines.flink_options import flink_options, is_flink, master_to_serve, named_rest_url, parallelism, words_of
from pipelines.flink_start import check_job_server, start_for_jobs
from pipelines.running import make_runner
from pipelines.unit_exchange import Exchange, Taking
from pipelines.usage import StoppedError, UsageError
from pipelines.worker_pool import WorkerPoolError
from pipelines.workers import Answer, Done, Outcome, Task, Work, death, log_error, start_process
from run_folder.ledger import Ledger, LedgerError, Unit

_SECONDS_BETWEEN_LOOKS: Final = 0.25
_SECONDS_TO_SAY: Final = 30.0
_SECONDS_TO_BEGIN: Final = 300.0
_SECONDS_TO_CANCEL: Final = 10.0
_SECONDS_TO_END: Final = 5.0
_UNITS_PER_PROCESS: Final = 200
# A runner may bring several to one slot, where the first keeps it busy.
_INVITATIONS_PER_SLOT: Final = 16
# A slot of a cluster stands for a core.
_THREADS: Final = 1
_MOST_REASON: Final = 500
_CANCELLED: Final = "failed in state CANCELLED"
_STOPPED: Final = re.compile(rf"{StoppedError.__name__}: (.+?)(?: \[while running|$)", re.MULTILINE)


def _is_no_message_of_a_job(record: logging.LogRecord) -> bool:
    """Say whether a record is none of the job server's: those of failed jobs are in ``errors.log``."""
    return record.module != "portable_runner"


class Pipelines(Protocol):
    """Makes empty pipelines for the slots of a runner."""

    parallelism: int

    def __call__(self) -> beam.Pipeline:
        """Make a pipeline."""

    def slots(self) -> str:
        """Tell how many slots there are, for the end of a sentence; nothing where that is not known."""

    def cancel(self) -> None:
        """Cancel the jobs that still run, where Beam cannot."""


class BeamPipelines:
    """Makes empty pipelines for a runner; for a Flink without a job server it starts one with the first.

    Flink inside of the job server gets Python workers as well, unless the options say where there are some. To be used
    in a ``with`` block, which ends all that was started.

    Parameters
    ----------
    runner : str
    options : sequence of str
        Beam's.
    folder : Path
        For the job server and logs of workers.

    Attributes
    ----------
    parallelism : int
        Slots to use.

    Raises
    ------
    UsageError
        If the options cannot be used.
    """

    def __init__(self, runner: str, options: Sequence[str], folder: Path) -> None:
        self._runner, self._options, self._folder = runner, [*options], folder
        self._master: str | None = None
        self._server: FlinkServer | None = None
        self._rest_url: str | None = None
        self._started = ExitStack()
        # By which Flink knows our jobs.
        self._name = f"alertbeam-backfill-{uuid.uuid4().hex[:12]}"
        self.parallelism = 1
        if is_flink(runner):
            self._master = master_to_serve(options)
            given = flink_options(self._options, streaming=False, job_endpoint=self._master)
            words = words_of(options)
            if "parallelism" not in words:
                raise UsageError("--parallelism=N: say how many slots of Flink are to be used")
            self.parallelism = parallelism(given)
            if "job_name" not in words:
                self._options.append(f"--job_name={self._name}")
            self._rest_url = named_rest_url(options)
        else:
            make_runner("backfill", runner, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.close()

    def __call__(self) -> beam.Pipeline:
        """Make a pipeline.

        Raises
        ------
        StoppedError
            If Flink or its job server does not answer, or cannot be started.
        """
        if not is_flink(self._runner):
            runner, options = make_runner("backfill", self._runner, self._options)
            return beam.Pipeline(runner=runner, options=options)
        if self._master is not None and self._server is None:
            self._server = self._job_server(self._master)
        endpoint = self._server.job_endpoint if self._server is not None else None
        given = flink_options(self._options, False, endpoint)
        check_job_server(given)
        return beam.Pipeline(runner=FlinkRunner(), options=given)

    def slots(self) -> str:
        """Tell how many slots Flink has, for the end of a sentence; nothing where it cannot be asked."""
        if self._rest_url is None:
            return ""
        try:
            told = rest(self._rest_url, "/overview")
        except FlinkError:
            return ""
        return f"; Flink has {told['slots-total']} slots, of which {told['slots-available']} are free"

    def cancel(self) -> None:
        """Cancel the jobs that still run, if Flink can be asked.

        One that waits for slots would otherwise keep others from them: job servers of Beam 2.62 do not cancel batches.
        """
        if self._rest_url is None:
            return
        with suppress(FlinkError):
            for job in jobs(self._rest_url):
                if job.name == self._name and job.state not in ENDED:
                    cancel(self._rest_url, job.job_id)

    def _job_server(self, master: str) -> FlinkServer:
        try:
            if self._rest_url is not None:
                rest(self._rest_url, "/overview")
            server, self._options = start_for_jobs(self._started, master, self._folder, self.parallelism, self._options)
            return server
        except (FlinkError, ChildProcessFailed, JarsError, WorkerPoolError) as error:
            raise StoppedError(str(error)) from error


class BeamPool:
    """Does units of work by jobs of Beam; of the interface of :class:`~pipelines.workers.WorkerPool`.

    To be used in a ``with`` block, which ends the job.

    Parameters
    ----------
    ledger : Ledger
        Written by this process alone. What the processes print goes to ``workers.HOST.log`` beside it, and the traces
        of errors to ``errors.log``.
    pipelines : Pipelines
    versions : Mapping
        Of code, catalogues and model, noted with each unit.
    say : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        pipelines: Pipelines,
        versions: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._pipelines = pipelines
        self._versions = dict(versions)
        self._say = say
        self._job: _Job | None = None

    def __enter__(self) -> Self:
        logging.getLogger().addFilter(_is_no_message_of_a_job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end()
        finally:
            logging.getLogger().removeFilter(_is_no_message_of_a_job)

    def _end(self, task: Task | None = None) -> None:
        """End the job; tell the ledger of what is done, and nothing else."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            if not job.end():
                self._pipelines.cancel()
            if task is not None:
                job.take_done(task)
        finally:
            job.exchange.remove()

    def run(
        self,
        units: Sequence[Unit],
        work: Work,
        *,
        attempts: int = 3,
        on_change: Callable[[], None] | None = None,
    ) -> Outcome:
        """Do units of work; what fails is tried again after the others.

        Parameters
        ----------
        units : sequence of Unit
            All waiting.
        work : callable
            Does a unit and gives what it counted. It can be pickled, and imported by its module's name. Other work than
            before needs another job.
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
        pickled = pickle.dumps(work)
        try:
            while task.waiting or (self._job is not None and self._job.units):
                self._look(self._doing(pickled), task)
        except BaseException:
            # Where this fails, the ledger does the same when it is opened again.
            with suppress(OSError, LedgerError):
                self._end(task)
            with suppress(OSError, LedgerError):
                self._ledger.put_back()
            raise
        return task.outcome

    def _doing(self, work: bytes) -> _Job:
        """Job that does this work."""
        if self._job is not None and self._job.work != work:
            self._end()
        if self._job is None:
            pipeline = self._pipelines()
            self._job = _Job(pipeline, Exchange(self._ledger.folder), work, self._pipelines.parallelism)
            self._job.start()
        return self._job

    def _look(self, job: _Job, task: Task) -> None:
        """Hand out what waits, and tell the ledger what happened since the last look."""
        job.hand_out(task.waiting)
        ended = job.over.wait(_SECONDS_BETWEEN_LOOKS)
        if ended:
            job.exchange.take_back()
        job.take_in(task)
        task.on_change()
        if ended:
            self._go_on_after(job, task)
        elif job.idle_s > (_SECONDS_TO_BEGIN if job.told else _SECONDS_TO_SAY):
            self._tell_idle(job)

    def _tell_idle(self, job: _Job) -> None:
        """Say that nobody works though there is work, and why that may be; the second time, give up."""
        text = (
            f"no worker of Beam has begun for {job.idle_s:.0f} s: {self._pipelines.parallelism} slots must be free"
            f"{self._pipelines.slots()}, and a worker pool must be beside each task manager"
        )
        if job.told:
            raise StoppedError(text)
        self._say(text)
        job.told = True

    def _go_on_after(self, job: _Job, task: Task) -> None:
        """See to what has no answer though the job has ended; another will go on, unless this one did nothing."""
        self._job = None
        job.give_up(task)
        job.exchange.remove()
        reason = "" if job.error is None else "".join(traceback.format_exception_only(job.error)).strip()
        if reason:
            log_error(self._ledger, f"a job of Beam failed: {reason}\n")
        if found := _STOPPED.search(reason):
            raise StoppedError(found[1])
        if _CANCELLED in reason:
            raise StoppedError("the job of Beam was cancelled; start again to go on")
        if job.done_something:
            return
        if reason:
            raise StoppedError(f"the job of Beam failed: {reason.splitlines()[0][:_MOST_REASON]}")
        raise StoppedError(
            f"the job of Beam ended, and its workers did nothing that is seen in {self._ledger.folder.parent}: put the "
            "run on a file system that the driver and all workers share"
        )


class _Job(threading.Thread):
    """A job, from its submission to its end; some runners only come back then."""

    def __init__(self, pipeline: beam.Pipeline, exchange: Exchange, work: bytes, slots: int) -> None:
        super().__init__(daemon=True, name="job of Beam")
        (
            pipeline
            | "Invitations" >> beam.Create(range(slots * _INVITATIONS_PER_SLOT), reshuffle=False)
            | "To all slots" >> beam.Reshuffle()
            | "Do units" >> beam.ParDo(DoUnits(exchange.folder, work, __version__))
        )
        self.exchange, self.work = exchange, work
        # What is handed out and not answered, and what of it is begun.
        self.units: dict[str, Unit] = {}
        self._begun: set[str] = set()
        self.done_something = self.told = False
        self.error: BaseException | None = None
        # To join a thread is no way to wait for it: an interrupt there marks it as ended (Python 3.11).
        self.over = threading.Event()
        self._pipeline = pipeline
        self._result: PipelineResult | None = None
        self._seen_at_work = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Time since somebody was seen at work."""
        return time.monotonic() - self._seen_at_work

    def run(self) -> None:
        try:
            self._result = self._pipeline.run()
            self._result.wait_until_finish()
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()

    def hand_out(self, waiting: deque[Unit]) -> None:
        """Hand out all that waits."""
        if waiting:
            self._seen_at_work = time.monotonic()
        while waiting:
            key = self.exchange.hand_out(waiting[0])
            self.units[key] = waiting.popleft()

    def take_in(self, task: Task) -> None:
        """Tell the ledger what was begun, answered and lost."""
        answered = self.exchange.answered()
        for key in sorted(self.units.keys() & (self.exchange.begun() | answered)):
            self._begin(key, task)
        for key in sorted(self.units.keys() & answered):
            self._take(key, task)
        for key in self.exchange.silent(self.units.keys() & self._begun):
            if not self._take(key, task):
                self.exchange.revoke(key)
                self._lose(key, task)
        if self.units.keys() & self._begun or not self.units:
            self._seen_at_work, self.told = time.monotonic(), False

    def take_done(self, task: Task) -> None:
        """Tell the ledger of what is done, and nothing else."""
        for key in list(self.units):
            if (found := self.exchange.answer(key)) is not None and found[1][0] == Answer.DONE:
                self._take(key, task)

    def give_up(self, task: Task) -> None:
        """Tell the ledger all when no worker is left: what was begun has failed, and the rest waits again."""
        for key in list(self.units):
            if self._take(key, task):
                continue
            if self.exchange.is_begun(key):
                self._begin(key, task)
                self._lose(key, task)
            else:
                task.waiting.append(self.units.pop(key))

    def end(self) -> bool:
        """Let the workers leave; say whether the job ended thereby, or had to be cancelled."""
        self.exchange.take_back()
        if self.over.wait(_SECONDS_TO_END):
            return True
        if self._result is not None:
            with suppress(Exception):
                self._result.cancel()
        self.over.wait(_SECONDS_TO_CANCEL)
        return False

    def _begin(self, key: str, task: Task) -> None:
        if key not in self._begun:
            unit = self.units[key]
            task.ledger.start(unit.stage, unit.name)
            self._begun.add(key)
            self.done_something = True

    def _lose(self, key: str, task: Task) -> None:
        task.failed(self.units.pop(key), "the worker died (with its machine, or its job)", "")

    def _take(self, key: str, task: Task) -> bool:
        """Tell the ledger of an answer; say whether there is one."""
        if (found := self.exchange.answer(key)) is None:
            return False
        self._begin(key, task)
        host, (word, *values) = found
        where = "" if host == socket.gethostname() else f" (on {host})"
        if word == Answer.STOP:
            raise StoppedError(f"{values[0]}{where}")
        if word == Answer.UNUSABLE:
            raise RuntimeError(f"a worker cannot import the work: {values[0]}{where}")
        unit = self.units.pop(key)
        if word == Answer.DONE:
            task.done(Done(unit, *values))
        else:
            reason, trace = values
            task.failed(unit, f"{reason}{where}", trace)
        return True


# What follows runs in a worker of Beam.


@dataclass(eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    begun: int = 0


class DoUnits(beam.DoFn):
    """Do units as they are handed out, until the driver takes them back; the answers go to the folder.

    Parameters
    ----------
    folder : Path
        :attr:`~pipelines.unit_exchange.Exchange.folder`.
    work : bytes
        Pickled.
    version : str
        Of the driver's program.
    """

    def __init__(self, folder: Path, work: bytes, version: str) -> None:
        self._folder, self._work, self._version = folder, work, version
        self._child: _Child | None = None

    def process(self, _: int) -> None:
        """Take up an invitation.

        Raises
        ------
        StoppedError
            If this worker cannot do units of this run.
        """
        if self._version != __version__:
            raise StoppedError(
                f"the worker on {socket.gethostname()} has alertbeam {__version__}, and the driver {self._version}: "
                "install the same"
            )
        taking = Taking(self._folder)
        try:
            while taking.is_open():
                for key in taking.free():
                    self._do(key, taking)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            self._end()

    def _do(self, key: str, taking: Taking) -> None:
        if taking.is_open() and (unit := taking.begin(key)) is not None:
            taking.answer(key, self._answer(key, unit, taking))

    def _answer(self, key: str, unit: Unit, taking: Taking) -> list[Any]:
        try:
            child = self._ready(taking)
            child.begun += 1
            child.connection.send(unit)
            while not child.connection.poll(_SECONDS_BETWEEN_LOOKS):
                if not taking.keep(key):
                    self._end(at_once=True)
                    return [Answer.FAILED, "the worker left: its job had ended, or its driver was not to be seen", ""]
                if child.process.poll() is not None and not child.connection.poll():
                    raise EOFError
            return [*child.connection.recv()]
        except (EOFError, OSError) as error:
            return [Answer.FAILED, self._end() or f"no worker could be started: {error}", ""]

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
