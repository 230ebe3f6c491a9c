"""What a command starts that is told of a Flink, but of no job server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from messaging.child_process import listens
from pipelines.flink_cluster import EMBEDDED, FlinkServer, FlinkSettings, start_job_server
from pipelines.flink_options import without_notices, words_of
from pipelines.usage import StoppedError
from pipelines.worker_pool import PoolSettings, WorkerPool


def start_for_jobs(
    stack: ExitStack, master: str, folder: Path, slots: int, options: Sequence[str]
) -> tuple[FlinkServer, list[str]]:
    """Start a job server, and Python workers if Flink is to be inside of it and the options do not name any.

    Parameters
    ----------
    stack : ExitStack
        Ends what is started.
    master : str
        See :func:`~pipelines.flink_cluster.start_job_server`.
    folder : Path
        For both, and for Flink inside of the job server.
    slots : int
        Of Flink inside of the job server, with a worker for each.
    options : sequence of str
        Beam's.

    Returns
    -------
    FlinkServer
    list of str
        The options, with those of the workers.

    Raises
    ------
    FlinkError, ChildProcessFailed, JarsError, WorkerPoolError
        If something cannot be started.
    """
    options, words = [*options], words_of(options)
    if master == EMBEDDED and not any(name.startswith("environment_") for name in words):
        pool = stack.enter_context(WorkerPool(PoolSettings(folder / "workers", port=0)))
        options.append(f"--environment_config={pool.settings.host}:{pool.port}")
        if "sdk_worker_parallelism" not in words:
            options.append(f"--sdk_worker_parallelism={slots}")
    settings = FlinkSettings(slots=slots)
    return stack.enter_context(start_job_server(folder, flink_master=master, settings=settings)), options


def check_job_server(options: PipelineOptions) -> None:
    """See whether the job server that options name takes connections.

    Raises
    ------
    StoppedError
        If not.
    """
    with without_notices():
        host, _, port = options.view_as(PortableOptions).job_endpoint.rpartition(":")
    if not (port.isdecimal() and listens(int(port), host)):
        raise StoppedError(f"no job server of Beam answers at {host}:{port}")
