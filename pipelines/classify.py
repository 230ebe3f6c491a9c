"""The classification pipeline: features in; probabilities, tables and messages out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa

from alerts.reader import Limits
from alerts.sources import Source
from classifier.inputs import FeatureRows, with_other_names
from classifier.model import Model
from classifier.outputs import classify, file_rows
from database.client import Database
from schemas import load_schema
from transforms.classify import (
    CLASSIFIED,
    Classify,
    WriteMessages,
    WriteProbabilities,
    join_messages,
    parquet_part,
)
from transforms.counts import counters, counters_by
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.feature_reading import FEATURE_BATCHES, ReadFeatures
from transforms.models import ModelPlace
from transforms.progress import clear_progress
from transforms.writing import WriteRows, join_parts


@dataclass(frozen=True)
class ClassifyJob:
    """All that a classification run needs to know.

    Attributes
    ----------
    sources : tuple of Source
    place : ModelPlace
    model : Model
        That the run begins with.
    table, messages : Path, optional
        Parquet and Avro file to write.
    database : Database, optional
        Tables are not written without one.
    feature_version : str
        Noted in the Parquet file.
    limits : Limits
        Of a portion.
    """

    sources: tuple[Source, ...]
    place: ModelPlace
    model: Model
    table: Path | None
    messages: Path | None
    database: Database | None = None
    feature_version: str = ""
    limits: Limits = field(default_factory=Limits)

    @property
    def output(self) -> Path:
        """The file that the run is named after."""
        path = self.table or self.messages
        assert path is not None
        return path

    @property
    def work_folder(self) -> Path:
        """What is not finished; it goes when the run is over."""
        return work_folder(self.output)

    @property
    def progress_folder(self) -> str:
        """Where the workers note how far they are."""
        return str(self.work_folder / "progress")

    @property
    def dead_letters(self) -> Path:
        """Folder of the dead letters."""
        return dead_letters_folder(self.output)


@dataclass(frozen=True)
class ClassifyCounts:
    """What became of the rows of a run: ``read`` = ``classified`` + ``missing_features``.

    Attributes
    ----------
    read : int
        Objects, once for each row or message.
    classified : int
    missing_features : int
        Not classified, because a feature that the model requires is missing by name.
    classes : Mapping of str to int
        Objects by their most probable class.
    dead_letters : Mapping of str to int
        By stage.
    rows : Mapping of str to int
        Database rows written (inserted or updated), by table.
    models : Mapping of str to int
        How often a newer model was ``swapped`` in, or ``refused``.
    """

    read: int
    classified: int
    missing_features: int
    classes: Mapping[str, int]
    dead_letters: Mapping[str, int]
    rows: Mapping[str, int]
    models: Mapping[str, int]

    @property
    def dead(self) -> int:
        """Dead letters of all stages."""
        return sum(self.dead_letters.values())


def work_folder(output: Path) -> Path:
    """Folder of a run's unfinished parts."""
    return output.with_name(f".{output.name}.parts")


def dead_letters_folder(output: Path) -> Path:
    """Folder of a run's dead letters, beside its output."""
    return output.with_name(f"{output.stem}.dead_letters")


def wanted_features(model: Model) -> frozenset[str]:
    """Features to read: those of the messages and those of the model, under all their names."""
    return with_other_names({*model.features, *(entry["name"] for entry in load_schema("features")["fields"])})


def build(root: beam.Pipeline, job: ClassifyJob) -> None:
    """Add the graph of a job to a pipeline."""
    letters = job.work_folder / "dead_letters"
    # Not shuffled: of an object that stands in two sources, every run keeps that of the same source.
    sources = root | "Sources" >> beam.Create(job.sources, reshuffle=False)
    reading = ReadFeatures(wanted_features(job.model), job.limits, job.progress_folder)
    read = sources | "Read features" >> reading
    classify = read[FEATURE_BATCHES] | "Classify" >> Classify(job.place)
    classified = classify[CLASSIFIED]
    read[DEAD_LETTERS] | "Keep unreadable rows" >> WriteDeadLetters(letters, "read")
    classify[DEAD_LETTERS] | "Keep unclassified objects" >> WriteDeadLetters(letters, "classify")
    if job.table is not None:
        classified | "Write probabilities" >> WriteRows(job.work_folder / "table", parquet_part)
    if job.messages is not None:
        written = classified | "Write messages" >> WriteMessages(job.work_folder / "messages")
        written[DEAD_LETTERS] | "Keep unwritten messages" >> WriteDeadLetters(letters, "message")
    if job.database is not None:
        stored = classified | "Write tables" >> WriteProbabilities(job.database)
        stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(letters, "write")


def run(job: ClassifyJob, pipeline: beam.Pipeline) -> ClassifyCounts:
    """Run a job to its end in a pipeline made by the caller; its files appear when it is over, whole."""
    remove_unfinished(job)
    build(pipeline, job)
    result = pipeline.run()
    result.wait_until_finish()
    if job.table is not None:
        join_parts(job.work_folder / "table", job.table, table_schema(job))
    if job.messages is not None:
        join_messages(job.work_folder / "messages", job.messages)
    _replace_letters(job.work_folder / "dead_letters", job.dead_letters)
    found = counters(result)
    return ClassifyCounts(
        read=found.get("read", 0),
        classified=found.get("classified", 0),
        missing_features=found.get("missing_features", 0),
        classes=counters_by(found, "class:"),
        dead_letters=counters_by(found, "dead_letters:"),
        rows=counters_by(found, "rows:"),
        models=counters_by(found, "model:"),
    )


def table_schema(job: ClassifyJob) -> pa.Schema:
    """Columns of the Parquet file."""
    none = FeatureRows(
        pa.array([], pa.string()), pa.array([], pa.int64()), job.model.features, np.empty((0, len(job.model.features)))
    )
    schema = file_rows(classify(job.model, none)[0]).schema
    return schema.with_metadata({"feature_version": job.feature_version})


def remove_unfinished(job: ClassifyJob) -> None:
    """Remove what only has a meaning while a job runs; a killed run leaves it behind."""
    for name in ("table", "messages", "dead_letters"):
        shutil.rmtree(job.work_folder / name, ignore_errors=True)
    clear_progress(job.progress_folder)


def _replace_letters(new: Path, folder: Path) -> None:
    """Put the letters of this run in the place of those of an earlier run with the same output."""
    for path in folder.glob("*.avro"):
        path.unlink()
    if new.is_dir():
        folder.mkdir(exist_ok=True)
        for path in sorted(new.glob("[!.]*.avro")):
            path.replace(folder / path.name)
    elif folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
