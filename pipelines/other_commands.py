"""``alertbeam sample`` and ``alertbeam sql``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from database.embedded import EmbeddedServerError, start_embedded
from database.settings import DatabaseSettingsError, normalise_url
from pipelines.display import print_rows
from pipelines.environment import read_environment
from pipelines.usage import DONE, StoppedError, UsageError
from simulation import simulate_sample


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the commands' options."""
    sample = commands.add_parser(
        "sample",
        help="generate a night of ZTF-like alerts and an AllWISE-like catalogue",
        description="Generate a night of ZTF-like alerts (schemas 3.3 and 4.02) and an AllWISE-like catalogue whose "
        "counterparts are known: truth.csv holds the true match of every alert. The same seed gives the same files.",
    )
    sample.add_argument("--output", required=True, metavar="DIR")
    sample.add_argument("--alerts", type=int, default=1000, metavar="N")
    sample.add_argument("--seed", type=int, default=1, metavar="N")
    sample.add_argument("--date", default="20260101", metavar="YYYYMMDD", help="night of the archive")
    sample.add_argument("--bad-members", type=int, default=5, metavar="N", help="broken packets among them (default 5)")
    sample.add_argument("--private-fraction", type=float, default=0.0, metavar="X", help="share of non-public alerts")
    sample.add_argument(
        "--field-sources", type=int, default=10_000, metavar="N", help="catalogue sources without alert"
    )
    sample.add_argument("--no-cutouts", action="store_true", help="smaller packets, without image stamps")
    sample.set_defaults(command=run_sample)

    sql = commands.add_parser(
        "sql",
        help="ask the database of a run",
        description="Run one SQL statement on the database of a run and print the answer.",
        epilog="example: alertbeam sql run/ 'SELECT oid, oid_catalog, dist FROM xmatch ORDER BY dist LIMIT 5'",
    )
    sql.add_argument("run", metavar="RUN", help="folder of the run")
    sql.add_argument("statement", metavar="SQL")
    sql.add_argument("--database", metavar="URL", help="another database (default: the variables DB_*, else the run's)")
    sql.set_defaults(command=run_sql)


def run_sample(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Generate sample data."""
    try:
        datetime.strptime(options.date, "%Y%m%d")
    except ValueError as error:
        raise UsageError(f"--date {options.date}: give a date such as 20260101") from error
    if options.alerts < 1:
        raise UsageError("--alerts must be at least 1")
    if not 0 <= options.private_fraction <= 1:
        raise UsageError("--private-fraction must lie between 0 and 1")
    folder = Path(options.output)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("generating alerts", total=options.alerts)
        try:
            summary = simulate_sample(
                folder,
                alerts=options.alerts,
                seed=options.seed,
                date=options.date,
                field_sources=options.field_sources,
                bad_members=options.bad_members,
                private_fraction=options.private_fraction,
                cutouts=not options.no_cutouts,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except (ValueError, NotADirectoryError, FileExistsError) as error:
            raise UsageError(f"--output {folder}: {error}" if isinstance(error, OSError) else str(error)) from error
        except OSError as error:
            raise StoppedError(str(error)) from error
    night = summary.night
    print(f"{night.archive}: {night.alerts:,} alerts of {night.objects:,} objects, {night.archive_bytes / 1e6:,.1f} MB")
    print(f"{summary.catalog.path}: {summary.catalog.sources:,} sources; {night.truth}: the true matches")
    return DONE


def run_sql(options: argparse.Namespace, _: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run a statement."""
    url = options.database or read_environment(variables).database
    folder = Path(options.run).expanduser() / "database"
    if url is not None:
        try:
            return _print_answer(normalise_url(url), options.statement)
        except DatabaseSettingsError as error:
            raise UsageError(str(error)) from error
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: the run has no embedded database; name another with --database URL")
    try:
        with start_embedded(folder) as server:
            return _print_answer(server.url, options.statement)
    except EmbeddedServerError as error:
        raise StoppedError(str(error)) from error


def _print_answer(url: str, statement: str) -> int:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            answer = connection.execute(text(statement))
            if answer.returns_rows:
                print_rows(tuple(answer.keys()), [tuple(row) for row in answer.fetchall()])
    except SQLAlchemyError as error:
        raise StoppedError(str(getattr(error, "orig", error)).strip()) from error
    finally:
        engine.dispose()
    return DONE
