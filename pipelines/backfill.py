"""What the worker of a backfill does: one unit of work at a time, each a pipeline over the same transforms.

Pass 1 reads an archive, crossmatches it, writes the alerts and adds the detections to the light-curve store; pass 2
takes the objects that changed from the store, bucket by bucket, and writes their features and probabilities.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import apache_beam as beam
from apache_beam.runners import create_runner

from alerts.reader import Limits
from alerts.sources import Source
from classifier.model import ModelError
from classifier.package import read_model
from database.client import Database, DatabaseUnavailable
from database.tables import TableLayoutError
from lightcurves.features.curves import Mode
from lightcurves.store import LightCurveStore
from messaging.producer import DeliveryError
from messaging.settings import ProducerSettings
from pipelines.classify import wanted_features
from pipelines.replay import is_unsent, replay_refused, replay_unsent
from pipelines.running import LOCAL_RUNNER
from pipelines.workers import StopWork
from pipelines.xmatch import XmatchJob, run_units
from run_folder.layout import Results, RunLayout
from run_folder.ledger import Unit
from run_folder.light_curves import nested_light_curves
from storage.object_tables import ObjectTable
from transforms.classify import CLASSIFIED, ClassifiedBatch, Classify, WriteProbabilities, parquet_part
from transforms.counts import counters
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.features import ComputeFeatures, WriteFeatureTables
from transforms.kafka_sink import SendAlerts, SendClassifications
from transforms.light_curve_store import ChangedBucket, ReadFromStore
from transforms.models import ModelPlace
from transforms.object_tables import (
    ObjectRows,
    ReadChangedFeatures,
    WriteObjectTable,
    features_of,
    objects_of,
)
from xmatch.layout import CatalogError
from xmatch.matcher import Matcher

READ: Final = "read"
FOLD: Final = "fold"
FEATURES: Final = "features"
CLASSIFY: Final = "classify"
EXPORT: Final = "export"
REPLAY: Final = "replay"
# A disk that takes no more will not take the next unit either.
_DISK_FAILURES: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class AsOf:
    """A moment up to which alerts count.

    Attributes
    ----------
    name : str
        Of the folder of the results, and in the versions of rows in tables.
    mjd : float
    """

    name: str
    mjd: float


@dataclass(frozen=True)
class BackfillJob:
    """All that a worker needs to know.

    Attributes
    ----------
    folder : Path
        Of the run.
    matchers : tuple of Matcher
    buckets : int
        Of the light-curve store.
    mode : Mode
    feature_version : str
    forced : bool
        Whether forced photometry counts.
    model : ModelPlace, optional
        Nothing is classified without one.
    classifier : tuple of str
        Name and version of the model.
    as_of : AsOf, optional
    database : Database, optional
        Tables are not written without one.
    without_tables : frozenset of str
        Tables that pass 2 does not write.
    step_id : str
        Row of table ``step``.
    hats_light_curves : bool
        Whether the HATS catalogue holds the light curves.
    alerts_to, classifications_to : ProducerSettings, optional
        Topics of the enriched alerts and of the classifications. What was known at a date is not sent.
    avro, schemaless
        See :class:`~pipelines.xmatch.XmatchJob`.
    programs, limits, codec, level, precision
        See :class:`~pipelines.xmatch.XmatchJob`.
    """

    folder: Path
    matchers: tuple[Matcher, ...]
    buckets: int
    mode: Mode
    feature_version: str
    forced: bool = False
    model: ModelPlace | None = None
    classifier: tuple[str, str] = ("", "")
    as_of: AsOf | None = None
    database: Database | None = None
    without_tables: frozenset[str] = frozenset()
    step_id: str = "backfill"
    hats_light_curves: bool = False
    programs: tuple[int, ...] = (1,)
    limits: Limits = field(default_factory=Limits)
    codec: str = "zstandard"
    level: int | None = None
    precision: str = "float"
    avro: bool = True
    alerts_to: ProducerSettings | None = None
    classifications_to: ProducerSettings | None = None
    schemaless: bool = False

    @property
    def layout(self) -> RunLayout:
        """Places in the run's folder."""
        return RunLayout(self.folder)

    @property
    def results(self) -> Results:
        """Tables with a row per object."""
        return self.layout.results(self.as_of.name if self.as_of else None)

    @property
    def objects(self) -> ObjectTable:
        """Table of the objects' statistics."""
        return ObjectTable(self.results.objects, self.buckets)

    @property
    def features(self) -> ObjectTable:
        """Table of the features."""
        return ObjectTable(self.results.features(self.feature_version), self.buckets)

    @property
    def probabilities(self) -> ObjectTable:
        """Table of the probabilities."""
        return ObjectTable(self.results.probabilities(*self.classifier), self.buckets)

    def key(self, stage: str) -> str:
        """What tells the results of a stage from those with other features, another model, another date."""
        told: tuple[object, ...] = (self.feature_version, str(self.mode), self.forced, self.as_of)
        if stage == CLASSIFY:
            told += (self.model.sha256 if self.model else "",)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """What versions in tables end with: rows of what was known at a date stand beside the others."""
        return f"-as-of-{self.as_of.name}" if self.as_of else ""

    @property
    def store(self) -> LightCurveStore:
        """Light-curve store."""
        return LightCurveStore.open(self.layout.light_curves, self.buckets)

    def progress_of(self, unit: Unit) -> str:
        """Folder in which a unit notes how far it is."""
        return str(self.layout.progress / unit.name)


