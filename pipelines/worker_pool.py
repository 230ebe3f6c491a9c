"""Python workers for a runner that asks for them (Beam's environment EXTERNAL), as on a task manager of Flink.

Beam's own pool gives workers no options and no cache, and its workers hang when they have printed 64 kB that nobody
reads. Here each worker gets the options of its pipeline, and what it prints goes to a file.

Several task managers may share a pool, and all of them name their first worker 1-1; what tells workers apart is also
where they are controlled from.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc
import psutil
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

from messaging.child_process import HOST, ChildProcess, ChildProcessFailed

_LOGGER = logging.getLogger(__name__)

PORT: Final = 50_000
_PROVISION_TIMEOUT_S: Final = 30.0
_SECONDS_BETWEEN_LOOKS: Final = 2.0
_SECONDS_TO_END: Final = 5.0
_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; sys.argv[1:] = []; "
    "from apache_beam.runners.worker.sdk_worker_main import main; main(sys.argv)"
)
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")


class WorkerPoolError(RuntimeError):
    """The pool cannot serve; the message says why."""


@dataclass(frozen=True)
class PoolSettings:
    """How a pool serves.

    Attributes
    ----------
    logs : Path
        Folder of what the workers print: a file for each.
    host, port : str, int
        Where it listens; port 0 for a free one. Whoever can connect can have workers started.
    health_host : str
    health_port : int or None
        Of ``/healthz`` and ``/metrics``; port 0 for a free one.
    most_log_bytes : int
        A log that is larger is set aside as ``.1``, in the place of the one before.
    dead_logs : int
        So many logs of workers that have ended are kept, the newest.
    """

    logs: Path
    host: str = HOST
    port: int = PORT
    health_host: str = HOST
    health_port: int | None = None
    most_log_bytes: int = 32 << 20
    dead_logs: int = 20


@dataclass
class PoolCounts:
    """Workers of a pool.

    Attributes
    ----------
    running, started, died : int
        Alive now; ever started; failed, or killed by others than the pool.
    memory_bytes : int
        Resident memory of those that are alive.
    """

    running: int = 0
    started: int = 0
    died: int = 0
    memory_bytes: int = 0


class _Key(NamedTuple):
    name: str
    control: str


@dataclass(eq=False)
class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """A pool that serves until the end of its ``with`` block, and its workers no longer than that.

    Attributes
    ----------
    port, health_port : int
        Where it listens.
    """

    settings: PoolSettings
    port: int = 0
    health_port: int = 0
    _workers: dict[_Key, ChildProcess] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _counts: PoolCounts = field(default_factory=PoolCounts)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _server: Any = None
    _web: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        settings = self.settings
        settings.logs.mkdir(parents=True, exist_ok=True)
        # Another pool at the same port would take every second request.
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.max_ping_strikes", 0),
        ]
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        try:
            self.port = self._server.add_insecure_port(f"{settings.host}:{settings.port}")
        except RuntimeError as error:
            raise WorkerPoolError(f"{settings.host}:{settings.port} cannot be listened at: {error}") from error
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        if settings.health_port is not None:
            try:
                self._web = ThreadingHTTPServer((settings.health_host, settings.health_port), _handler(self))
            except OSError as error:
                raise WorkerPoolError(f"{settings.health_host}:{settings.health_port}: {error}") from error
            self.health_port = self._web.server_port
            threading.Thread(target=self._web.serve_forever, daemon=True).start()
        self._server.start()
        threading.Thread(target=self._keep_house, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
        if self._server is not None:
            self._server.stop(0).wait()
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.stop(_SECONDS_TO_END)

    def counts(self) -> PoolCounts:
        """Tell of the workers."""
        with self._lock:
            alive = [worker.pid for worker in self._workers.values() if worker.running]
            now = PoolCounts(len(alive), self._counts.started, self._counts.died)
        now.memory_bytes = sum(_memory_bytes(pid) for pid in alive)
        return now

    def pids(self) -> list[int]:
        """Process numbers of the workers that are alive."""
        with self._lock:
            return [worker.pid for worker in self._workers.values() if worker.running]

    def StartWorker(self, request: Any, context: Any) -> Any:
        """Start a worker, as the runner asks."""
        try:
            self._start(request)
        except (ChildProcessFailed, OSError, grpc.RpcError) as error:
            _LOGGER.error("worker %s cannot be started: %s", request.worker_id, error)
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error) or type(error).__name__)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        """Stop the workers of a name whose runner is gone; the runner has told its own to end before it asks."""
        with self._lock:
            keys = [key for key in self._workers if key.name == request.worker_id]
        self._stop([key for key in keys if _refuses(key.control)])
        return beam_fn_api_pb2.StopWorkerResponse()

    def _start(self, request: Any) -> None:
        key = _Key(request.worker_id, request.control_endpoint.url)
        begin = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"worker-{begin}-{next(self._numbers)}-{_NO_NAME.sub('_', key.name)[:80]}.log"
        log = self.settings.logs / name
        variables = _variables(request, log.with_suffix(".json"))
        path = [entry for entry in sys.path if isinstance(entry, str)]
        command = [sys.executable, "-u", "-c", _PROGRAM, *path]
        worker = ChildProcess(f"worker {request.worker_id}", command, log, variables).start()
        with self._lock:
            former = self._workers.pop(key, None)
            self._workers[key] = worker
            self._counts.started += 1
        if former is not None:
            former.kill()
        _LOGGER.info("worker %s runs as process %d, its output goes to %s", request.worker_id, worker.pid, log)

    def _keep_house(self) -> None:
        refused: set[_Key] = set()
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            with self._lock:
                dead = {key: worker for key, worker in self._workers.items() if not worker.running}
                for key in dead:
                    del self._workers[key]
                alive = {key: worker.log for key, worker in self._workers.items()}
            for key, worker in dead.items():
                self._found_dead(key, worker)
            # A worker that computes does not notice that nobody waits for it; another one ends well between two looks.
            before, refused = refused, {key for key in alive if _refuses(key.control)}
            self._stop(before & refused)
            keep_logs(self.settings, list(alive.values()))

    def _stop(self, keys: Collection[_Key]) -> None:
        with self._lock:
            workers = {key: self._workers.pop(key) for key in keys if key in self._workers}
        for key, worker in workers.items():
            if not worker.running:
                self._found_dead(key, worker)
                continue
            worker.stop(_SECONDS_TO_END)
            _LOGGER.info("worker %s of %s, which is gone, is stopped", *key)

    def _found_dead(self, key: _Key, worker: ChildProcess) -> None:
        worker.kill()
        if worker.status == 0:
            _LOGGER.info("worker %s of %s has ended", *key)
            return
        with self._lock:
            self._counts.died += 1
        _LOGGER.warning("worker %s has ended by itself; the end of its output: %s", key.name, worker.log_end())


def keep_logs(settings: PoolSettings, alive: list[Path]) -> None:
    """Set large logs of workers aside, and remove the oldest of those that have ended.

    Parameters
    ----------
    settings : PoolSettings
    alive : list of Path
        Logs that are being written to.
    """
    for log in alive:
        if log.exists() and log.stat().st_size > settings.most_log_bytes:
            # The worker goes on writing to the same file.
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    dead = sorted((log for log in settings.logs.glob("worker-*.log") if log not in alive), key=_age)
    for log in dead[settings.dead_logs :]:
        for path in (log, log.with_name(f"{log.name}.1"), log.with_suffix(".json")):
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _refuses(address: str) -> bool:
    """Say whether nobody listens at an address any more; one that cannot be reached is no answer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_BETWEEN_LOOKS).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _variables(request: Any, options_file: Path) -> dict[str, str]:
    """Ask the runner for the pipeline's options, and put down all that Beam's worker reads from its environment."""
    info = _provision_info(request.provision_endpoint.url, request.worker_id)
    options_file.parent.mkdir(parents=True, exist_ok=True)
    # They may hold more than a variable can, and what others should not read.
    descriptor = os.open(options_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(json_format.MessageToDict(info.pipeline_options), file)
    endpoints = {
        "LOGGING": info.logging_endpoint.url or request.logging_endpoint.url,
        "CONTROL": info.control_endpoint.url or request.control_endpoint.url,
        "STATUS": info.status_endpoint.url,
    }
    return {
        "WORKER_ID": request.worker_id,
        "PIPELINE_OPTIONS_FILE": str(options_file),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        **{
            f"{name}_API_SERVICE_DESCRIPTOR": text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
            for name, url in endpoints.items()
            if url
        },
    }


def _provision_info(url: str, worker_id: str) -> Any:
    with grpc.insecure_channel(url) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        answer = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=(("worker_id", worker_id),),
            timeout=_PROVISION_TIMEOUT_S,
            wait_for_ready=True,
        )
    return answer.info


def _memory_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _metrics(counts: PoolCounts) -> Iterator[str]:
    told = {
        "alertbeam_workers": ("gauge", "Workers that are alive.", counts.running),
        "alertbeam_workers_started_total": ("counter", "Workers that were started.", counts.started),
        "alertbeam_workers_died_total": ("counter", "Workers that failed or were killed.", counts.died),
        "alertbeam_workers_memory_bytes": ("gauge", "Resident memory of the workers.", counts.memory_bytes),
    }
    for name, (kind, explanation, value) in told.items():
        yield f"# HELP {name} {explanation}\n# TYPE {name} {kind}\n{name} {value}\n"


def _handler(pool: WorkerPool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            counts = pool.counts()
            match self.path:
                case "/healthz":
                    self._answer(200, "application/json", json.dumps({"status": "ok", **vars(counts)}))
                case "/metrics":
                    self._answer(200, "text/plain; version=0.0.4", "".join(_metrics(counts)))
                case _:
                    self._answer(404, "text/plain", "there are /healthz and /metrics\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
