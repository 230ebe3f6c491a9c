"""Logs of a stream: lines for people or for programs, and few of them when one complaint comes again and again."""

from __future__ import annotations

import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import orjson

Style = Literal["text", "json"]

# The rooms' loggers are named by their packages.
_OWN: Final = (
    "alerts",
    "classifier",
    "database",
    "lightcurves",
    "messaging",
    "pipelines",
    "run_folder",
    "storage",
    "transforms",
    "xmatch",
)
# Like messages that are written in a window; the others are counted.
LIKE_MESSAGES: Final = 10
WINDOW_S: Final = 60.0
_DIGITS: Final = re.compile(r"\d+")
# What every record has: the rest came by ``extra``.
_PLAIN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(style: Style = "text", debug: bool = False, stream: TextIO | None = None) -> None:
    """Write logs as lines; replace what was set up before.

    Own messages are written from INFO on, those of libraries from WARNING on.

    Parameters
    ----------
    style : str
        ``text``: a line for people. ``json``: a JSON object per line with ``time`` (ISO 8601, UTC), ``level``,
        ``logger``, ``message``, the fields given by ``extra``, and ``exception``: the whole traceback as one text.
    debug : bool
        Write more: own messages from DEBUG on, those of libraries from INFO on.
    stream : text stream, optional
        Standard error if not given.

    Notes
    -----
    Of messages that differ in nothing but digits :data:`LIKE_MESSAGES` are written in :data:`WINDOW_S`, and then one
    that says how many were left out: an outage does not fill the disk.
    """
    handler = _LimitedHandler(stream)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
        former.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO if debug else logging.WARNING)
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)
    # Another set-up may have silenced it altogether.
    logging.getLogger("apache_beam").setLevel(logging.NOTSET)
    # It tells nothing but what a transform raises, with where that was; the command tells it once.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


def _utc_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc_time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS and name not in line}
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        try:
            return orjson.dumps(line | extra, str, options).decode()
        except TypeError:
            # Such as integers of more than 64 bits, or text that is not Unicode.
            return orjson.dumps(
                {name: str(value).encode(errors="replace").decode() for name, value in (line | extra).items()}
            ).decode()


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _utc_time(record)[:19].replace("T", " ")


class _LimitedHandler(logging.StreamHandler):
    """Writes to a stream, like messages only so often."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._given = stream
        self._window_ends = -float("inf")
        self._seen: dict[tuple[str, int, str], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record if there were not too many like it."""
        # A live display puts another stream into the place of standard error while it shows.
        self.stream = self._given or sys.stderr
        now = time.monotonic()
        if now >= self._window_ends:
            self._tell_left_out()
            self._window_ends = now + WINDOW_S
        try:
            text = record.getMessage()
        except Exception:
            self.handleError(record)
            return
        like = (record.name, record.levelno, _DIGITS.sub("#", text))
        self._seen[like] = self._seen.get(like, 0) + 1
        if self._seen[like] <= LIKE_MESSAGES:
            super().emit(record)

    def close(self) -> None:
        """Tell what was left out, and end."""
        with self.lock:  # type: ignore[union-attr]
            self._tell_left_out()
        super().close()

    def _tell_left_out(self) -> None:
        for (name, level, text), number in self._seen.items():
            if number > LIKE_MESSAGES:
                left_out = number - LIKE_MESSAGES
                told = logging.makeLogRecord(
                    {
                        "name": name,
                        "levelno": level,
                        "levelname": logging.getLevelName(level),
                        "msg": f"{left_out:,} more messages like this were left out: {text}",
                        "left_out": left_out,
                    }
                )
                super().emit(told)
        self._seen.clear()
