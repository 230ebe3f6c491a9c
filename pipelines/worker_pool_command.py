"""``alertbeam worker-pool``: Python workers beside a task manager of Flink."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from lightcurves.features.compute import Mode
from messaging.child_process import HOST
from pipelines.stream_log import set_up_logs
from pipelines.stream_warm_up import compile_features
from pipelines.usage import DONE, StoppedError, UsageError
from pipelines.worker_pool import PORT, PoolSettings, WorkerPool, WorkerPoolError

_LOGGER = logging.getLogger(__name__)
_DEFAULTS: Final = PoolSettings(Path("worker-logs"))
_DESCRIPTION: Final = """\
Start Python workers for Flink as its task manager asks for them, until Ctrl-C or SIGTERM; one pool on each machine
of task managers. Workers end with the pool. What a worker prints goes to a file of its own, which is kept when it dies.
Before it listens, the kernels of the features are compiled, or loaded if that was done on this machine before.
"""
_EPILOG: Final = """\
example:
  alertbeam worker-pool --port 50000 --health-port 50001 --logs logs/
  alertbeam stream ... --runner FlinkRunner --job_endpoint=HOST:8099 --environment_config=localhost:50000

The address is what the task manager calls: localhost:50000 is the default of streams and backfills on Flink. Whoever
can connect can have workers started: listen at another address than 127.0.0.1 in closed networks only. Task managers
on one machine may share a pool.
/healthz at the health port answers 200 with the numbers of workers; /metrics gives them to Prometheus, which finds
them from elsewhere with --health-host 0.0.0.0 (they tell nothing else, and start nothing).
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "worker-pool",
        help="start Python workers for Flink",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"0 for a free one (default {PORT})")
    parser.add_argument("--host", default=HOST, help="address to listen at (default: this machine only)")
    parser.add_argument(
        "--health-host", default=HOST, metavar="ADDRESS", help="address of the health port (default: this machine only)"
    )
    parser.add_argument("--health-port", type=int, metavar="N", help="serve /healthz and /metrics, 0 for a free one")
    parser.add_argument(
        "--logs",
        default=str(_DEFAULTS.logs),
        metavar="DIR",
        help=f"folder of what workers print (default {_DEFAULTS.logs})",
    )
    parser.add_argument(
        "--dead-logs",
        type=int,
        default=_DEFAULTS.dead_logs,
        metavar="N",
        help=f"logs of ended workers that are kept (default {_DEFAULTS.dead_logs})",
    )
    parser.add_argument(
        "--max-log-mb",
        type=int,
        default=_DEFAULTS.most_log_bytes >> 20,
        metavar="N",
        help=f"a larger log is set aside, in the place of the one before (default {_DEFAULTS.most_log_bytes >> 20})",
    )
    parser.add_argument(
        "--no-warm-up",
        action="store_true",
        help="do not compile the kernels of the features first, which takes a minute on a new machine",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of the log (default text)")
    parser.set_defaults(command=run_pool)


def run_pool(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Run a pool until a signal comes."""
    for name in ("port", "health_port"):
        if not 0 <= (getattr(options, name) or 0) <= 65_535:
            raise UsageError(f"--{name.replace('_', '-')} must be a number from 0 to 65535")
    for name in ("dead_logs", "max_log_mb"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    set_up_logs(options.log_format)
    settings = PoolSettings(
        Path(options.logs).expanduser().absolute(),
        options.host,
        options.port,
        options.health_host,
        options.health_port,
        options.max_log_mb << 20,
        options.dead_logs,
    )
    if not options.no_warm_up:
        _warm_up()
    ended = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in numbers}
    try:
        with WorkerPool(settings) as pool:
            health = f", health at {options.health_host}:{pool.health_port}" if options.health_port is not None else ""
            print(f"workers are started at {options.host}:{pool.port}{health}; Ctrl-C stops them.", flush=True)
            ended.wait()
        print("stopped, with its workers", file=sys.stderr)
    except (WorkerPoolError, OSError) as error:
        raise StoppedError(str(error)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return DONE


def _warm_up() -> None:
    """Compile in a process of its own, which gives its memory back: workers find on the disk what is compiled.

    Otherwise a stream's first bundle would last for a minute, and longer than a checkpoint waits for it.
    """
    _LOGGER.info("compiling, or loading, the kernels of the features")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
        for mode in Mode:
            own.submit(compile_features, mode, forced=False).result()
