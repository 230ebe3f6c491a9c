"""Flink itself: batches with regrouping, streams with keyed state, and workers that print, die and are stopped."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import flink_work
import grpc
import psutil
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)
from apache_beam.runners.portability.flink_runner import FlinkRunner
from flink_fixtures import last_checkpoint, pool_options

from messaging.child_process import ChildProcess, ChildProcessFailed, free_port, listens, lives
from pipelines import worker_pool_command
from pipelines.flink_cluster import FlinkCluster, FlinkServer, FlinkSettings, start_cluster, start_job_server
from pipelines.flink_jobs import cancel, checkpoints, rest, restarts, running_job, stop
from pipelines.flink_options import flink_options
from pipelines.usage import StoppedError
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


def add_sums(pipeline: beam.Pipeline, folder: Path) -> None:
    (
        pipeline
        | beam.Create(range(NUMBERS))
        | beam.Reshuffle()
        | "Work" >> beam.Map(flink_work.slow, str(folder))
        | beam.Map(flink_work.keyed)
        | beam.GroupByKey()
        | "Write" >> beam.Map(flink_work.write_sum, str(folder))
    )


@pytest.mark.flink
def test_killed_worker_of_a_batch(flink_pipeline: MakePipeline, worker_pool: WorkerPool, tmp_path: Path) -> None:
    """Beam's own pool hangs after 64 kB of output; here all of it is in the worker's log."""
    pipeline = flink_pipeline(pool_options(worker_pool, "--parallelism=2"))
    add_sums(pipeline, tmp_path)
    result = pipeline.run()
    assert waited_for((tmp_path / "begun").exists)
    (pid,) = worker_pool.pids()
    os.kill(pid, signal.SIGKILL)
    assert result.wait_until_finish() == "DONE"
    assert flink_work.sums(tmp_path) == SUMS
    counts = worker_pool.counts()
    assert (counts.started, counts.died) == (2, 1)
    logs = [log.read_text() for log in worker_pool.settings.logs.glob("worker-*.log")]
    assert max(log.count("x" * 1000) for log in logs) == NUMBERS


@dataclass
class Cluster:
    """A cluster whose only task manager can be killed, and what takes jobs for it."""

    flink: FlinkCluster
    server: FlinkServer
    pool: WorkerPool

    @property
    def url(self) -> str:
        return self.flink.rest_url

    def pipeline(self, streaming: bool, *more: str) -> beam.Pipeline:
        given = pool_options(self.pool, "--execution_retry_delay=200", *more)
        return beam.Pipeline(runner=FlinkRunner(), options=flink_options(given, streaming, self.server.job_endpoint))

    def lose_task_manager(self) -> None:
        """Kill it, and let another one come."""
        self.flink.task_managers[-1].kill()
        self.flink.start_task_manager()


@pytest.fixture(scope="class")
def cluster(flink_components: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    settings = FlinkSettings(slots=2, heap_mb=400, managed_mb=64)
    with (
        start_cluster(folder, settings=settings) as flink,
        start_job_server(folder / "server", flink_master=flink.master, settings=settings) as server,
        WorkerPool(PoolSettings(folder / "workers", port=0)) as pool,
    ):
        yield Cluster(flink, server, pool)
        processes = (flink.job_manager, flink.task_managers[-1], server.process)
        pids = [process.pid for process in processes]
        assert all(process.running for process in processes)
    assert not any(map(lives, pids))


@dataclass
class NumbersStream:
    """The stream of :func:`flink_work.count_numbers`, which may be run several times."""

    cluster: Cluster
    folder: Path
    job: str = ""
    result: Any = None

    def start(self, *options: str) -> None:
        pipeline = self.cluster.pipeline(True, "--checkpointing_interval=500", *options)
        flink_work.count_numbers(pipeline, self.folder)
        self.result = pipeline.run()
        self.job = running_job(self.cluster.url).job_id

    def last(self) -> int:
        """End of the last window."""
        return max((end for _, end, _ in flink_work.noted(self.folder, "windows")), default=0)

    def goes_on(self, restored: int) -> None:
        """Wait until more was counted and kept, after so many recoveries."""
        assert waited_for(lambda: checkpoints(self.cluster.url, self.job).restored >= restored)
        told, last = checkpoints(self.cluster.url, self.job), self.last()
        assert told.restored == restored
        assert waited_for(lambda: self.last() > last + flink_work.SPAN)
        assert waited_for(lambda: checkpoints(self.cluster.url, self.job).completed > told.completed)


@pytest.mark.flink
class TestCluster:
    def test_killed_stopped_cancelled_and_resumed(self, cluster: Cluster, tmp_path: Path) -> None:
        """States, windows and timers of a stream go on as if nothing had been, and so does a batch beside it."""
        stream = NumbersStream(cluster, tmp_path)
        stream.start()
        stream.goes_on(restored=0)
        config = rest(cluster.url, f"/jobs/{stream.job}/checkpoints/config")
        assert config["externalization"] == {"enabled": True, "delete_on_cancellation": False}
        assert "RocksDB" in config["state_backend"]
        (pid,) = cluster.pool.pids()
        os.kill(pid, signal.SIGKILL)
        stream.goes_on(restored=1)
        with self.batch(cluster, tmp_path):
            cluster.lose_task_manager()
            stream.goes_on(restored=2)
        assert waited_for(lambda: restarts(cluster.url, stream.job) == 2)
        cancel(cluster.url, stream.job)
        with pytest.raises(RuntimeError, match="was cancelled"):
            stream.result.wait_until_finish()
        kept = last_checkpoint(cluster.flink.checkpoints, stream.job)
        assert kept is not None
        assert kept.startswith(f"{cluster.flink.checkpoints.as_uri()}/{stream.job}/chk-")

        stream.start(f"--savepoint_path={kept}")
        stream.goes_on(restored=1)
        savepoint = stop(cluster.url, stream.job)
        assert stream.result.wait_until_finish() == "DONE"
        numbers = self.check(tmp_path)

        stream.start(f"--savepoint_path={savepoint}")
        stream.goes_on(restored=1)
        stop(cluster.url, stream.job)
        assert stream.result.wait_until_finish() == "DONE"
        assert self.check(tmp_path) > numbers
        # What was read before the savepoint was not read again.
        again = [path for path in tmp_path.glob("*.counts") if "\n0 0\n" in "\n" + path.read_text()]
        assert len(again) == 1

    @staticmethod
    @contextmanager
    def batch(cluster: Cluster, folder: Path) -> Iterator[None]:
        """Let a batch work meanwhile."""
        pipeline = cluster.pipeline(False)
        add_sums(pipeline, folder)
        result = pipeline.run()
        assert waited_for((folder / "begun").exists)
        yield
        assert result.wait_until_finish() == "DONE"
        assert flink_work.sums(folder) == SUMS

    @staticmethod
    def check(folder: Path) -> int:
        """See that whatever was noted, however often, is right, and nothing is left out; give how many numbers."""
        keys, span = flink_work.KEYS, flink_work.SPAN
        counts = flink_work.noted(folder, "counts")
        assert counts == {(number, number // keys) for number in range(len(counts))}
        ends = [(key, end) for end in range(span, len(counts) + 1, span) for key in range(keys)]
        windows, timers = flink_work.noted(folder, "windows"), flink_work.noted(folder, "ends")
        right = {(key, end, sum(n for n in range(end - span, end) if n % keys == key)) for key, end in ends}
        assert windows <= right
        assert timers <= {(key, end, 1) for key, end in ends}
        # The last ones may not have been due.
        for found in (windows, timers):
            behind = {(key, end) for key, end in ends} - {(key, end) for key, end, _ in found}
            assert all(end > len(counts) - 5 * span for _, end in behind), behind
        return len(counts)


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
        assert not lives(pid)
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


class Runner(socket.socket):
    """Listens and never says a word: a worker keeps trying."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.url = f"127.0.0.1:{self.getsockname()[1]}"


