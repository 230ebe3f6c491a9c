"""``alertbeam backfill``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alerts.container import CODECS
from alerts.enrich import PRECISIONS
from alerts.nights import find_nights, parse_date, with_sizes
from alerts.reader import Limits
from alerts.sources import InputError, Source, find_sources
from classifier.model import Model, ModelError
from database.embedded import start_embedded
from database.settings import HIDDEN_PASSWORD, safe_url
from lightcurves.features.compute import FEATURES_VERSION
from lightcurves.features.curves import Mode
from lightcurves.store import LightCurveStore, StoreError
from pipelines import __version__
from pipelines.backfill import AsOf, BackfillJob
from pipelines.backfill_progress import BackfillProgress
from pipelines.backfill_run import Driving, add_sources, retry_set_aside, run_export, run_pass_1, run_pass_2
from pipelines.classify_command import model_of
from pipelines.environment import UNSET_VERSION, Environment, read_environment
from pipelines.features_command import as_of_mjd
from pipelines.matchers import DEFAULT_RADIUS_ARCSEC, MATCHERS_HELP, add_matcher_options, make_matchers
from pipelines.run_display import add_progress_option, print_run_summary, run_shown, run_summary
from pipelines.running import NO_DATABASE, database_of, locked, prepared, programs_of, stopping
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, UsageError
from pipelines.workers import WorkerPool
from pipelines.xmatch_command import check_level, check_output
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, LedgerError
from run_folder.moments import name_of
from transforms.models import ModelPlace
from xmatch.layout import CatalogError
from xmatch.matcher import LocalMatcher, Matcher

STEP: Final = "backfill"
BUCKETS: Final = 128
_PASSES: Final = ("pass1", "pass2")
_PASS_2_TABLES: Final = ("detection", "feature", "magstat", "non_detection", "probability")
_EPILOG: Final = f"""\
INPUT are archives (.tar.gz, .tgz, .tar), folders, alert files (.avro), globs or URLs; or nights by their dates, from a
folder or web address that holds ztf_public_YYYYMMDD.tar.gz. What is remote is read as it comes and never stored.

examples:
  alertbeam backfill nights/ --catalog allwise/ --model model/ --output run/
  alertbeam backfill --from 2018-06-01 --to 2018-06-30 --archive https://host/alerts/ --catalog allwise/ --output run/
  alertbeam backfill more/ztf_public_20180701.tar.gz --output run/          (add a night, with the options of the run)
  alertbeam backfill --resume --output run/                                 (go on after a stop)
  alertbeam backfill --only pass2 --model better/ --output run/             (classify again, without the archive)
  alertbeam backfill --only pass2 --as-of 2018-06-15 --output run/          (what was known then)

Pass 1 reads each archive once: it decodes, crossmatches, writes the alerts and the tables, and adds the detections to
the light-curve store. Pass 2 takes the objects that changed: light curves, features, classes, tables. A ledger keeps
what is done: a run that was stopped, or killed, goes on where it was when the same command is started again. A worker
that dies is replaced and its archive tried again, and set aside with the reason after three attempts.

