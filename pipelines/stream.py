"""The live stream: Kafka in; Kafka, Avro and PostgreSQL out, through the transforms of the backfill.

From the reader to the sinks everything is one bundle, without a shuffle: offsets are committed when all that came of
their messages is written, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam

from alerts.reader import Limits
from database.client import Database
from lightcurves.features.curves import Mode
from messaging.settings import ConsumerSettings, MonitorSettings, ProducerSettings
from pipelines.stream_settings import ALL, LATE_CLASSIFICATION
from transforms.classify import CLASSIFIED, Classify, WriteMessages, WriteProbabilities, with_detections
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.feature_reading import FeatureBatch
from transforms.features import WRITTEN, ComputeFeatures, WriteFeatureTables, classifiable
from transforms.kafka_sink import SendAlerts, SendClassifications
from transforms.kafka_source import ReadFromKafka
from transforms.models import ModelPlace
from transforms.object_state import KEPT, LIGHT_CURVES, KeepLightCurves, LightCurvesByObject
from transforms.origins import Origins
from transforms.reading import BATCHES
from transforms.writing import WriteAlerts, WriteTables
from xmatch.matcher import Matcher


@dataclass(frozen=True)
class StreamJob:
    """All that a stream needs to know.

    Attributes
    ----------
    step : str
        ``xmatch`` (alerts to enriched alerts), ``late_classification`` (messages of the feature step to classes) or
        ``all`` (alerts to classes).
    consumer : ConsumerSettings
    decode : callable
        From messages to batches; see :class:`~transforms.kafka_source.ReadFromKafka`.
    output : Path
        Folder for dead letters and files.
    matchers : tuple of Matcher
    model : ModelPlace, optional
        Nothing is classified without one.
    min_detections : int
        Objects with fewer are not classified.
    mode, forced, feature_version
        Of the features.
    origins : Origins
        Where the light curves that are not in the state come from.
    expiry_days : float
        How long an object without alerts stays in the state.
    database : Database, optional
        Tables are not written without one.
    without_tables : frozenset of str
        Tables of features and classes to leave alone.
    step_id : str
        Row of table ``step``.
    alerts_to, classifications_to : ProducerSettings, optional
        Topics of the enriched alerts and of the classifications.
    schemaless : bool
        Messages hold the bare record.
    avro : bool
        Write the enriched alerts and the classifications to files as well.
    monitor : MonitorSettings, optional
        Told by the readers.
    programs, limits, precision
        See :class:`~pipelines.xmatch.XmatchJob`.
    bundle_s : float
        How long messages are gathered before what came of them is written and committed.
    threads : int
        How many compute features.
    splits : int
        Parts of the topic that are read side by side; one on the local runner.
    part : int
        Which of the parts to read, the others being read by other processes; all if it is negative.
    checkpointed : bool
        See :class:`~transforms.kafka_source.ReadFromKafka`.
    """

    step: str
    consumer: ConsumerSettings
    decode: Callable[..., Any]
    output: Path
    matchers: tuple[Matcher, ...] = ()
    model: ModelPlace | None = None
    min_detections: int = 0
    mode: Mode = Mode.ACCURATE
    forced: bool = False
    feature_version: str = ""
    origins: Origins = Origins()  # noqa: RUF009 (immutable)
    expiry_days: float = 1.0
    database: Database | None = None
    without_tables: frozenset[str] = frozenset()
    step_id: str = ""
    alerts_to: ProducerSettings | None = None
    classifications_to: ProducerSettings | None = None
    schemaless: bool = False
    avro: bool = False
    monitor: MonitorSettings | None = MonitorSettings()  # noqa: RUF009 (immutable)
    programs: tuple[int, ...] = (1,)
    limits: Limits = field(default_factory=Limits)
    precision: str = "float"
    bundle_s: float = 0.5
    threads: int = 1
    splits: int = 1
    part: int = -1
    checkpointed: bool = False

    def with_database(self, database: Database) -> StreamJob:
        """Job that writes its tables, and looks objects up, in a database."""
        return replace(self, database=database, origins=replace(self.origins, database=database))

    @property
    def dead_letters(self) -> Path:
        """Folder of what could not be processed."""
        return self.output / "dead_letters"


def build(root: beam.Pipeline, job: StreamJob) -> None:
    """Add the graph of a stream to a pipeline."""
    read = root | "Read from Kafka" >> ReadFromKafka(
        job.consumer,
        job.decode,
        job.monitor,
        splits=job.splits,
        part=job.part,
        programs=job.programs,
        bundle_s=job.bundle_s,
        checkpointed=job.checkpointed,
    )
    read[DEAD_LETTERS] | "Keep unreadable messages" >> _keep(job, "read")
    if job.step == LATE_CLASSIFICATION:
        _classify(read[BATCHES], job)
        return
    matched = _crossmatch(read[BATCHES], job)
    if job.step == ALL:
        features = _features(matched, job)
        if job.model is not None:
            _classify(features, job)


def _crossmatch(alerts: beam.PCollection, job: StreamJob) -> beam.PCollection:
    crossmatch = alerts | "Crossmatch" >> Crossmatch(job.matchers)
    matched = crossmatch[MATCHED_ALERTS]
    crossmatch[DEAD_LETTERS] | "Keep failed lookups" >> _keep(job, "crossmatch")
    if job.alerts_to is not None:
        sent = matched | "Send alerts" >> SendAlerts(job.alerts_to, job.precision, job.schemaless)
        sent[DEAD_LETTERS] | "Keep unsent alerts" >> _keep(job, "send")
    if job.avro:
        matched | "Write alerts" >> WriteAlerts(job.output / "alerts", precision=job.precision)
    if job.database is not None:
        stored = matched | "Write crossmatches" >> WriteTables(job.database)
        stored[DEAD_LETTERS] | "Keep refused crossmatches" >> _keep(job, "write")
    return matched


def _features(matched: beam.PCollection, job: StreamJob) -> beam.PCollection:
    objects = matched | "Light curves by object" >> LightCurvesByObject(
        job.origins, expiry_days=job.expiry_days, shuffled=job.checkpointed
    )
    featured = objects[LIGHT_CURVES] | "Compute features" >> ComputeFeatures(
        job.mode, forced=job.forced, version=job.feature_version, threads=job.threads
    )
    if job.database is not None:
        kept = objects[KEPT] | "Keep light curves" >> KeepLightCurves(job.database, "light_curves")
        kept[DEAD_LETTERS] | "Keep refused light curves" >> _keep(job, "write")
        writing = WriteFeatureTables(job.database, job.step_id, "features", job.without_tables)
        stored = featured | "Write features" >> writing
        stored[DEAD_LETTERS] | "Keep refused features" >> _keep(job, "write")
        featured = stored[WRITTEN]
    return featured | "Features to classify" >> beam.FlatMap(classifiable)


def _classify(features: beam.PCollection[FeatureBatch], job: StreamJob) -> None:
    assert job.model is not None
    if job.min_detections:
        features = features | "Enough detections" >> beam.FlatMap(with_detections, job.min_detections)
    told = features | "Classify" >> Classify(job.model)
    classified = told[CLASSIFIED]
    told[DEAD_LETTERS] | "Keep unclassified objects" >> _keep(job, "classify")
    if job.classifications_to is not None:
        sent = classified | "Send classifications" >> SendClassifications(job.classifications_to, job.schemaless)
        sent[DEAD_LETTERS] | "Keep unsent classifications" >> _keep(job, "send")
    if job.avro:
        written = classified | "Write classifications" >> WriteMessages(job.output / "classifications")
        written[DEAD_LETTERS] | "Keep unwritten classifications" >> _keep(job, "message")
    if job.database is not None and "probability" not in job.without_tables:
        writing = WriteProbabilities(job.database, known_objects=job.step == ALL and "object" not in job.without_tables)
        stored = classified | "Write probabilities" >> writing
        stored[DEAD_LETTERS] | "Keep refused probabilities" >> _keep(job, "write")


def _keep(job: StreamJob, stage: str) -> WriteDeadLetters:
    return WriteDeadLetters(job.dead_letters, stage, unbounded=True)
