"""``alertbeam features``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from alerts.reader import Limits
from alerts.sources import InputError, find_sources, is_url
from database.settings import safe_url
from lightcurves.features.compute import FEATURES_VERSION
from lightcurves.features.curves import Mode
from lightcurves.tables import TableError, check_tables
from pipelines.environment import UNSET_VERSION, Environment, read_environment
from pipelines.features import STEP, DetectionTables, FeaturesCounts, FeaturesJob, run
from pipelines.matchers import MATCHERS_HELP, add_matcher_options, make_matchers
from pipelines.running import EXIT_STATUS, add_run_options, programs_of, run_job
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, UsageError
from run_folder.moments import mjd_of
from transforms.features import CrossmatchFileError, check_crossmatches
from transforms.light_curves import ALLWISE
from xmatch.layout import CatalogError
from xmatch.matcher import Matcher

TABLE_ENDINGS: Final = (".csv", ".csv.gz", ".parquet", ".pq")
_EPILOG: Final = f"""\
INPUT are alerts: archives, folders, files, globs, URLs; or one table of detections (.parquet, .csv, .csv.gz) with
ZTF's or ALeRCE's names of columns, its non-detections in another (--non-detections). Light curves are put together from
each alert's own detection, its prv_candidates and, with --forced, its fp_hists; each point counts once.

examples:
  alertbeam features nights/ --output features.parquet
  alertbeam features nights/ --catalog allwise/ --output features.parquet      (with the WISE colours)
  alertbeam features nights/ --crossmatches run/crossmatches.parquet --output features.parquet
  alertbeam features detections.parquet --non-detections limits.parquet --output features.parquet
  alertbeam features nights/ --as-of 2020-04-01 --mode accurate --output features.parquet

modes:
  alerce     the values of ALeRCE's release 1.2.3-P: what published models were trained on, and therefore the default
  accurate   the same definitions in double precision, with a finer search for periods

output:
  FILE.parquet           oid and 178 features, a row per object that has more than five points in g or in r, by oid; the
                         schema's metadata tell feature_mode and feature_version
  FILE.dead_letters/     what could not be processed, with the reason and the original bytes

The database gets the tables object, detection, non_detection, magstat, feature, feature_version and step. There is none
by default, unlike in 'alertbeam xmatch': 178 rows per object are many, and who wants a file should not start a server.

{MATCHERS_HELP}
environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; STEP_ID, STEP_NAME,
STEP_VERSION, STEP_COMMENTS fill table step; FEATURE_VERSION is written beside the features (default: the program's
version of the definitions, and the mode).

{EXIT_STATUS}"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "features",
        help="compute the light-curve features of objects",
        description="Put light curves together and compute their 178 features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL; or a table of detections"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write, .parquet")
    parser.add_argument("--mode", choices=[str(mode) for mode in Mode], default=str(Mode.ALERCE), help="default alerce")
    parser.add_argument("--non-detections", metavar="FILE", help="of the table of detections")
    parser.add_argument(
        "--as-of",
        metavar="MJD|DATE",
        help="leave out what a later alert brought; a date such as 2020-04-01 means its beginning, UTC",
    )
    parser.add_argument("--forced", action="store_true", help="take forced photometry as detections")
    parser.add_argument("--all-objects", action="store_true", help="give objects with too few points a row of nulls")
    parser.add_argument(
        "--crossmatches", metavar="FILE", help="crossmatches.parquet of an xmatch run, for the WISE colours"
    )
    add_matcher_options(parser)
    parser.add_argument(
        "--database", metavar="URL", help="database for the tables, or 'none' (default: the variables DB_*, else none)"
    )
    parser.add_argument(
        "--programid",
        default="1",
        metavar="LIST",
        help="survey programmes wanted, e.g. 1,2,3, or 'all' (default: 1, the public alerts)",
    )
    parser.add_argument("--batch-alerts", type=int, default=1000, metavar="N", help="alerts in a batch at most")
    add_run_options(parser)
    parser.set_defaults(command=run_command, takes_beam_options=True)


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables, STEP)
    job = _job(options, environment)
    job, counts, seconds = run_job(job, run, options, beam_options, environment, TableError, CatalogError)
    if options.json:
        _print_json(job, counts, seconds)
    else:
        _print_summary(job, counts, seconds)
    return TOO_MANY_DEAD_LETTERS if counts.dead > options.max_dead_letters else DONE


