"""Tables with one row per object: written by bucket, and read back as batches of features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa

from classifier.inputs import rows_of_table
from lightcurves.store import LightCurveStore
from storage.buckets import bucket_of
from storage.object_tables import ObjectTable
from transforms.feature_reading import FeatureBatch
from transforms.features import FeaturedLightCurves
from transforms.light_curve_store import ChangedBucket

_ROWS: Final = 5_000


class ObjectRows(NamedTuple):
    """New rows of a table of objects, and all objects whose rows they replace."""

    rows: pa.Table
    replaced: pa.Array


class WriteObjectTable(beam.PTransform):
    """Put rows into a table of objects, all those of a bucket at once.

    Parameters
    ----------
    table : ObjectTable
    make : callable
        From an element, whose objects are all of one bucket, to its :class:`ObjectRows`.
    """

    def __init__(self, table: ObjectTable, make: Callable[[Any], ObjectRows]) -> None:
        super().__init__()
        self._table, self._make = table, make

    def expand(self, elements: beam.PCollection) -> Any:
        """Apply to a PCollection of what `make` takes."""
        return elements | beam.ParDo(_WriteObjectTable(self._table, self._make))


class _WriteObjectTable(beam.DoFn):
    def __init__(self, table: ObjectTable, make: Callable[[Any], ObjectRows]) -> None:
        self._table, self._make = table, make

    def start_bundle(self) -> None:
        self._bucket = -1
        self._waiting: list[ObjectRows] = []

    def process(self, element: Any) -> None:
        made = self._make(element)
        if not len(made.replaced):
            return
        bucket = int(bucket_of(made.replaced.slice(0, 1), self._table.buckets)[0])
        if bucket != self._bucket:
            self._flush()
            self._bucket = bucket
        self._waiting.append(made)

    def finish_bundle(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows = pa.concat_tables([made.rows for made in self._waiting])
            self._table.put(self._bucket, rows, pa.concat_arrays([made.replaced for made in self._waiting]))
        self._waiting = []


def objects_of(featured: FeaturedLightCurves) -> ObjectRows:
    """Statistics of objects."""
    return ObjectRows(featured.light_curves.objects, featured.light_curves.oid)


def features_of(featured: FeaturedLightCurves) -> ObjectRows:
    """Features of objects; those with too few points have no row."""
    return ObjectRows(featured.features.table, featured.light_curves.oid)


class ReadChangedFeatures(beam.PTransform):
    """Read the features of the objects that changed.

    Parameters
    ----------
    store : Path
        Light-curve store, which knows what changed.
    table : ObjectTable
        Of the features.
    wanted : collection of str
        Features to read.
    unit : str
        Unit of work, which names the dead letters.
    """

    def __init__(self, store: Path, table: ObjectTable, wanted: Collection[str], unit: str) -> None:
        super().__init__()
        self._options = {"store": store, "table": table, "wanted": wanted, "unit": unit}

    def expand(self, buckets: beam.PCollection) -> beam.PCollection:
        """Apply to a PCollection of :class:`~transforms.light_curve_store.ChangedBucket`; gives FeatureBatch."""
        return buckets | beam.FlatMap(changed_features, **self._options)


def changed_features(
    changed: ChangedBucket, store: Path, table: ObjectTable, wanted: Collection[str], unit: str
) -> Iterator[FeatureBatch]:
    """Features of the objects of a bucket that changed, some objects at a time."""
    oids = LightCurveStore.open(store).changed(changed.bucket, changed.since)
    found = table.read(changed.bucket, oids=oids)
    if found is None:
        return
    for start in range(0, len(found), _ROWS):
        rows, _ = rows_of_table(found.slice(start, _ROWS), wanted)
        yield FeatureBatch(unit, str(table.path(changed.bucket)), rows)
