"""From options and variables to the job of a stream."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from alerts.reader import Limits
from classifier.model import Model, ModelError
from lightcurves.features.compute import FEATURES_VERSION
from lightcurves.features.curves import Mode
from messaging.offsets import start_time_ms
from messaging.settings import MonitorSettings, ProducerSettings
from messaging.topics import DailyTopics
from pipelines.backfill_settings import PASS_2_TABLES
from pipelines.classify import wanted_features
from pipelines.classify_command import model_of
from pipelines.environment import UNSET_VERSION
from pipelines.kafka_options import ALERTS, CLASSIFICATIONS, check_producer_options, producer_settings
from pipelines.matchers import CDS, make_matchers
from pipelines.running import programs_of
from pipelines.stream import StreamJob
from pipelines.stream_environment import read_stream_environment
from pipelines.stream_settings import (
    ALL,
    CONTAINER,
    LATE_CLASSIFICATION,
    PROMETHEUS_PORT,
    XMATCH,
    StreamEnvironment,
)
from pipelines.usage import UsageError
from run_folder.layout import RunLayout
from transforms.light_curves import ALLWISE
from transforms.message_reading import AlertDecoder, FeatureDecoder
from transforms.models import ModelPlace
from transforms.origins import Origins
from xmatch.matcher import Matcher
from xmatch.settings import CatalogSetting

_LOGGER = logging.getLogger(__name__)

_BUNDLE_S: Final = 0.5
# Files of a bundle should be of a size that is worth opening.
_BUNDLE_WITH_FILES_S: Final = 30.0


def chosen(options: argparse.Namespace, variables: Mapping[str, str]) -> StreamEnvironment:
    """What the variables say, and over them the options.

    Raises
    ------
    UsageError
        If one of them cannot be understood.
    """
    environment = read_stream_environment(variables, options.step)
    consumer = replace(
        environment.consumer,
        **_given(
            server=options.server,
            topics=_topics(options),
            group=options.group,
            start=options.start,
            stop_at_end=options.stop_at_end or None,
            message_format=options.format,
            schema_path=options.schema,
        ),
    )
    return replace(environment, consumer=consumer, **_given(model_path=options.model))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _topics(options: argparse.Namespace) -> tuple[str, ...] | DailyTopics | None:
    if options.topics and options.daily_topics:
        raise UsageError("--topics and --daily-topics: name one of them")
    if options.daily_topics:
        try:
            return DailyTopics(options.daily_topics)
        except ValueError as error:
            raise UsageError(f"--daily-topics: {error}") from error
    return tuple(name.strip() for name in options.topics.split(",") if name.strip()) if options.topics else None


def make_job(options: argparse.Namespace, environment: StreamEnvironment) -> StreamJob:
    """Job of a stream, without its database.

    Raises
    ------
    UsageError
        If something that it needs is missing or cannot be used.
    """
    output = Path(options.output).expanduser().absolute()
    consumer = environment.consumer.settings(str(output / ".stop"))
    place, model = _model(options, environment)
    mode = Mode(options.mode or (model.feature_mode if model and model.feature_mode else Mode.ACCURATE))
    named = environment.environment.feature_version
    version = named if named != UNSET_VERSION else f"{FEATURES_VERSION}-{mode}" + ("-forced" if options.forced else "")
    part, splits = _part(options)
    _positive(1.0 if options.renew_hours is None else options.renew_hours, "--renew-hours")
    alerts_to, classifications_to = _producers(options, environment)
    matchers = () if options.step == LATE_CLASSIFICATION else _matchers(options, environment)
    bundle_s = options.bundle_seconds or (_BUNDLE_WITH_FILES_S if options.avro else _BUNDLE_S)
    port = options.metrics_port if options.metrics_port is not None else PROMETHEUS_PORT
    try:
        # What is no start is to be told before anything is begun.
        start_time_ms(consumer.start)
        return StreamJob(
            step=options.step,
            consumer=consumer,
            decode=_decoder(options.step, environment, model),
            output=output,
            matchers=matchers,
            model=place,
            min_detections=environment.min_detections or 0,
            mode=mode,
            forced=options.forced,
            feature_version=version,
            origins=Origins(store=_store(options)),
            expiry_days=_positive(options.keep_days, "--keep-days"),
            without_tables=_without_tables(options),
            step_id=environment.environment.step.step_id,
            alerts_to=alerts_to,
            classifications_to=classifications_to,
            schemaless=bool(environment.producer.schemaless if options.schemaless is None else options.schemaless),
            avro=bool(options.avro),
            monitor=MonitorSettings(
                port=port if options.metrics_port is not None or environment.prometheus else None,
                metrics=environment.metrics.settings(options.step),
            ),
            programs=programs_of(options.programid),
            precision=options.xmatch_precision,
            bundle_s=_positive(bundle_s, "--bundle-seconds"),
            threads=len(os.sched_getaffinity(0)),
            part=part,
            splits=splits,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _matchers(options: argparse.Namespace, environment: StreamEnvironment) -> tuple[Matcher, ...]:
    """Catalogues that are named; else, in the place of ALeRCE's step, AllWISE at CDS as there."""
    given = environment.environment
    if options.step == XMATCH and not options.catalog and not given.catalogs and options.matcher in (None, CDS):
        given = replace(given, catalogs=(CatalogSetting(ALLWISE),))
    return tuple(make_matchers(options, given))


