"""Dead letters: what could not be processed flows to files of its own, with its reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter, write_dead_letters
from transforms.counts import count

DEAD_LETTERS: Final = "dead_letters"
_MAX_LETTERS, _MAX_BYTES = 10_000, 128 << 20


def dead_letter(unit: str, letter: DeadLetter) -> beam.pvalue.TaggedOutput:
    """Send a letter of a unit of work to the dead letters."""
    return beam.pvalue.TaggedOutput(DEAD_LETTERS, (unit, letter))


def at_the_end(output: beam.pvalue.TaggedOutput) -> beam.pvalue.TaggedOutput:
    """What a bundle gives when it is finished, which belongs to no element."""
    return beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))


def letter_for_alert(batch: AlertBatch, row: int, stage: str, reason: str) -> DeadLetter:
    """Letter with the whole packet of one alert of a batch."""
    candid = int(batch.candid[row])
    return DeadLetter(stage, reason, batch.source, batch.members[row], batch.packet(row), candid=candid)


class WriteDeadLetters(beam.PTransform):
    """Write letters to ``<folder>/<unit>.<stage>.<number>.avro``.

    Each stage writes its own letters, without a shuffle: when a service fails, they are as many as the alerts.

    Parameters
    ----------
    folder : Path
    stage : str
    unbounded : bool
        Units have no end, as in a stream: a digest of the letters stands in the place of the number, so that later
        letters do not replace earlier ones, and the same letters once more do.
    """

    def __init__(self, folder: Path, stage: str, unbounded: bool = False) -> None:
        super().__init__()
        self._folder, self._stage, self._unbounded = folder, stage, unbounded

    def expand(self, letters: beam.PCollection) -> Any:
        """Apply to a PCollection of (unit, DeadLetter)."""
        return letters | beam.ParDo(_Write(self._folder, self._stage, self._unbounded))


class _Write(beam.DoFn):
    def __init__(self, folder: Path, stage: str, unbounded: bool) -> None:
        self._folder, self._stage, self._unbounded = folder, stage, unbounded

    def start_bundle(self) -> None:
        self._unit = ""
        # Units may alternate: rows that a database refuses come back in the order of the tables.
        self._files: Counter[str] = Counter()
        self._letters: list[DeadLetter] = []
        self._bytes = 0

    def process(self, element: tuple[str, DeadLetter]) -> None:
        unit, letter = element
        if unit != self._unit:
            self._flush()
            self._unit = unit
        self._letters.append(letter)
        self._bytes += len(letter.payload)
        count(f"dead_letters:{letter.stage}")
        if len(self._letters) >= _MAX_LETTERS or self._bytes >= _MAX_BYTES:
            self._flush()

    def finish_bundle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._letters:
            part = _digest(self._letters) if self._unbounded else f"{self._files[self._unit]:04d}"
            write_dead_letters(self._folder / f"{self._unit}.{self._stage}.{part}.avro", self._letters)
            self._files[self._unit] += 1
        self._letters, self._bytes = [], 0


def _digest(letters: list[DeadLetter]) -> str:
    found = hashlib.sha256()
    for letter in letters:
        found.update(repr((letter.stage, letter.source, letter.member, letter.reason)).encode())
        found.update(letter.payload)
    return found.hexdigest()[:16]
