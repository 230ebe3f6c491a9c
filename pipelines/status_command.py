"""``alertbeam status``: how far a run is, or what became of it, read from its ledger."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.run_display import (
    RATE_SECONDS,
    Pace,
    PaceMeter,
    RunState,
    balance_text,
    duration_text,
    memory_text,
    pace_text,
    progress_record,
    with_prefix,
)
from pipelines.usage import DONE, StoppedError, UsageError
from report.summary import Summary, summarise
from run_folder.layout import RunLayout
from run_folder.ledger import FILE_NAME, Invocation, Ledger, LedgerError, Sample, Unit
from transforms.progress import running_progress

_SECONDS_BETWEEN_LOOKS: Final = 2.0
_MOST_SLOWEST: Final = 5
_MOST_RUNNING: Final = 16
_EPILOG: Final = """\
examples:
  alertbeam status run/              what is done, what is not, and why not
  alertbeam status run/ --watch      the same every two seconds until the run ends
  alertbeam status run/ --json       one JSON object (with --watch one per line)

exit status: 0; 2 if the folder holds no run.
"""


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run at a moment.

    Attributes
    ----------
    run : Path
    working : bool
        Whether a process is at work on it now.
    last : Invocation or None
        Last start of the command.
    units : tuple of Unit
    summary : Summary
    state : RunState
        How far the stage is that was last begun.
    pace : Pace
        How fast that goes, nothing if no process works.
    seconds : float
        Since the last start, to its end or to now.
    letters : Mapping of str to int
        Dead letters by the stage that gave up.
    """

    run: Path
    working: bool
    last: Invocation | None
    units: tuple[Unit, ...]
    summary: Summary
    state: RunState
    pace: Pace
    seconds: float
    letters: Mapping[str, int]

    @property
    def word(self) -> str:
        """One word for what the run is: running, done, stopped, killed, or new."""
        if self.working:
            return "running"
        if self.last is None:
            return "new"
        return self.last.outcome or "killed" if self.last.ended else "killed"

    def having(self, state: str) -> list[Unit]:
        """Units in a state."""
        return [unit for unit in self.units if unit.state == state]

    @property
    def slowest(self) -> list[Unit]:
        """Units that took longest."""
        done = sorted(self.having("done"), key=lambda unit: unit.seconds, reverse=True)
        return done[:_MOST_SLOWEST]

    @property
    def failed_once(self) -> list[Unit]:
        """Units that failed and are to be tried again."""
        return [unit for unit in self.units if unit.reason and unit.state in ("waiting", "running")]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "status",
        help="how far a backfill is, or what became of it",
        description="Show how far a backfill is, or what became of it: units, counts, rates, failures, versions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--watch", action="store_true", help="show it again every two seconds until the run ends")
    parser.set_defaults(command=run_command)


