"""The live stream on a Flink cluster of this machine, beside the same stream on the local runner."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import conditions, figure
from benchmarks.night import make_nights
from benchmarks.stream import Stream, send, told
from messaging.local_broker import BrokerOptions, start_broker
from messaging.play import Pace
from pipelines.flink_cluster import FlinkCluster, FlinkServer, FlinkSettings, start_cluster, start_job_server
from pipelines.flink_jobs import checkpoints, running_job
from pipelines.worker_pool import PoolSettings, WorkerPool


def run(
    alerts: int = 15_000, rate: float = 150.0, seconds: float = 60.0, slots: int = 2, heap_mb: int = 768
) -> Iterator[dict[str, Any]]:
    """Measure ``alertbeam stream --step all`` on Flink; the peer is the local runner.

    Parameters
    ----------
    alerts : int
        That wait in the topic when the stream begins: the sustained rate.
    rate, seconds : float
        Alerts per second sent after that, and for how long: the latency, up to the commit, which comes with a
        checkpoint.
    slots : int
        Of the one task manager.
    heap_mb : int
        Of each Java process, MiB.

    Yields
    ------
    dict
        Memory of the processes is resident memory at the end, MB.
    """
    steady = int(rate * seconds)
    with tempfile.TemporaryDirectory(prefix="alertbeam-") as folder, ExitStack() as stack:
        here = Path(folder)
        night = make_nights(here / "night", 1, alerts + steady)
        broker = stack.enter_context(start_broker(here / "broker", options=BrokerOptions(heap_mb=768)))
        given = conditions("apache-beam", cores_used=os.cpu_count(), slots=slots)
        send(broker, "waiting", night, alerts)
        with Stream(broker, "waiting", night, here / "local", "--step", "all") as stream:
            local = stream.until(alerts)
        yield figure("stream-local", local.rate, "alerts/s", given, local.rate, peer=True)
        settings = FlinkSettings(slots=slots, heap_mb=heap_mb)
        cluster = stack.enter_context(start_cluster(here / "cluster", settings=settings))
        server = stack.enter_context(start_job_server(here / "server", flink_master=cluster.master, settings=settings))
        pool = stack.enter_context(WorkerPool(PoolSettings(here / "workers", port=0)))
        options = ["--step", "all", "--runner", "FlinkRunner", f"--flink_master={cluster.master}"]
        options += [f"--job_endpoint={server.job_endpoint}", f"--environment_config=localhost:{pool.port}"]
        options += [f"--parallelism={slots}", f"--sdk_worker_parallelism={slots}"]
        with Stream(broker, "waiting", night, here / "flink", *options, group="flink") as stream:
            yield told("flink-backlog", stream.until(alerts), local.rate, given)
            before = stream.metrics()
            with ThreadPoolExecutor(1) as sender:
                sent = sender.submit(send, broker, "waiting", night, steady, Pace(rate=rate), alerts)
                found = stream.until(alerts + steady, since=before)
                sent.result()
            job = checkpoints(cluster.rest_url, running_job(cluster.rest_url).job_id)
            state = {"checkpoint_megabytes": round(job.size_bytes / 1e6, 1), "checkpoint_seconds": job.duration_s}
            memory = _memory(cluster, server, pool, stream)
            yield told("flink-steady", found, local.rate, given | {"sent_per_s": rate} | state | memory)


def _memory(cluster: FlinkCluster, server: FlinkServer, pool: WorkerPool, stream: Stream) -> dict[str, int]:
    pids = {
        "job_manager": cluster.job_manager.pid,
        "task_manager": cluster.task_managers[0].pid,
        "job_server": server.pid,
        "driver": stream.pid,
        **{f"worker_{number}": pid for number, pid in enumerate(pool.pids())},
    }
    return {f"{name}_megabytes": round(psutil.Process(pid).memory_info().rss / 1e6) for name, pid in pids.items()}
