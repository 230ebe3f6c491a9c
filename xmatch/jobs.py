"""Long work in small tasks: finished ones are noted on disk, so that a killed run goes on where it was."""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import pyarrow as pa

Entry = dict[str, Any]


class Progress(NamedTuple):
    """How far a stage is: `done` of `total`, counted in `unit`."""

    stage: str
    done: int
    total: int
    unit: str


class Task(NamedTuple):
    """One task of a stage: its key, arguments and size."""

    key: str
    arguments: tuple[Any, ...]
    size: int


class Workers:
    """Processes that run tasks; one worker means this process.

    Parameters
    ----------
    count : int
        Number of processes.
    """

    def __init__(self, count: int):
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Entry], calls: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, Entry]]:
        """Yield the key and result of each call as it is finished.

        Raises
        ------
        OSError
            If a process was killed.
        """
        if self._count == 1 or len(calls) == 1:
            for key, arguments in calls.items():
                yield key, function(*arguments)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._count, get_context("spawn"), _begin_worker)
        keys: dict[Future[Entry], str] = {}
        try:
            with _without_main_module():
                for key, arguments in calls.items():
                    keys[self._pool.submit(function, *arguments)] = key
            for future in as_completed(keys):
                yield keys[future], future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was killed, probably for want of memory; start the same command again to go on, "
                "with fewer workers"
            ) from error

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Ledger:
    """Notes of finished tasks in a folder, one file each.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def read(self, stage: str, key: str) -> Entry | None:
        """Note of a task, None if it is not finished or the note was lost with the power."""
        try:
            return json.loads(self._path(stage, key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, stage: str, key: str, entry: Entry) -> None:
        """Note that a task is finished."""
        write_whole(self._path(stage, key), json.dumps(entry))

    def _path(self, stage: str, key: str) -> Path:
        return self._folder / f"{stage.replace(' ', '-')}.{key}.json"


def run_stage(
    workers: Workers,
    folder: Path,
    stage: str,
    function: Callable[..., Entry],
    tasks: Iterable[Task],
    unit: str,
    report: Callable[[Progress], None],
) -> dict[str, Entry]:
    """Run the tasks of a stage that are not noted as finished in `folder`; give the notes of all, in their order.

    Parameters
    ----------
    workers : Workers
    folder : Path
        Folder of the notes.
    stage, unit : str
        What is done and what sizes are counted in.
    function : callable
        Importable by name; called with the arguments of each task, gives its note.
    tasks : iterable of Task
    report : callable
        Told of the progress.
    """
    tasks = list(tasks)
    ledger = Ledger(folder)
    entries = {task.key: ledger.read(stage, task.key) for task in tasks}
    sizes = {task.key: task.size for task in tasks}
    total = sum(sizes.values())
    done = sum(sizes[key] for key, entry in entries.items() if entry is not None)
    report(Progress(stage, done, total, unit))
    calls = {
        task.key: (folder, stage, task.key, function, task.arguments) for task in tasks if entries[task.key] is None
    }
    for key, entry in workers.run(_run_task, calls):
        entries[key] = entry
        done += sizes[key]
        report(Progress(stage, done, total, unit))
    return {key: entry for key, entry in entries.items() if entry is not None}


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a killed process leaves the old state or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which ends with the process.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Let processes that are started in the block import nothing but what their tasks need.

    Importing the main module as well would take long, and run a script without `if __name__ == "__main__"` again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run_task(folder: Path, stage: str, key: str, function: Callable[..., Entry], arguments: tuple[Any, ...]) -> Entry:
    entry = function(*arguments)
    Ledger(folder).write(stage, key, entry)
    return entry


def _begin_worker() -> None:
    """Leave interrupts to the parent, end with it, and use one thread: there are as many processes as cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
