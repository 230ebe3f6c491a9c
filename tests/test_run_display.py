"""Progress of a run with many workers in all its ways, the closing summary, and ``alertbeam status``."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import run_display
from pipelines.run_display import (
    PaceMeter,
    RunState,
    duration_text,
    print_run_summary,
    run_shown,
    run_summary,
)
from pipelines.status_command import read_status, status_record
from report.summary import Balance
from run_folder.layout import RunLayout
from run_folder.ledger import Ledger, Sample, UnitSpec
from transforms.progress import Progress, ProgressNote, clear_progress, read_progress, running_progress

PROJECT = Path(__file__).resolve().parents[1]
READING = RunState("pass 1: archives", total=100, bytes_total=100_000_000)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show more often than a person wants it."""
    monkeypatch.setattr(run_display._Lines, "first_s", 0.02)
    monkeypatch.setattr(run_display._Lines, "every_s", 0.02)


@contextmanager
def on_terminal() -> Iterator[tuple[TextIO, list[str]]]:
    """A terminal of 120 columns, and what was shown on it; complete after the block."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    shown: list[str] = []

    def read() -> None:
        # When the last writer is gone, reading fails.
        with suppress(OSError):
            while data := os.read(leader, 1 << 16):
                shown.append(data.decode("utf-8", "replace"))

    thread = threading.Thread(target=read)
    thread.start()
    with open(follower, "w") as terminal:
        yield terminal, shown
    thread.join()
    os.close(leader)


class TestNotes:
    def test_only_units_at_work_count(self, tmp_path: Path) -> None:
        for unit, alerts in (("a", 1), ("b", 10), ("c", 100)):
            for _ in range(2):
                note = ProgressNote(str(tmp_path / unit))
                note.add(alerts=alerts, bytes=1)
                note.save()
        assert running_progress(tmp_path, ["a", "c", "absent"]) == Progress(bytes=4, alerts=202)
        assert running_progress(tmp_path, []) == Progress()
        # A unit that is tried again begins anew.
        clear_progress(str(tmp_path / "c"))
        ProgressNote(str(tmp_path / "c")).save()
        assert running_progress(tmp_path, ["a", "c"]) == Progress(bytes=2, alerts=2)
        assert read_progress(str(tmp_path / "b")) == Progress(bytes=2, alerts=20)

    def test_a_note_that_cannot_be_written_ends_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        ProgressNote(str(tmp_path / "file" / "unit")).add(alerts=1)

    def test_a_broken_note_is_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.json").write_text('{"alerts": ')
        assert running_progress(tmp_path, ["a"]) == Progress()


class TestPace:
    def test_rates_are_of_the_last_half_minute(self) -> None:
        meter = PaceMeter()
        for seconds in range(101):
            # Ten times as fast from the 50th second.
            number = seconds if seconds <= 50 else 50 + 10 * (seconds - 50)
            pace = meter.add(
                seconds, replace(READING, alerts=number, bytes_done=1000 * number, objects_done=2 * number)
            )
        assert pace.alerts_per_s == 10
        assert pace.bytes_per_s == 10_000
        assert pace.objects_per_s == 20
        assert pace.eta_s == pytest.approx((100_000_000 - 550_000) / 10_000)

    @given(st.floats(0.1, 40), st.integers(1, 1000), st.integers(2, 60))
    def test_an_even_pace_is_told_whenever_it_is_looked_at(self, step: float, rate: int, looks: int) -> None:
        meter = PaceMeter()
        for look in range(looks):
            pace = meter.add(look * step, replace(READING, bytes_done=int(look * step * rate * 1000)))
        assert pace.bytes_per_s == pytest.approx(rate * 1000, rel=0.02)
        left = READING.bytes_total - (looks - 1) * step * rate * 1000
        assert pace.eta_s == pytest.approx(max(0, left) / (rate * 1000), rel=0.03, abs=1e-3)

    def test_time_left_by_units_where_bytes_are_unknown(self) -> None:
        meter = PaceMeter()
        meter.add(0, RunState("features", done=4, total=20))
        assert meter.add(10, RunState("features", done=4, total=20)).eta_s is None
        # Those that are set aside need no more time.
        assert meter.add(20, RunState("features", done=6, aside=2, total=20)).eta_s == 12 / (4 / 20)
        # Nothing ended in the last half minute: the whole stage tells.
        assert meter.add(100, RunState("features", done=6, aside=2, total=20)).eta_s == 12 / (4 / 100)

    def test_a_new_stage_begins_anew(self) -> None:
        meter = PaceMeter()
        meter.add(0, replace(READING, alerts=0))
        meter.add(10, replace(READING, alerts=1000))
        pace = meter.add(20, RunState("pass 2: features", alerts=1000, total=4))
        assert (pace.alerts_per_s, pace.eta_s) == (0, None)

    def test_what_a_worker_that_died_undid_is_no_negative_rate(self) -> None:
        meter = PaceMeter()
        meter.add(0, replace(READING, alerts=1000, bytes_done=10))
        assert meter.add(10, replace(READING, alerts=400, bytes_done=2)).alerts_per_s == 0

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min"), (90_000, "1 d 01 h"), (-1, "0 s")],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration_text(seconds) == text


class TestShown:
    def shown(self, style: str, state: Callable[[], RunState], seconds: float = 0.15) -> list[str]:
        stream = io.StringIO()
        with run_shown(state, style, stream) as say:
            say("hello [there]")
            time.sleep(seconds)
        return stream.getvalue().splitlines()

    @pytest.mark.parametrize("style", ["lines", "auto"])
    def test_lines(self, soon: None, style: str) -> None:
        state = replace(READING, done=3, aside=1, bytes_done=42_000_000, alerts=12_345, dead_letters=7)
        hello, first, *more = self.shown(style, lambda: state)
        assert hello == "hello [there]"
        assert first == (
            "0 s: pass 1: archives: 3/100 units, 1 set aside (42 %), 42 of 100 MB (0.0 MB/s), 12,345 alerts, "
            "7 dead letters"
        )
        assert more

    def test_rates_and_time_left_in_lines(self, soon: None) -> None:
        began = time.monotonic()

        def state() -> RunState:
            return replace(READING, bytes_done=int(1e7 * (time.monotonic() - began)), alerts=1)

        assert re.search(
            r"\((9|10)\.\d MB/s\), 1 alerts, 0 dead letters, about (9|10) s left", self.shown("lines", state)[-1]
        )

    def test_json(self, soon: None) -> None:
        lines = [json.loads(line) for line in self.shown("json", lambda: replace(READING, done=3, objects_done=5))]
        assert [line["event"] for line in lines[:2]] == ["message", "progress"]
        assert lines[0]["message"] == "hello [there]"
        assert lines[-1]["event"] == "end"
        for line in lines[1:]:
            assert (line["stage"], line["done"], line["total"], line["objects_done"]) == ("pass 1: archives", 3, 100, 5)
            assert {"time", "elapsed_s", "alerts_per_s", "mb_per_s", "objects_per_s", "eta_s"} <= line.keys()
        assert json.loads(json.dumps(lines[-1])) == lines[-1]

    def test_nothing(self, soon: None) -> None:
        asked = []
        assert self.shown("none", lambda: asked.append(1) or READING) == []
        assert asked == []
        with pytest.raises(ValueError, match="auto, bar, lines, json, none"):
            self.shown("loud", lambda: READING)

    def test_a_state_that_cannot_be_had_is_not_shown(self, soon: None) -> None:
        calls: list[int] = []

        def state() -> RunState:
            calls.append(1)
            if len(calls) < 4:
                raise OSError("the disk")
            return READING

        lines = self.shown("lines", state)
        assert lines[1].startswith("0 s: pass 1")

    @pytest.mark.parametrize("style", ["auto", "lines", "json", "bar"])
    def test_a_stream_that_is_closed(self, soon: None, style: str) -> None:
        stream = io.StringIO()
        stream.close()
        with run_shown(lambda: READING, style, stream) as say:
            say("hello")
        reading, writing = os.pipe()
        os.close(reading)
        with run_shown(lambda: READING, style, open(writing, "w", closefd=False)) as say:
            say("hello")
            time.sleep(0.05)
        os.close(writing)

    def test_an_error_of_the_run_passes_and_the_thread_ends(self, soon: None) -> None:
        before = threading.active_count()
        with pytest.raises(KeyError), run_shown(lambda: READING, "lines", io.StringIO()):
            raise KeyError("mine")
        assert threading.active_count() == before

    def test_without_standard_error(self) -> None:
        program = (
            "import sys; from pipelines.run_display import *\n"
            "assert sys.stderr is None\n"
            "with run_shown(lambda: RunState('x'), 'auto') as say: say('hello')\n"
            "print('done')"
        )
        command = f'exec "{sys.executable}" -c "$0" 2>&-'
        answer = subprocess.run(["sh", "-c", command, program], stdout=subprocess.PIPE, cwd=PROJECT, check=True)
        assert answer.stdout == b"done\n"

    def test_bar_on_a_terminal(self) -> None:
        state = replace(READING, done=3, aside=1, bytes_done=42_000_000, alerts=12_345, dead_letters=7, workers=2)
        with on_terminal() as (terminal, shown_parts), run_shown(lambda: state, "auto", terminal) as say:
            time.sleep(1.2)
            say("archive [x] was set aside")
        shown = "".join(shown_parts)
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
        for text in ("pass 1: archives", "━", "42 %", "3/100 units, 1 set aside", "12,345 alerts", "7 dead letters"):
            assert text in plain
        assert "2 workers" in plain
        assert "archive [x] was set aside" in plain
        # The cursor is there again, and the bar is gone.
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
        assert shown.rindex("\x1b[2K") > shown.rindex("12,345")

    def test_dumb_terminal_gets_lines(self, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        with on_terminal() as (terminal, shown_parts), run_shown(lambda: READING, "auto", terminal):
            time.sleep(0.1)
        shown = "".join(shown_parts)
        assert shown.startswith("0 s: pass 1: archives: 0/100 units")
        assert "\x1b" not in shown


# -- a run ----------------------------------------------------------------------------------------------------

READ_COUNTS = {
    "read": 100,
    "written": 90,
    "filtered": 5,
    "repeated": 4,
    "dead_letters:decode": 2,
    "dead_letters:crossmatch": 1,
    "catalog:allwise": 60,
    "rows:object": 80,
}
BALANCE = asdict(Balance(alerts_in=204, written=180, filtered=10, repeated=8, dead=6)) | {"difference": 0}
STATES = ("units", "done", "aside", "waiting", "running")
VERSIONS = {"alertbeam": "9.9", "features": "1.0.0-accurate", "catalogs": {"allwise": "2020"}, "model": None}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[RunLayout, Ledger]]:
    """A run in the middle of pass 2, with all that may happen to a unit."""
    layout = RunLayout(tmp_path / "run")
    with Ledger.open(layout.ledger) as ledger:
        ledger.set_settings({"created": "2026-01-01T00:00:00", "feature_version": "1.0.0-accurate", "model": None})
        ledger.begin(["alertbeam", "backfill", "nights/"], VERSIONS)
        ledger.add("read", [UnitSpec(name, {}, size=1_000_000) for name in ("night1", "night2", "broken")])
        for name in ("night1", "night2"):
            ledger.start("read", name)
            ledger.finish("read", name, READ_COUNTS, 12.5 if name == "night1" else 3.0, 700_000_000, VERSIONS)
        ledger.start("read", "broken")
        ledger.failed("read", "broken", "OSError: [x] cut off")
        ledger.set_aside("read", "broken", "OSError: [x] cut off")
        ledger.add("features", [UnitSpec(name, {}, size=500) for name in ("f1", "f2", "f3", "f4")])
        for name in ("f1", "f2", "f3"):
            ledger.start("features", name)
        ledger.finish("features", "f1", {"objects": 70, "featured": 40, "rows:feature": 7120}, 5, 900_000_000, VERSIONS)
        ledger.failed("features", "f3", "the worker died (signal 9)")
        note = ProgressNote(str(layout.progress / "f2"))
        note.add(objects=11)
        note.save()
        stale = ProgressNote(str(layout.progress / "f3"))
        stale.add(objects=1000)
        stale.save()
        yield layout, ledger


class TestStatus:
    def test_while_it_works(self, run: tuple[RunLayout, Ledger], alertbeam: Callable[..., dict[str, Any]]) -> None:
        layout, _ = run
        with open(layout.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            answer = alertbeam("status", layout.root, "--json")
            shown = alertbeam("status", layout.root)["out"]
        assert (answer["status"], answer["state"], answer["running"]) == (0, "running", True)
        assert answer["alerts"] == BALANCE
        assert answer["dead_letters"] == {"decode": 4, "crossmatch": 2}
        stages = {stage["name"]: stage for stage in answer["stages"]}
        assert [stages["read"][name] for name in STATES] == [3, 2, 1, 0, 0]
        assert [stages["features"][name] for name in STATES] == [4, 1, 0, 2, 1]
        progress = answer["progress"]
        # The notes of the unit that failed count no more.
        assert (progress["stage"], progress["objects_done"], progress["alerts"]) == ("features", 81, 200)
        assert progress["eta_s"] is not None
        assert answer["set_aside"] == [
            {"stage": "read", "name": "broken", "attempts": 1, "reason": "OSError: [x] cut off"}
        ]
        assert [unit["reason"] for unit in answer["to_be_tried_again"]] == ["the worker died (signal 9)"]
        assert [unit["name"] for unit in answer["at_work"]] == ["f2"]
        assert [unit["name"] for unit in answer["slowest"]] == ["night1", "f1", "night2"]
        assert (answer["versions"], answer["peak_bytes"]) == (VERSIONS, 900_000_000)
        flat = " ".join(shown.split())
        for text in (
            "a process is at work on it",
            "204 alerts in = 180 written + 10 filtered + 8 repeated + 6 dead letters",
            "set aside: read broken after 1 attempts: OSError: [x] cut off",
            "to be tried again: features f3, one attempt so far: the worker died (signal 9)",
            "slowest: read night1, 12 s features f1, 5 s read night2, 3 s",
            "versions: alertbeam 9.9, catalogs allwise 2020, features 1.0.0-accurate, model none",
            "900 MB",
            "dead letters, given up at decode: 4",
        ):
            assert text in flat

    def test_rates_are_those_of_the_samples(self, run: tuple[RunLayout, Ledger]) -> None:
        layout, ledger = run
        ledger.start("features", "f4")
        now = time.time() + 100
        for ago in range(100, 0, -5):
            ledger.add_sample(Sample(now - ago, 200, 0, 1000 - 10 * ago, 6))
        note = ProgressNote(str(layout.progress / "f4"))
        note.add(objects=1000 - 81)
        note.save()
        with open(layout.root / ".lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            patch.setattr("pipelines.status_command.time.time", lambda: now)
            status = read_status(layout)
        assert status.pace.objects_per_s == pytest.approx(10)
        assert status.pace.alerts_per_s == 0
        # One of four units in a hundred seconds.
        assert status.pace.eta_s == pytest.approx(300, rel=0.05)

    def test_killed_stopped_done(self, run: tuple[RunLayout, Ledger]) -> None:
        layout, ledger = run
        assert read_status(layout).word == "killed"
        assert status_record(read_status(layout))["at_work"] == []
        (layout.root / ".lock").touch()
        assert read_status(layout).word == "killed"
        for outcome in ("stopped", "done"):
            ledger.end(ledger.begin(["again"], VERSIONS), outcome)
            status = read_status(layout)
            assert (status.word, status.working) == (outcome, False)
        assert status_record(read_status(layout))["starts"] == 3

    def test_a_run_can_begin_after_the_look(self, run: tuple[RunLayout, Ledger]) -> None:
        layout, _ = run
        (layout.root / ".lock").touch()
        read_status(layout)
        with open(layout.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_counts_that_do_not_add_up(
        self, run: tuple[RunLayout, Ledger], alertbeam: Callable[..., dict[str, Any]]
    ) -> None:
        layout, ledger = run
        ledger.add("read", [UnitSpec("odd", {})])
        ledger.start("read", "odd")
        ledger.finish("read", "odd", {"read": 5, "written": 3}, 1.0, 1, {})
        answer = alertbeam("status", layout.root, "--json")
        assert (answer["adds_up"], answer["alerts"]["difference"]) == (False, 2)
        assert "DO NOT ADD UP" in alertbeam("status", layout.root)["out"]

    def test_a_run_that_has_not_begun(self, tmp_path: Path, alertbeam: Callable[..., dict[str, Any]]) -> None:
        with Ledger.open(tmp_path / "ledger"):
            pass
        answer = alertbeam("status", tmp_path, "--json")
        assert (answer["state"], answer["stages"], answer["alerts"]) == ("new", [], None)
        assert "nothing was begun" in alertbeam("status", tmp_path)["out"]

    def test_no_run(self, tmp_path: Path, alertbeam: Callable[..., dict[str, Any]]) -> None:
        answer = alertbeam("status", tmp_path)
        assert answer["status"] == 2
        assert "holds no run" in answer["err"]
        (tmp_path / "ledger").mkdir()
        answer = alertbeam("status", tmp_path, "--json")
        assert answer["status"] == 2
        (tmp_path / "ledger" / "ledger.sqlite").write_bytes(b"nonsense" * 200)
        answer = alertbeam("status", tmp_path)
        assert answer["status"] == 3
        assert "damaged" in answer["err"]

    def test_watching_ends_with_the_run(
        self,
        run: tuple[RunLayout, Ledger],
        alertbeam: Callable[..., dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        layout, _ = run
        monkeypatch.setattr("pipelines.status_command._SECONDS_BETWEEN_LOOKS", 0.05)
        with open(layout.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            timer = threading.Timer(0.3, lock.close)
            timer.start()
            lines = [json.loads(line) for line in self.lines(alertbeam, layout)]
            timer.join()
        assert len(lines) > 2
        assert [line["state"] for line in lines[-2:]] == ["running", "killed"]

    @staticmethod
    def lines(alertbeam: Callable[..., dict[str, Any]], layout: RunLayout) -> list[str]:
        try:
            answer = alertbeam("status", layout.root, "--json", "--watch")
        except json.JSONDecodeError as error:
            return error.doc.splitlines()
        return answer["out"].splitlines()


class TestSummary:
    def finish(self, layout: RunLayout, ledger: Ledger) -> None:
        for name in ("f3", "f4"):
            ledger.start("features", name)
        for name in ("f2", "f3", "f4"):
            ledger.finish("features", name, {"objects": 10, "featured": 5}, 1.0, 10, {})
        folder = layout.results().features("1.0.0-accurate")
        folder.mkdir(parents=True)
        for bucket, oids in ((1, ["ZTF18aaaaaaa"]), (7, ["ZTF18bbbbbbb", "ZTF18ccccccc"])):
            pq.write_table(pa.table({"oid": oids}), folder / f"bucket={bucket:04d}.parquet")

    def test_numbers(self, run: tuple[RunLayout, Ledger], capsys: pytest.CaptureFixture[str]) -> None:
        layout, ledger = run
        self.finish(layout, ledger)
        summary = run_summary(ledger, layout, 20.0)
        assert (summary.adds_up, summary.aside, summary.dead_letters) == (True, 1, 6)
        assert summary.done_now == {"read": 2, "features": 4}
        assert (summary.alerts_now, summary.bytes_now, summary.objects_now) == (200, 2_000_000, 100)
        assert (summary.rows, summary.example) == ({"features": 3}, "ZTF18aaaaaaa")
        assert summary.tables == {"object": 160, "feature": 7120}
        print_run_summary(summary, layout, as_json=True)
        record = json.loads(capsys.readouterr().out)
        assert record["alerts"] == BALANCE
        assert record["now"]["alerts_per_s"] == 10
        print_run_summary(summary, layout)
        out, err = capsys.readouterr()
        assert err == ""
        for pattern in (
            r"alerts in +│ +204",
            r"= written +│ +180",
            r"\+ dead letters +│ +6",
            r"dead letters, given up at: decode +│ +4",
            r"matches in allwise +│ +120",
            r"rows of features +│ +3",
            r"rows inserted or updated in table feature +│ +7,120",
            r"10.0 alerts/s",
            r"set aside: read broken after 1 attempts: OSError: \[x\] cut off",
            r"alertbeam report \S*run\n",
            r"alertbeam show ZTF18aaaaaaa \S*run --output",
            r"alertbeam replay",
            r"--resume",
        ):
            assert re.search(pattern, out), pattern

    def test_a_start_that_found_nothing_to_do(self, run: tuple[RunLayout, Ledger]) -> None:
        layout, ledger = run
        self.finish(layout, ledger)
        first = run_summary(ledger, layout, 20.0)
        time.sleep(0.01)
        ledger.begin(["again"], VERSIONS)
        again = run_summary(ledger, layout, 1.0)
        assert (again.balance, again.letters, again.rows) == (first.balance, first.letters, first.rows)
        assert (again.done_now, again.alerts_now, again.objects_now, again.tables) == ({}, 0, 0, {})

    def test_counts_that_do_not_add_up(self, run: tuple[RunLayout, Ledger], capsys: pytest.CaptureFixture[str]) -> None:
        layout, ledger = run
        ledger.add("read", [UnitSpec("odd", {})])
        ledger.start("read", "odd")
        ledger.finish("read", "odd", {"read": 5, "written": 3}, 1.0, 1, {})
        summary = run_summary(ledger, layout, 1.0)
        assert not summary.adds_up
        print_run_summary(summary, layout)
        out, err = capsys.readouterr()
        assert "UNACCOUNTED FOR" in out
        assert "DO NOT ADD UP: 209 alerts in = 183 written" in err
        assert "+ 2 UNACCOUNTED FOR" in err

    def test_an_empty_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        layout = RunLayout(tmp_path)
        with Ledger.open(layout.ledger) as ledger:
            summary = run_summary(ledger, layout, 0.0)
        print_run_summary(summary, layout)
        assert "Results in" in capsys.readouterr().out
        assert summary.adds_up
