"""A model shared by all threads of a process, and exchanged for a newer one while they work."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests

from classifier.model import Model, ModelError
from classifier.package import MANIFEST, read_model

_LOGGER = logging.getLogger(__name__)

KEPT: Final = "kept"
SWAPPED: Final = "swapped"
REFUSED: Final = "refused"
CHECK_INTERVAL_S: Final = 60.0
_TIMEOUT_S: Final = 10.0
_MAX_POINTER_BYTES: Final = 4096


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Attributes
    ----------
    folder : str
        Of the package; used if there is no pointer.
    sha256 : str
        That the package must have, so that all workers use one model; any if empty.
    pointer : str
        File or http(s) address of a text that holds the path of the folder, relative to the file if it is not
        absolute. Whoever replaces the text has all workers change to another model.
    """

    folder: str = ""
    sha256: str = ""
    pointer: str = ""

    def resolve(self) -> Path:
        """Folder of the model as of now.

        Raises
        ------
        ModelError
            If the pointer cannot be read.
        """
        return read_pointer(self.pointer) if self.pointer else Path(self.folder)


def read_pointer(pointer: str) -> Path:
    """Folder that a pointer names.

    Raises
    ------
    ModelError
        If the pointer cannot be read or names nothing.
    """
    remote = pointer.startswith(("http://", "https://"))
    try:
        content = _download(pointer) if remote else Path(pointer).read_bytes()[: _MAX_POINTER_BYTES + 1]
        text = content.decode()
    except (OSError, requests.RequestException, UnicodeDecodeError) as error:
        raise ModelError(f"the pointer {pointer} cannot be read: {error}") from error
    lines = text.split("\n")
    folder = lines[0].strip()
    if len(content) > _MAX_POINTER_BYTES or not folder or any(line.strip() for line in lines[1:]) or "\0" in folder:
        raise ModelError(f"the pointer {pointer} does not hold the path of one folder")
    if remote and not Path(folder).is_absolute():
        raise ModelError(f"the pointer {pointer} holds {folder}, which is no absolute path")
    return Path(folder) if remote else Path(pointer).absolute().parent / folder


def _download(address: str) -> bytes:
    with requests.get(address, timeout=_TIMEOUT_S, stream=True) as answer:
        answer.raise_for_status()
        return answer.raw.read(_MAX_POINTER_BYTES + 1, decode_content=True)


class ModelKeeper:
    """The model of a process.

    Parameters
    ----------
    place : ModelPlace
    interval_s : float
        Least time between two looks at the pointer, in seconds.
    clock : callable
        Seconds that pass.

    Raises
    ------
    ModelError
        If there is no model to begin with.
    """

    def __init__(
        self,
        place: ModelPlace,
        interval_s: float = CHECK_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._interval_s, self._clock = place, interval_s, clock
        self._lock = threading.Lock()
        self._checked = clock()
        self._complaint = ""
        self._model = read_model(place.resolve())
        if place.sha256 and self._model.sha256 != place.sha256:
            raise ModelError(
                f"{place.folder} is another model than when the run began (sha256 {self._model.sha256[:12]} instead of "
                f"{place.sha256[:12]})"
            )

    @property
    def model(self) -> Model:
        """The model to use; whoever holds one goes on with it, whatever comes after."""
        return self._model

    def refresh(self) -> str:
        """Look whether there is a newer model, at most once in the interval; give what became of it.

        A new model is checked whole before it takes the place of the old one; if it is bad the old one stays, and the
        next look tries again. One thread looks while the others go on.
        """
        if not self._place.pointer or not self._lock.acquire(blocking=False):
            return KEPT
        try:
            if self._clock() - self._checked < self._interval_s:
                return KEPT
            self._checked = self._clock()
            return self._look()
        finally:
            self._lock.release()

    def _look(self) -> str:
        try:
            folder = self._place.resolve()
            if self._is_current(folder):
                self._complaint = ""
                return KEPT
            model = read_model(folder)
        except ModelError as error:
            self._complain(str(error))
            return REFUSED
        _LOGGER.warning(
            "Model %s %s takes the place of %s %s.", model.name, model.version, self._model.name, self._model.version
        )
        self._model, self._complaint = model, ""
        return SWAPPED

    def _is_current(self, folder: Path) -> bool:
        try:
            return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() == self._model.sha256
        except OSError:
            return False

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            _LOGGER.error("Model %s %s stays: %s.", self._model.name, self._model.version, complaint)
        self._complaint = complaint
