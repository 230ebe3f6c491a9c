"""What a person sees: progress while a run works, and its summary at the end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from transforms.counts import RunCounts
from transforms.progress import read_progress

_SECONDS_BETWEEN_LINES: Final = 10.0


@contextmanager
def progress_shown(folder: str, total_bytes: int, quiet: bool = False) -> Iterator[None]:
    """Show how far a run is: a bar on a terminal, a plain line every ten seconds elsewhere."""
    if quiet:
        yield
        return
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    thread = threading.Thread(target=show, args=(folder, total_bytes, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show_bar(folder: str, total_bytes: int, stop: threading.Event) -> None:
    columns = (
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[alerts]:,} alerts, {task.fields[rate]:,.0f}/s, {task.fields[dead]:,} dead"),
        TextColumn("{task.fields[objects]}, left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("crossmatch", total=total_bytes or None, alerts=0, rate=0.0, dead=0, objects="")
        started = time.monotonic()
        while not stop.wait(0.25):
            now = read_progress(folder)
            rate = now.alerts / (time.monotonic() - started)
            objects = f", features of {now.objects:,} objects" if now.objects else ""
            bar.update(task, completed=now.bytes, alerts=now.alerts, rate=rate, dead=now.dead_letters, objects=objects)


def _show_lines(folder: str, total_bytes: int, stop: threading.Event) -> None:
    started = time.monotonic()
    while not stop.wait(_SECONDS_BETWEEN_LINES):
        now = read_progress(folder)
        seconds = time.monotonic() - started
        share = f" ({100 * now.bytes / total_bytes:.0f} %)" if total_bytes else ""
        print(
            f"{seconds:.0f} s: {now.bytes / 1e6:,.0f} MB read{share}, {now.alerts:,} alerts "
            f"({now.alerts / seconds:,.0f}/s), {now.dead_letters:,} dead letters"
            + (f", features of {now.objects:,} objects" if now.objects else ""),
            file=sys.stderr,
            flush=True,
        )


def print_summary(counts: RunCounts, seconds: float, output: Path, stored: str, positions: bool) -> None:
    """Print what a run did."""
    what = "positions" if positions else "alerts"
    table = Table(title="Done", show_header=False, title_justify="left", title_style="bold")
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row(f"{what} read", f"{counts.read:,}")
    table.add_row("  with a match", f"{counts.matched:,}")
    table.add_row("  without a match", f"{counts.no_match:,}")
    table.add_row("  lookup failed", f"{counts.failed:,}")
    if not positions:
        table.add_row("  of other programmes, left out", f"{counts.filtered:,}")
        table.add_row("  repeated, left out", f"{counts.repeated:,}")
        table.add_row("containers without an alert", f"{counts.empty:,}")
    table.add_row("dead letters", f"{counts.dead:,}")
    for stage, number in (counts.dead_letters or {}).items():
        table.add_row(f"  given up at: {stage}", f"{number:,}")
    for name, number in (counts.catalogs or {}).items():
        table.add_row(f"matches in {name}", f"{number:,}")
    for name, number in (counts.rows or {}).items():
        table.add_row(f"rows inserted or updated in table {name}", f"{number:,}")
    for name, number in (counts.sent or {}).items():
        table.add_row(f"{name} sent to Kafka", f"{number:,}")
    table.add_row("time", f"{seconds:,.1f} s")
    table.add_row("rate", f"{counts.read / seconds:,.0f} {what}/s")
    console = Console()
    console.print(table)
    console.print(f"Results in {output}" + (f"; tables in {stored}" if stored else ""), highlight=False, soft_wrap=True)


def print_summary_json(counts: RunCounts, seconds: float, output: Path) -> None:
    """Print what a run did as one JSON object."""
    numbers = {name: getattr(counts, name) for name in counts.__dataclass_fields__}
    print(json.dumps({**numbers, "seconds": round(seconds, 3), "output": str(output)}))


def print_rows(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of values."""
    table = Table(*names)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
