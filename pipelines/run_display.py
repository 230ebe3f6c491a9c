"""What a person, or a program, sees of a run with many workers: its progress, and its summary at the end."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from report.summary import Balance, SetAside, Stage, summarise
from run_folder.layout import RunLayout
from run_folder.ledger import DONE, Ledger, Unit

# Ways to show progress: ``auto`` is a bar on a terminal, plain lines elsewhere.
PROGRESS: Final = ("auto", "bar", "lines", "json", "none")
# What a rate is taken over: long enough for units that end together, short enough to show that something changed.
RATE_SECONDS: Final = 30.0
_SECONDS_BETWEEN_BARS: Final = 0.5
_SECONDS_BETWEEN_LINES: Final = 10.0
# A short run shows that it lives.
_SECONDS_TO_FIRST_LINE: Final = 2.0
# Of waiting for a display that hangs, at the end.
_SECONDS_TO_END: Final = 5.0
_CLASSES_QUERY: Final = "SELECT class_name, count(*) FROM probability WHERE ranking = 1 GROUP BY 1"
_MATCHES_QUERY: Final = "SELECT catid, count(*) FROM xmatch GROUP BY 1"

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes
    ----------
    stage : str
        What is being done, for example ``pass 1: archives``.
    done, total, aside : int
        Units of work of this stage: done well, all, and given up for now.
    bytes_done, bytes_total : int
        Compressed bytes of this stage's input, 0 where it has none or their number is unknown.
    alerts : int
        Alerts decoded.
    objects_done, objects_total : int
        Objects with their features or classes; the total is 0 where it is unknown.
    dead_letters : int
    workers : int
        Processes at work.
    """

    stage: str
    done: int = 0
    total: int = 0
    aside: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    alerts: int = 0
    objects_done: int = 0
    objects_total: int = 0
    dead_letters: int = 0
    workers: int = 0

    @property
    def amounts(self) -> tuple[tuple[int, int], ...]:
        """Pairs of what is done and what there is, as far as known, the best measure of the work first."""
        pairs = (
            (self.bytes_done, self.bytes_total),
            (self.objects_done, self.objects_total),
            (self.done + self.aside, self.total),
        )
        return tuple(pair for pair in pairs if pair[1])

    @property
    def share(self) -> float | None:
        """Part of the stage that is done, 0 to 1; None where nothing is known of it."""
        return min(1.0, self.amounts[0][0] / self.amounts[0][1]) if self.amounts else None


@dataclass(frozen=True)
class Pace:
    """How fast a run is now: rates per second, and the seconds that its stage will yet take (None if unknown)."""

    alerts_per_s: float = 0.0
    bytes_per_s: float = 0.0
    objects_per_s: float = 0.0
    eta_s: float | None = None


class PaceMeter:
    """Takes rates over the last :data:`RATE_SECONDS` of a stage, from states with their times."""

    def __init__(self) -> None:
        self._states: deque[tuple[float, RunState]] = deque()
        self._first: tuple[float, RunState] | None = None

    def add(self, seconds: float, state: RunState) -> Pace:
        """Note a state and the time [s] at which it was; give the pace then."""
        if self._first is None or self._first[1].stage != state.stage:
            self._first = (seconds, state)
            self._states.clear()
        self._states.append((seconds, state))
        while len(self._states) > 2 and self._states[1][0] <= seconds - RATE_SECONDS:
            self._states.popleft()
        began, before = self._states[0]

        def rate(name: str) -> float:
            return _rate(getattr(state, name) - getattr(before, name), seconds - began)

        return Pace(rate("alerts"), rate("bytes_done"), rate("objects_done"), self._eta_s(seconds, state))

    def _eta_s(self, seconds: float, state: RunState) -> float | None:
        assert self._first is not None
        for place, (done, total) in enumerate(state.amounts):
            # Where units take longer than the window, the whole stage tells how fast they are.
            for began, before in (self._states[0], self._first):
                amounts = before.amounts
                if len(amounts) != len(state.amounts):
                    continue
                rate = _rate(done - amounts[place][0], seconds - began)
                if rate:
                    return max(0, total - done) / rate
        return None


def _rate(number: float, seconds: float) -> float:
    """Number per second; what was undone by a worker that died counts as nothing."""
    return max(0.0, number / seconds) if seconds > 0 else 0.0


