"""What a backfill is to do: its options, those that the run keeps for the next start, and the job made of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alerts.reader import Limits
from classifier.model import Model, ModelError
from database.settings import HIDDEN_PASSWORD, safe_url
from lightcurves.features.compute import FEATURES_VERSION
from lightcurves.features.curves import Mode
from pipelines import __version__
from pipelines.backfill import AsOf, BackfillJob
from pipelines.classify_command import model_of
from pipelines.environment import UNSET_VERSION, Environment
from pipelines.features_command import as_of_mjd
from pipelines.kafka_options import ALERTS, CLASSIFICATIONS, producer_settings
from pipelines.matchers import DEFAULT_RADIUS_ARCSEC, make_matchers
from pipelines.running import NO_DATABASE, database_of, programs_of
from pipelines.stream_settings import ProducerEnvironment
from pipelines.usage import UsageError
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, LedgerError
from run_folder.moments import name_of
from transforms.models import ModelPlace
from xmatch.matcher import LocalMatcher, Matcher

BUCKETS: Final = 128
PASS_2_TABLES: Final = ("detection", "feature", "magstat", "non_detection", "probability")
# What a run keeps for the next start in its folder, and what it is if nothing was said.
KEPT: Final[Mapping[str, Any]] = {
    "catalog": [],
    "matcher": None,
    "radius": None,
    "service_url": None,
    "cache": None,
    "model": None,
    "mode": None,
    "forced": False,
    "hats": True,
    "hats_light_curves": False,
    "programid": "1",
    "codec": "zstandard",
    "compression_level": None,
    "xmatch_precision": "float",
    "batch_alerts": 1000,
    "buckets": BUCKETS,
    "database": None,
    "without_tables": "",
    "kafka": None,
    "alerts_topic": None,
    "classifications_topic": None,
    "schemaless": False,
    "avro": True,
}


def recorded_settings(layout: RunLayout, needed: bool) -> dict[str, Any]:
    """Settings of the run in a folder, empty if it holds none.

    Raises
    ------
    UsageError
        If it holds none and one is needed.
    """
    if not layout.ledger.is_dir():
        if needed:
            raise UsageError(f"--resume: {layout.root} holds no run to go on with; leave --resume out to begin one")
        return {}
    try:
        with Ledger.read_only(layout.ledger) as ledger:
            return ledger.settings()
    except LedgerError as error:
        raise UsageError(str(error)) from error


def fill(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Give what was not said the value that the run began with, else its default."""
    recorded = settings.get("options", {})
    for name, default in KEPT.items():
        if getattr(options, name) in (None, []):
            setattr(options, name, recorded.get(name, default))
    for name in ("catalog", "cache", "model"):
        setattr(options, name, _absolute(getattr(options, name)))
    if options.database and HIDDEN_PASSWORD in options.database:
        raise UsageError(f"the tables of this run are in {options.database}: name it again with its --database URL")
    if options.workers is None:
        options.workers = os.cpu_count() or 1


def _absolute(value: Any) -> Any:
    """Paths that hold wherever the next start is made; names of catalogues and URLs stay."""
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return str(Path(value).absolute()) if value and Path(value).exists() else value


def without_tables(options: argparse.Namespace) -> list[str]:
    """Names that ``--without-tables`` lists."""
    return [name.strip() for name in options.without_tables.split(",") if name.strip()]


