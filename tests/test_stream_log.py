"""Logs and display of a stream."""

import io
import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime

import numpy as np
import pytest

import pipelines
from messaging.monitor import Monitor, Snapshot
from messaging.settings import MonitorSettings
from pipelines import stream_display, stream_log
from pipelines.stream_display import snapshot_text, stream_shown
from pipelines.stream_log import LIKE_MESSAGES, set_up_logs


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = [None, "apache_beam", "apache_beam.runners.common", *stream_log._OWN]
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in names}
    root.handlers[:] = []
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def wait_for(found: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not found() and time.monotonic() < end:
        time.sleep(0.01)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_json_holds_the_message_and_its_fields() -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    logging.getLogger("messaging.consumer").info(
        "read %d of %s", 5, "ztf", extra={"topic": "ztf", "offset": np.int64(7), "where": {"a": 1}, "level": "mine"}
    )
    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line == {
        "level": "INFO",
        "logger": "messaging.consumer",
        "message": "read 5 of ztf",
        "topic": "ztf",
        "offset": 7,
        "where": {"a": 1},
    }


def test_an_exception_is_one_line_of_json() -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("transforms.kafka_source").exception("no good", extra={"huge": 2**80, "lone": "\ud800"})
    (line,) = lines(stream)
    assert line["level"] == "ERROR"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines")
    assert line["huge"] == str(2**80)


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    set_up_logs("text", stream=stream)
    logging.getLogger("pipelines.stream").warning("broker is away", extra={"tries": 3})
    moment, _, rest = stream.getvalue().partition(" WARNING ")
    datetime.strptime(moment, "%Y-%m-%d %H:%M:%S")
    assert rest == "pipelines.stream: broker is away\n"


@pytest.mark.parametrize(("debug", "own", "foreign"), [(False, "INFO", "WARNING"), (True, "DEBUG", "INFO")])
def test_libraries_are_quieter_than_we_are(debug: bool, own: str, foreign: str) -> None:
    stream = io.StringIO()
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    set_up_logs("json", debug=debug, stream=stream)
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    for name in ("messaging.consumer", "apache_beam.runners", "urllib3"):
        for level in levels:
            logging.getLogger(name).log(logging.getLevelNamesMapping()[level], "hello")
    for name, first in (("messaging.consumer", own), ("apache_beam.runners", foreign), ("urllib3", foreign)):
        found = tuple(line["level"] for line in lines(stream) if line["logger"] == name)
        assert found == levels[levels.index(first) :]


def test_setting_up_again_replaces_what_was() -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up_logs("json", stream=first)
    set_up_logs("json", stream=second)
    logging.getLogger("pipelines.stream").info("once")
    assert not first.getvalue()
    assert len(lines(second)) == 1


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("take care", stacklevel=1)
    (line,) = lines(stream)
    assert "take care" in line["message"]


def test_like_messages_are_counted_instead_of_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(stream_log.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    log = logging.getLogger("messaging.consumer")
    for number in range(1000):
        log.warning("broker is away, try %d", number)
        log.error("broker is away, try %d", number) if number == 0 else None
    log.warning("something else")
    assert [line["message"] for line in lines(stream)][-1] == "something else"
    assert len(lines(stream)) == LIKE_MESSAGES + 2
    clock[0] += stream_log.WINDOW_S
    log.warning("broker is away, try 1000")
    told, new = lines(stream)[LIKE_MESSAGES + 2 :]
    assert told["left_out"] == 1000 - LIKE_MESSAGES
    assert told["level"] == "WARNING"
    assert told["logger"] == "messaging.consumer"
    assert "broker is away" in told["message"]
    assert new["message"] == "broker is away, try 1000"


def test_what_was_left_out_is_told_at_the_end() -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    for _ in range(LIKE_MESSAGES + 5):
        logging.getLogger("messaging.consumer").warning("same")
    logging.getLogger().handlers[0].close()
    assert lines(stream)[-1]["left_out"] == 5
    assert len(lines(stream)) == LIKE_MESSAGES + 1


def test_a_pipeline_of_beam_logs_nothing_of_its_own() -> None:
    program = """
import pipelines
from pipelines.stream_log import set_up_logs
set_up_logs("json")
import apache_beam as beam
with beam.Pipeline(runner="FnApiRunner") as pipeline:
    pipeline | beam.Create([1, 2]) | beam.Map(lambda number: number + 1)
"""
    folder = next(iter(pipelines.__path__)) + "/.."
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""


def test_a_stream_in_one_line() -> None:
    counts = {"matched": 900, "objects": 50, "featured": 40, "classified": 3, "dead_letters:decode": 1, "read": 5}
    text = snapshot_text(Snapshot(1200, 1000, 250.4, 200, 0.84, 2.1, counts | {"dead_letters:write": 2}))
    assert text == (
        "1,200 alerts received, 1,000 done (250/s), lag 200, latency 0.8 s, of 95 % within 2.1 s, 900 matched, "
        "50 light curves, 40 with features, 3 classified, 3 dead letters"
    )
    assert snapshot_text(Snapshot(0, 0, 0.0, None, None, None, {})) == (
        "0 alerts received, 0 done (0/s), 0 dead letters"
    )


def test_without_a_terminal_the_display_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    set_up_logs("json", stream=stream)
    monkeypatch.setattr(stream_display, "_SECONDS_BETWEEN_LINES", 0.05)
    told = Monitor(MonitorSettings())
    told.counts = lambda: {"matched": 3, "dead_letters:decode": 4}
    with stream_shown(told):
        wait_for(stream.getvalue)
        told.received(7)
    found = lines(stream)
    assert len(found) >= 2
    assert found[0]["received"] == 0
    assert found[-1]["logger"] == "pipelines.stream_display"
    assert (found[-1]["received"], found[-1]["committed"], found[-1]["dead_letters"]) == (7, 0, 4)
    assert found[-1]["counts"]["matched"] == 3
    with stream_shown(told, quiet=True):
        assert not [thread for thread in threading.enumerate() if thread.name == "stream-display"]


def test_on_a_terminal_the_display_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(stream_display, "_SECONDS_BETWEEN_LOOKS", 0.05)
    set_up_logs("text")
    told = Monitor(MonitorSettings())
    told.received(7)
    with stream_shown(told):
        wait_for(lambda: "7 alerts received" in screen.getvalue())
        logging.getLogger("pipelines.stream").warning("a line in between")
    assert sys.stderr is screen
    assert "7 alerts received" in screen.getvalue()
    assert "a line in between" in screen.getvalue()