def duration_text(seconds: float) -> str:
    """Give a time as a person says it: ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 04 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def pace_text(state: RunState, pace: Pace) -> str:
    """Tell what was done and how fast: bytes, alerts, objects, dead letters."""
    parts = []
    if state.bytes_done or state.bytes_total:
        of = f" of {state.bytes_total / 1e6:,.0f}" if state.bytes_total else ""
        parts.append(f"{state.bytes_done / 1e6:,.0f}{of} MB ({pace.bytes_per_s / 1e6:,.1f} MB/s)")
    if state.alerts:
        parts.append(f"{state.alerts:,} alerts" + (f" ({pace.alerts_per_s:,.0f}/s)" if pace.alerts_per_s else ""))
    if state.objects_done:
        of = f" of {state.objects_total:,}" if state.objects_total else ""
        parts.append(f"{state.objects_done:,}{of} objects ({pace.objects_per_s:,.0f}/s)")
    parts.append(f"{state.dead_letters:,} dead letters")
    return ", ".join(parts)


def progress_record(seconds: float, state: RunState, pace: Pace) -> dict[str, object]:
    """Give a state and its pace as what ``--progress json`` writes: numbers in the units of their names."""
    return {
        **asdict(state),
        "elapsed_s": round(seconds, 1),
        "alerts_per_s": round(pace.alerts_per_s, 1),
        "mb_per_s": round(pace.bytes_per_s / 1e6, 3),
        "objects_per_s": round(pace.objects_per_s, 1),
        "eta_s": None if pace.eta_s is None else round(pace.eta_s, 1),
    }


def _units_text(state: RunState) -> str:
    aside = f", {state.aside:,} set aside" if state.aside else ""
    return f"{state.done:,}/{state.total:,} units{aside}"


# -- the ways to show it -----------------------------------------------------------------------------------------------


class _View(Protocol):
    first_s: float
    every_s: float

    def show(self, seconds: float, state: RunState, pace: Pace) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self, seconds: float, state: RunState, pace: Pace) -> None: ...

    def close(self) -> None: ...


class _Nothing:
    first_s = every_s = 60.0

    def show(self, seconds: float, state: RunState, pace: Pace) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def end(self, seconds: float, state: RunState, pace: Pace) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(_Nothing):
    first_s, every_s = _SECONDS_TO_FIRST_LINE, _SECONDS_BETWEEN_LINES

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, seconds: float, state: RunState, pace: Pace) -> None:
        share = "" if state.share is None else f" ({100 * state.share:.0f} %)"
        left = "" if pace.eta_s is None else f", about {duration_text(pace.eta_s)} left"
        self.say(
            f"{duration_text(seconds)}: {state.stage}: {_units_text(state)}{share}, {pace_text(state, pace)}{left}"
        )

    def say(self, text: str) -> None:
        # One write, so that the lines of a worker do not come between.
        self._stream.write(f"{text}\n")
        self._stream.flush()


class _Json(_Lines):
    def show(self, seconds: float, state: RunState, pace: Pace) -> None:
        self._write("progress", progress_record(seconds, state, pace))

    def say(self, text: str) -> None:
        self._write("message", {"message": text})

    def end(self, seconds: float, state: RunState, pace: Pace) -> None:
        self._write("end", progress_record(seconds, state, pace))

    def _write(self, event: str, record: dict[str, object]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        super().say(json.dumps({"time": now, "event": event, **record}))


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Leave the program alone, which rich would end when the terminal is gone."""
        raise BrokenPipeError


class _Bar(_Nothing):
    first_s = every_s = _SECONDS_BETWEEN_BARS

    def __init__(self, console: Console) -> None:
        # What the program prints is not led through the terminal's lock: workers that are forked would wait for it.
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def show(self, seconds: float, state: RunState, pace: Pace) -> None:
        share = state.share
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(state.stage, style="bold", no_wrap=True),
            ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None, width=20),
            Text("" if share is None else f"{100 * share:3.0f} %", no_wrap=True),
            Text(_units_text(state), no_wrap=True),
            Text("" if pace.eta_s is None else f"{duration_text(pace.eta_s)} left", style="cyan", no_wrap=True),
        )
        workers = f", {state.workers} workers" if state.workers else ""
        text = Text(f"  {duration_text(seconds)}: {pace_text(state, pace)}{workers}", style="dim")
        self._live.update(Group(line, text), refresh=True)

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()


