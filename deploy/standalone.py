"""What ``standalone.sh`` starts: Flink, a job server and a worker pool, all of which end with this program."""

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from messaging.child_process import ChildProcess, ChildProcessFailed
from messaging.jars import JarsError
from pipelines.flink_cluster import FlinkSettings, start_cluster, start_job_server
from pipelines.flink_jobs import FlinkError
from pipelines.worker_pool import PoolSettings, WorkerPool, WorkerPoolError

_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_BETWEEN_LOOKS: Final = 0.5


def main(words: list[str]) -> int:
    """Run all parts until a signal comes, or one of them ends; give the exit status."""
    folder = Path(words[0]).absolute()
    managers, slots, rest_port, job_port, worker_port, health_port = map(int, words[1:])
    pool = PoolSettings(folder / "worker_logs", port=worker_port, health_port=health_port)
    try:
        with _ended_by_signals(), ExitStack() as stack:
            # What is entered last ends first: the cluster goes before the workers that it would still ask for.
            workers = stack.enter_context(WorkerPool(pool))
            settings = FlinkSettings(slots=slots)
            cluster = stack.enter_context(start_cluster(folder, managers, rest_port=rest_port, settings=settings))
            server = stack.enter_context(
                start_job_server(folder / "job_server", flink_master=cluster.master, port=job_port)
            )
            submission = (
                "--runner=FlinkRunner",
                f"--job_endpoint={server.job_endpoint}",
                f"--flink_master={cluster.master}",
                f"--environment_config=localhost:{workers.port}",
                f"--parallelism={managers * slots}",
            )
            print(
                f"Flink: {cluster.rest_url} (its pages and REST), {managers * slots} slots, "
                f"checkpoints in {cluster.checkpoints}\n"
                f"workers: health at http://127.0.0.1:{workers.health_port}/healthz, output in {pool.logs}\n"
                f"submit with: {shlex.join(submission)}",
                flush=True,
            )
            return _watch((cluster.job_manager, *cluster.task_managers, server.process))
    except _Ended:
        print("standalone.sh: stopped, with all its parts", file=sys.stderr)
        return 0
    except (ChildProcessFailed, FlinkError, JarsError, WorkerPoolError, OSError) as error:
        print(f"standalone.sh: {error}", file=sys.stderr)
        return 1


class _Ended(BaseException):
    """A signal to end."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the first signal unwind whatever is being done, and no further one disturb that."""

    def end(_: int, __: FrameType | None) -> None:
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    for number in _ENDINGS:
        signal.signal(number, end)
    yield


def _watch(parts: tuple[ChildProcess, ...]) -> int:
    """Wait until a part has ended."""
    while all(part.running for part in parts):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for part in parts:
        if not part.running:
            print(f"standalone.sh: {part.name} has ended, so all end: {part.log_end()}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
