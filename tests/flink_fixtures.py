"""Flink for the tests that need it; ``conftest.py`` gives its fixtures to all files.

Each process of pytest starts a job server with Flink inside when the first test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.flink_runner import FlinkRunner
from required_components import Component

from pipelines.flink_cluster import FlinkServer, missing_components, start_job_server
from pipelines.flink_options import flink_options
from pipelines.worker_pool import PoolSettings, WorkerPool

FLINK = Component("Flink (Java and Maven)", "flink_components", missing_components)

LOOPBACK = ("--environment_type=LOOPBACK",)


@pytest.fixture(scope="session")
def flink_components() -> None:
    """Skip where Flink cannot be run; what fails after this, such as a download, is a failure."""
    FLINK.skip_where_absent()


@pytest.fixture(scope="session")
def flink_server(flink_components: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkServer]:
    """Give a job server with Flink inside."""
    with start_job_server(tmp_path_factory.mktemp("flink")) as server:
        yield server


@pytest.fixture
def worker_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Give a pool of Python workers for the environment EXTERNAL."""
    with WorkerPool(PoolSettings(tmp_path_factory.mktemp("workers"), port=0)) as pool:
        yield pool


@pytest.fixture
def flink_pipeline(flink_server: FlinkServer) -> Callable[..., beam.Pipeline]:
    """Give a function that makes a pipeline on Flink: ``flink_pipeline(LOOPBACK, streaming=False)``."""

    def make(options: Sequence[str] = LOOPBACK, streaming: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=FlinkRunner(), options=flink_options(options, streaming, flink_server.job_endpoint))

    return make


def pool_options(pool: WorkerPool, *more: str) -> tuple[str, ...]:
    """Options of pipelines whose workers a pool starts."""
    return (f"--environment_config=localhost:{pool.port}", *more)


def last_checkpoint(folder: Path, job_id: str | None = None) -> str | None:
    """Address of the newest complete checkpoint in a folder, also when nobody runs that could be asked; None if none.

    Parameters
    ----------
    folder : Path
        ``state.checkpoints.dir``.
    job_id : str, optional
        Of this job only.
    """
    found = list(folder.glob(f"{job_id or '*'}/chk-*/_metadata"))
    if not found:
        return None
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent.as_uri()
