"""``alertbeam catalog``: build a catalogue, describe it; its other actions have modules of their own."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipelines import query_command, serve_command
from pipelines.display import print_rows
from pipelines.usage import DONE, StoppedError, UsageError
from xmatch.catalog import build_catalog, open_catalog
from xmatch.jobs import Progress
from xmatch.layout import CatalogError

_SECONDS_BETWEEN_LINES: Final = 10.0
_REFUSED: Final = {
    "position_missing": "without a position",
    "position_out_of_range": "with a position out of range",
    "identifier_missing": "without an identifier",
}
_BUILD_EPILOG: Final = """\
examples:
  alertbeam catalog build allwise allwise.csv.gz --version 2013-11 --output catalogs/allwise
  alertbeam catalog build allwise allwise-parquet/ --identifier source_id --output catalogs/allwise
  alertbeam catalog build gaia https://host/hats/gaia_dr3 --columns source_id,ra,dec,phot_g_mean_mag --output gaia/
  alertbeam catalog build mine table.csv --ra RAdeg --dec DEdeg --id Name --output catalogs/mine

The folder is a HATS catalogue (lsdb.open_catalog reads it) with the index of the crossmatch beside it. A build that was
interrupted goes on where it was when the same command is given again. It needs about twice the size of the result on
the disk of DIR while it runs.
"""
# Each module adds an action to `alertbeam catalog`.
_OTHER_ACTIONS: Final = (query_command.add_action, serve_command.add_action)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `catalog` and its actions."""
    catalog = commands.add_parser("catalog", help="build, describe, query or serve catalogues")
    actions = catalog.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_actions(actions)
    for add_action in _OTHER_ACTIONS:
        add_action(actions)


def add_actions(actions: argparse._SubParsersAction) -> None:
    """Add the actions `build` and `info`."""
    build = actions.add_parser(
        "build",
        help="build a catalogue folder from CSV, Parquet or HATS",
        epilog=_BUILD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("name", help="e.g. allwise")
    build.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="CSV (also .gz) or Parquet files, folders of them, HATS catalogues as folder or http(s) address",
    )
    build.add_argument("--output", required=True, metavar="DIR")
    build.add_argument("--version", default="", help="version of the catalogue, written beside every match")
    build.add_argument("--ra", metavar="COLUMN", help="right ascension in degrees (default: guessed)")
    build.add_argument("--dec", metavar="COLUMN", help="declination in degrees (default: guessed)")
    build.add_argument(
        "--id",
        "--identifier",
        metavar="COLUMN",
        help="identifier, which goes to the tables as oid_catalog (default: guessed; AllWISE: designation)",
    )
    build.add_argument("--columns", metavar="A,B,C", help="columns to keep (default: AllWISE's 17, or all)")
    build.add_argument("--no-hats", action="store_true", help="write the index only")
    build.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    build.add_argument(
        "--memory", type=float, metavar="GB", help="rough bound for all processes together (default: 1 for each)"
    )
    build.add_argument("--quiet", action="store_true", help="no progress")
    build.set_defaults(command=run_catalog_build)
    info = actions.add_parser("info", help="describe a catalogue folder")
    info.add_argument("folder", metavar="DIR")
    info.add_argument("--verify", action="store_true", help="compare the checksum of every file (reads all of it)")
    info.set_defaults(command=run_catalog_info)


def run_catalog_build(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Build a catalogue."""
    workers = options.workers or len(os.sched_getaffinity(0))
    if workers < 1:
        raise UsageError("--workers must be at least 1")
    if options.memory is not None and not options.memory > 0:
        raise UsageError("--memory must be above 0 GB")
    try:
        with _progress_shown(options.quiet) as report:
            catalog = build_catalog(
                options.inputs,
                options.output,
                name=options.name,
                version=options.version,
                ra=options.ra,
                dec=options.dec,
                identifier=options.id,
                columns=options.columns.split(",") if options.columns else None,
                with_hats=not options.no_hats,
                workers=workers,
                memory_bytes=int(options.memory * 1e9) if options.memory else None,
                report=report,
                say=_say,
            )
    except (CatalogError, ValueError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error
    print(f"{catalog.path}: {catalog.name}, {catalog.rows:,} sources")
    for line in _remarks(catalog.manifest):
        print(line)
    return DONE


def run_catalog_info(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Describe a catalogue."""
    try:
        catalog = open_catalog(options.folder)
        if options.verify:
            catalog.verify()
    except CatalogError as error:
        raise UsageError(str(error)) from error
    print(f"{catalog.name} {catalog.version}".strip() + f": {catalog.rows:,} sources, built {catalog.created}")
    manifest = catalog.manifest
    sources, files = manifest["sources"], manifest["files"]
    print(f"from {_count(len(sources), 'file')}, {sum(source['bytes'] for source in sources) / 1e6:,.1f} MB")
    hats = manifest["hats"]
    parts = f"HATS in {_count(hats['partitions'], 'partition')}" if hats else "without HATS"
    print(f"{sum(file['bytes'] for file in files.values()) / 1e6:,.1f} MB in {_count(len(files), 'file')}, {parts}")
    for line in _remarks(manifest):
        print(line)
    rows = [(c.name, c.type, c.unit, "" if c.shown else "on request") for c in catalog.fields]
    print_rows(("column", "type", "unit", "in matches"), rows)
    return DONE


def _remarks(manifest: Mapping[str, Any]) -> list[str]:
    """Sentences about what was left out of a catalogue, and about identifiers that are not unique."""
    lines = [
        f"left out: {manifest['refused'][key]:,} {what}" for key, what in _REFUSED.items() if manifest["refused"][key]
    ]
    if manifest["duplicates"]:
        lines.append(f"left out: {manifest['duplicates']:,} repetitions of the same identifier and position")
    repeated = manifest["repeated_identifiers"]
    if repeated["rows"]:
        examples = ", ".join(repeated["examples"])
        lines.append(
            f"kept: {repeated['rows']:,} whose identifier another one has at another position, e.g. {examples}"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _progress_shown(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show the stages of a build: a bar on a terminal, a plain line every ten seconds elsewhere."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}, left"),
            TimeRemainingColumn(compact=True),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(progress: Progress) -> None:
                if progress.stage not in tasks:
                    tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total, amount="")
                amount = _amount(progress)
                bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, amount=amount)

            yield show
    else:
        yield _LinePrinter().show


class _LinePrinter:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._printed = self._started

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            share = 100 * progress.done / max(1, progress.total)
            _say(f"{now - self._started:.0f} s: {progress.stage}: {share:.0f} % ({_amount(progress)})")


def _amount(progress: Progress) -> str:
    if progress.unit == "bytes":
        return f"{progress.done / 1e6:,.0f} of {progress.total / 1e6:,.0f} MB"
    return f"{progress.done:,} of {progress.total:,} {progress.unit}"
