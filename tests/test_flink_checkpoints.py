"""How checkpoints of a stream grow although there is little to do."""

import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import flink_work
import pytest
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from flink_fixtures import pool_options

from pipelines.flink_cluster import FlinkServer
from pipelines.flink_jobs import checkpoints, running_job, stop
from pipelines.worker_pool import WorkerPool

SECONDS = 600
# Measured with RocksDB and bundles of 1 s: 7.3 kB/s if the source waits for 0.2 s, 2.2 kB/s if it waits for 2 s.
MOST_BYTES_PER_S = 15_000


@pytest.mark.flink
@pytest.mark.long
def test_growth(
    flink_server: FlinkServer, flink_pipeline: Callable[..., beam.Pipeline], worker_pool: WorkerPool, tmp_path: Path
) -> None:
    """Beam keeps something of each bundle of a source; ``pytest -s -m long tests/test_flink_checkpoints.py``."""
    pipeline = flink_pipeline(pool_options(worker_pool), True)
    (
        pipeline
        | ReadFromUnboundedSource(flink_work.IdleNumbers(), poll_interval=0.05, max_read_time_seconds=1.0)
        | beam.Map(flink_work.keyed).with_output_types(tuple[int, int])
        | beam.ParDo(flink_work.CountByKey(str(tmp_path)))
    )
    result = pipeline.run()
    job = running_job(flink_server.rest_url).job_id
    sizes: list[tuple[float, int]] = []
    begin = time.monotonic()
    while (seconds := time.monotonic() - begin) < SECONDS:
        told = checkpoints(flink_server.rest_url, job)
        if told.completed > 1:
            sizes.append((seconds, told.size_bytes))
            print(f"{seconds:5.0f} s {told.size_bytes / 1e3:8.0f} kB, took {told.duration_s:.2f} s", flush=True)
        time.sleep(SECONDS / 20)
    (first_s, first), (last_s, last) = sizes[0], sizes[-1]
    growth = (last - first) / (last_s - first_s)
    print(f"{growth / 1e3:.2f} kB/s, {growth * 86_400 / 1e9:.2f} GB a day")
    stop(flink_server.rest_url, job)
    result.wait_until_finish()
    assert 0 < growth < MOST_BYTES_PER_S
