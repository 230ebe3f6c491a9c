"""Flink itself: batches with regrouping, streams with keyed state, and workers that print, die and are stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import flink_work
import grpc
import psutil
import pytest
from apache_beam.io.unbounded_source import ReadFromUnboundedSource
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)
from apache_beam.runners.portability.flink_runner import FlinkRunner
from flink_fixtures import LOOPBACK, pool_options

from pipelines.child_process import ChildProcess, ChildProcessFailed, free_port, listens
from pipelines.flink_cluster import FlinkServer, FlinkSettings, start_cluster, start_job_server
from pipelines.flink_jobs import checkpoints, last_checkpoint, rest, running_job, stop
from pipelines.flink_options import flink_options
from pipelines.worker_pool import PoolSettings, WorkerPool, WorkerPoolError, keep_logs

PROJECT = Path(__file__).resolve().parents[1]
NUMBERS = 200
SUMS = {key: sum(range(key, NUMBERS, flink_work.KEYS)) for key in range(flink_work.KEYS)}

MakePipeline = Callable[..., beam.Pipeline]


def waited_for(condition: Callable[[], Any], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def add_sums(pipeline: beam.Pipeline, folder: Path, work: Any) -> None:
    (
        pipeline
        | beam.Create(range(NUMBERS))
        | beam.Reshuffle()
        | "Work" >> work
        | beam.Map(flink_work.keyed)
        | beam.GroupByKey()
        | "Write" >> beam.MapTuple(flink_work.write_sum, str(folder))
    )


@pytest.mark.flink
class TestEmbedded:
    def test_batch_with_regrouping(self, flink_pipeline: MakePipeline, tmp_path: Path) -> None:
        with flink_pipeline((*LOOPBACK, "--parallelism=2")) as pipeline:
            add_sums(pipeline, tmp_path, beam.Map(int))
        assert flink_work.sums(tmp_path) == SUMS

    def test_worker_that_prints_a_lot(
        self, flink_pipeline: MakePipeline, worker_pool: WorkerPool, tmp_path: Path
    ) -> None:
        """Beam's own pool hangs after 64 kB; here all of it is in the worker's log."""
        with flink_pipeline(pool_options(worker_pool)) as pipeline:
            (
                pipeline
                | beam.Create([1])
                | beam.Map(flink_work.print_a_lot)
                | beam.Map(flink_work.keyed)
                | beam.GroupByKey()
                | beam.MapTuple(flink_work.write_sum, str(tmp_path))
            )
        assert flink_work.sums(tmp_path) == {1: 1}
        (log,) = worker_pool.settings.logs.glob("worker-*.log")
        assert log.read_text().count("x" * 1_000_000) == 1

    def test_killed_worker(self, flink_pipeline: MakePipeline, worker_pool: WorkerPool, tmp_path: Path) -> None:
        pipeline = flink_pipeline(pool_options(worker_pool))
        add_sums(pipeline, tmp_path, beam.Map(flink_work.slow, str(tmp_path)))
        result = pipeline.run()
        assert waited_for((tmp_path / "begun").exists)
        (pid,) = worker_pool.pids()
        os.kill(pid, signal.SIGKILL)
        assert result.wait_until_finish() == "DONE"
        assert flink_work.sums(tmp_path) == SUMS
        counts = worker_pool.counts()
        assert (counts.started, counts.died) == (2, 1)

    def test_stream_stopped_and_resumed(
        self, flink_server: FlinkServer, flink_pipeline: MakePipeline, worker_pool: WorkerPool, tmp_path: Path
    ) -> None:
        """After a savepoint numbers and states go on where they were: none is lost, repeated or counted anew."""

        def run(*more: str) -> tuple[Any, str]:
            pipeline = flink_pipeline(pool_options(worker_pool, "--checkpointing_interval=500", *more), True)
            (
                pipeline
                | ReadFromUnboundedSource(flink_work.Numbers(), max_read_time_seconds=0.3)
                | beam.Map(flink_work.keyed)
                | beam.ParDo(flink_work.CountByKey(str(tmp_path)))
            )
            result, seen = pipeline.run(), len(flink_work.counts(tmp_path))
            job = running_job(flink_server.rest_url).job_id
            assert waited_for(lambda: len(flink_work.counts(tmp_path)) > seen + 100)
            assert waited_for(lambda: checkpoints(flink_server.rest_url, job).completed > 1)
            return result, job

        result, job = run()
        config = rest(flink_server.rest_url, f"/jobs/{job}/checkpoints/config")
        assert config["externalization"] == {"enabled": True, "delete_on_cancellation": False}
        assert "RocksDB" in config["state_backend"]
        kept = last_checkpoint(flink_server.checkpoints, job)
        assert kept is not None
        assert kept.startswith(f"file://{flink_server.checkpoints}/{job}/chk-")
        savepoint = stop(flink_server.rest_url, job)
        assert result.wait_until_finish() == "DONE"
        result, job = run(f"--savepoint_path={savepoint}")
        assert checkpoints(flink_server.rest_url, job).restored == 1
        stop(flink_server.rest_url, job)
        result.wait_until_finish()
        found = flink_work.counts(tmp_path)
        assert sorted(found) == list(range(len(found)))
        assert found == {number: {number // flink_work.KEYS} for number in found}


@pytest.mark.flink
def test_cluster_with_killed_task_manager(flink_components: None, worker_pool: WorkerPool, tmp_path: Path) -> None:
    """A batch goes on when another task manager comes in the place of one that was killed."""
    settings = FlinkSettings(slots=1, heap_mb=400, managed_mb=64)
    with (
        start_cluster(tmp_path / "cluster", settings=settings) as cluster,
        start_job_server(tmp_path / "server", flink_master=cluster.master, settings=settings) as server,
    ):
        options = flink_options(pool_options(worker_pool, *cluster.options), False, server.job_endpoint)
        pipeline = beam.Pipeline(runner=FlinkRunner(), options=options)
        add_sums(pipeline, tmp_path, beam.Map(flink_work.slow, str(tmp_path)))
        result = pipeline.run()
        assert waited_for((tmp_path / "begun").exists)
        cluster.task_managers[0].kill()
        cluster.start_task_manager()
        assert result.wait_until_finish() == "DONE"
        pids = [process.pid for process in (cluster.job_manager, cluster.task_managers[1], server.process)]
    assert flink_work.sums(tmp_path) == SUMS
    assert all(gone(pid) for pid in pids)


class TestChildProcess:
    def test_failed_start(self, tmp_path: Path) -> None:
        program = ChildProcess("it", [sys.executable, "-c", "import sys; sys.exit('no, thanks')"], tmp_path / "log")
        with pytest.raises(ChildProcessFailed, match="it ended at its start: no, thanks"):
            program.start().wait_until(lambda: False, 20)
        with pytest.raises(ChildProcessFailed, match="it cannot be started"):
            ChildProcess("it", [str(tmp_path / "absent")], tmp_path / "log").start()

    def test_too_slow(self, tmp_path: Path) -> None:
        program = ChildProcess("it", ["sleep", "1000"], tmp_path / "log").start()
        pid = program.pid
        with pytest.raises(ChildProcessFailed, match="it is not ready after 0 s: its log is empty"):
            program.wait_until(lambda: False, 0.2)
        assert gone(pid)
        assert not program.running


class Provision(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """A runner that tells workers their pipeline's options."""

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        info = beam_provision_api_pb2.ProvisionInfo(runner_capabilities=["one", "two"])
        info.pipeline_options.update({"beam:option:max_cache_memory_usage_mb:v1": "12"})
        info.pipeline_options["beam:option:worker_asked:v1"] = dict(context.invocation_metadata())["worker_id"]
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)


