"""The folder through which a driver hands units of work to workers on other machines, and gets their answers.

The driver and all workers see it on a file system that they share. Of each unit, by its number, there are up to three
files: ``.unit`` with what is to be done; ``.begun``, which one worker alone can make, and changes as long as that is at
work; ``.answer``. The file ``alive`` changes as long as the driver lives. Where it is gone, or does not change any
more, workers leave what they do: so a driver that was killed, and started again, need not fear those who still work for
the one before. Likewise the driver revokes a unit whose worker it does not see any more, by removing ``.begun``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipelines.usage import StoppedError
from run_folder.ledger import Unit
from storage.files import replacing

_FOLDER: Final = "handed_out"
_ALIVE: Final = "alive"
_UNIT, _BEGUN, _ANSWER = ".unit", ".begun", ".answer"
_SECONDS_BETWEEN_BEATS: Final = 2.0
_SECONDS_WITHOUT_BEAT: Final = 60.0
_LOOKS_WITHOUT_BEAT: Final = 15
_SECONDS_TO_LEAVE: Final = 5.0


class Exchange:
    """The folder as the driver sees it: new, beside the ledger.

    A thread shows that the driver is alive until :meth:`take_back`.

    Parameters
    ----------
    ledger_folder : Path

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, ledger_folder: Path) -> None:
        self.folder = ledger_folder / _FOLDER / uuid.uuid4().hex
        self.folder.mkdir(parents=True)
        self._number = 0
        self._seen: dict[str, tuple[bytes, int]] = {}
        self._looked = 0.0
        self._ended = threading.Event()
        self._beat(0)
        self._beating = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._beating.start()

    def hand_out(self, unit: Unit) -> str:
        """Let a unit be done by whoever comes first; give the key by which it is known."""
        key = f"{self._number:06d}"
        self._number += 1
        with replacing(self.folder / f"{key}{_UNIT}") as file:
            file.write(json.dumps(asdict(unit)).encode())
        return key

    def begun(self) -> set[str]:
        """Keys of the units that are begun, whether answered or not."""
        return _keys(self.folder, _BEGUN)

    def is_begun(self, key: str) -> bool:
        """Say whether a unit is begun; unlike a list of files this is never of some time ago."""
        return (self.folder / f"{key}{_BEGUN}").exists()

    def silent(self, keys: Collection[str]) -> list[str]:
        """Those of some units that are begun whose workers have not shown themselves for long; to be asked often."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_BEATS:
            return []
        self._looked = time.monotonic()
        # Looks are counted, not seconds: this process may itself have been held up.
        for key in keys:
            beat, looks = self._seen.get(key, (b"", 0))
            now = self._beat_of(key)
            self._seen[key] = now, 0 if now != beat else looks + 1
        return [key for key in keys if self._seen[key][1] >= _LOOKS_WITHOUT_BEAT]

    def revoke(self, key: str) -> None:
        """Let nobody do a unit any more."""
        for suffix in (_UNIT, _BEGUN):
            (self.folder / f"{key}{suffix}").unlink(missing_ok=True)

    def _beat_of(self, key: str) -> bytes:
        try:
            return (self.folder / f"{key}{_BEGUN}").read_bytes()
        except OSError:
            return b""

    def answered(self) -> set[str]:
        """Keys of the units that have an answer."""
        return _keys(self.folder, _ANSWER)

    def answer(self, key: str) -> tuple[str, list[Any]] | None:
        """Machine on which a unit was done, and what the worker said; None if there is no answer."""
        try:
            found = json.loads((self.folder / f"{key}{_ANSWER}").read_bytes())
        except FileNotFoundError:
            return None
        return found["host"], found["answer"]

    def take_back(self) -> None:
        """Let all workers leave, and wait a little for those that are at work."""
        self._ended.set()
        self._beating.join()
        _take_back(self.folder)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _beat_on(self) -> None:
        number = 0
        while not self._ended.wait(_SECONDS_BETWEEN_BEATS):
            number += 1
            # A disk that is full now may not be so later.
            with suppress(OSError):
                self._beat(number)

    def _beat(self, number: int) -> None:
        (self.folder / _ALIVE).write_text(str(number))


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
    """The folder as a worker sees it.

    Parameters
    ----------
    folder : Path
        :attr:`Exchange.folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beat = b""
        self._changed = self._shown = time.monotonic()

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
        """Begin a unit; None if another worker has, or it is not to be done any more.

        Raises
        ------
        StoppedError
            If this machine cannot write to the run.
        """
        begun = self._folder / f"{key}{_BEGUN}"
        try:
            os.close(os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except (FileExistsError, FileNotFoundError):
            return None
        except OSError as error:
            raise self._not_written(error) from error
        try:
            return Unit(**json.loads((self._folder / f"{key}{_UNIT}").read_bytes()))
        except FileNotFoundError:
            begun.unlink(missing_ok=True)
            return None

    def keep(self, key: str) -> bool:
        """Show that a unit is being worked at, and say whether it is still to be done; to be called often."""
        if not self.is_open():
            return False
        now = time.monotonic()
        if now - self._shown > _SECONDS_BETWEEN_BEATS:
            self._shown = now
            try:
                with open(self._folder / f"{key}{_BEGUN}", "r+") as file:
                    file.write(str(now))
            except FileNotFoundError:
                return False
            except OSError:
                # A disk that is full now may not be so later.
                return True
        return True

    def answer(self, key: str, answer: list[Any]) -> None:
        """Answer for a unit that was begun, unless the driver is gone.

        Raises
        ------
        StoppedError
            If this machine cannot write to the run.
        """
        if not self._folder.is_dir():
            return
        try:
            with replacing(self._folder / f"{key}{_ANSWER}") as file:
                file.write(json.dumps({"host": socket.gethostname(), "answer": answer}).encode())
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> StoppedError:
        return StoppedError(_unreachable(self.ledger_folder.parent, f"cannot be written to ({error.strerror})"))


def _unreachable(run: Path, reason: str) -> str:
    return (
        f"the run folder {run} {reason} for the worker on {socket.gethostname()}: put it on a file system that the "
        "driver and all workers share"
    )
