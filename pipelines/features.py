"""The feature pipeline: alerts or tables of detections in; light-curve features and tables out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import apache_beam as beam
import pyarrow as pa

from alerts.reader import Limits
from alerts.sources import Source
from database.client import Database
from lightcurves.batch import LightCurveBatch
from lightcurves.features.compute import feature_schema
from lightcurves.features.curves import Mode
from lightcurves.tables import TableError, read_light_curves
from pipelines.classify import _replace_letters, dead_letters_folder, work_folder
from transforms.counts import count, counters, counters_by
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.features import ComputeFeatures, WriteFeatureTables, feature_part, merge_sorted, read_crossmatches
from transforms.light_curves import AssembleLightCurves
from transforms.progress import clear_progress
from transforms.reading import BATCHES, ReadAlerts
from transforms.writing import WriteRows
from xmatch.matcher import Matcher

STEP: Final = "features"


@dataclass(frozen=True)
class DetectionTables:
    """Tables of detections and, if there is one, of non-detections."""

    detections: Path
    non_detections: Path | None = None


@dataclass(frozen=True)
class FeaturesJob:
    """All that a feature run needs to know.

    Attributes
    ----------
    sources : tuple of Source
        Of alerts; empty if `tables` is given.
    tables : DetectionTables, optional
    output : Path
        Parquet file to write.
    mode : Mode
    version : str
        What features of different definitions are told apart by.
    matchers : tuple of Matcher
        Crossmatch of the alerts, for the WISE colours.
    crossmatches : Path, optional
        ``crossmatches.parquet`` of a run, for the same.
    as_of_mjd : float, optional
        What was known then.
    forced : bool
        Whether forced photometry counts.
    all_objects : bool
        Whether objects with too few points get a row of nulls.
    database : Database, optional
        Tables are not written without one.
    step_id : str
        Row of table ``step``.
    programs : tuple of int
        Survey programmes wanted; all if empty.
    limits : Limits
        Of a batch of alerts.
    """

    sources: tuple[Source, ...]
    output: Path
    mode: Mode
    version: str
    tables: DetectionTables | None = None
    matchers: tuple[Matcher, ...] = ()
    crossmatches: Path | None = None
    as_of_mjd: float | None = None
    forced: bool = False
    all_objects: bool = False
    database: Database | None = None
    step_id: str = STEP
    programs: tuple[int, ...] = (1,)
    limits: Limits = field(default_factory=Limits)

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

    @property
    def read_crossmatches(self) -> Callable[[], pa.Table] | None:
        """Gives the crossmatches of the file."""
        return partial(read_crossmatches, self.crossmatches) if self.crossmatches else None

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output, with how they were computed."""
        return feature_schema().with_metadata({"feature_mode": str(self.mode), "feature_version": self.version})


@dataclass(frozen=True)
class FeaturesCounts:
    """What became of the alerts and objects of a run.

    Attributes
    ----------
    read, filtered, repeated, empty : int
        As in :class:`~transforms.counts.RunCounts`.
    matched, no_match, failed : int
        Outcome of the crossmatch, of alerts.
    objects : int
        Objects with a detection.
    featured : int
        Rows written.
    dead_letters : Mapping of str to int
        By stage.
    rows : Mapping of str to int
        Database rows written (inserted or updated), by table.
    """

    read: int
    filtered: int
    repeated: int
    empty: int
    matched: int
    no_match: int
    failed: int
    objects: int
    featured: int
    dead_letters: Mapping[str, int]
    rows: Mapping[str, int]

    @property
    def dead(self) -> int:
        """Dead letters of all stages."""
        return sum(self.dead_letters.values())


def build(root: beam.Pipeline, job: FeaturesJob) -> None:
    """Add the graph of a job to a pipeline."""
    letters = job.work_folder / "dead_letters"
    light_curves = _of_tables(root, job) if job.tables else _of_alerts(root, job, letters)
    computing = ComputeFeatures(
        job.mode,
        forced=job.forced,
        all_objects=job.all_objects,
        version=job.version,
        progress_folder=job.progress_folder,
    )
    featured = light_curves | "Compute features" >> computing
    featured | "Write features" >> WriteRows(job.work_folder / "features", feature_part)
    if job.database is not None:
        writing = WriteFeatureTables(job.database, job.step_id, job.output.stem)
        stored = featured | "Write tables" >> writing
        stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(letters, "write")


def _of_alerts(root: beam.Pipeline, job: FeaturesJob, letters: Path) -> beam.PCollection:
    # Not shuffled: of an alert that stands in two sources, every run keeps that of the same source.
    sources = root | "Sources" >> beam.Create(job.sources, reshuffle=False)
    read = sources | "Read alerts" >> ReadAlerts(job.limits, job.programs, job.progress_folder)
    read[DEAD_LETTERS] | "Keep unreadable packets" >> WriteDeadLetters(letters, "read")
    alerts = read[BATCHES]
    if job.matchers:
        crossmatch = alerts | "Crossmatch" >> Crossmatch(job.matchers)
        crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> WriteDeadLetters(letters, "crossmatch")
        alerts = crossmatch[MATCHED_ALERTS]
    assembly = AssembleLightCurves(as_of_mjd=job.as_of_mjd, crossmatches=job.read_crossmatches)
    return alerts | "Assemble light curves" >> assembly


def _of_tables(root: beam.Pipeline, job: FeaturesJob) -> beam.PCollection:
    tables = root | "Tables" >> beam.Create([job.tables], reshuffle=False)
    return tables | "Read light curves" >> beam.FlatMap(light_curves_of, job.as_of_mjd, job.read_crossmatches)


def light_curves_of(
    tables: DetectionTables, as_of_mjd: float | None, crossmatches: Callable[[], pa.Table] | None
) -> Iterator[LightCurveBatch]:
    """Light curves of tables, some objects at a time."""
    wise = crossmatches() if crossmatches else None
    batches = read_light_curves(tables.detections, tables.non_detections, as_of_mjd=as_of_mjd, crossmatches=wise)
    try:
        for batch in batches:
            count("objects", len(batch))
            yield batch
    except TableError:
        raise
    except ValueError as error:
        raise TableError(f"{tables.detections.name}: {error}") from error


def run(job: FeaturesJob, pipeline: beam.Pipeline) -> FeaturesCounts:
    """Run a job to its end in a pipeline made by the caller; the file appears when it is over, whole."""
    remove_unfinished(job)
    build(pipeline, job)
    result = pipeline.run()
    result.wait_until_finish()
    merge_sorted(job.work_folder / "features", job.output, job.schema)
    _replace_letters(job.work_folder / "dead_letters", job.dead_letters)
    found = counters(result)
    names = ("read", "filtered", "repeated", "empty", "matched", "no_match", "failed", "objects", "featured")
    return FeaturesCounts(
        **{name: found.get(name, 0) for name in names},
        dead_letters=counters_by(found, "dead_letters:"),
        rows=counters_by(found, "rows:"),
    )


def remove_unfinished(job: FeaturesJob) -> None:
    """Remove what only has a meaning while a job runs; a killed run leaves it behind."""
    for name in ("features", "dead_letters"):
        shutil.rmtree(job.work_folder / name, ignore_errors=True)
    clear_progress(job.progress_folder)