@pytest.fixture
def provision() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Provision(), server)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def request(name: str, provision: str) -> Any:
    # Nobody answers there: the worker keeps trying.
    nobody = {"url": f"127.0.0.1:{free_port()}"}
    return beam_fn_api_pb2.StartWorkerRequest(
        worker_id=name,
        provision_endpoint={"url": provision},
        control_endpoint=nobody,
        logging_endpoint=nobody,
    )


class TestWorkerPool:
    def test_start_and_stop(self, worker_pool: WorkerPool, provision: str) -> None:
        assert worker_pool.StartWorker(request("1/2", provision), None).error == ""
        (options,) = worker_pool.settings.logs.glob("worker-*-1_2.json")
        assert options.stat().st_mode & 0o077 == 0
        assert json.loads(options.read_text()) == {
            "beam:option:max_cache_memory_usage_mb:v1": "12",
            "beam:option:worker_asked:v1": "1/2",
        }
        (pid,) = worker_pool.pids()
        variables = psutil.Process(pid).environ()
        assert variables["WORKER_ID"] == "1/2"
        assert variables["PIPELINE_OPTIONS_FILE"] == str(options)
        assert variables["RUNNER_CAPABILITIES"] == "one two"
        assert variables["CONTROL_API_SERVICE_DESCRIPTOR"].startswith('url: "127.0.0.1:')
        worker_pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1/2"), None)
        assert gone(pid)
        assert (worker_pool.counts().running, worker_pool.counts().died) == (0, 0)
        assert options.with_suffix(".log").exists()

    def test_runner_is_gone(self, worker_pool: WorkerPool, provision: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.worker_pool._PROVISION_TIMEOUT_S", 0.2)
        answer = worker_pool.StartWorker(request("1", f"127.0.0.1:{free_port()}"), None)
        assert "Deadline Exceeded" in answer.error
        assert worker_pool.counts().started == 0

    def test_port_is_taken(self, worker_pool: WorkerPool, tmp_path: Path) -> None:
        with (
            pytest.raises(WorkerPoolError, match=f":{worker_pool.port} cannot be listened at"),
            WorkerPool(PoolSettings(tmp_path, port=worker_pool.port)),
        ):
            pass

    def test_workers_die_with_the_command(self, provision: str, tmp_path: Path) -> None:
        """Also when it is killed; until then it tells of them."""
        command = [sys.executable, "-m", "pipelines.cli", "worker-pool", "--port=0", "--health-port=0"]
        process = subprocess.Popen(
            [*command, f"--logs={tmp_path}"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        with process.stdout as told:
            port, health = map(int, re.findall(r":(\d+)", told.readline()))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            assert stub.StartWorker(request("1", provision)).error == ""
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/healthz") as answer:
            told = json.loads(answer.read())
        assert (told["status"], told["running"], told["started"], told["died"]) == ("ok", 1, 1, 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/metrics") as answer:
            assert "\nalertbeam_workers 1\n" in answer.read().decode()
        (go_between,) = psutil.Process(process.pid).children()
        (worker,) = go_between.children()
        process.kill()
        process.wait()
        assert waited_for(lambda: gone(worker.pid), 20)
        assert not listens(port)

    def test_logs(self, tmp_path: Path) -> None:
        settings = PoolSettings(tmp_path, most_log_bytes=10, dead_logs=2)
        names = [f"worker-{number}.log" for number in range(5)]
        for age, name in enumerate(names):
            (tmp_path / name).write_text(f"{name} {'x' * 20}")
            (tmp_path / name).with_suffix(".json").touch()
            os.utime(tmp_path / name, (1000 - age, 1000 - age))
        keep_logs(settings, [tmp_path / "worker-4.log"])
        assert sorted(path.name for path in tmp_path.glob("*.log*")) == [*names[:2], "worker-4.log", "worker-4.log.1"]
        assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["worker-0", "worker-1", "worker-4"]
        assert (tmp_path / "worker-4.log").read_text() == ""
        assert (tmp_path / "worker-4.log.1").read_text() == f"worker-4.log {'x' * 20}"