def add_progress_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses how progress is shown."""
    parser.add_argument(
        "--progress",
        choices=PROGRESS,
        default="auto",
        help="how to show it, on standard error: a bar, a plain line every ten seconds, JSON lines, nothing "
        "(default: a bar on a terminal, else lines)",
    )


@contextmanager
def run_shown(state: Callable[[], RunState], style: str = "auto", stream: TextIO | None = None) -> Iterator[Say]:
    """Show how far a run is while the block works.

    A thread asks for the state and shows it. Nothing that goes wrong in it reaches the run: a state that cannot be had
    is not shown, and neither is anything on a stream that is closed.

    Parameters
    ----------
    state : callable
        Gives the state now; called from another thread.
    style : str
        One of :data:`PROGRESS`.
    stream : text stream, optional
        Standard error if not given.

    Yields
    ------
    callable
        Shows a sentence: above the bar, as a line, or as a JSON line with ``"event": "message"``.
    """
    view = _view(style, sys.stderr if stream is None else stream)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(view, state, stop), name="progress", daemon=True)
    if type(view) is not _Nothing:
        thread.start()

    def say(text: str) -> None:
        with suppress(Exception):
            view.say(text)

    try:
        yield say
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(_SECONDS_TO_END)
        with suppress(Exception):
            view.close()


def _view(style: str, stream: TextIO | None) -> _View:
    if style not in PROGRESS:
        raise ValueError(f"progress is shown as one of {', '.join(PROGRESS)}, not as {style}")
    if style == "none" or stream is None or stream.closed:
        return _Nothing()
    if style == "json":
        return _Json(stream)
    console = _Terminal(file=stream)
    with suppress(Exception):
        if style == "bar" or (style == "auto" and stream.isatty() and not console.is_dumb_terminal):
            return _Bar(console)
    return _Lines(stream)


def _follow(view: _View, state: Callable[[], RunState], stop: threading.Event) -> None:
    started = time.monotonic()
    meter = PaceMeter()

    def shown(show: Callable[[float, RunState, Pace], None]) -> None:
        with suppress(Exception):
            now = state()
            seconds = time.monotonic() - started
            show(seconds, now, meter.add(seconds, now))

    # The first rate needs a state before the first line.
    shown(lambda *_: None)
    wait_s = view.first_s
    while not stop.wait(wait_s):
        wait_s = view.every_s
        shown(view.show)
    shown(view.end)


# -- the end -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSummary:
    """What a run has done, and what of it in this start of the command.

    Attributes
    ----------
    output : Path
        Folder of the run.
    seconds : float
        Of this start.
    balance : Balance or None
        Where the alerts of all archives went; None if none was read.
    stages : tuple of Stage
        Units of the whole run.
    done_now : Mapping of str to int
        Units done in this start, by stage.
    alerts_now, bytes_now, objects_now, classified_now : int
        Of these units: alerts and compressed bytes read, objects with features or too few points, objects with classes.
    letters : Mapping of str to int
        Dead letters of the whole run by the stage that gave up.
    set_aside : tuple of SetAside
        The first units that were given up.
    aside : int
        How many there are.
    matches : Mapping of str to int
        Alerts with a match, by catalogue.
    classes : Mapping of str to int
        Objects classified in this start, by their most probable class.
    tables : Mapping of str to int
        Rows that this start inserted or updated, by table of the database.
    sent : Mapping of str to int
        Messages that Kafka took in this start, by kind.
    rows : Mapping of str to int
        Rows in the files of results now.
    stored : str
        Where the database is; empty if there is none.
    example : str
        An object with features, empty if there is none.
    """

    output: Path
    seconds: float
    balance: Balance | None
    stages: tuple[Stage, ...]
    done_now: Mapping[str, int]
    alerts_now: int
    bytes_now: int
    objects_now: int
    classified_now: int
    letters: Mapping[str, int]
    set_aside: tuple[SetAside, ...]
    aside: int
    matches: Mapping[str, int]
    classes: Mapping[str, int]
    tables: Mapping[str, int]
    sent: Mapping[str, int]
    rows: Mapping[str, int]
    stored: str
    example: str

    @property
    def dead_letters(self) -> int:
        """Dead letters of all stages."""
        return sum(self.letters.values())

    @property
    def adds_up(self) -> bool:
        """Say whether all alerts that came in are accounted for."""
        return self.balance is None or self.balance.difference == 0

    def record(self) -> dict[str, Any]:
        """Give the summary as what ``--json`` prints."""
        balance = self.balance or Balance(0, 0, 0, 0, 0)
        return {
            "output": str(self.output),
            "seconds": round(self.seconds, 3),
            "alerts": {**asdict(balance), "difference": balance.difference},
            "adds_up": self.adds_up,
            "dead_letters": dict(self.letters),
            "stages": [asdict(stage) | {"done_now": self.done_now.get(stage.name, 0)} for stage in self.stages],
            "set_aside": [asdict(unit) for unit in self.set_aside],
            "aside": self.aside,
            "now": {
                "alerts": self.alerts_now,
                "bytes": self.bytes_now,
                "objects": self.objects_now,
                "classified": self.classified_now,
                "alerts_per_s": round(_rate(self.alerts_now, self.seconds), 1),
                "mb_per_s": round(_rate(self.bytes_now, self.seconds) / 1e6, 3),
            },
            "catalogs": dict(self.matches),
            "classes": dict(self.classes),
            "tables": dict(self.tables),
            "sent": dict(self.sent),
            "rows": dict(self.rows),
            "database": self.stored,
        }


def run_summary(ledger: Ledger, layout: RunLayout, seconds: float, as_of: str | None = None) -> RunSummary:
    """Sum up a run at its end.

    Parameters
    ----------
    ledger : Ledger
    layout : RunLayout
    seconds : float
        Of this start of the command, which is the ledger's last.
    as_of : str, optional
        Name of the date up to which alerts counted.
    """
    units = ledger.units()
    settings = ledger.settings()
    invocations = ledger.invocations()
    began = invocations[-1].started if invocations else 0.0
    now = [unit for unit in units if unit.state == DONE and (unit.ended or 0.0) >= began]
    whole = summarise(settings, units, (), invocations)
    done = _counted(unit for unit in units if unit.state == DONE)
    of_now = _counted(now)
    reading = [unit for unit in now if unit.stage == "read"]
    results = _result_folders(layout, settings, as_of)
    return RunSummary(
        output=layout.root,
        seconds=seconds,
        balance=whole.balance,
        stages=whole.stages,
        done_now=Counter(unit.stage for unit in now),
        alerts_now=sum(unit.counts.get("read", 0) for unit in reading),
        bytes_now=sum(unit.size for unit in reading),
        objects_now=_counted(unit for unit in now if unit.stage == "features")["objects"],
        classified_now=of_now["classified"],
        letters=with_prefix(done, "dead_letters:"),
        set_aside=whole.set_aside,
        aside=whole.set_aside_count,
        matches=with_prefix(done, "catalog:"),
        classes=with_prefix(of_now, "class:"),
        tables=with_prefix(of_now, "rows:"),
        sent=with_prefix(of_now, "sent:"),
        rows={name: rows for name, folder in results.items() if (rows := _rows_in(folder))},
        stored=settings.get("database") or "",
        example=_first_object(results.get("features")),
    )


def with_prefix(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Counts whose names begin alike, by the rest of their names; without those that are zero."""
    return {name.removeprefix(prefix): number for name, number in counts.items() if number and name.startswith(prefix)}


