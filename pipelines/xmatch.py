"""The crossmatch pipeline: archives in; enriched alerts, tables and crossmatches out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apache_beam as beam
import pyarrow as pa

from alerts.reader import Limits
from alerts.sources import Source
from database.client import Database
from messaging.settings import ProducerSettings
from storage.files import partial_name, remove_partial_files
from transforms.counts import RunCounts, count, counters, run_counts
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch, MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.kafka_sink import SendAlerts
from transforms.light_curve_store import AddToStore
from transforms.positions import POSITION_KEYS, CrossmatchPositions
from transforms.progress import clear_progress
from transforms.reading import BATCHES, ReadAlerts
from transforms.tables import ALERT_KEYS, crossmatch_rows, crossmatches_of_alerts
from transforms.writing import WriteAlerts, WriteRows, WriteTables, join_parts
from xmatch.matcher import Matcher, match_all

CROSSMATCHES: Final = "crossmatches.parquet"


@dataclass(frozen=True)
class XmatchJob:
    """All that a crossmatch run needs to know.

    Attributes
    ----------
    sources : tuple of Source
    matchers : tuple of Matcher
    output : Path
        Folder of the run.
    database : Database, optional
        Tables are not written without one.
    positions : bool
        The sources are tables of id, ra, dec instead of alerts.
    programs : tuple of int
        Survey programmes wanted; all if empty.
    limits : Limits
        Of a batch.
    codec, level, precision
        See :class:`~transforms.writing.WriteAlerts`.
    store : Path, optional
        Light-curve store to add the detections to.
    crossmatches : Path, optional
        Folder of the parts of the crossmatches, if not ``crossmatches``.
    progress : str
        Folder to note the progress in, if not ``.progress``.
    avro : bool
        Write the enriched alerts to files.
    alerts_to : ProducerSettings, optional
        Topic of the enriched alerts; none are sent without it.
    schemaless : bool
        Messages hold the bare record.
    """

    sources: tuple[Source, ...]
    matchers: tuple[Matcher, ...]
    output: Path
    database: Database | None = None
    positions: bool = False
    programs: tuple[int, ...] = (1,)
    limits: Limits = field(default_factory=Limits)
    codec: str = "zstandard"
    level: int | None = None
    precision: str = "float"
    store: Path | None = None
    crossmatches: Path | None = None
    progress: str = ""
    avro: bool = True
    alerts_to: ProducerSettings | None = None
    schemaless: bool = False

    @property
    def progress_folder(self) -> str:
        """Where the workers note how far they are."""
        return self.progress or str(self.output / ".progress")

    @property
    def parts_folder(self) -> Path:
        """The parts of ``crossmatches.parquet``, one per unit of work; they stay for runs that add to the folder."""
        return self.crossmatches or self.output / "crossmatches"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where each unit of work has files of its own."""
        return self.output / "alerts", self.output / "dead_letters", self.parts_folder


def build(root: beam.Pipeline, job: XmatchJob) -> None:
    """Add the graph of a job to a pipeline."""
    # Not shuffled: of an alert that stands in two sources, every run keeps that of the same source.
    sources = root | "Sources" >> beam.Create(job.sources, reshuffle=False)
    if job.positions:
        _build_positions(sources, job)
    else:
        _build_alerts(sources, job)


