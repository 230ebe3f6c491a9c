"""A stream on Flink: submitted, watched, ended and taken up from here.

The job reads for as long as it is let. What ends it (a signal, the end of the topics, the hour of its renewal) is seen
here, and then it is stopped with a savepoint: what was read is written.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import apache_beam as beam
import grpc
import numpy as np
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from messaging.group import Arrivals, Group, Position
from messaging.monitor import Committed, Monitor
from messaging.offsets import Partition
from messaging.settings import COMMITTED, ConsumerSettings, MonitorSettings
from pipelines import flink_jobs
from pipelines.flink_cluster import EMBEDDED, FlinkServer
from pipelines.flink_jobs import ENDED, GONE, RUNNING, UNKNOWN, FlinkError, Health, Job, Watchdog
from pipelines.flink_options import (
    LOOPBACK,
    flink_options,
    master_to_serve,
    named_rest_url,
    parallelism,
    pause_s,
    without_notices,
    words_of,
)
from pipelines.flink_start import check_job_server, start_for_jobs
from pipelines.stream import StreamJob, build
from pipelines.usage import StoppedError, UsageError
from transforms.counts import PREFIXES, counters
from transforms.kafka_source import MESSAGES

_LOGGER = logging.getLogger(__name__)

# Flink keeps something of each bundle of the source for as long as the job lives; longer ones hold up checkpoints.
BUNDLE_S: Final = 1.0
# A reader that finds nothing ends its bundle, of which Flink keeps something. A message that comes ends the wait; a
# checkpoint does not, and neither does the news that it is complete, which must come before the next.
_IDLE_WAIT_OF_PAUSE: Final = 0.75
# What a bundle gives goes on to the next stage before the bundle ends.
_SEND_SOON: Final = "--experiments=data_buffer_time_limit_ms=200"
_SECONDS_BETWEEN_LOOKS: Final = 1.0
_SECONDS_BETWEEN_ALARMS: Final = 60.0
_SECONDS_FOR_ANSWER: Final = 60.0
_SECONDS_TO_BEGIN: Final = 300.0
_SECONDS_TO_STOP: Final = 300.0
_MOST_REASON: Final = 1000

_ENDS_OF_BEAM: Final = (PipelineState.DONE, PipelineState.FAILED, PipelineState.CANCELLED)

Positions = Mapping[Partition, Position]
_T = TypeVar("_T")


class FlinkStream:
    """Runs streams on Flink, as :class:`~pipelines.local_stream.LocalStream` does here.

    To be used in a ``with`` block, which ends the job server that was started for it.

    Parameters
    ----------
    beam_options : sequence of str
        See :func:`~pipelines.flink_options.flink_options`.
    consumer : ConsumerSettings
    folder : Path
        For a job server, and for Flink inside of it.

    Raises
    ------
    UsageError
        If an option is unknown, of no use, or would lose or hold back data.
    """

    # Checkpoints grow for as long as a job lives: by some 10 kB/s while alerts come, and are written every 3 s.
    renew_hours = 2.0

    def __init__(self, beam_options: Sequence[str], consumer: ConsumerSettings, folder: Path) -> None:
        self.name = f"alertbeam-stream-{consumer.group}"
        self._options = [*beam_options, f"--job_name={self.name}", _SEND_SOON]
        self._consumer, self._folder = consumer, folder
        self._master = master_to_serve(beam_options)
        parsed = flink_options(self._options, True, self._master)
        with without_notices():
            chosen = parsed.get_all_options()
            self._parallelism = parallelism(parsed)
            self._idle_wait_s = _IDLE_WAIT_OF_PAUSE * pause_s(parsed)
        self._in_this_process = chosen["environment_type"] == LOOPBACK
        self.computes_here = self._in_this_process or self._master == EMBEDDED
        self._savepoint = words_of(beam_options).get("savepoint_path", "")
        self._rest_url = named_rest_url(beam_options) or ""
        if self._master is None and not self._rest_url:
            raise UsageError(
                "a stream on Flink is watched and stopped from here: beside --job_endpoint, name the Flink behind it "
                "by --flink_master=HOST:PORT (of its REST interface)"
            )
        self._server: FlinkServer | None = None
        self._started = ExitStack()
        self._start = consumer.start
        # Made at the end of the job before.
        self._last_savepoint: str | None = None
        self._counts = RunningCounts()

    def __enter__(self) -> Self:
        if self._master is not None:
            self._server, self._options = start_for_jobs(
                self._started, self._master, self._folder, self._parallelism, self._options
            )
            self._rest_url = self._server.rest_url
            _LOGGER.info("Flink: %s", self._rest_url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.close()

    def adapted(self, job: StreamJob) -> StreamJob:
        """Job as it is to run on Flink: each slot reads some partitions, and none of them ends the reading.

        Raises
        ------
        UsageError
            If only a part of the partitions was to be read.
        """
        if job.part >= 0:
            raise UsageError("--part is for several processes; on Flink say --parallelism=N")
        return replace(
            job,
            consumer=replace(
                job.consumer,
                start=COMMITTED,
                stop_at_end=False,
                stop_file="",
                timeout_s=max(job.consumer.timeout_s, self._idle_wait_s),
            ),
            # Workers send the metrics messages; for all else there is :meth:`watched`.
            monitor=None if job.monitor is None or job.monitor.metrics is None else replace(job.monitor, port=None),
            bundle_s=max(job.bundle_s, BUNDLE_S),
            splits=self._parallelism,
            checkpointed=True,
            threads=max(1, job.threads // self._parallelism),
        )

    def watched(self, settings: MonitorSettings) -> MonitorSettings:
        """Settings of the monitor of this process, which looks at the job from outside."""
        return replace(settings, metrics=None)

    def counts(self) -> Mapping[str, int]:
        """Counters of the transforms of all workers so far."""
        return self._counts.total

    def run(self, job: StreamJob, watching: Monitor) -> None:
        """Run a stream until its reading is ended; take it up if it runs already.

        Raises
        ------
        StoppedError
            If the job failed, or was stopped by somebody else.
        """
        with Group(self._consumer) as group:
            result, running = None, self._left_running()
            if running is not None:
                _LOGGER.warning("the job %s (%s) runs already, and is taken up", running.name, running.job_id)
            else:
                if self._start != COMMITTED and not self._savepoint:
                    group.move_to_start()
                result = self._submit(job)
                running = self._begun(result)
                self._discard_savepoint()
            # The next time from what is committed, with an empty state.
            self._start, self._savepoint = COMMITTED, ""
            self._options = [option for option in self._options if "savepoint_path" not in words_of([option])]
            self._watch(running, result, group, watching)

    def _submit(self, job: StreamJob) -> PipelineResult:
        endpoint = self._server.job_endpoint if self._server is not None else None
        options = flink_options(self._options, True, endpoint)
        check_job_server(options)
        pipeline = beam.Pipeline(runner=FlinkRunner(), options=options)
        build(pipeline, job)
        with without_notices():
            return pipeline.run()

    def _jobs(self) -> list[Job]:
        """Jobs of streams of this group; none if Flink does not answer, as one inside of a job server without jobs."""
        return self._known_jobs() or []

    def _known_jobs(self) -> list[Job] | None:
        """Jobs of streams of this group; None if Flink does not answer."""
        try:
            return [job for job in flink_jobs.jobs(self._rest_url) if job.name == self.name and job.state not in ENDED]
        except FlinkError:
            return None

    def _left_running(self) -> Job | None:
        """Job that was begun by a process that is gone."""
        if self._master == EMBEDDED:
            return None
        # A second job would be submitted to a Flink that is only away for a while.
        text = f"Flink does not answer at {self._rest_url} (--flink_master)"
        if self._known_jobs() is None:
            _LOGGER.warning("%s; it is waited for", text)
        _wait(lambda: self._known_jobs() is not None, _SECONDS_FOR_ANSWER, text)
        for job in self._jobs():
            if not self._in_this_process:
                if self._savepoint:
                    raise UsageError(f"--savepoint_path: the job {job.job_id} of group {self._consumer.group} runs")
                return job
            _LOGGER.warning("the job %s lost its workers with the process that began it, and is cancelled", job.job_id)
            flink_jobs.cancel(self._rest_url, job.job_id)
        _wait(lambda: not self._jobs(), _SECONDS_TO_STOP, f"Flink at {self._rest_url} does not cancel {self.name}")
        return None

    def _begun(self, result: PipelineResult) -> Job:
        """Wait until the job runs for the first time."""

        def begun() -> Job | None:
            if (state := _state_by_beam(result)) in _ENDS_OF_BEAM:
                raise StoppedError(f"the job {self.name} is {state}: {_reason_by_beam(result)}")
            if self._told_to_stop():
                for job in self._jobs():
                    flink_jobs.cancel(self._rest_url, job.job_id)
                raise StoppedError(f"{self.name} was stopped before it ran")
            return next((job for job in self._jobs() if job.state == RUNNING), None)

        text = f"{self.name} does not run at {self._rest_url} after {_SECONDS_TO_BEGIN:.0f} s; are enough slots free?"
        return _wait(begun, _SECONDS_TO_BEGIN, text)

    def _discard_savepoint(self) -> None:
        """Remove that of the job before, which this one took the place of without it."""
        if self._last_savepoint is None:
            return
        try:
            flink_jobs.discard(self._rest_url, self._last_savepoint)
        except FlinkError as error:
            _LOGGER.warning("%s is no longer needed, and to be removed by hand: %s", self._last_savepoint, error)
        self._last_savepoint = None

    def _watch(self, job: Job, result: PipelineResult | None, group: Group, watching: Monitor) -> None:
        look = _Look(self._rest_url, job, group, watching, self._counts)
        _LOGGER.info("the job %s runs as %s", job.name, job.job_id)
        ends: dict[Partition, int] | None = None
        while not self._told_to_stop():
            positions, health = look()
            self._check(job, result, health.state)
            if self._consumer.stop_at_end and positions is not None:
                ends = ends or {partition: position.end for partition, position in positions.items()}
                if _reached(positions, ends):
                    break
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._stop(job, result)
        look.last(result)

    def _told_to_stop(self) -> bool:
        return os.path.exists(self._consumer.stop_file)

    def _check(self, job: Job, result: PipelineResult | None, state: str) -> None:
        """Raise StoppedError if the job has ended without having been told to."""
        ended = state in (*ENDED, GONE)
        if state == GONE:
            state = "gone: Flink was started anew"
        elif state == UNKNOWN:
            # Flink inside of a job server ends with its job.
            state = _state_by_beam(result)
            ended = state in _ENDS_OF_BEAM
            if self._server is not None and not self._server.process.running:
                state, ended = f"gone with the job server, see {self._server.folder}", True
        if ended:
            cause = flink_jobs.failure(self._rest_url, job.job_id)
            raise StoppedError(f"the job {job.job_id} is {state}{': ' if cause else ''}{cause}")

    def _state(self, job: Job) -> str:
        try:
            return flink_jobs.state_of(self._rest_url, job.job_id)
        except FlinkError:
            return UNKNOWN

    def _stop(self, job: Job, result: PipelineResult | None) -> None:
        """Stop the job with a savepoint."""
        savepoint = None
        give_up_at = time.monotonic() + _SECONDS_TO_STOP
        while savepoint is None:
            try:
                savepoint = flink_jobs.stop(self._rest_url, job.job_id)
            except FlinkError as error:
                if _state_by_beam(result) == PipelineState.DONE:
                    # Flink inside of a job server may be gone before it has told of the savepoint.
                    break
                self._check(job, result, self._state(job))
                if time.monotonic() > give_up_at:
                    text = "no savepoint, what was done since the last checkpoint will be done once more: %s"
                    _LOGGER.warning(text, error)
                    flink_jobs.cancel(self._rest_url, job.job_id)
                    break
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        if result is not None:
            # It raises for a job that was cancelled.
            with suppress(RuntimeError, grpc.RpcError):
                result.wait_until_finish()
        else:
            _wait(lambda: not self._jobs(), _SECONDS_TO_STOP, f"the job {job.job_id} does not end")
        if savepoint is not None and self._master == EMBEDDED:
            # Flink inside of a job server cannot take one up.
            shutil.rmtree(self._folder / "savepoints", ignore_errors=True)
        elif savepoint is not None:
            self._last_savepoint = savepoint
            _LOGGER.info("the job is stopped; --savepoint_path=%s goes on with its states", savepoint)


class _Look:
    """Looks at a job and its group, and tells the monitor and the log what it sees."""

    def __init__(self, rest_url: str, job: Job, group: Group, watching: Monitor, counts: RunningCounts) -> None:
        self._group, self._watching, self._counts = group, watching, counts
        self._watchdog = Watchdog(rest_url, job.job_id, lambda: self._lag)
        self._lag: int | None = None
        self._arrivals = Arrivals()
        self._committed: dict[Partition, int] | None = None
        self._alarm_at = 0.0

    def __call__(self) -> tuple[Positions | None, Health]:
        """Look now; give how far the group is, if the brokers answer, and how the job is."""
        positions = self._group.positions()
        if positions is not None:
            self._lag = sum(position.lag for position in positions.values())
            self._tell(positions)
        health = self._watchdog.look()
        self._take(health.counts)
        if health.alarms and time.monotonic() >= self._alarm_at:
            self._alarm_at = time.monotonic() + _SECONDS_BETWEEN_ALARMS
            for alarm in health.alarms:
                _LOGGER.warning("%s", alarm)
        return positions, health

    def last(self, result: PipelineResult | None) -> None:
        """Take up what became of a job that has ended."""
        positions = self._group.positions()
        if positions is not None:
            self._tell(positions)
        if result is not None:
            self._take(counters(result))
        self._counts.end()

    def _take(self, counts: Mapping[str, int]) -> None:
        before = self._counts.total.get(MESSAGES, 0)
        self._counts.take(counts)
        self._watching.received(self._counts.total.get(MESSAGES, 0) - before)

    def _tell(self, positions: Positions) -> None:
        """Tell the monitor what waits, and what was committed since the last time."""
        now_s = time.time()
        self._watching.lag({partition: position.lag for partition, position in positions.items()})
        committed = {partition: position.committed or position.first for partition, position in positions.items()}
        before, self._committed = self._committed or committed, committed
        stamps = [
            self._arrivals.times_ms(partition, before.get(partition, positions[partition].first), offset)
            for partition, offset in committed.items()
        ]
        self._arrivals.look(positions, now_s)
        done = np.concatenate([np.empty(0, np.int64), *stamps])
        if len(done):
            received_s = done[done > 0].min(initial=round(1000 * now_s)) / 1000
            self._watching.committed(Committed(len(done), done, received_s))
        elif not self._lag:
            self._watching.idle()


class RunningCounts:
    """Counters over the restarts of a job, each of which begins them anew.

    Attributes
    ----------
    total : dict of str to int
    """

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self._before: Counter[str] = Counter()
        self._latest: dict[str, int] = {}

    def take(self, counts: Mapping[str, int]) -> None:
        """Take up what a job counts now."""
        if not counts:
            return
        ours = {our_name(name): number for name, number in counts.items()}
        if any(ours.get(name, 0) < number for name, number in self._latest.items()):
            self.end()
        self._latest = ours
        self.total = dict(self._before + Counter(self._latest))

    def end(self) -> None:
        """Let the next counts be those of another start."""
        self._before.update(self._latest)
        self._latest = {}


def _state_by_beam(result: PipelineResult | None) -> str:
    """State of a job as its job server knows it; ``UNKNOWN`` if that does not answer."""
    try:
        return str(result.state) if result is not None else PipelineState.UNKNOWN
    except grpc.RpcError:
        return PipelineState.UNKNOWN


def _reason_by_beam(result: PipelineResult) -> str:
    """Tell why a job has ended, as its job server knows it."""
    # Beam would log the whole trace.
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        result.wait_until_finish()
    except (RuntimeError, grpc.RpcError) as error:
        return str(error)[:_MOST_REASON]
    finally:
        logger.setLevel(level)
    return "its job server does not say why"


def our_name(name: str) -> str:
    """Name of a counter as the transforms gave it, from that of Flink, which knows letters and digits only."""
    for prefix in PREFIXES:
        if name.startswith(flink_name := prefix.replace(":", "_")):
            return prefix + name.removeprefix(flink_name)
    return name


def _reached(positions: Positions, ends: Mapping[Partition, int]) -> bool:
    """Say whether everything before some offsets is done, or was nothing."""
    found = {partition: positions[partition] for partition in ends if partition in positions}
    return all(
        position.first >= ends[partition] or (position.committed or 0) >= ends[partition]
        for partition, position in found.items()
    )


def _wait(what: Callable[[], _T | None], seconds: float, failure: str) -> _T:
    """Wait until a function gives something, and give that.

    Raises
    ------
    StoppedError
        If it does not.
    """
    give_up_at = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > give_up_at:
            raise StoppedError(failure)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return found
