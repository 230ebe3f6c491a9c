"""``alertbeam xmatch``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import builtins
import fcntl
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners import create_runner
from apache_beam.runners.runner import PipelineRunner

from alerts.container import CODECS
from alerts.enrich import PRECISIONS
from alerts.reader import Limits
from alerts.sources import InputError, Source, find_sources, is_url, total_bytes
from database.client import Database, DatabaseUnavailable
from database.embedded import EmbeddedServerError, start_embedded
from database.settings import DatabaseSettingsError, normalise_url, safe_url
from database.tables import TableLayoutError
from pipelines.display import print_summary, print_summary_json, progress_shown
from pipelines.environment import Environment, read_environment
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, StoppedError, UsageError
from pipelines.xmatch import XmatchJob, remove_unfinished, run
from transforms.positions import POSITION_ENDINGS, PositionsError, check_positions
from xmatch.catalog import Catalog
from xmatch.layout import CatalogError
from xmatch.matcher import LocalMatcher, validate_matchers

LOCAL_RUNNER = "FnApiRunner"
NO_DATABASE = "none"
_LEVELS = {"zstandard": range(-50, 23), "deflate": range(10)}
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
3 stopped, because the database or a disk gave way: start again. Options that are not known here go to Apache Beam;
write them as --name=value.
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


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables)
    output = Path(options.output).expanduser().absolute()
    job = _job(options, environment, output)
    runner, pipeline_options = _runner(options.runner, beam_options)
    url = None if job.positions else _database_url(options.database, environment)
    stored = ""
    with ExitStack() as stack:
        stack.enter_context(_locked(output))
        stack.callback(remove_unfinished, job)
        try:
            if not job.positions and url != NO_DATABASE:
                if url is None:
                    url = stack.enter_context(start_embedded(output / "database")).url
                    stored = f"{output / 'database'} (alertbeam sql {options.output} 'SELECT ...')"
                else:
                    stored = safe_url(url)
                job = replace(job, database=stack.enter_context(_prepared(url, environment)))
            started = time.monotonic()
            with progress_shown(job.progress_folder, total_bytes(job.sources), options.quiet or options.json):
                counts = run(job, beam.Pipeline(runner=runner, options=pipeline_options))
            seconds = time.monotonic() - started
        except (DatabaseUnavailable, EmbeddedServerError, TableLayoutError, CatalogError, OSError) as error:
            raise StoppedError(_without_place(error)) from error
        except RuntimeError as error:
            # Beam gives exceptions that are not made of one text another type, and their own as part of the text.
            name, _, message = _without_place(error).partition(": ")
            if not issubclass(getattr(builtins, name, Exception), OSError):
                raise
            raise StoppedError(message) from error
    if options.json:
        print_summary_json(counts, seconds, output)
    else:
        print_summary(counts, seconds, output, stored, job.positions)
    return TOO_MANY_DEAD_LETTERS if counts.dead > options.max_dead_letters else DONE


@contextmanager
def _prepared(url: str, environment: Environment) -> Iterator[Database]:
    """Open a database that has the tables and knows of this step."""
    step = environment.step
    with Database(url) as database:
        database.create_tables()
        database.write_step(step.step_id, step.name, step.version, step.comments)
        yield database


def _without_place(error: BaseException) -> str:
    return str(error).partition(" [while running ")[0]


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
    except (InputError, PositionsError, CatalogError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if options.batch_alerts < 1:
        raise UsageError("--batch-alerts must be at least 1")
    levels = _LEVELS.get(options.codec)
    if levels and options.compression_level is not None and options.compression_level not in levels:
        raise UsageError(f"--compression-level: {options.codec} has the levels {levels[0]} to {levels[-1]}")
    _check_output(output, options.inputs, sources)
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


def _check_output(output: Path, inputs: Sequence[str], sources: Sequence[Source]) -> None:
    """Refuse a folder that cannot be made, or whose files would be read as input."""
    for folder in (output, *output.parents):
        if folder.exists():
            if not folder.is_dir():
                raise UsageError(f"--output {output}: {folder} is a file; name a folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise UsageError(f"--output {output}: this user may not write in {folder}; name another folder")
            break
    read = [Path(path) for source in sources for path in source.paths if not is_url(path)]
    walked = [Path(text).absolute() for text in inputs if os.path.isdir(text)]
    if any(path.is_relative_to(output) for path in read) or any(map(output.is_relative_to, walked)):
        raise UsageError(
            f"--output {output} lies among the inputs, and its files would be read as alerts; name another"
        )


def _are_positions(inputs: Sequence[str]) -> bool:
    tables = [text for text in inputs if text.endswith(POSITION_ENDINGS)]
    if tables and len(tables) < len(inputs):
        raise UsageError(f"{tables[0]} is a table of positions: it cannot be mixed with alerts in one run")
    return bool(tables)


def _matchers(options: argparse.Namespace, environment: Environment) -> list[LocalMatcher]:
    if not options.catalog:
        raise UsageError("name a catalogue with --catalog DIR; 'alertbeam catalog build' makes one")
    catalogs = [LocalMatcher(folder, options.radius).catalog for folder in options.catalog]
    if not environment.catalogs:
        return [LocalMatcher(catalog, options.radius, _columns(catalog)) for catalog in catalogs]
    by_name = {catalog.name: catalog for catalog in catalogs}
    for setting in environment.catalogs:
        if setting.name not in by_name:
            raise UsageError(
                f"CATALOG names {setting.name!r}, but no --catalog DIR has that name ({', '.join(by_name)})"
            )
    chosen = [(by_name[setting.name], setting.columns) for setting in environment.catalogs]
    return [LocalMatcher(catalog, options.radius, _columns(catalog, columns)) for catalog, columns in chosen]


def _columns(catalog: Catalog, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Columns wanted, all by default, the identifier first: without it a match names nothing."""
    identifier = next((column.name for column in catalog.fields if column.file == "identifiers.npy"), None)
    if identifier is None:
        raise UsageError(
            f"catalogue {catalog.name} was built without its identifier; name it in --columns of the build"
        )
    return tuple(dict.fromkeys((identifier, *(wanted or catalog.columns))))


