"""Tables with one row per object: written by bucket, and read back as batches of features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindows

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
        From an element to its :class:`ObjectRows`. Elements come in the order of their buckets.
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
        self._waiting: dict[int, list[ObjectRows]] = {}

    def process(self, element: Any) -> None:
        parts = by_bucket(self._make(element), self._table.buckets)
        # Buckets come one after another: of one that does not come again all is there.
        self._flush(self._waiting.keys() - parts.keys())
        for bucket, part in parts.items():
            self._waiting.setdefault(bucket, []).append(part)

    def finish_bundle(self) -> None:
        self._flush(list(self._waiting))

    def _flush(self, buckets: Collection[int]) -> None:
        for bucket in sorted(buckets):
            parts = self._waiting.pop(bucket)
            rows = pa.concat_tables([part.rows for part in parts])
            self._table.put(bucket, rows, pa.concat_arrays([part.replaced for part in parts]))


def by_bucket(made: ObjectRows, buckets: int) -> dict[int, ObjectRows]:
    """Rows of each bucket."""
    numbers = bucket_of(made.replaced, buckets)
    of_rows = bucket_of(made.rows["oid"], buckets)
    return {
        int(bucket): ObjectRows(
            made.rows.filter(pa.array(of_rows == bucket)), made.replaced.filter(pa.array(numbers == bucket))
        )
        for bucket in np.unique(numbers)
    }


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
    features, objects : ObjectTable
        Of the features, and of the objects' statistics, which know the newest alert.
    wanted : collection of str
        Features to read.
    unit : str
        Unit of work, which names the dead letters.
    """

    def __init__(
        self, store: Path, features: ObjectTable, objects: ObjectTable, wanted: Collection[str], unit: str
    ) -> None:
        super().__init__()
        self._reading = _ReadChangedFeatures(store, features, objects, wanted, unit)

    def expand(self, buckets: beam.PCollection) -> beam.PCollection:
        """Apply to a PCollection of :class:`~transforms.light_curve_store.ChangedBucket`; gives FeatureBatch."""
        return buckets | beam.ParDo(self._reading)


class _ReadChangedFeatures(beam.DoFn):
    """Puts the objects of small buckets together, as the light curves are."""

    def __init__(
        self, store: Path, features: ObjectTable, objects: ObjectTable, wanted: Collection[str], unit: str
    ) -> None:
        self._folder, self._features, self._objects = store, features, objects
        self._wanted, self._unit = wanted, unit

    def setup(self) -> None:
        self._store = LightCurveStore.open(self._folder)

    def start_bundle(self) -> None:
        self._waiting: list[pa.Table] = []

    def process(self, changed: ChangedBucket) -> Iterator[FeatureBatch]:
        found = self._features.read(changed.bucket, oids=self._store.changed(changed.bucket, changed.since))
        if found is not None:
            candid = newest_alerts(self._objects, changed.bucket, found["oid"].combine_chunks())
            self._waiting.append(found.append_column("candid", candid))
        if sum(map(len, self._waiting)) >= _ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for batch in self._flush():
            yield GlobalWindows.windowed_value(batch)

    def _flush(self) -> Iterator[FeatureBatch]:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        table = pa.concat_tables(waiting, promote_options="permissive")
        for start in range(0, len(table), _ROWS):
            rows, _ = rows_of_table(table.slice(start, _ROWS), self._wanted)
            yield FeatureBatch(self._unit, str(self._features.folder), rows)


def newest_alerts(objects: ObjectTable, bucket: int, oid: pa.Array) -> pa.Array:
    """Candid of the newest alert of some objects of a bucket; null where a table of an earlier version has none."""
    known = objects.read(bucket, columns=["oid", "candid"], oids=oid)
    if known is None:
        return pa.nulls(len(oid), pa.int64())
    place = pc.index_in(oid, value_set=known["oid"].combine_chunks())
    return known["candid"].cast(pa.int64()).combine_chunks().take(place)
