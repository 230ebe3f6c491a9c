"""How far a run is: each worker notes it in a small file of its own, whatever the runner, and anyone may read them.

Where units of work have workers of their own (a backfill), the notes of a unit lie in a folder of its name. They count
only while the unit is being worked on: what is done is counted by the ledger, and a unit that is tried again begins
with an empty folder (:func:`clear_progress`), so that nothing is counted twice.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
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
        """Write the note now; a note that cannot be written is no reason to end the work."""
        self._written = time.monotonic()
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(self._numbers))
            temporary.replace(self._path)


def read_progress(folder: str) -> Progress:
    """Sum the notes of all workers."""
    return _sum(Path(folder).glob("*.json"))


def running_progress(folder: str | Path, units: Iterable[str]) -> Progress:
    """Sum the notes of the units that are being worked on.

    Parameters
    ----------
    folder : str or Path
        Holds a folder of notes for each unit.
    units : iterable of str
        Names of the units that the ledger calls running. Read the ledger first: a unit that ends in between is then
        missed for a moment, and never counted twice.
    """
    return _sum(path for unit in units for path in Path(folder, unit).glob("*.json"))


def _sum(notes: Iterable[Path]) -> Progress:
    numbers = asdict(Progress())
    for path in notes:
        with suppress(OSError, ValueError):
            for name, number in json.loads(path.read_text()).items():
                numbers[name] += number
    return Progress(**numbers)


def clear_progress(folder: str) -> None:
    """Remove the notes of a run, or of a unit of work."""
    shutil.rmtree(folder, ignore_errors=True)