def make_job(
    options: argparse.Namespace, environment: Environment, layout: RunLayout, producer: ProducerEnvironment
) -> tuple[BackfillJob, dict[str, Any]]:
    """Job of the workers, without its database, and the settings that the ledger keeps.

    Raises
    ------
    UsageError
        If a catalogue or model cannot be used.
    """
    matchers = make_matchers(options, environment)
    place, model = _model(options)
    mode = Mode(options.mode or (model.feature_mode if model and model.feature_mode else Mode.ACCURATE))
    named = environment.feature_version
    version = named if named != UNSET_VERSION else f"{FEATURES_VERSION}-{mode}" + ("-forced" if options.forced else "")
    if model is not None and model.feature_mode not in ("", str(mode)):
        print(
            f"alertbeam backfill: warning: the model was trained on features of mode {model.feature_mode}, not {mode}",
            file=sys.stderr,
        )
    job = BackfillJob(
        folder=layout.root,
        matchers=tuple(matchers),
        buckets=options.buckets,
        mode=mode,
        feature_version=version,
        forced=bool(options.forced),
        model=place,
        classifier=(model.name, model.version) if model else ("", ""),
        as_of=_as_of(options.as_of),
        without_tables=frozenset(without_tables(options)),
        step_id=environment.step.step_id,
        hats_light_curves=options.hats_light_curves,
        programs=programs_of(options.programid),
        limits=Limits(alerts=options.batch_alerts),
        codec=options.codec,
        level=options.compression_level,
        precision=options.xmatch_precision,
        avro=options.avro,
        alerts_to=producer_settings(options, producer, ALERTS),
        classifications_to=producer_settings(options, producer, CLASSIFICATIONS),
        schemaless=options.schemaless,
    )
    if job.classifications_to is not None and model is None:
        raise UsageError("--classifications-topic: name the model to classify with as well, --model DIR")
    told = (
        {"name": model.name, "version": model.version, "sha256": model.sha256, "path": options.model} if model else None
    )
    catalogs = [_told_of(matcher) for matcher in matchers]
    settings = {
        "alertbeam": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: getattr(options, name) for name in KEPT}
        | {"database": _without_password(options, environment)},
        "catalogs": catalogs,
        "radius_arcsec": options.radius or DEFAULT_RADIUS_ARCSEC,
        "programs": list(job.programs),
        "precision": job.precision,
        "mode": str(mode),
        "forced": job.forced,
        "feature_version": version,
        "model": {**told, "path": options.model} if told else None,
        "buckets": job.buckets,
        "versions": {
            "alertbeam": __version__,
            "features": version,
            "catalogs": {catalog["name"]: catalog["version"] for catalog in catalogs},
            "model": f"{model.name} {model.version} {model.sha256[:12]}" if model else None,
        },
    }
    return job, settings


def _without_password(options: argparse.Namespace, environment: Environment) -> str | None:
    url = database_of(options.database, environment)
    return safe_url(url) if options.database and url and url != NO_DATABASE else options.database


def _told_of(matcher: Matcher) -> dict[str, Any]:
    if not isinstance(matcher, LocalMatcher):
        return {"name": matcher.name, "version": "", "created": "", "path": "", "rows": 0}
    catalog = matcher.catalog
    names = ("name", "version", "created", "rows")
    return {name: getattr(catalog, name) for name in names} | {"path": str(catalog.path)}


def _model(options: argparse.Namespace) -> tuple[ModelPlace | None, Model | None]:
    if not options.model:
        return None, None
    try:
        return model_of(options.model)
    except ModelError as error:
        raise UsageError(str(error)) from error


def _as_of(text: str | None) -> AsOf | None:
    if text is None:
        return None
    mjd = as_of_mjd(text)
    return AsOf(name_of(text), mjd)


def check_same(recorded: Mapping[str, Any], settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Refuse to mix in one folder what was read with different catalogues or choices.

    Raises
    ------
    UsageError
        With all that is different.
    """
    if not recorded:
        return
    changes = []
    before = {catalog["name"]: catalog for catalog in recorded["catalogs"]}
    now = {catalog["name"]: catalog for catalog in settings["catalogs"]}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            changes.append(f"catalogue {name} is {'new' if old is None else 'not named any more'}")
        elif any(old[key] != new[key] for key in ("version", "created", "rows")):
            changes.append(
                f"catalogue {name} was version {old['version']} made {old['created']}, now it is {new['version']} "
                f"made {new['created']}"
            )
    for key, what in (
        ("radius_arcsec", "the radius"),
        ("programs", "the survey programmes"),
        ("precision", "the precision of xmatches"),
        ("buckets", "the number of buckets"),
    ):
        if recorded[key] != settings[key]:
            changes.append(f"{what} was {recorded[key]}, now it is {settings[key]}")
    if changes:
        raise UsageError(
            f"{'; '.join(changes)}: results of both would mix in {options.output}; name another --output, or begin "
            "anew with --fresh"
        )