output folder:
  alerts/*.avro                  the alerts with the field xmatches behind them, many per file
  crossmatches.parquet/          one row per alert and catalogue
  light_curves/                  the store: Parquet, by bucket of objects
  objects/  features/  probabilities/      one row per object
  hats/                          the same as a HATS catalogue, which lsdb opens
  dead_letters/*.avro            what could not be processed, with the reason and the original bytes
  database/                      the embedded PostgreSQL server's data, unless another database is named
  ledger/                        units of work, their counts and versions: 'alertbeam status RUN' shows them
Look at it with 'alertbeam report RUN', 'alertbeam show OID RUN', 'alertbeam sql RUN' or open_run in a notebook.

{MATCHERS_HELP}
environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; STEP_ID, STEP_NAME,
STEP_VERSION, STEP_COMMENTS fill table step; FEATURE_VERSION is written beside the features (default: the program's
version of the definitions, and the mode).

exit status: 0 done; 1 done, with more dead letters than --max-dead-letters, or with archives set aside; 2 wrong usage,
nothing was written; 3 stopped, because the database or a disk gave way: start again.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "backfill",
        help="reprocess archives: crossmatch, light curves, features, classes",
        description="Reprocess archives of alerts: crossmatch, light curves, features and classes, on all cores.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="file, folder, glob or URL")
    parser.add_argument("--from", dest="first", metavar="DATE", help="first night, e.g. 2018-06-01")
    parser.add_argument("--to", dest="last", metavar="DATE", help="last night (default: the first)")
    parser.add_argument("--archive", metavar="URL|DIR", help="where the archives of the nights are")
    add_matcher_options(parser)
    parser.add_argument("--model", metavar="DIR|POINTER", help="model to classify with (default: no classes)")
    parser.add_argument(
        "--mode", choices=[str(mode) for mode in Mode], help="of the features (default: the model's, else accurate)"
    )
    parser.add_argument(
        "--forced", action=argparse.BooleanOptionalAction, help="take forced photometry as detections (default no)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="database for the tables, or 'none' (default: the variables DB_*, else a server embedded in the output)",
    )
    parser.add_argument(
        "--without-tables",
        metavar="LIST",
        help=f"tables not to write, of {', '.join(_PASS_2_TABLES)}; feature has 178 rows per object",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on with a run; one must be there")
    how.add_argument("--fresh", action="store_true", help="remove what the folder holds of a run, and begin anew")
    parser.add_argument("--only", choices=_PASSES, help="do one pass alone")
    parser.add_argument(
        "--as-of",
        metavar="MJD|DATE",
        help="pass 2 with what was known then; the results lie in as_of/. A date means its beginning, UTC",
    )
    parser.add_argument(
        "--hats", action=argparse.BooleanOptionalAction, help="write the HATS catalogue of objects (default yes)"
    )
    parser.add_argument(
        "--hats-light-curves",
        action=argparse.BooleanOptionalAction,
        help="put the light curves into the HATS catalogue (default no)",
    )
    parser.add_argument(
        "--programid", metavar="LIST", help="survey programmes wanted, e.g. 1,2,3, or 'all' (default: 1)"
    )
    parser.add_argument("--codec", choices=CODECS, help="of the written alerts (default zstandard)")
    parser.add_argument(
        "--compression-level", type=int, metavar="N", help="of the written alerts (default: a fast one)"
    )
    parser.add_argument(
        "--xmatch-precision", choices=PRECISIONS, help="numbers in xmatches: float (default, as ALeRCE's) or double"
    )
    parser.add_argument("--batch-alerts", type=int, metavar="N", help="alerts in a batch at most (default 1000)")
    parser.add_argument(
        "--buckets",
        type=int,
        metavar="N",
        help=f"parts of the light-curve store, for good (default {BUCKETS}: up to a million objects; 4096: the survey)",
    )
    parser.add_argument(
        "--max-dead-letters", type=int, default=0, metavar="N", help="more than N exit with status 1 (default 0)"
    )
    parser.add_argument(
        "--attempts", type=int, default=3, metavar="N", help="before an archive is set aside (default 3)"
    )
    add_progress_option(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command)


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
}


def run_command(options: argparse.Namespace, _: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables, STEP)
    layout = layout_of(options)
    recorded = {} if options.fresh else recorded_settings(layout, options.resume)
    fill(options, recorded)
    sources = _sources(options)
    _check(options, layout, sources, recorded)
    job, settings = make_job(options, environment, layout)
    _check_same(recorded, settings, options)
    with begun(options, environment, job, settings, fresh=options.fresh) as run:
        if changes := add_sources(run.driving.ledger, sources):
            raise UsageError(
                f"{changes[0]}{f', and {len(changes) - 1} more' if len(changes) > 1 else ''}: what came of it is in "
                "the light curves already; name another --output, or begin anew with --fresh"
            )
        run.write_settings()
        retry_set_aside(run.driving.ledger)
        with run.invocation():
            if options.only != "pass2":
                run_pass_1(run.job, run.driving)
            if options.only != "pass1":
                run_pass_2(run.job, run.driving)
                if options.hats:
                    run_export(run.job, run.driving)
        return run.told()


@dataclass
class Run:
    """A run that works: its job with the database, and what drives it."""

    job: BackfillJob
    driving: Driving
    options: argparse.Namespace
    settings: dict[str, Any]
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)

    def write_settings(self) -> None:
        """Keep the settings, those of the first start where they tell when; say that a run goes on."""
        ledger = self.driving.ledger
        before = ledger.settings()
        if before and not self.options.quiet and not self.options.json:
            _say_what_goes_on(before, self.settings, ledger)
        ledger.set_settings(self.settings | {"created": before.get("created", self.settings["created"])})

    @contextmanager
    def invocation(self) -> Iterator[None]:
        """Note when the work begins and how it ends."""
        number = self.driving.ledger.begin(sys.argv, self.settings["versions"])
        outcome = "stopped"
        try:
            yield
            outcome = "done"
        finally:
            with suppress(OSError):
                self.driving.ledger.end(number, outcome)

    def told(self) -> int:
        """Print what the run did; give the exit status."""
        as_of = self.job.as_of.name if self.job.as_of else None
        summary = run_summary(self.driving.ledger, self.job.layout, time.monotonic() - self.started, as_of)
        print_run_summary(summary, self.job.layout, as_json=self.options.json)
        bad = summary.dead_letters > self.options.max_dead_letters or summary.aside
        return TOO_MANY_DEAD_LETTERS if bad else DONE


@contextmanager
def begun(
    options: argparse.Namespace,
    environment: Environment,
    job: BackfillJob,
    settings: dict[str, Any],
    fresh: bool = False,
) -> Iterator[Run]:
    """Take the run's folder, its database, its ledger and its workers; give them back at the end."""
    layout = job.layout
    with ExitStack() as stack:
        stack.enter_context(locked(layout.root))
        stack.enter_context(stopping(CatalogError, ModelError, StoreError, LedgerError))
        if fresh:
            _clear(layout)
        url = database_of(options.database, environment)
        stored = "" if url == NO_DATABASE else safe_url(url) if url else str(layout.database)
        if url is None:
            url = stack.enter_context(start_embedded(layout.database)).url
        if url != NO_DATABASE:
            job = replace(job, database=stack.enter_context(prepared(url, environment)))
        LightCurveStore.open(layout.light_curves, job.buckets)
        ledger = stack.enter_context(Ledger.open(layout.ledger))
        progress = BackfillProgress(layout, ledger, options.workers)
        say = stack.enter_context(run_shown(progress.state, "none" if options.quiet else options.progress))
        pool = stack.enter_context(WorkerPool(ledger, workers=options.workers, versions=settings["versions"]))
        driving = Driving(ledger, pool, options.workers, options.attempts, progress)
        yield Run(job, driving, options, settings | {"database": stored}, say)


def layout_of(options: argparse.Namespace) -> RunLayout:
    """Places in the folder that ``--output`` names."""
    return RunLayout(Path(options.output).expanduser().absolute())


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


def _sources(options: argparse.Namespace) -> list[Source]:
    try:
        sources = with_sizes(find_sources(options.inputs))
        if options.first or options.last or options.archive:
            sources += _nights(options)
    except (InputError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return list({source.name: source for source in sources}.values())


def _nights(options: argparse.Namespace) -> list[Source]:
    if not (options.first and options.archive):
        raise UsageError("nights are named by --from DATE, --to DATE and --archive URL or folder together")
    first = parse_date(options.first)
    last = parse_date(options.last) if options.last else first
    return find_nights(first, last, options.archive, lambda text: print(text, file=sys.stderr)).sources


def _check(
    options: argparse.Namespace, layout: RunLayout, sources: Sequence[Source], recorded: Mapping[str, Any]
) -> None:
    if options.only == "pass2" and (options.inputs or options.archive):
        raise UsageError("--only pass2 reads no archive; leave the inputs out")
    if options.only == "pass2" and not recorded:
        raise UsageError(f"--only pass2: {layout.root} holds no light curves; run pass 1 first")
    if not sources and not recorded:
        raise UsageError("name what to read: INPUT, or --from, --to and --archive")
    if options.as_of and options.only != "pass2":
        raise UsageError("--as-of is for pass 2 of a run that is there: say --only pass2")
    for name in ("workers", "attempts", "batch_alerts", "buckets"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    check_level(options.codec, options.compression_level)
    unknown = set(_without_tables(options)) - {*_PASS_2_TABLES}
    if unknown:
        raise UsageError(
            f"--without-tables {', '.join(sorted(unknown))}: these can be left out: {', '.join(_PASS_2_TABLES)}"
        )
    if (
        not recorded
        and not options.fresh
        and (layout.crossmatches.is_file() or (layout.root / "crossmatches").is_dir())
    ):
        raise UsageError(f"{layout.root} holds a run of 'alertbeam xmatch'; name another --output")
    check_output(layout.root, options.inputs, sources)


def _without_tables(options: argparse.Namespace) -> list[str]:
    return [name.strip() for name in options.without_tables.split(",") if name.strip()]


def make_job(
    options: argparse.Namespace, environment: Environment, layout: RunLayout
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
        without_tables=frozenset(_without_tables(options)),
        step_id=environment.step.step_id,
        hats_light_curves=options.hats_light_curves,
        programs=programs_of(options.programid),
        limits=Limits(alerts=options.batch_alerts),
        codec=options.codec,
        level=options.compression_level,
        precision=options.xmatch_precision,
    )
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


def _check_same(recorded: Mapping[str, Any], settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Refuse to mix in one folder what was read with different catalogues or choices."""
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


def _say_what_goes_on(before: Mapping[str, Any], settings: Mapping[str, Any], ledger: Ledger) -> None:
    """Say that a run goes on, and which versions changed since it began."""
    units = ledger.units("read")
    done = sum(unit.state == "done" for unit in units)
    print(f"alertbeam backfill: going on: {done:,} of {len(units):,} archives are read", file=sys.stderr)
    for name in ("alertbeam", "features", "model"):
        old, new = before["versions"].get(name), settings["versions"][name]
        if old != new:
            print(f"alertbeam backfill: {name}: {old} before, {new} now", file=sys.stderr)
    # The folder of a run may have been moved, with its own database.
    old, new = (
        "its own" if place.startswith("/") else place or "none" for place in (before["database"], settings["database"])
    )
    if old != new:
        print(f"alertbeam backfill: database: {old} before, {new} now", file=sys.stderr)


def _clear(layout: RunLayout) -> None:
    """Remove what a run wrote, and nothing else."""
    results = layout.results()
    folders = (
        *(layout.alerts, layout.dead_letters, layout.light_curves, layout.ledger, layout.progress, layout.database),
        *(results.objects, results.all_features, results.all_probabilities, results.hats, layout.root / "as_of"),
    )
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if layout.crossmatches.is_dir():
        shutil.rmtree(layout.crossmatches)
    layout.report.unlink(missing_ok=True)
