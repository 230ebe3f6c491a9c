"""Between alerts and the light-curve store, and from the store to light curves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from lightcurves.assembly import assemble
from lightcurves.batch import LightCurveBatch
from lightcurves.store import OBJECTS_PER_BATCH, Appender, LightCurveStore, StoreRows
from transforms.counts import count
from transforms.crossmatch import MatchedAlerts
from transforms.light_curves import slim_rows, wise_rows

# Memory reaches some times as much, beside what reading and matching hold.
_BUFFER_BYTES: Final = 48 << 20


@dataclass(frozen=True)
class ChangedBucket:
    """Objects of a bucket of the store that changed.

    Attributes
    ----------
    bucket : int
    since : int
        Generation of the store after which; 0 stands for all objects.
    """

    bucket: int
    since: int = 0


class AddToStore(beam.PTransform):
    """Add the detections of alerts to the incoming rows of a store; those of a unit of work appear together.

    Parameters
    ----------
    store : Path
        Folder of the store.
    """

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._store = store

    def expand(self, matched: beam.PCollection) -> Any:
        """Apply to a PCollection of MatchedAlerts."""
        return matched | beam.ParDo(_AddToStore(self._store))


class _AddToStore(beam.DoFn):
    def __init__(self, store: Path) -> None:
        self._folder = store

    def setup(self) -> None:
        self._store = LightCurveStore.open(self._folder)
        self._unit = ""
        self._appender: Appender | None = None

    def process(self, alerts: MatchedAlerts) -> None:
        unit = alerts.batch.unit
        if self._appender is None or unit != self._unit:
            self._commit()
            self._unit, self._appender = unit, self._store.append(unit, _BUFFER_BYTES)
        self._appender.add(StoreRows(*slim_rows(alerts.batch), wise_rows(alerts)))

    def finish_bundle(self) -> None:
        self._commit()

    def teardown(self) -> None:
        if self._appender is not None:
            self._appender.abandon()

    def _commit(self) -> None:
        if self._appender is not None:
            self._appender.commit()
            self._appender = None


class ReadFromStore(beam.PTransform):
    """Read the light curves of the objects that changed, some objects at a time.

    Parameters
    ----------
    store : Path
    as_of_mjd : float, optional
        What was known then.
    """

    def __init__(self, store: Path, as_of_mjd: float | None = None) -> None:
        super().__init__()
        self._store, self._as_of_mjd = store, as_of_mjd

    def expand(self, buckets: beam.PCollection) -> beam.PCollection:
        """Apply to a PCollection of :class:`ChangedBucket`; gives LightCurveBatch."""
        return buckets | beam.ParDo(_ReadFromStore(self._store, self._as_of_mjd))


class _ReadFromStore(beam.DoFn):
    """Puts the objects of small buckets together: each batch costs some tenths of a second, however few they are."""

    def __init__(self, store: Path, as_of_mjd: float | None) -> None:
        self._folder, self._as_of_mjd = store, as_of_mjd

    def setup(self) -> None:
        self._store = LightCurveStore.open(self._folder)

    def start_bundle(self) -> None:
        self._waiting: list[StoreRows] = []
        self._objects = 0

    def process(self, changed: ChangedBucket) -> Iterator[LightCurveBatch]:
        oids = self._store.changed(changed.bucket, changed.since)
        for start in range(0, len(oids), OBJECTS_PER_BATCH):
            some = oids.slice(start, OBJECTS_PER_BATCH)
            self._waiting.extend(self._store.batches(changed.bucket, some))
            self._objects += len(some)
            if self._objects >= OBJECTS_PER_BATCH:
                yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for batch in self._flush():
            yield GlobalWindows.windowed_value(batch)

    def _flush(self) -> Iterator[LightCurveBatch]:
        waiting, self._waiting, self._objects = self._waiting, [], 0
        if not waiting:
            return
        parts = zip(*(rows.tables for rows in waiting), strict=True)
        detections, non_detections, crossmatches = map(pa.concat_tables, parts)
        batch = assemble(detections, non_detections, as_of_mjd=self._as_of_mjd, crossmatches=crossmatches)
        if len(batch):
            count("objects", len(batch))
            yield batch
