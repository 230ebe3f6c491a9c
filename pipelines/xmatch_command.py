"""``alertbeam xmatch``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from alerts.container import CODECS
from alerts.enrich import PRECISIONS
from alerts.reader import Limits
from alerts.sources import InputError, find_sources, total_bytes
from database.client import Database, DatabaseUnavailable
from database.embedded import EmbeddedServerError, start_embedded
from database.settings import DatabaseSettingsError, normalise_url, safe_url
from database.tables import TableLayoutError
from pipelines.display import print_summary, print_summary_json, progress_shown
from pipelines.environment import Environment
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, StoppedError, UsageError
from pipelines.xmatch import XmatchJob, run
from transforms.positions import POSITION_ENDINGS, PositionsError, check_positions
from xmatch.layout import CatalogError
from xmatch.matcher import LocalMatcher, validate_matchers

LOCAL_RUNNER = "FnApiRunner"
_EPILOG = """\
examples:
  alertbeam xmatch ztf_public_20200330.tar.gz --catalog allwise/ --output run/
  alertbeam xmatch nights/ '2020*/*.avro' https://host/ztf_public_20200331.tar.gz --catalog allwise/ --output run/
  alertbeam xmatch positions.csv --catalog allwise/ --output run/       (columns id, ra, dec in degrees)

