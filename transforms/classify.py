"""Classification of batches of features, and where its results go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from alerts.container import SYNC_BYTES, blocks, header_bytes, parse_header, sync_marker, write_long
from alerts.enrich import EnrichedAlerts
from alerts.writer import AlertFile
from classifier.messages import encode_messages, message_schema_text
from classifier.outputs import Classification, classify, file_rows, object_rows, probability_rows, taxonomy_rows
from database.client import Database
from database.rules import PROVISIONAL_STEP_ID
from database.upsert import WriteResult
from storage.files import replacing
from transforms.background import Background
from transforms.counts import count
from transforms.dead_letters import DEAD_LETTERS, at_the_end, dead_letter
from transforms.feature_reading import FeatureBatch
from transforms.models import CHECK_INTERVAL_S, KEPT, ModelKeeper, ModelPlace

CLASSIFIED: Final = "classified"


@dataclass(frozen=True, eq=False)
class ClassifiedBatch:
    """Objects with what a model says of them."""

    batch: FeatureBatch
    classification: Classification


class Classify(beam.PTransform):
    """Classify objects by their features.

    Gives the PCollections ``classified`` (of :class:`ClassifiedBatch`) and ``dead_letters``: an object whose features
    lack a name that the model requires is not classified.

    Parameters
    ----------
    place : ModelPlace
        A process loads the model once. A pointer is looked at when a bundle begins; within a bundle the model stays.
    interval_s : float
        Least time between two looks at the pointer, in seconds.
    """

    def __init__(self, place: ModelPlace, interval_s: float = CHECK_INTERVAL_S) -> None:
        super().__init__()
        self._place, self._interval_s = place, interval_s

    def expand(self, batches: beam.PCollection) -> Any:
        """Apply to a PCollection of FeatureBatch."""
        doing = _Classify(self._place, self._interval_s, Shared())
        return batches | beam.ParDo(doing).with_outputs(DEAD_LETTERS, main=CLASSIFIED)


class _Classify(beam.DoFn):
    def __init__(self, place: ModelPlace, interval_s: float, shared: Shared) -> None:
        self._place, self._interval_s, self._shared = place, interval_s, shared

    def setup(self) -> None:
        self._keeper = self._shared.acquire(partial(ModelKeeper, self._place, self._interval_s))

    def start_bundle(self) -> None:
        outcome = self._keeper.refresh()
        if outcome != KEPT:
            count(f"model:{outcome}")
        self._model = self._keeper.model

    def process(self, batch: FeatureBatch) -> Iterator[Any]:
        classification, missing = classify(self._model, batch.rows)
        for row, names in missing.items():
            reason = f"not classified: {len(names)} required features are missing: {', '.join(names)}"
            yield dead_letter(batch.unit, batch.letter(row, "classify", reason))
        count("missing_features", len(missing))
        if not len(classification):
            return
        if missing:
            good = np.ones(len(batch), np.bool_)
            good[list(missing)] = False
            batch = batch.take(good)
        count_classes(classification)
        yield ClassifiedBatch(batch, classification)


def with_detections(batch: FeatureBatch, least: int) -> list[FeatureBatch]:
    """Leave out the objects with fewer detections than wanted, by their features ``n_det_1`` and ``n_det_2``."""
    columns = [batch.rows.names.index(name) for name in ("n_det_1", "n_det_2") if name in batch.rows.names]
    enough = np.nansum(batch.rows.values[:, columns], axis=1) >= least
    count("too_few_detections", len(batch) - int(enough.sum()))
    return [batch.take(enough)] if enough.any() else []


def count_classes(classification: Classification) -> None:
    """Count the objects of each class."""
    numbers = np.bincount(classification.probabilities.best, minlength=len(classification.probabilities.leaves))
    for name, number in zip(classification.probabilities.leaves, numbers, strict=True):
        count(f"class:{name}", int(number))
    count("classified", len(classification))


def parquet_part(classified: ClassifiedBatch) -> tuple[str, pa.Table]:
    """Unit of work, and its rows for Parquet."""
    return classified.batch.unit, file_rows(classified.classification)


class WriteProbabilities(beam.PTransform):
    """Store probabilities and taxonomy in PostgreSQL, each batch in one transaction.

    An object that the database does not know yet enters table ``object`` with its name alone. Gives the PCollection
    ``dead_letters``: objects of which the database refused a row.

    Parameters
    ----------
    database : Database
    label : str
        What the model's version ends with in the tables.
    known_objects : bool
        All objects are in table ``object`` already.
    """

    def __init__(self, database: Database, label: str = "", known_objects: bool = False) -> None:
        super().__init__()
        self._writing = _WriteProbabilities(database, label, known_objects)

    def expand(self, classified: beam.PCollection) -> Any:
        """Apply to a PCollection of ClassifiedBatch."""
        return classified | beam.ParDo(self._writing).with_outputs(DEAD_LETTERS, main="done")


class _WriteProbabilities(beam.DoFn):
    def __init__(self, database: Database, label: str, known_objects: bool) -> None:
        self._database, self._label, self._known_objects = database, label, known_objects

    def setup(self) -> None:
        self._writing: Background[WriteResult] = Background()
        self._taxonomy: pa.Table | None = None

    def process(self, classified: ClassifiedBatch) -> Iterator[Any]:
        classification = classified.classification
        stamp = classification.stamp
        classification = replace(classification, stamp=replace(stamp, version=stamp.version + self._label))
        tables = {} if self._known_objects else {"object": object_rows(classification, PROVISIONAL_STEP_ID)}
        tables["probability"] = probability_rows(classification)
        # It is the same until the model changes.
        taxonomy = taxonomy_rows(classification)
        if taxonomy != self._taxonomy:
            tables["taxonomy"] = self._taxonomy = taxonomy
        for result, batch in self._writing.ask(partial(self._database.write, tables), classified.batch):
            yield from _told(result, batch)

    def finish_bundle(self) -> Iterator[Any]:
        for result, batch in self._writing.rest():
            yield from map(at_the_end, _told(result, batch))

    def teardown(self) -> None:
        self._writing.forget()
        self._database.close()


def _told(result: WriteResult, batch: FeatureBatch) -> Iterator[beam.pvalue.TaggedOutput]:
    for name, counts in result.counts.items():
        count(f"rows:{name}", counts.written)
    reasons = {row.key[0]: f"table {row.table}: {row.reason}" for row in reversed(result.refused)}
    if reasons:
        guilty = pa.compute.is_in(batch.rows.oid, value_set=pa.array(list(reasons), pa.string()))
        for row in np.flatnonzero(guilty.to_numpy(zero_copy_only=False)).tolist():
            reason = reasons[batch.rows.oid[row].as_py()]
            yield dead_letter(batch.unit, batch.letter(row, "write", reason))


def with_candids(classified: ClassifiedBatch, stage: str) -> tuple[ClassifiedBatch, list[beam.pvalue.TaggedOutput]]:
    """Objects of which a message can be made, and the others as dead letters: a message needs a candid."""
    batch, classification = classified.batch, classified.classification
    known = batch.rows.candid.is_valid().to_numpy(zero_copy_only=False)
    if known.all():
        return classified, []
    reason = "it has no candid, which a message needs"
    letters = [dead_letter(batch.unit, batch.letter(row, stage, reason)) for row in np.flatnonzero(~known).tolist()]
    return ClassifiedBatch(batch.take(known), classification.take(known)), letters


class WriteMessages(beam.PTransform):
    """Write the step's output messages to ``<folder>/<unit>.avro``, many records per container.

    Gives the PCollection ``dead_letters``: objects without a candid, which a message needs.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, classified: beam.PCollection) -> Any:
        """Apply to a PCollection of ClassifiedBatch."""
        return classified | beam.ParDo(_WriteMessages(self._folder)).with_outputs(DEAD_LETTERS, main="done")


