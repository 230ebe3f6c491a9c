"""``alertbeam report``: one HTML page that shows what a run did and found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipelines.usage import DONE, StoppedError, UsageError
from report.data import Choice, Watcher, collect
from run_folder.access import RunError, open_run
from storage.files import replacing

_EPILOG = """\
examples:
  alertbeam report run/
  alertbeam report run/ --output night.html --gallery 12
  alertbeam report run/ --model lc_classifier/2.0 --as-of 2018-06-15

The page holds all that it shows and loads nothing: it can be sent by mail. A run that still works, or that lacks a
model or features, gives a page that says so. The same run gives the same page, to the byte.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "report",
        help="write a page that shows a run",
        description="Write one HTML page that shows what a run did and found.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", metavar="FILE", help="page to write (default: report.html in the run's folder)")
    parser.add_argument("--as-of", metavar="DATE", help="show what was known then; made by 'backfill --as-of DATE'")
    parser.add_argument("--model", metavar="NAME/VERSION", help="probabilities to show (default: those of the run)")
    parser.add_argument("--feature-version", metavar="V", help="features to show (default: those of the run)")
    parser.add_argument("--gallery", type=int, default=6, metavar="N", help="light curves of each class (default 6)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=run_command)


def run_command(options: argparse.Namespace, _: Sequence[str], __: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    if not 0 <= options.gallery <= 100:
        raise UsageError("--gallery must be from 0 to 100")
    choice = Choice(_model_of(options.model), options.feature_version, options.gallery)
    try:
        run = open_run(options.run, options.as_of)
        target = Path(options.output).expanduser().absolute() if options.output else None
        target = target or run.layout.results(run.as_of).root / run.layout.report.name
        with _progress(options.quiet) as watch:
            data = collect(run, choice, watch)
        # Its templates are not needed to say that a run is not there.
        from report.page import render

        with replacing(target) as file:
            file.write(render(data, target).encode("utf-8"))
    except RunError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise StoppedError(str(error)) from error
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return DONE


def _model_of(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, slash, version = text.partition("/")
    if not (name and slash and version):
        raise UsageError(f"--model {text}: write NAME/VERSION, such as lc_classifier/1.0")
    return name, version


@contextmanager
def _progress(quiet: bool) -> Iterator[Watcher]:
    """Show how far the reading is: a bar on a terminal, a line for each kind of table elsewhere."""
    if quiet:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _print_beginning
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield watch


def _print_beginning(what: str, done: int, total: int) -> None:
    if done == 0 and total:
        print(f"reading {what}: {total:,}", file=sys.stderr, flush=True)