def _counted(units: Iterator[Unit] | Sequence[Unit]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for unit in units:
        counts.update(unit.counts)
    return counts


def _result_folders(layout: RunLayout, settings: Mapping[str, Any], as_of: str | None) -> dict[str, Path]:
    results = layout.results(as_of)
    folders = {"crossmatches": layout.crossmatches, "objects": results.objects}
    if settings.get("feature_version"):
        folders["features"] = results.features(settings["feature_version"])
    if model := settings.get("model"):
        folders["probabilities"] = results.probabilities(model["name"], model["version"])
    return folders


def _rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("[!.]*.parquet"))


def _first_object(folder: Path | None) -> str:
    for path in sorted(folder.glob("bucket=*.parquet")) if folder is not None else ():
        for batch in pq.ParquetFile(path).iter_batches(1, columns=["oid"]):
            return str(batch["oid"][0])
    return ""


def print_run_summary(summary: RunSummary, layout: RunLayout, as_json: bool = False) -> None:
    """Print the summary for a person, or as one JSON object; say loudly if the alerts are not all accounted for."""
    if not summary.adds_up:
        assert summary.balance is not None
        print(
            f"THE COUNTS DO NOT ADD UP: {balance_text(summary.balance)}. Results may lack alerts or hold some twice; "
            "please tell us",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(summary.record()))
        return
    console = Console()
    if summary.stages:
        console.print(_stage_table(summary))
    console.print(_number_table(summary))
    for unit in summary.set_aside[:5]:
        told = f"set aside: {unit.stage} {unit.name} after {unit.attempts} attempts: {unit.reason}"
        console.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in _next_steps(summary, layout):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def balance_text(balance: Balance) -> str:
    """Give the law of the counts with its numbers."""
    text = (
        f"{balance.alerts_in:,} alerts in = {balance.written:,} written + {balance.filtered:,} filtered + "
        f"{balance.repeated:,} repeated + {balance.dead:,} dead letters"
    )
    if balance.difference:
        text += f" {'+' if balance.difference > 0 else '-'} {abs(balance.difference):,} UNACCOUNTED FOR"
    return text