def _part(options: argparse.Namespace) -> tuple[int, int]:
    """Which part of the partitions is read, from 0, and of how many; -1 of 1 for all."""
    if options.part is None:
        return -1, 1
    number, _, parts = options.part.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UsageError(f"--part {options.part}: say which part of how many, such as 1/4")
    if options.step == ALL:
        raise UsageError(
            "--part is for steps that see each message by itself: with --step all, two processes would keep the light "
            "curve of one object; read all partitions with one process"
        )
    return int(number) - 1, int(parts)


def _positive(number: float, name: str) -> float:
    if not number > 0:
        raise UsageError(f"{name} must be more than 0")
    return number


def _decoder(step: str, environment: StreamEnvironment, model: Model | None) -> AlertDecoder | FeatureDecoder:
    consumer = environment.consumer
    form, path = consumer.message_format or CONTAINER, consumer.schema_path
    try:
        schema = Path(path).read_text() if path else ""
    except OSError as error:
        raise UsageError(f"the schema {path} cannot be read: {error}") from error
    if step == LATE_CLASSIFICATION:
        assert model is not None
        return FeatureDecoder(wanted_features(model), form, schema)
    return AlertDecoder(form, schema, Limits())


def _model(options: argparse.Namespace, environment: StreamEnvironment) -> tuple[ModelPlace | None, Model | None]:
    if options.step == XMATCH:
        return None, None
    path = environment.model_path
    if not path:
        if options.step == LATE_CLASSIFICATION:
            raise UsageError(
                "no model to classify with: name one by --model DIR or MODEL_PATH; 'alertbeam model import' makes one "
                "of ALeRCE's files, 'alertbeam model fetch' fetches one"
            )
        return None, None
    try:
        place, model = model_of(path, options.follow_model)
    except ModelError as error:
        raise UsageError(str(error)) from error
    wanted = environment.model_version
    if wanted and wanted != model.version:
        _LOGGER.warning(
            "MODEL_VERSION is %s, but the model in %s says it is %s, which counts", wanted, path, model.version
        )
    return place, model


def _producers(
    options: argparse.Namespace, environment: StreamEnvironment
) -> tuple[ProducerSettings | None, ProducerSettings | None]:
    """Where alerts and classifications go: to the brokers that are named, or else those that are read.

    The topic that variables name is that of what the step gives.
    """
    check_producer_options(options)
    named, read = environment.producer, environment.consumer
    if named.server is not None and not (options.alerts_topic or options.classifications_topic):
        named.settings()
    if named.server is None:
        named = replace(named, server=read.server, username=read.username, password=read.password, options=read.options)
    ours = ALERTS if options.step == XMATCH else CLASSIFICATIONS
    alerts_to, classifications_to = (
        producer_settings(options, named if kind == ours else replace(named, topic=None), kind)
        for kind in (ALERTS, CLASSIFICATIONS)
    )
    return alerts_to, classifications_to


def _store(options: argparse.Namespace) -> Path | None:
    if not options.light_curves:
        return None
    folder = RunLayout(Path(options.light_curves).expanduser().absolute()).light_curves
    if not (folder / "store.json").is_file():
        raise UsageError(f"--light-curves {options.light_curves} is no folder of a backfill: there is no {folder}")
    return folder


def _without_tables(options: argparse.Namespace) -> frozenset[str]:
    names = frozenset(name.strip() for name in options.without_tables.split(",") if name.strip())
    if unknown := names - {*PASS_2_TABLES}:
        raise UsageError(
            f"--without-tables {', '.join(sorted(unknown))}: these can be left out: {', '.join(PASS_2_TABLES)}"
        )
    return names