def run_command(options: argparse.Namespace, _: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the command; give the exit status."""
    layout = RunLayout(Path(options.run).expanduser().absolute())
    if not (layout.ledger / FILE_NAME).is_file():
        raise UsageError(f"{options.run} holds no run of 'alertbeam backfill': there is no ledger in it")
    try:
        if options.watch and not options.json and sys.stdout.isatty():
            _watch(layout)
        else:
            _print_each(layout, options.json, options.watch)
    except (LedgerError, OSError) as error:
        raise StoppedError(str(error)) from error
    return DONE


def _print_each(layout: RunLayout, as_json: bool, watch: bool) -> None:
    while True:
        status = read_status(layout)
        if as_json:
            print(json.dumps(status_record(status)), flush=True)
        else:
            Console(width=None if sys.stdout.isatty() else 160).print(_shown(status))
        if not (watch and status.working):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _watch(layout: RunLayout) -> None:
    with Live(console=Console(), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            status = read_status(layout)
            live.update(_shown(status), refresh=True)
            if not status.working:
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def read_status(layout: RunLayout) -> RunStatus:
    """Read how far a run is, without disturbing it.

    Raises
    ------
    LedgerError, OSError
        If the ledger cannot be read.
    """
    with Ledger.read_only(layout.ledger) as ledger:
        units = ledger.units()
        invocations = ledger.invocations()
        settings = ledger.settings()
        samples = ledger.samples()
    now = time.time()
    last = invocations[-1] if invocations else None
    # Only where a start has no end there may be a process, and the lock need be tried.
    working = last is not None and last.ended is None and _is_locked(layout.root / ".lock")
    began = last.started if last else now
    state, pace = _progress(layout, units, samples, began, now if working else None)
    ended = now if working else max([began, *(unit.ended or 0.0 for unit in units), (last and last.ended) or 0.0])
    summary = summarise(settings, units, samples, invocations)
    letters = with_prefix(summary.counts, "dead_letters:")
    return RunStatus(layout.root, working, last, tuple(units), summary, state, pace, ended - began, letters)


def _is_locked(path: Path) -> bool:
    """Say whether a process holds a lock, by trying to share it for a moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _progress(
    layout: RunLayout, units: Sequence[Unit], samples: Sequence[Sample], began: float, now: float | None
) -> tuple[RunState, Pace]:
    """State of the stage that was last begun, and its pace if the run works now.

    Units that an earlier start did count for the archives, of which a start goes on with the rest, and not for the
    other stages, that are planned anew each time.
    """
    begun = [unit for unit in units if unit.started is not None]
    if not begun:
        return RunState("begin", total=len(units)), Pace()
    stage = max(begun, key=lambda unit: (unit.state == "running", unit.started)).stage
    some = [
        unit
        for unit in units
        if unit.stage == stage and (stage == "read" or unit.state != "done" or _at(unit) >= began)
    ]
    # Read after the ledger: a unit that ended in between is missed, not counted twice.
    notes = [unit.name for unit in some if unit.state == "running"] if now is not None else []
    running = running_progress(layout.progress, notes)
    reading = stage == "read"
    dead = sum(number for unit in units for name, number in unit.counts.items() if name.startswith("dead_letters:"))
    known = reading and all(unit.size for unit in some)
    done = [unit for unit in some if unit.state == "done"]
    state = RunState(
        stage=stage,
        done=len(done),
        total=len(some),
        aside=sum(unit.state == "aside" for unit in some),
        bytes_done=sum(unit.size for unit in done) + running.bytes if reading else 0,
        bytes_total=sum(unit.size for unit in some if unit.state != "aside") if known else 0,
        alerts=_read(units) + running.alerts,
        objects_done=_objects(stage, done) + running.objects,
        dead_letters=dead + running.dead_letters,
        workers=len(notes),
    )
    if now is None:
        return state, Pace()
    return state, _pace(state, some, samples, began, now)


def _pace(state: RunState, units: Sequence[Unit], samples: Sequence[Sample], began: float, now: float) -> Pace:
    """Pace since the last sample of the stage that is old enough, or since the stage began."""
    first = max(began, min((unit.started for unit in units if unit.started and unit.started >= began), default=began))
    past = [sample for sample in samples if first <= sample.time < now]
    old = [sample for sample in past if sample.time <= now - RATE_SECONDS]
    sample = old[-1] if old else past[0] if past else None
    ended = [unit for unit in units if unit.state == "done"]
    reading = state.stage == "read"

    def before(at: float, sample: Sample | None) -> RunState:
        done = [unit for unit in ended if _at(unit) <= at]
        return RunState(
            state.stage,
            done=len(done),
            total=state.total,
            aside=sum(unit.state == "aside" and _at(unit) <= at for unit in units),
            bytes_done=(sample.bytes if sample else sum(unit.size for unit in done)) if state.bytes_done else 0,
            bytes_total=state.bytes_total,
            alerts=sample.alerts if sample else _read(done) if reading else state.alerts,
            objects_done=sample.objects if sample else _objects(state.stage, done),
        )

    meter = PaceMeter()
    meter.add(first, before(first, None))
    if sample is not None:
        meter.add(sample.time, before(sample.time, sample))
    return meter.add(now, state)


def _at(unit: Unit) -> float:
    return unit.ended or 0.0


def _objects(stage: str, units: Sequence[Unit]) -> int:
    return sum(unit.counts.get("classified" if stage == "classify" else "objects", 0) for unit in units)


def _read(units: Sequence[Unit]) -> int:
    return sum(unit.counts.get("read", 0) for unit in units if unit.stage == "read")


# -- what is shown -----------------------------------------------------------------------------------------------------


def status_record(status: RunStatus) -> dict[str, Any]:
    """Give a status as what ``--json`` prints."""
    summary, last = status.summary, status.last
    balance = summary.balance
    stages = [
        asdict(stage)
        | {
            state: sum(unit.stage == stage.name and unit.state == state for unit in status.units)
            for state in ("waiting", "running")
        }
        for stage in summary.stages
    ]
    return {
        "run": str(status.run),
        "state": status.word,
        "running": status.working,
        "created": summary.settings.get("created"),
        "command": list(last.command) if last else [],
        "started": _time(last.started) if last else None,
        "ended": _time(last.ended) if last and last.ended else None,
        "starts": len(summary.invocations),
        "progress": progress_record(status.seconds, status.state, status.pace),
        "stages": stages,
        "alerts": asdict(balance) | {"difference": balance.difference} if balance else None,
        "adds_up": balance is None or balance.difference == 0,
        "dead_letters": dict(status.letters),
        "set_aside": [asdict(unit) for unit in summary.set_aside],
        "aside": summary.set_aside_count,
        "to_be_tried_again": [_unit_record(unit) | {"reason": unit.reason} for unit in status.failed_once],
        "at_work": [_unit_record(unit) for unit in status.having("running")] if status.working else [],
        "slowest": [_unit_record(unit) for unit in status.slowest],
        "versions": dict(last.versions) if last else {},
        "peak_bytes": summary.peak_bytes,
    }


def _unit_record(unit: Unit) -> dict[str, Any]:
    return {
        "stage": unit.stage,
        "name": unit.name,
        "attempts": unit.attempts,
        "started": _time(unit.started) if unit.started else None,
        "seconds": round(unit.seconds, 3),
        "peak_bytes": unit.peak_bytes,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


_WORDS: Final = {
    "running": ("a process is at work on it", "green"),
    "done": ("done", "green"),
    "new": ("nothing was begun", ""),
    "stopped": ("stopped; start the same command again to go on", "yellow"),
    "killed": ("killed; start the same command again to go on", "red"),
}


def _shown(status: RunStatus) -> RenderableType:
    summary, last = status.summary, status.last
    word, style = _WORDS.get(status.word, (status.word, ""))
    parts: list[RenderableType] = [Text(f"{status.run}: {word}", style=f"bold {style}")]
    if last:
        starts = len(summary.invocations)
        often = f", start number {starts}" if starts > 1 else ""
        parts.append(Text(f"started {_time(last.started)}{often}, {duration_text(status.seconds)}"))
    if status.working:
        parts.append(Text(_now_text(status)))
    if summary.stages:
        parts.append(_stage_table(status))
    if summary.balance:
        adds_up = summary.balance.difference == 0
        text = f"{balance_text(summary.balance)}" + ("" if adds_up else ": THE COUNTS DO NOT ADD UP")
        parts.append(Text(text, style="" if adds_up else "bold red"))
    for stage, number in status.letters.items():
        parts.append(Text(f"dead letters, given up at {stage}: {number:,}", style="yellow"))
    parts.extend(_troubles(status))
    parts.extend(_unit_lines(status))
    if last:
        parts.append(Text("versions: " + ", ".join(f"{name} {_flat(value)}" for name, value in last.versions.items())))
    return Group(*parts)


def _now_text(status: RunStatus) -> str:
    state, pace = status.state, status.pace
    share = "" if state.share is None else f" ({100 * state.share:.0f} %)"
    left = "" if pace.eta_s is None else f", about {duration_text(pace.eta_s)} left of this stage"
    return f"now {state.stage}{share}: {pace_text(state, pace)}{left}"


def _stage_table(status: RunStatus) -> Table:
    table = Table(pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("units", "done", "running", "waiting", "aside", "again", "work", "memory"):
        table.add_column(name, justify="right")
    for stage in status.summary.stages:
        states = [unit.state for unit in status.units if unit.stage == stage.name]
        table.add_row(
            stage.name,
            *(f"{number:,}" for number in (stage.units, stage.done, states.count("running"), states.count("waiting"))),
            Text(f"{stage.aside:,}", style="yellow" if stage.aside else ""),
            f"{stage.repeated:,}",
            duration_text(stage.busy_s),
            memory_text(stage.peak_bytes),
        )
    return table


def _troubles(status: RunStatus) -> list[Text]:
    lines = [
        Text(f"set aside: {unit.stage} {unit.name} after {unit.attempts} attempts: {unit.reason}", style="yellow")
        for unit in status.summary.set_aside
    ]
    more = status.summary.set_aside_count - len(lines)
    if more > 0:
        lines.append(Text(f"and {more:,} more", style="yellow"))
    for unit in status.failed_once:
        tries = f"{unit.attempts} attempts so far" if unit.attempts > 1 else "one attempt so far"
        lines.append(Text(f"to be tried again: {unit.stage} {unit.name}, {tries}: {unit.reason}"))
    return lines


def _unit_lines(status: RunStatus) -> list[Text]:
    lines = []
    if status.working:
        now = time.time()
        for unit in status.having("running")[:_MOST_RUNNING]:
            lines.append(Text(f"at work: {unit.stage} {unit.name}, {duration_text(now - (unit.started or now))}"))
    for place, unit in enumerate(status.slowest):
        word = "slowest: " if place == 0 else " " * len("slowest: ")
        lines.append(Text(f"{word}{unit.stage} {unit.name}, {duration_text(unit.seconds)}", style="dim"))
    return lines


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {inner}".rstrip() for name, inner in value.items()) or "none"
    return "none" if value is None else str(value)