@pytest.fixture
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def request(name: str, provision: str, runner: Runner) -> Any:
    return beam_fn_api_pb2.StartWorkerRequest(
        worker_id=name,
        provision_endpoint={"url": provision},
        control_endpoint={"url": runner.url},
        logging_endpoint={"url": runner.url},
    )


def stop_worker(pool: WorkerPool, name: str) -> None:
    pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=name), None)


class TestWorkerPool:
    def test_start_and_stop(self, worker_pool: WorkerPool, provision: str, runner: Runner) -> None:
        assert worker_pool.StartWorker(request("1/2", provision, runner), None).error == ""
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
        runner.close()
        stop_worker(worker_pool, "1/2")
        assert not lives(pid)
        assert (worker_pool.counts().running, worker_pool.counts().died) == (0, 0)
        assert options.with_suffix(".log").exists()

    def test_workers_of_two_runners_have_one_name(
        self, worker_pool: WorkerPool, provision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As those of two task managers beside one pool: each is left alone while its own runner lives."""
        for seconds in ("_SECONDS_BETWEEN_LOOKS", "_SECONDS_TO_END"):
            monkeypatch.setattr(f"pipelines.worker_pool.{seconds}", 0.2)
        with Runner() as one, Runner() as other:
            for runner in (one, other):
                assert worker_pool.StartWorker(request("1-1", provision, runner), None).error == ""
            first, second = worker_pool.pids()
            assert len(list(worker_pool.settings.logs.glob("worker-*-1-1.json"))) == 2
            stop_worker(worker_pool, "1-1")
            assert worker_pool.pids() == [first, second]
            # Asked for again by the same one.
            assert worker_pool.StartWorker(request("1-1", provision, other), None).error == ""
            assert not lives(second)
            (third,) = set(worker_pool.pids()) - {first}
            # They do not notice that their runner goes, like one that computes.
            for pid in (first, third):
                os.kill(pid, signal.SIGSTOP)
            one.close()
            stop_worker(worker_pool, "1-1")
            assert not lives(first)
            assert worker_pool.pids() == [third]
        # Without being asked, as when a task manager is killed.
        assert waited_for(lambda: not lives(third))
        assert (worker_pool.counts().started, worker_pool.counts().died) == (3, 0)

    def test_runner_is_gone(
        self, worker_pool: WorkerPool, provision: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.worker_pool._PROVISION_TIMEOUT_S", 0.2)
        answer = worker_pool.StartWorker(request("1", f"127.0.0.1:{free_port()}", runner), None)
        assert "Deadline Exceeded" in answer.error
        assert worker_pool.counts().started == 0

    def test_port_is_taken(self, worker_pool: WorkerPool, tmp_path: Path) -> None:
        with (
            pytest.raises(WorkerPoolError, match=f":{worker_pool.port} cannot be listened at"),
            WorkerPool(PoolSettings(tmp_path, port=worker_pool.port)),
        ):
            pass

    def test_workers_die_with_the_command(self, provision: str, runner: Runner, tmp_path: Path) -> None:
        """Also when it is killed; until then it tells of them."""
        command = [sys.executable, "-m", "pipelines.cli", "worker-pool", "--port=0", "--health-port=0", "--no-warm-up"]
        process = subprocess.Popen(
            [*command, f"--logs={tmp_path}"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        with process.stdout as told:
            port, health = map(int, re.findall(r":(\d+)", told.readline()))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            assert stub.StartWorker(request("1", provision, runner)).error == ""
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/healthz") as answer:
            told = json.loads(answer.read())
        assert (told["status"], told["running"], told["started"], told["died"]) == ("ok", 1, 1, 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/metrics") as answer:
            assert "\nalertbeam_workers 1\n" in answer.read().decode()
        (go_between,) = psutil.Process(process.pid).children()
        (worker,) = go_between.children()
        process.kill()
        process.wait()
        assert waited_for(lambda: not lives(worker.pid), 20)
        assert not listens(port)

    def test_warm_up_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []

        class Pool:
            def __init__(self, settings: PoolSettings) -> None:
                done.append("listens")
                raise WorkerPoolError("that is all")

        monkeypatch.setattr(worker_pool_command, "WorkerPool", Pool)
        monkeypatch.setattr(worker_pool_command, "_warm_up", lambda: done.append("compiled"))
        parser = argparse.ArgumentParser()
        worker_pool_command.add_parser(parser.add_subparsers())
        for words, expected in (([], ["compiled", "listens"]), (["--no-warm-up"], ["listens"])):
            options = parser.parse_args(["worker-pool", f"--logs={tmp_path}", *words])
            with pytest.raises(StoppedError, match="that is all"):
                worker_pool_command.run_pool(options, [], {})
            assert done == expected
            done.clear()

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