def do(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Do one unit of work; give what was counted.

    Raises
    ------
    StopWork
        If no other unit could be done either, because the database, Kafka, a disk, a catalogue or the model gave way.
    """
    doing = {READ: read, FOLD: fold, FEATURES: compute, CLASSIFY: classify, EXPORT: export, REPLAY: replay}[unit.stage]
    try:
        counts = doing(unit, job)
        if job.database is not None:
            job.database.close()
        return counts
    except (DatabaseUnavailable, TableLayoutError, CatalogError, ModelError, DeliveryError) as error:
        raise StopWork(str(error).partition(" [while running ")[0]) from error
    except (OSError, RuntimeError) as error:
        # Beam gives exceptions of more than one part another type.
        number = re.search(r"\[Errno (\d+)\]", str(error))
        if number and int(number[1]) in _DISK_FAILURES:
            raise StopWork(str(error).partition(" [while running ")[0].removeprefix("OSError: ")) from error
        raise


def read(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Pass 1: one archive, or some loose files."""
    source = Source(**{**unit.payload["source"], "paths": tuple(unit.payload["source"]["paths"])})
    xmatch = XmatchJob(
        sources=(source,),
        matchers=job.matchers,
        output=job.folder,
        database=job.database,
        programs=job.programs,
        limits=job.limits,
        codec=job.codec,
        level=job.level,
        precision=job.precision,
        store=job.layout.light_curves,
        crossmatches=job.layout.crossmatches,
        progress=job.progress_of(unit),
        avro=job.avro,
        alerts_to=job.alerts_to,
        schemaless=job.schemaless,
    )
    counts = run_units(xmatch, _pipeline())
    if unit.payload.get("replay"):
        # They were counted when they were read first.
        undecoded = sum(counts.get(f"dead_letters:{stage}", 0) for stage in ("read", "decode"))
        counts["replayed"] = counts.get("read", 0) + undecoded
    return counts


def replay(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Write once more what the database refused, or send what Kafka did."""
    path, letters = Path(unit.payload["path"]), job.layout.dead_letters
    if is_unsent(path):
        if job.alerts_to is None:
            raise StopWork("alerts that Kafka refused are for Kafka; name it with --kafka and --alerts-topic")
        sending = SendAlerts(job.alerts_to, job.precision, job.schemaless)
        return replay_unsent(path, unit.name, letters, sending, job.matchers, _pipeline(), job.programs)
    if job.database is None:
        raise StopWork("rows that a database refused are for a database; name one with --database URL")
    return replay_refused(path, unit.name, letters, job.database, job.matchers, _pipeline(), job.programs)


def fold(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Between the passes: new rows of some buckets find their place in the store."""
    payload = unit.payload
    counts = {"rows": 0, "new": 0, "superseded": 0}
    store = job.store
    for bucket in range(payload["first"], payload["last"] + 1):
        store.compact(bucket, payload["compact_up_to"])
        folded = store.fold(bucket, payload["generation"], payload["units"])
        for name in counts:
            counts[name] += getattr(folded, name)
    return counts


def compute(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Pass 2: light curves and features of the objects of some buckets that changed."""
    version = job.feature_version + job.label
    computing = ComputeFeatures(job.mode, forced=job.forced, version=version, progress_folder=job.progress_of(unit))
    root = _pipeline()
    light_curves = (
        root
        | "Buckets" >> beam.Create(_changed(unit), reshuffle=False)
        | "Read light curves" >> ReadFromStore(job.layout.light_curves, job.as_of.mjd if job.as_of else None)
    )
    featured = light_curves | "Compute features" >> computing
    featured | "Write objects" >> WriteObjectTable(job.objects, objects_of)
    featured | "Write features" >> WriteObjectTable(job.features, features_of)
    if job.database is not None:
        # What was known at a date is no state of the light curves' own tables.
        without = job.without_tables | ({"detection", "non_detection", "magstat"} if job.as_of else set())
        stored = featured | "Write tables" >> WriteFeatureTables(job.database, job.step_id, unit.name, without)
        stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(job.layout.dead_letters, "write")
    return _run(root)


def classify(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Pass 2: classes of the objects of some buckets that changed."""
    assert job.model is not None
    wanted = wanted_features(read_model(job.model.resolve()))
    letters = job.layout.dead_letters
    reading = ReadChangedFeatures(job.layout.light_curves, job.features, job.objects, wanted, unit.name)
    root = _pipeline()
    features = root | "Buckets" >> beam.Create(_changed(unit), reshuffle=False) | "Read features" >> reading
    told = features | "Classify" >> Classify(job.model)
    classified = told[CLASSIFIED]
    told[DEAD_LETTERS] | "Keep unclassified objects" >> WriteDeadLetters(letters, "classify")
    classified | "Write probabilities" >> WriteObjectTable(job.probabilities, _probabilities_of)
    if job.classifications_to is not None and job.as_of is None:
        sent = classified | "Send classifications" >> SendClassifications(job.classifications_to, job.schemaless)
        sent[DEAD_LETTERS] | "Keep unsent classifications" >> WriteDeadLetters(letters, "send")
    if job.database is not None and "probability" not in job.without_tables:
        stored = classified | "Write tables" >> WriteProbabilities(job.database, job.label)
        stored[DEAD_LETTERS] | "Keep refused rows" >> WriteDeadLetters(letters, "write")
    return _run(root)


def export(unit: Unit, job: BackfillJob) -> Mapping[str, int]:
    """Last: all objects as a HATS catalogue."""
    # Loading astropy takes half a second, which workers that only read need not wait for.
    from run_folder.hats_export import HatsInput, export_hats

    classified = job.probabilities.folder if job.model is not None else None
    nested = partial(nested_light_curves, job.layout.light_curves) if job.hats_light_curves else None
    summary = export_hats(
        HatsInput(job.results.objects, job.features.folder, classified),
        job.buckets,
        job.results.hats,
        name="alertbeam_objects",
        version=job.feature_version + job.label,
        light_curves=nested,
    )
    return {"objects": summary.rows, "partitions": summary.partitions}


def _probabilities_of(classified: ClassifiedBatch) -> ObjectRows:
    _, rows = parquet_part(classified)
    return ObjectRows(rows, rows["oid"].combine_chunks())


def _changed(unit: Unit) -> list[ChangedBucket]:
    return [ChangedBucket(bucket, since) for bucket, since in unit.payload["buckets"]]


def _pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=create_runner(LOCAL_RUNNER))


def _run(root: beam.Pipeline) -> Mapping[str, int]:
    result = root.run()
    result.wait_until_finish()
    return counters(result)
