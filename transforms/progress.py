"""How far a run is: each worker notes it in a small file of its own, whatever the runner, and anyone may read them."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_SECONDS_BETWEEN: Final = 0.3


@dataclass(frozen=True)
class Progress:
    """Totals over all workers: compressed bytes read, alerts decoded, dead letters, objects with their features."""

    bytes: int = 0
    alerts: int = 0
    dead_letters: int = 0
    objects: int = 0


class ProgressNote:
    """One worker's note.

    Parameters
    ----------
    folder : str
        Where the run's workers put their notes; nothing is written if it is empty.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, f"{os.getpid()}-{uuid.uuid4().hex}.json") if folder else None
        self._numbers = asdict(Progress())
        self._written = 0.0

    def add(self, **numbers: int) -> None:
        """Add to the note; it reaches the disk a few times a second."""
        for name, number in numbers.items():
            self._numbers[name] += number
        if time.monotonic() - self._written > _SECONDS_BETWEEN:
            self.save()

    def save(self) -> None:
        """Write the note now."""
        self._written = time.monotonic()
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(self._numbers))
        temporary.replace(self._path)


def read_progress(folder: str) -> Progress:
    """Sum the notes of all workers."""
    numbers = asdict(Progress())
    for path in Path(folder).glob("*.json"):
        try:
            note = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        for name in numbers:
            numbers[name] += note[name]
    return Progress(**numbers)


def clear_progress(folder: str) -> None:
    """Remove the notes of a run."""
    shutil.rmtree(folder, ignore_errors=True)
