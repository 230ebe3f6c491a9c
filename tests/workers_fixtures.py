"""Work that the tests give to worker processes; in a module that is imported quickly."""

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.workers import StopWork
from run_folder.ledger import Unit


@dataclass(frozen=True)
class Work:
    """Does what the payload says, the first so many times; notes each begin in a folder."""

    notes: Path

    def __call__(self, unit: Unit) -> dict[str, int]:
        attempt = len(list(self.notes.glob(f"{unit.name}.*")))
        (self.notes / f"{unit.name}.{attempt}").write_text(f"{os.getpid()} {time.monotonic_ns()}")
        if attempt < unit.payload.get("times", 99):
            DEEDS[unit.payload.get("deed", "count")](unit)
        return {"n": unit.payload.get("n", 1), "pid": os.getpid()}


def begun(notes: Path) -> dict[str, int]:
    """Process of each attempt ``name.attempt``, the first attempt first."""
    written = {path.name: tuple(map(int, path.read_text().split())) for path in notes.iterdir()}
    return {name: pid for name, (pid, _) in sorted(written.items(), key=lambda item: item[1][1])}


def wait_begun(notes: Path, number: int) -> list[int]:
    """Processes of the units that run, when so many attempts were begun."""
    deadline = time.monotonic() + 20
    while len([path for path in notes.iterdir() if path.read_text()]) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return list(begun(notes).values())


def raises(unit: Unit) -> None:
    raise OSError(f"cannot read {unit.name}\nand more")


def stops(unit: Unit) -> None:
    while len(list(Path(unit.payload["notes"]).iterdir())) < unit.payload["others"]:
        time.sleep(0.01)
    raise StopWork("the database is gone")


def hangs(_: Unit) -> None:
    time.sleep(300)


def hangs_in_spite_of_signals(_: Unit) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(300)


def keeps_the_interpreter(_: Unit) -> None:
    """Let no other thread run: a search that takes ages, in one call."""
    re.match("(a+)+$", "a" * 60 + "b")


def uses_memory(unit: Unit) -> None:
    bytearray(b"x") * unit.payload["bytes"]


def prints(_: Unit) -> None:
    for _ in range(2000):
        print("much is said and little is meant")
    time.sleep(0.2)


def gives_threads(unit: Unit) -> None:
    """Write down how many threads the libraries use, imported here because other work need not wait for them."""
    import numba
    import pyarrow as pa

    Path(unit.payload["file"]).write_text(f"{numba.get_num_threads()} {pa.cpu_count()}")


DEEDS = {
    "count": lambda _: None,
    "raise": raises,
    "stop": stops,
    "exit": lambda _: os._exit(3),
    "quit": lambda _: sys.exit(4),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "hang": hangs,
    "hang in spite": hangs_in_spite_of_signals,
    "keep": keeps_the_interpreter,
    "memory": uses_memory,
    "print": prints,
    "threads": gives_threads,
}