def _programs(text: str) -> tuple[int, ...]:
    if text == "all":
        return ()
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UsageError(f"--programid {text}: give numbers such as 1,2,3, or 'all'") from error


def _database_url(option: str | None, environment: Environment) -> str | None:
    if option is None or option == NO_DATABASE:
        return option or environment.database
    try:
        return normalise_url(option)
    except DatabaseSettingsError as error:
        raise UsageError(str(error)) from error


def _runner(name: str, beam_options: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """Runner and options of Beam; combinations that lose data are refused."""
    for text in beam_options:
        if not text.startswith("--"):
            raise UsageError(
                f"unexpected argument {text}: name all inputs together, and Beam's options as --name=value"
            )
        if not _is_beam_option(text):
            raise UsageError(f"unknown option {text}; see 'alertbeam xmatch --help'")
    if name.rpartition(".")[2].lower() in ("directrunner", "switchingdirectrunner"):
        raise UsageError(
            f"{name} chooses another runner by itself and may download it; leave --runner out for the local one"
        )
    options = PipelineOptions(list(beam_options))
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            options.get_all_options()
        runner = create_runner(name)
    except SystemExit as error:
        raise UsageError(complaint.getvalue().strip().rpartition("error: ")[2]) from error
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"--runner {name}: {str(error).splitlines()[0]}") from error
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "in_memory" or direct.direct_num_workers != 1:
        raise UsageError(
            "the local runner reads the sources one after another, so that an alert that stands in several is written "
            "once; leave --direct_running_mode and --direct_num_workers out"
        )
    if options.view_as(StandardOptions).streaming:
        raise UsageError("--streaming: files are no stream, and would be read without an end; leave it out")
    return runner, options


def _is_beam_option(text: str) -> bool:
    name = text.removeprefix("--").partition("=")[0]
    known = PipelineOptions([]).get_all_options(retain_unknown_options=False)
    return name in known or name.removeprefix("no_") in known


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep two runs from writing into one folder."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoppedError(f"{output} cannot be written to: {error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another run is writing to {output}; wait for it or name another --output") from error
        yield
    finally:
        os.close(descriptor)