class _WriteMessages(beam.DoFn):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def setup(self) -> None:
        self._file: AlertFile | None = None

    def process(self, classified: ClassifiedBatch) -> Iterator[Any]:
        classified, letters = with_candids(classified, "write")
        yield from letters
        data, offsets = encode_messages(classified.classification)
        path = self._folder / f"{classified.batch.unit}.avro"
        if self._file is None or self._file.path != path:
            self._close()
            self._file = AlertFile(path, message_schema_text())
        self._file.write(EnrichedAlerts(message_schema_text(), data, offsets))

    def finish_bundle(self) -> None:
        self._close()

    def teardown(self) -> None:
        if self._file is not None:
            self._file.abandon()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def join_messages(folder: Path, output: Path) -> None:
    """Join the parts of :class:`WriteMessages` into one container, in the order of their names."""
    text, codec = message_schema_text(), "zstandard"
    sync = sync_marker(output.name, text)
    with replacing(output) as file:
        file.write(header_bytes(text, codec, sync))
        for part in sorted(folder.glob("[!.]*.avro")):
            if not part.stat().st_size:
                continue
            view = np.memmap(part, np.uint8, "r").data
            body = len(parse_header(view).raw) + SYNC_BYTES
            for block in blocks(view, body, len(view), bytes(view[body - SYNC_BYTES : body])):
                file.write(write_long(block.count) + write_long(block.end - block.start))
                file.write(view[block.start : block.end])
                file.write(sync)