def _job(options: argparse.Namespace, environment: Environment) -> FeaturesJob:
    """Check all that can be checked before anything is written."""
    output = Path(options.output).expanduser().absolute()
    tables = _tables(options)
    mode = Mode(options.mode)
    named = environment.feature_version
    try:
        sources = () if tables else tuple(find_sources(options.inputs))
        if tables:
            check_tables(tables.detections, tables.non_detections)
        crossmatches = Path(options.crossmatches).expanduser().absolute() if options.crossmatches else None
        if crossmatches:
            check_crossmatches(crossmatches)
    except (InputError, TableError, CrossmatchFileError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if options.batch_alerts < 1:
        raise UsageError("--batch-alerts must be at least 1")
    job = FeaturesJob(
        sources=sources,
        output=output,
        mode=mode,
        version=named if named != UNSET_VERSION else f"{FEATURES_VERSION}-{mode}",
        tables=tables,
        matchers=_matchers(options, environment),
        crossmatches=crossmatches,
        as_of_mjd=as_of_mjd(options.as_of) if options.as_of else None,
        forced=options.forced,
        all_objects=options.all_objects,
        step_id=environment.step.step_id,
        programs=programs_of(options.programid),
        limits=Limits(alerts=options.batch_alerts),
    )
    _check_output(job)
    return job


def _tables(options: argparse.Namespace) -> DetectionTables | None:
    tables = [text for text in options.inputs if text.endswith(TABLE_ENDINGS)]
    if not tables:
        if options.non_detections:
            raise UsageError("--non-detections goes with a table of detections; alerts bring their own")
        return None
    if len(options.inputs) > 1:
        raise UsageError(f"{tables[0]} is a table of detections: it must be the only INPUT")
    non_detections = Path(options.non_detections).expanduser().absolute() if options.non_detections else None
    return DetectionTables(Path(tables[0]).expanduser().absolute(), non_detections)


def _matchers(options: argparse.Namespace, environment: Environment) -> tuple[Matcher, ...]:
    """Matchers, if the user asks for a crossmatch; the variable CATALOG alone does not."""
    if not options.catalog and not options.matcher:
        return ()
    if options.inputs[0].endswith(TABLE_ENDINGS):
        raise UsageError("a table of detections is not crossmatched here; name a file with --crossmatches")
    if options.crossmatches:
        raise UsageError("--crossmatches and --catalog say the same twice; leave one of them out")
    matchers = tuple(make_matchers(options, environment))
    if not any(matcher.name == ALLWISE for matcher in matchers):
        names = ", ".join(matcher.name for matcher in matchers)
        raise UsageError(f"the features take WISE colours from the catalogue {ALLWISE!r} alone; named is {names}")
    return matchers


def as_of_mjd(text: str) -> float:
    """Moment that ``--as-of`` names, MJD.

    Raises
    ------
    UsageError
        If it is neither an MJD nor a date.
    """
    try:
        return mjd_of(text)
    except ValueError as error:
        raise UsageError(f"--as-of {error}") from error


def _check_output(job: FeaturesJob) -> None:
    output = job.output
    if output.suffix != ".parquet":
        raise UsageError(f"--output {output}: name a file *.parquet")
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name a file")
    folder = next(folder for folder in output.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{output} cannot be written: {folder} is no folder that this user may write to")
    read = {Path(path).absolute() for source in job.sources for path in source.paths if not is_url(path)}
    tables = (job.tables.detections, job.tables.non_detections) if job.tables else ()
    if output in {*read, *tables, job.crossmatches}:
        raise UsageError(f"{output} is among the inputs; name another output")
    if any(path.is_relative_to(job.dead_letters) for path in read):
        raise UsageError(f"the inputs are the dead letters of {output}, which would be replaced; name another output")


def _print_json(job: FeaturesJob, counts: FeaturesCounts, seconds: float) -> None:
    told = {
        **asdict(counts),
        "mode": str(job.mode),
        "feature_version": job.version,
        "seconds": round(seconds, 3),
        "output": str(job.output),
        "dead_letters_folder": str(job.dead_letters) if counts.dead else None,
    }
    print(json.dumps(told))


def _print_summary(job: FeaturesJob, counts: FeaturesCounts, seconds: float) -> None:
    table = Table(title="Done", show_header=False, title_justify="left", title_style="bold")
    table.add_column(justify="left")
    table.add_column(justify="right")
    if not job.tables:
        table.add_row("alerts read", f"{counts.read:,}")
        table.add_row("  of other programmes, left out", f"{counts.filtered:,}")
        table.add_row("  repeated, left out", f"{counts.repeated:,}")
        table.add_row("containers without an alert", f"{counts.empty:,}")
    if job.matchers:
        table.add_row("alerts with a match", f"{counts.matched:,}")
        table.add_row("  without a match", f"{counts.no_match:,}")
        table.add_row("  lookup failed", f"{counts.failed:,}")
    table.add_row("objects", f"{counts.objects:,}")
    table.add_row("  rows of features", f"{counts.featured:,}")
    if not job.all_objects:
        table.add_row("  with too few points", f"{counts.objects - counts.featured:,}")
    table.add_row("dead letters", f"{counts.dead:,}")
    for stage, number in counts.dead_letters.items():
        table.add_row(f"  given up at: {stage}", f"{number:,}")
    for name, number in counts.rows.items():
        table.add_row(f"rows inserted or updated in table {name}", f"{number:,}")
    table.add_row("time", f"{seconds:,.1f} s")
    console = Console()
    console.print(table)
    stored = f"; tables in {safe_url(job.database.url)}" if job.database else ""
    letters = f"; dead letters in {job.dead_letters}" if counts.dead else ""
    text = f"Features of mode {job.mode}, version {job.version}, in {job.output}{stored}{letters}"
    console.print(text, highlight=False, soft_wrap=True)