output folder:
  alerts/*.avro          the alerts with the field xmatches behind them, many per file
  crossmatches.parquet   one row per alert and catalogue (for a table of positions also .csv)
  dead_letters/*.avro    what could not be processed, with the reason and the original bytes
  database/              the embedded PostgreSQL server's data, unless another database is named

environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; CATALOG (JSON or
YAML) chooses among the catalogues and their columns; STEP_ID, STEP_NAME, STEP_VERSION, STEP_COMMENTS fill table step.

exit status: 0 done; 1 done, with more dead letters than --max-dead-letters; 2 wrong usage, nothing was written;
3 stopped, because the database or a disk gave way: start again. Options that are not known here go to Apache Beam.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "xmatch",
        help="crossmatch alerts, or a table of positions, with catalogues",
        description="Crossmatch the alerts of archives, folders or files, or a table of positions, with catalogues.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    parser.add_argument("--catalog", action="append", default=[], metavar="DIR", help="catalogue folder; repeatable")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--radius", type=float, default=1.0, metavar="ARCSEC", help="largest separation (default 1)")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="database for the tables, or 'none' (default: the variables DB_*, else a server embedded in the output)",
    )
    parser.add_argument(
        "--programid",
        default="1",
        metavar="LIST",
        help="survey programmes wanted, e.g. 1,2,3, or 'all' (default: 1, the public alerts)",
    )
    parser.add_argument("--codec", choices=CODECS, default="zstandard", help="of the written alerts")
    parser.add_argument(
        "--compression-level", type=int, metavar="N", help="of the written alerts (default: a fast one)"
    )
    parser.add_argument(
        "--xmatch-precision",
        choices=PRECISIONS,
        default="float",
        help="numbers in xmatches: 32 bits as ALeRCE has them (0.05 arcsec of a position are lost) or 64",
    )
    parser.add_argument(
        "--max-dead-letters", type=int, default=0, metavar="N", help="more than N exit with status 1 (default 0)"
    )
    parser.add_argument("--batch-alerts", type=int, default=1000, metavar="N", help="alerts in a batch at most")
    parser.add_argument("--runner", default=LOCAL_RUNNER, help=f"Beam runner (default {LOCAL_RUNNER})")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command, takes_beam_options=True)


def run_command(options: argparse.Namespace, beam_options: Sequence[str], environment: Environment) -> int:
    """Run the command; give the exit status."""
    output = Path(options.output).expanduser().absolute()
    job = _job(options, environment, output)
    pipeline_options = _pipeline_options(options.runner, beam_options)
    url = _database_url(options.database, environment)
    with ExitStack() as stack:
        stack.enter_context(_locked(output))
        try:
            database, stored = None, ""
            if not job.positions and url != "none":
                if url is None:
                    url = stack.enter_context(start_embedded(output / "database")).url
                    stored = f"{output / 'database'} (alertbeam sql {options.output} 'SELECT ...')"
                else:
                    stored = safe_url(url)
                database = stack.enter_context(Database(url))
                step = environment.step
                database.create_tables()
                database.write_step(step.step_id, step.name, step.version, step.comments)
            job = XmatchJob(**{**job.__dict__, "database": database})
            started = time.monotonic()
            with progress_shown(job.progress_folder, total_bytes(job.sources), options.quiet or options.json):
                counts = run(job, _pipeline(options.runner, pipeline_options))
            seconds = time.monotonic() - started
        except (DatabaseUnavailable, EmbeddedServerError, TableLayoutError, OSError) as error:
            raise StoppedError(str(error)) from error
        except RuntimeError as error:
            # Beam wraps what a transform raises in a RuntimeError, and loses its type on the way.
            raise StoppedError(_innermost(error)) from error
    if options.json:
        print_summary_json(counts, seconds, output)
    else:
        print_summary(counts, seconds, output, stored, job.positions)
    return TOO_MANY_DEAD_LETTERS if counts.dead > options.max_dead_letters else DONE


def _innermost(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith((" ", "Traceback"))]
    return (told or lines or [type(error).__name__])[-1].partition(" [while running")[0]


def _job(options: argparse.Namespace, environment: Environment, output: Path) -> XmatchJob:
    """Check all that can be checked before anything is written."""
    try:
        positions = _are_positions(options.inputs)
        sources = find_sources(options.inputs)
        if positions:
            for source in sources:
                check_positions(source.location)
        matchers = _matchers(options, environment)
        validate_matchers(matchers)
    except (InputError, PositionsError, CatalogError, ValueError) as error:
        raise UsageError(str(error)) from error
    if options.batch_alerts < 1:
        raise UsageError("--batch-alerts must be at least 1")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; name a folder")
    return XmatchJob(
        sources=tuple(sources),
        matchers=tuple(matchers),
        output=output,
        positions=positions,
        programs=_programs(options.programid),
        limits=Limits(alerts=options.batch_alerts),
        codec=options.codec,
        level=options.compression_level,
        precision=options.xmatch_precision,
    )


def _are_positions(inputs: Sequence[str]) -> bool:
    tables = [text for text in inputs if text.endswith(POSITION_ENDINGS)]
    if tables and len(tables) < len(inputs):
        raise UsageError(f"{tables[0]} is a table of positions: it cannot be mixed with alerts in one run")
    return bool(tables)


def _matchers(options: argparse.Namespace, environment: Environment) -> list[LocalMatcher]:
    if not options.catalog:
        raise UsageError("name a catalogue with --catalog DIR; 'alertbeam catalog build' makes one")
    matchers = [LocalMatcher(folder, options.radius) for folder in options.catalog]
    if not environment.catalogs:
        return matchers
    by_name = {matcher.name: matcher for matcher in matchers}
    for setting in environment.catalogs:
        if setting.name not in by_name:
            raise UsageError(
                f"CATALOG names {setting.name!r}, but no --catalog DIR has that name ({', '.join(by_name)})"
            )
    return [
        LocalMatcher(by_name[setting.name].source, options.radius, setting.columns or None)
        for setting in environment.catalogs
    ]


def _programs(text: str) -> tuple[int, ...]:
    if text == "all":
        return ()
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--programid {text}: give numbers such as 1,2,3, or 'all'") from error


def _database_url(option: str | None, environment: Environment) -> str | None:
    if option is None or option == "none":
        return option or environment.database
    try:
        return normalise_url(option)
    except (ValueError, DatabaseSettingsError) as error:
        raise UsageError(str(error)) from error


def _pipeline_options(runner: str, beam_options: Sequence[str]) -> PipelineOptions:
    """Options for Beam; combinations that lose data are refused."""
    options = PipelineOptions([*beam_options, f"--runner={runner}"] if runner != LOCAL_RUNNER else list(beam_options))
    unknown = [text for text in beam_options if text.startswith("--") and not _is_beam_option(text)]
    if unknown:
        raise UsageError(f"unknown option {unknown[0]}; see 'alertbeam xmatch --help'")
    stray = [text for text in beam_options if not text.startswith("-")]
    if beam_options and stray and beam_options[0] == stray[0]:
        raise UsageError(f"unexpected argument {stray[0]}")
    if runner == "DirectRunner":
        raise UsageError(
            "DirectRunner chooses another runner by itself and may download it; leave --runner out for the local one"
        )
    return options


def _is_beam_option(text: str) -> bool:
    name = text.removeprefix("--").partition("=")[0]
    known = PipelineOptions([]).get_all_options(retain_unknown_options=False)
    return name in known or name.removeprefix("no_") in known


def _pipeline(runner: str, options: PipelineOptions) -> beam.Pipeline:
    if runner == LOCAL_RUNNER:
        return beam.Pipeline(runner=FnApiRunner(), options=options)
    return beam.Pipeline(runner=options.view_as(StandardOptions).runner, options=options)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep two runs from writing into one folder."""
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another run is writing to {output}; wait for it or name another --output") from error
        yield
    finally:
        os.close(descriptor)
