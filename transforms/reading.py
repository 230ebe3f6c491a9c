"""From sources to batches of alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import apache_beam as beam
import numpy as np

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter
from alerts.reader import EmptyContainer, Limits, read_source
from alerts.seen import SeenCandids
from alerts.sources import Source
from transforms.counts import count
from transforms.dead_letters import DEAD_LETTERS, dead_letter
from transforms.progress import ProgressNote

BATCHES: Final = "batches"


@dataclass
class ReadAlerts(beam.PTransform):
    """Read sources into batches of alerts, each alert once.

    Gives the PCollections ``batches`` and ``dead_letters``. Alerts of other programmes than those wanted are left out,
    and so are alerts whose candid was met before; both are counted.

    Parameters
    ----------
    limits : Limits
        Of a batch.
    programs : tuple of int
        Wanted values of ``candidate.programid``; all if empty.
    progress_folder : str
        Where to note how far it is; nowhere if empty.
    """

    limits: Limits = Limits()  # noqa: RUF009 (immutable)
    programs: tuple[int, ...] = (1,)
    progress_folder: str = ""

    def expand(self, sources: beam.PCollection) -> Any:
        """Apply to a PCollection of :class:`~alerts.sources.Source`."""
        read = sources | "Read and decode" >> beam.ParDo(
            ReadSources(partial(read_source, limits=self.limits), self.progress_folder)
        ).with_outputs(DEAD_LETTERS, main=BATCHES)
        batches = (
            read[BATCHES]
            | "Keep wanted programmes" >> beam.FlatMap(keep_programs, self.programs)
            | "Drop repeated alerts" >> beam.ParDo(_DropRepeated())
        )
        return {BATCHES: batches, DEAD_LETTERS: read[DEAD_LETTERS]}


class ReadSources(beam.DoFn):
    """Read sources into batches, and tag what could not be read as dead letters.

    Parameters
    ----------
    read : callable
        From a source and a function that is told bytes to batches, dead letters and empty containers.
    progress_folder : str
        Where to note how far it is; nowhere if empty.
    """

    def __init__(self, read: Callable[..., Iterator[Any]], progress_folder: str) -> None:
        self._read, self._progress_folder = read, progress_folder

    def setup(self) -> None:
        """Begin the note of this worker."""
        self._note = ProgressNote(self._progress_folder)

    def process(self, source: Source) -> Iterator[Any]:
        """Read one source."""
        for item in self._read(source, progress=lambda size: self._note.add(bytes=size)):
            match item:
                case DeadLetter():
                    self._note.add(dead_letters=1)
                    yield dead_letter(source.name, item)
                case EmptyContainer():
                    count("empty")
                case _:
                    count("read", len(item))
                    self._note.add(alerts=len(item))
                    yield item
        self._note.save()


def keep_programs(batch: AlertBatch, programs: tuple[int, ...]) -> list[AlertBatch]:
    """Leave out the alerts of other survey programmes; an alert that names none is not public."""
    if not programs:
        return [batch]
    wanted = np.isin(batch.programid, programs)
    count("filtered", len(batch) - int(wanted.sum()))
    return [batch.take(wanted)] if wanted.any() else []


class _DropRepeated(beam.DoFn):
    def setup(self) -> None:
        self._seen = SeenCandids()

    def process(self, batch: AlertBatch) -> Iterator[AlertBatch]:
        new = self._seen.add(batch.candid)
        count("repeated", len(batch) - int(new.sum()))
        if new.any():
            yield batch.take(new)
