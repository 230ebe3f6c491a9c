"""How far a backfill is, from its ledger and the notes of the units that are being worked on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pipelines.backfill import CLASSIFY, EXPORT, FEATURES, FOLD, READ, REPLAY
from pipelines.run_display import RunState
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, Sample, Unit
from transforms.progress import running_progress

_TITLES: Final = {
    READ: "pass 1: archives",
    FOLD: "pass 1: light-curve store",
    REPLAY: "rows once refused",
    FEATURES: "pass 2: features",
    CLASSIFY: "pass 2: classes",
    EXPORT: "HATS catalogue",
}
_SECONDS_BETWEEN_SAMPLES: Final = 2.0


@dataclass(frozen=True)
class _Stage:
    name: str
    units: frozenset[str]
    size: int
    known: bool


class BackfillProgress:
    """Keeps what is being done, for the thread that shows it.

    Parameters
    ----------
    layout : RunLayout
    ledger : Ledger
        Of the thread that does the work; samples go into it.
    workers : int
    """

    def __init__(self, layout: RunLayout, ledger: Ledger, workers: int) -> None:
        self._layout, self._ledger, self._workers = layout, ledger, workers
        self._stage = _Stage(READ, frozenset(), 0, True)
        self._sampled = 0.0
        self._lock = threading.Lock()
        self._state = RunState(_TITLES[READ])

    def begin(self, stage: str, units: Sequence[Unit]) -> None:
        """Note that a stage begins."""
        sizes = [unit.size for unit in units]
        self._stage = _Stage(stage, frozenset(unit.name for unit in units), sum(sizes), all(sizes))
        self._sampled = 0.0
        self.tick()

    def tick(self) -> None:
        """Look where the work is, now and then; called often by the thread that does it."""
        if time.monotonic() - self._sampled < _SECONDS_BETWEEN_SAMPLES:
            return
        self._sampled = time.monotonic()
        state = self._look()
        with self._lock:
            self._state = state
        sample = Sample(time.time(), state.alerts, state.bytes_done, state.objects_done, state.dead_letters)
        with suppress(OSError):
            self._ledger.add_sample(sample)

    def state(self) -> RunState:
        """How far the run is."""
        with self._lock:
            return self._state

    def _look(self) -> RunState:
        stage = self._stage
        units = [unit for unit in self._ledger.units(stage.name) if unit.name in stage.units]
        done = [unit for unit in units if unit.state == "done"]
        running = running_progress(self._layout.progress, [unit.name for unit in units if unit.state == "running"])
        counts = self._ledger.counts(READ)
        objects = "classified" if stage.name == CLASSIFY else "objects"
        is_read = stage.name == READ
        dead = sum(number for name, number in self._ledger.counts().items() if name.startswith("dead_letters:"))
        return RunState(
            stage=_TITLES[stage.name],
            done=len(done),
            total=len(stage.units),
            aside=sum(unit.state == "aside" for unit in units),
            bytes_done=sum(unit.size for unit in done) + running.bytes if is_read else 0,
            bytes_total=stage.size if is_read and stage.known else 0,
            alerts=counts.get("read", 0) + (running.alerts if is_read else 0),
            objects_done=sum(unit.counts.get(objects, 0) for unit in done) + running.objects,
            objects_total=stage.size if stage.name in (FEATURES, CLASSIFY) else 0,
            dead_letters=dead + (running.dead_letters if is_read else 0),
            workers=min(self._workers, len(stage.units)),
        )
