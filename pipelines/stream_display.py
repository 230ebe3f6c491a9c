"""What a person sees of a stream while it runs: one line that changes, or a line of the log now and then."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from messaging.monitor import Monitor, Snapshot

_LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS: Final = 1.0
_SECONDS_BETWEEN_LINES: Final = 30.0
# Counters that are shown, with the words that follow their numbers.
_COUNTS: Final[Mapping[str, str]] = {
    "matched": "matched",
    "objects": "light curves",
    "featured": "with features",
    "classified": "classified",
}


@contextmanager
def stream_shown(monitor: Monitor, quiet: bool = False) -> Iterator[None]:
    """Show how a stream goes: a line each second on a terminal, one in the log each half minute elsewhere."""
    if quiet:
        yield
        return
    stop = threading.Event()
    show = _show_line if sys.stderr.isatty() else _log_lines
    thread = threading.Thread(target=show, args=(monitor, stop), name="stream-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def snapshot_text(now: Snapshot) -> str:
    """Tell how a stream goes, in one line."""
    parts = [f"{now.received:,} alerts received", f"{now.committed:,} done ({now.alerts_per_s:,.0f}/s)"]
    if now.lag is not None:
        parts.append(f"lag {now.lag:,}")
    if now.latency_p50_s is not None and now.latency_p95_s is not None:
        parts.append(f"latency {_seconds(now.latency_p50_s)}, of 95 % within {_seconds(now.latency_p95_s)}")
    parts += [f"{now.counts[name]:,} {words}" for name, words in _COUNTS.items() if name in now.counts]
    return ", ".join([*parts, f"{_dead_letters(now):,} dead letters"])


def _seconds(number: float) -> str:
    return f"{number:,.1f} s" if number < 100 else f"{number:,.0f} s"


def _dead_letters(now: Snapshot) -> int:
    return sum(number for name, number in now.counts.items() if name.startswith("dead_letters:"))


def _show_line(monitor: Monitor, stop: threading.Event) -> None:
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        while not stop.wait(_SECONDS_BETWEEN_LOOKS):
            line = Text(snapshot_text(monitor.snapshot()), no_wrap=True, overflow="ellipsis")
            live.update(line, refresh=True)


def _log_lines(monitor: Monitor, stop: threading.Event) -> None:
    while True:
        stopped = stop.wait(_SECONDS_BETWEEN_LINES)
        now = monitor.snapshot()
        numbers = asdict(now) | {"counts": dict(now.counts), "dead_letters": _dead_letters(now)}
        _LOGGER.info(snapshot_text(now), extra=numbers)
        if stopped:
            return
