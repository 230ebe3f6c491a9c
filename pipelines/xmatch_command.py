"""``alertbeam xmatch``: options, checks before anything is written, and the run."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import apache_beam as beam

from alerts.container import CODECS
from alerts.enrich import PRECISIONS
from alerts.reader import Limits
from alerts.sources import InputError, Source, find_sources, is_url, total_bytes
from database.embedded import start_embedded
from database.settings import safe_url
from messaging.producer import DeliveryError
from pipelines.display import print_summary, print_summary_json, progress_shown
from pipelines.environment import Environment, read_environment
from pipelines.kafka_options import ALERTS, add_producer_options, check_producer_options, producer_settings
from pipelines.matchers import MATCHERS_HELP, add_matcher_options, make_matchers
from pipelines.running import (
    EXIT_STATUS,
    NO_DATABASE,
    add_run_options,
    database_of,
    locked,
    make_runner,
    prepared,
    programs_of,
    stopping,
)
from pipelines.stream_environment import read_producer_environment
from pipelines.stream_settings import ProducerEnvironment
from pipelines.usage import DONE, TOO_MANY_DEAD_LETTERS, UsageError
from pipelines.xmatch import XmatchJob, remove_unfinished, run
from run_folder.layout import RunLayout
from transforms.positions import PositionsError, are_positions, check_positions
from xmatch.layout import CatalogError

_LEVELS = {"zstandard": range(-50, 23), "deflate": range(10)}
_EPILOG = (
    f"""\
examples:
  alertbeam xmatch ztf_public_20200330.tar.gz --catalog allwise/ --output run/
  alertbeam xmatch nights/ '2020*/*.avro' https://host/ztf_public_20200331.tar.gz --catalog allwise/ --output run/
  alertbeam xmatch positions.csv --catalog allwise/ --output run/       (columns id, ra, dec in degrees)
  alertbeam xmatch ztf_public_20200330.tar.gz --matcher cds --catalog allwise --output run/
  alertbeam xmatch run/dead_letters --catalog allwise/ --output again/  (what a run set aside, once more)

output folder:
  alerts/*.avro          the alerts with the field xmatches behind them, many per file
  crossmatches.parquet   one row per alert and catalogue (for a table of positions also .csv)
  dead_letters/*.avro    what could not be processed, with the reason and the original bytes
  database/              the embedded PostgreSQL server's data, unless another database is named

{MATCHERS_HELP}
environment: DB_ENGINE (or ENGINE), DB_HOST, DB_USER, DB_PASSWORD, DB_PORT, DB_NAME name a database; CATALOG, USE_XWAVE,
RETRIES, RETRY_INTERVAL see above; STEP_ID, STEP_NAME, STEP_VERSION, STEP_COMMENTS fill table step.

"""
    + EXIT_STATUS
)


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
    add_matcher_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="database for the tables, or 'none' (default: the variables DB_*, else a server embedded in the output)",
    )
    add_producer_options(parser, classifications=False)
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
    parser.add_argument("--batch-alerts", type=int, default=1000, metavar="N", help="alerts in a batch at most")
    add_run_options(parser)
    parser.set_defaults(avro=True, schemaless=False)
    parser.set_defaults(command=run_command, takes_beam_options=True)


def run_command(options: argparse.Namespace, beam_options: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    environment = read_environment(variables)
    output = Path(options.output).expanduser().absolute()
    job = _job(options, environment, read_producer_environment(variables), output)
    runner, pipeline_options = make_runner("xmatch", options.runner, beam_options)
    url = None if job.positions else database_of(options.database, environment)
    stored = ""
    with ExitStack() as stack:
        stack.enter_context(locked(output))
        stack.callback(remove_unfinished, job)
        stack.enter_context(stopping(CatalogError, DeliveryError))
        if not job.positions and url != NO_DATABASE:
            if url is None:
                url = stack.enter_context(start_embedded(output / "database")).url
                stored = f"{output / 'database'} (alertbeam sql {options.output} 'SELECT ...')"
            else:
                stored = safe_url(url)
            job = replace(job, database=stack.enter_context(prepared(url, environment)))
        started = time.monotonic()
        with progress_shown(job.progress_folder, total_bytes(job.sources), options.quiet or options.json):
            counts = run(job, beam.Pipeline(runner=runner, options=pipeline_options))
        seconds = time.monotonic() - started
    if options.json:
        print_summary_json(counts, seconds, output)
    else:
        print_summary(counts, seconds, output, stored, job.positions)
    return TOO_MANY_DEAD_LETTERS if counts.dead > options.max_dead_letters else DONE


def _job(
    options: argparse.Namespace, environment: Environment, producer: ProducerEnvironment, output: Path
) -> XmatchJob:
    """Check all that can be checked before anything is written."""
    try:
        positions = _are_positions(options.inputs)
        sources = find_sources(options.inputs)
        if positions:
            for path in (path for source in sources for path in source.paths):
                check_positions(path)
    except (InputError, PositionsError, ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    matchers = make_matchers(options, environment)
    if options.batch_alerts < 1:
        raise UsageError("--batch-alerts must be at least 1")
    check_producer_options(options)
    if positions and (options.alerts_topic or not options.avro):
        raise UsageError("--alerts-topic and --no-avro are for alerts, and the input is a table of positions")
    check_level(options.codec, options.compression_level)
    check_output(output, options.inputs, sources)
    if RunLayout(output).ledger.is_dir():
        raise UsageError(f"{output} is the folder of a backfill: name another folder, or add to it with 'backfill'")
    return XmatchJob(
        sources=tuple(sources),
        matchers=tuple(matchers),
        output=output,
        positions=positions,
        programs=programs_of(options.programid),
        limits=Limits(alerts=options.batch_alerts),
        codec=options.codec,
        level=options.compression_level,
        precision=options.xmatch_precision,
        avro=options.avro,
        alerts_to=producer_settings(options, producer, ALERTS),
        schemaless=options.schemaless,
    )


def check_level(codec: str, level: int | None) -> None:
    """Refuse a compression level that the codec does not have."""
    levels = _LEVELS.get(codec)
    if levels and level is not None and level not in levels:
        raise UsageError(f"--compression-level: {codec} has the levels {levels[0]} to {levels[-1]}")


def check_output(output: Path, inputs: Sequence[str], sources: Sequence[Source]) -> None:
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
    tables = [text for text in inputs if are_positions(text)]
    if tables and len(tables) < len(inputs):
        raise UsageError(f"{tables[0]} is a table of positions: it cannot be mixed with alerts in one run")
    return bool(tables)
