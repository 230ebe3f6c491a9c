"""A stream on the local runner, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import apache_beam as beam

from messaging.monitor import Monitor
from messaging.settings import MonitorSettings
from pipelines.running import make_runner, with_bounded_metrics, without_state_cache
from pipelines.stream import StreamJob, build
from transforms.counts import live_counts


class LocalStream:
    """Runs streams here, as :class:`~pipelines.flink_stream.FlinkStream` does on Flink.

    Parameters
    ----------
    runner : str
    beam_options : sequence of str

    Raises
    ------
    UsageError
        If an option is unknown or of no use here.
    """

    computes_here = True
    # Of the memory that the runner gathers (docs/stream.md).
    renew_hours = 24.0

    def __init__(self, runner: str, beam_options: Sequence[str]) -> None:
        self._runner, self._options = make_runner("stream", runner, beam_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def adapted(self, job: StreamJob) -> StreamJob:
        """Job as it is to run here."""
        return job

    def watched(self, settings: MonitorSettings) -> MonitorSettings:
        """Settings of the monitor of this process, which the readers tell."""
        return settings

    def counts(self) -> Mapping[str, int]:
        """Counters of the transforms so far."""
        return live_counts()

    def run(self, job: StreamJob, watching: Monitor) -> None:
        """Run a stream until its reading ends; its readers tell the monitor of it."""
        without_state_cache()
        with_bounded_metrics()
        pipeline = beam.Pipeline(runner=self._runner, options=self._options)
        build(pipeline, job)
        pipeline.run().wait_until_finish()