def _stage_table(summary: RunSummary) -> Table:
    table = Table(title="Done", title_justify="left", title_style="bold")
    table.add_column("stage")
    for name in ("units", "done", "now", "set aside", "work", "memory"):
        table.add_column(name, justify="right")
    for stage in summary.stages:
        table.add_row(
            stage.name,
            f"{stage.units:,}",
            f"{stage.done:,}",
            f"{summary.done_now.get(stage.name, 0):,}",
            f"{stage.aside:,}" if stage.aside else "",
            duration_text(stage.busy_s),
            memory_text(stage.peak_bytes),
        )
    return table


def memory_text(size: int | None) -> str:
    """Give a size of memory in MB; nothing if it is unknown."""
    return f"{size / 1e6:,.0f} MB" if size else ""


def _number_table(summary: RunSummary) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    balance = summary.balance
    if balance is not None:
        table.add_row("alerts in", f"{balance.alerts_in:,}", style="" if summary.adds_up else "bold red")
        for name, number in (
            ("  = written", balance.written),
            ("  + of other programmes, left out", balance.filtered),
            ("  + repeated, left out", balance.repeated),
            ("  + dead letters", balance.dead),
        ):
            table.add_row(name, f"{number:,}")
        if not summary.adds_up:
            table.add_row("  + UNACCOUNTED FOR", f"{balance.difference:,}", style="bold red")
    rows = {
        **{f"dead letters, given up at: {stage}": number for stage, number in summary.letters.items()},
        **{f"matches in {name}": number for name, number in summary.matches.items()},
        **{f"rows of {name}": number for name, number in summary.rows.items()},
        **{f"classified now as {name}": number for name, number in summary.classes.items()},
        **{f"rows inserted or updated in table {name}": number for name, number in summary.tables.items()},
        **{f"{name} sent to Kafka now": number for name, number in summary.sent.items()},
    }
    for name, number in rows.items():
        table.add_row(name, f"{number:,}")
    table.add_row("time", duration_text(summary.seconds))
    for amount, what in (
        (summary.alerts_now, "alerts/s"),
        (summary.bytes_now / 1e6, "MB/s"),
        (summary.objects_now, "objects/s"),
    ):
        if amount:
            table.add_row("rate", f"{_rate(amount, summary.seconds):,.1f} {what}")
    return table


def _next_steps(summary: RunSummary, layout: RunLayout) -> Iterator[str]:
    run = shlex.quote(_short(layout.root))
    embedded = summary.stored == str(layout.database)
    tables = f"; tables in {_short(layout.database) if embedded else summary.stored}" if summary.stored else ""
    yield f"Results in {run}{tables}. Next:"
    yield f"  alertbeam report {run}"
    if summary.example:
        yield f"  alertbeam show {summary.example} {run} --output {summary.example}.png"
    if summary.stored:
        query = _CLASSES_QUERY if summary.rows.get("probabilities") else _MATCHES_QUERY
        yield f"  alertbeam sql {run} '{query}'"
    if summary.dead_letters:
        yield f"  alertbeam replay {run}   (what was given up, once more)"
    if summary.aside:
        yield f"  alertbeam backfill --resume --output {run}   (what was set aside, once more)"


def _short(path: Path) -> str:
    """Path as seen from here, if it lies below."""
    with suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
