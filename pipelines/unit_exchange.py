"""The folder through which a driver hands units of work to workers on other machines, and gets their answers.

The driver and all workers see it on a file system that they share. Of each unit, by its number, there are up to three
files: ``.unit`` with what is to be done, ``.begun``, which one worker alone can make, and ``.answer``. The file
``alive`` changes as long as the driver waits for answers. Where it is gone, or does not change any more, workers leave
what they do: so a driver that was killed, and started again, need not fear those who still work for the one before.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

from pipelines.usage import StoppedError
from run_folder.ledger import Unit
from storage.files import replacing

LEFT: Final = "left"
SECONDS_BETWEEN_LOOKS: Final = 1.0

_FOLDER: Final = "handed_out"
_ALIVE: Final = "alive"
_UNIT, _BEGUN, _ANSWER = ".unit", ".begun", ".answer"
_SECONDS_BETWEEN_BEATS: Final = 2.0
_SECONDS_WITHOUT_BEAT: Final = 60.0
_SECONDS_TO_LEAVE: Final = 5.0


class Handed:
    """Units that are handed out, as the driver sees them; made by :meth:`out`."""

    def __init__(self, folder: Path, units: Sequence[Unit]) -> None:
        self.folder = folder
        self.units = {f"{number:06d}": unit for number, unit in enumerate(units)}
        self._beats = 0
        self._beaten = 0.0

    @classmethod
    def out(cls, ledger_folder: Path, units: Sequence[Unit]) -> Self:
        """Hand out units, in a new folder beside the ledger."""
        handed = cls(ledger_folder / _FOLDER / uuid.uuid4().hex, units)
        for key, unit in handed.units.items():
            with replacing(handed.folder / f"{key}{_UNIT}") as file:
                file.write(json.dumps(asdict(unit)).encode())
        handed.beat()
        return handed

    def beat(self) -> None:
        """Show that the driver is alive; to be called often."""
        if time.monotonic() - self._beaten > _SECONDS_BETWEEN_BEATS:
            self._beats += 1
            self._beaten = time.monotonic()
            (self.folder / _ALIVE).write_text(str(self._beats))

    def begun(self) -> set[str]:
        """Keys of the units that are begun, whether answered or not."""
        return _keys(self.folder, _BEGUN)

    def answered(self) -> set[str]:
        """Keys of the units that have an answer."""
        return _keys(self.folder, _ANSWER)

    def is_begun(self, key: str) -> bool:
        """Say whether a unit is begun; unlike a list of files this is never of some time ago."""
        return (self.folder / f"{key}{_BEGUN}").exists()

    def answer(self, key: str) -> tuple[str, list[Any]] | None:
        """Machine on which a unit was done, and what the worker said; None if there is no answer."""
        try:
            found = json.loads((self.folder / f"{key}{_ANSWER}").read_bytes())
        except FileNotFoundError:
            return None
        return found["host"], found["answer"]

    def take_back(self) -> None:
        """Let all workers leave, and wait for them a little."""
        _take_back(self.folder)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take_back_left(ledger_folder: Path) -> None:
    """Let those leave who still work for a driver that was killed; wait for them, and remove what it handed out."""
    for folder in (ledger_folder / _FOLDER).glob("*"):
        _take_back(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _take_back(folder: Path) -> None:
    (folder / _ALIVE).unlink(missing_ok=True)
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    while _keys(folder, _BEGUN) - _keys(folder, _ANSWER) and time.monotonic() < deadline:
        time.sleep(0.1)


def _keys(folder: Path, suffix: str) -> set[str]:
    return {name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix) and name[0] != "."}


class Taking:
    """Units that are handed out, as a worker sees them.

    Parameters
    ----------
    folder : Path
        :attr:`Handed.folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beat = b""
        self._changed = time.monotonic()

    @property
    def ledger_folder(self) -> Path:
        """Folder of the ledger of the run."""
        return self._folder.parents[1]

    def is_open(self) -> bool:
        """Say whether the driver waits for answers.

        Raises
        ------
        StoppedError
            If the run is not on this machine.
        """
        try:
            beat = (self._folder / _ALIVE).read_bytes()
        except FileNotFoundError:
            if not self.ledger_folder.is_dir():
                raise StoppedError(_unreachable(self.ledger_folder.parent, "is not there")) from None
            return False
        except OSError:
            beat = self._beat
        if beat != self._beat:
            self._beat, self._changed = beat, time.monotonic()
        return time.monotonic() - self._changed < _SECONDS_WITHOUT_BEAT

    def free(self) -> list[str]:
        """Keys of the units that nobody has begun, in their order."""
        with suppress(FileNotFoundError):
            return sorted(_keys(self._folder, _UNIT) - _keys(self._folder, _BEGUN))
        return []

    def begin(self, key: str) -> Unit | None:
        """Begin a unit; None if another worker has, or the driver is gone.

        Raises
        ------
        StoppedError
            If this machine cannot write to the run.
        """
        try:
            os.close(os.open(self._folder / f"{key}{_BEGUN}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return Unit(**json.loads((self._folder / f"{key}{_UNIT}").read_bytes()))
        except (FileExistsError, FileNotFoundError):
            return None
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
            raise StoppedError(_unreachable(self.ledger_folder.parent, reason)) from error

    def answer(self, key: str, answer: Sequence[Any]) -> None:
        """Answer for a unit that was begun."""
        if self._folder.is_dir():
            with replacing(self._folder / f"{key}{_ANSWER}") as file:
                file.write(json.dumps({"host": socket.gethostname(), "answer": list(answer)}).encode())


def _unreachable(run: Path, reason: str) -> str:
    return (
        f"the run folder {run} {reason} for the worker on {socket.gethostname()}: put it on a file system that the "
        "driver and all workers share"
    )