def _build_alerts(sources: beam.PCollection, job: XmatchJob) -> None:
    dead_letters = job.output / "dead_letters"
    read = sources | "Read alerts" >> ReadAlerts(job.limits, job.programs, job.progress_folder)
    crossmatch = read[BATCHES] | "Crossmatch" >> Crossmatch(job.matchers)
    matched = crossmatch[MATCHED_ALERTS]
    if job.avro:
        matched | "Write alerts" >> WriteAlerts(job.output / "alerts", job.codec, job.level, job.precision)
    else:
        matched | "Count alerts" >> beam.Map(_count_written)
    if job.alerts_to is not None:
        sent = matched | "Send alerts" >> SendAlerts(job.alerts_to, job.precision, job.schemaless)
        sent[DEAD_LETTERS] | "Keep unsent alerts" >> WriteDeadLetters(dead_letters, "send")
    matched | "Write crossmatches" >> WriteRows(job.parts_folder, _crossmatches)
    if job.store is not None:
        matched | "Add to the light curves" >> AddToStore(job.store)
    read[DEAD_LETTERS] | "Keep unreadable packets" >> WriteDeadLetters(dead_letters, "read")
    crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> WriteDeadLetters(dead_letters, "crossmatch")
    if job.database is not None:
        stored = matched | "Write tables" >> WriteTables(job.database)
        stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(dead_letters, "write")


def _build_positions(sources: beam.PCollection, job: XmatchJob) -> None:
    crossmatch = sources | "Crossmatch positions" >> CrossmatchPositions(job.matchers)
    crossmatch[MATCHED_ALERTS] | "Write crossmatches" >> WriteRows(job.parts_folder, _as_it_is)
    crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> WriteDeadLetters(job.output / "dead_letters", "crossmatch")


def _count_written(alerts: MatchedAlerts) -> None:
    """Count the alerts of which nothing but their crossmatches is written."""
    count("written", len(alerts.batch))


def _crossmatches(alerts: MatchedAlerts) -> tuple:
    return alerts.batch.unit, crossmatches_of_alerts(alerts)


def _as_it_is(element: tuple) -> tuple:
    return element


def run(job: XmatchJob, pipeline: beam.Pipeline) -> RunCounts:
    """Run a job to its end in a pipeline made by the caller, and join the crossmatches of all nights of the folder.

    What a killed run left unfinished is removed first, and what an earlier run wrote from the same sources and this
    one did not write again is removed at the end. What runs on other sources wrote stays: nights add up in a folder.
    """
    remove_unfinished(job)
    counts = run_counts(run_units(job, pipeline))
    join_parts(job.parts_folder, job.output / CROSSMATCHES, crossmatches_schema(job), as_csv=job.positions)
    remove_unfinished(job)
    return counts


def run_units(job: XmatchJob, pipeline: beam.Pipeline) -> dict[str, int]:
    """Write what belongs to a job's own units of work, so that other jobs may work in the folder; give the counters."""
    units = {source.name for source in job.sources}
    for folder in job.folders:
        remove_partial_files(folder, units)
    earlier = {path: path.stat().st_ino for path in _files_of(job, units)}
    build(pipeline, job)
    with _quick_switches():
        result = pipeline.run()
        result.wait_until_finish()
    for path, number in earlier.items():
        # A file that replaced another was made while that one existed, and has another number.
        if path.stat().st_ino == number:
            path.unlink()
    return counters(result)


@contextmanager
def _quick_switches() -> Iterator[None]:
    """Let threads take turns every millisecond: those that inflate and write wait for theirs after each call."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def crossmatches_schema(job: XmatchJob) -> pa.Schema:
    """Columns of a job's ``crossmatches.parquet``."""
    kinds = POSITION_KEYS if job.positions else ALERT_KEYS
    keys = {name: pa.array([], kind) for name, kind in kinds.items()}
    return crossmatch_rows(keys, match_all(job.matchers, [], [])).schema


def remove_unfinished(job: XmatchJob) -> None:
    """Remove what only has a meaning while a job runs; a killed run leaves it behind."""
    for folder in job.folders:
        remove_partial_files(folder)
    for name in (CROSSMATCHES, str(Path(CROSSMATCHES).with_suffix(".csv"))):
        partial_name(job.output / name).unlink(missing_ok=True)
    clear_progress(job.progress_folder)


def _files_of(job: XmatchJob, units: Collection[str]) -> list[Path]:
    """Files that an earlier run wrote from the job's sources."""
    files = [path for folder in job.folders for path in folder.glob("[!.]*")]
    return [path for path in files if path.name.partition(".")[0] in units]
