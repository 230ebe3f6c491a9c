"""Programs that this process starts and that end with it: ports for them, what they log, and how they end."""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from messaging import child

HOST: Final = "127.0.0.1"

_STOP_TIMEOUT_S: Final = 15.0
_SECONDS_BETWEEN_LOOKS: Final = 0.05
_LOG_END_BYTES: Final = 3000
# Below those that the system takes for outgoing connections: one of these could take the port of a program that is to
# be started again, even by connecting to itself.
_PORTS: Final = (15_000, 32_000)


class ChildProcessFailed(RuntimeError):
    """A program did not start or ended too early; the message holds the end of its log."""


def is_free(port: int) -> bool:
    """Say whether a port at 127.0.0.1 can be listened at."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Give a port at 127.0.0.1 that nobody listens at.

    Raises
    ------
    ChildProcessFailed
        If there is none.
    """
    numbers = list(range(*_PORTS))
    random.SystemRandom().shuffle(numbers)
    for port in numbers:
        if is_free(port):
            return port
    raise ChildProcessFailed(f"none of the ports from {_PORTS[0]} to {_PORTS[1] - 1} is free")


def listens(port: int, host: str = HOST) -> bool:
    """Say whether somebody takes connections at a port."""
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def lives(pid: int) -> bool:
    """Say whether a process runs; one that has ended and only is to be waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass(eq=False)
class ChildProcess:
    """A program below :mod:`messaging.child`: it ends with this process, however that ends.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
    log : Path
        Takes standard output and error; what is there stays.
    variables : mapping of str to str
        Added to the environment.

    Attributes
    ----------
    pid : int
        Of the program; of the last one if it has ended.
    status : int or None
        Exit status, or number of the signal, of the last program that has ended, when :meth:`stop` or :meth:`kill` was
        called.
    """

    name: str
    command: Sequence[str]
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    status: int | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _log_begin: int = 0

    @property
    def running(self) -> bool:
        """Say whether the program lives."""
        return self._process is not None and self._process.poll() is None and lives(self.pid)

    def start(self, inherited: Sequence[int] = ()) -> Self:
        """Start the program unless it runs.

        Parameters
        ----------
        inherited : sequence of int
            Descriptors that the program gets.

        Raises
        ------
        ChildProcessFailed
            If there is no such program.
        """
        if self.running:
            return self
        self.kill()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *self.command],
                cwd=self.log.parent,
                env={**os.environ, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=inherited,
                # An interrupt from the terminal is for this process, which may still need the program to end well.
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as told:
            number = told.readline()
        if not number:
            process.wait()
            raise ChildProcessFailed(f"{self.name} cannot be started: {self.log_end()}")
        self._process, self.pid = process, int(number)
        atexit.register(self.kill)
        return self

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the program is ready; if it ends before, or takes too long, it is ended.

        Raises
        ------
        ChildProcessFailed
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not ready():
                if not self.running:
                    raise ChildProcessFailed(f"{self.name} ended at its start: {self.log_end()}")
                if time.monotonic() > deadline:
                    raise ChildProcessFailed(f"{self.name} is not ready after {timeout_s:.0f} s: {self.log_end()}")
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ask the program to end, and end it if it does not within a time."""
        if self._process is not None and self.running:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the program at once (``kill -9``)."""
        if self._process is None:
            return
        if self.running:
            self._signal(signal.SIGKILL)
        self.status = self._process.wait()
        self._process = None
        atexit.unregister(self.kill)

    def log_end(self) -> str:
        """Last lines that the program wrote since its start."""
        with open(self.log, "rb") as file:
            file.seek(max(self._log_begin, self.log.stat().st_size - _LOG_END_BYTES))
            return file.read().decode(errors="replace").strip() or "its log is empty"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
