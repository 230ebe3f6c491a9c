"""The ledger of a run: what becomes of units, and that it stays sound whatever happens to those who write it."""

import errno
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_folder.ledger
from run_folder.ledger import FILE_NAME, Ledger, LedgerError, Sample, UnitSpec

PROJECT = Path(__file__).resolve().parents[1]
VERSIONS = {"code": "1.2.3", "catalogs": {"allwise": "1"}}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def script(text: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process that uses the ledger."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_by(process: "subprocess.Popen[str]") -> str:
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    return said


def hurry(ledger: Ledger) -> None:
    """Do not wait for the disk, which only matters when the power fails."""
    ledger._connection.execute("PRAGMA synchronous = OFF")


def test_a_unit_that_fails_once(ledger: Ledger) -> None:
    spec = UnitSpec("night-1", {"path": "a/Å.tar.gz", "n": [1, None]}, "f1", 12)
    (unit,) = ledger.add("read", [spec])
    assert (unit.stage, unit.name, unit.state, unit.attempts) == ("read", "night-1", "waiting", 0)
    assert (unit.payload, unit.fingerprint, unit.size) == (spec.payload, "f1", 12)
    assert (unit.counts, unit.reason, unit.started, unit.ended, unit.versions) == ({}, "", None, None, {})

    ledger.start("read", "night-1")
    running = ledger.unit("read", "night-1")
    assert running is not None
    assert (running.state, running.attempts, running.ended) == ("running", 1, None)
    assert running.started is not None
    assert ledger.failed("read", "night-1", "OSError: no") == 1
    (waiting,) = ledger.units("read", "waiting")
    assert (waiting.reason, waiting.attempts) == ("OSError: no", 1)

    ledger.start("read", "night-1")
    ledger.finish("read", "night-1", {"read": 5, "rows:object": 3}, 1.5, 1000, VERSIONS)
    (done,) = ledger.units(state="done")
    assert (done.attempts, done.counts, done.reason) == (2, {"read": 5, "rows:object": 3}, "")
    assert (done.seconds, done.peak_bytes, done.versions) == (1.5, 1000, VERSIONS)
    assert done.started is not None
    assert done.ended is not None
    assert done.started <= done.ended


def test_a_unit_is_begun_once_and_ended_once(ledger: Ledger) -> None:
    ledger.add("read", [UnitSpec("a", {})])
    with pytest.raises(LedgerError, match="unit a of stage read is waiting, but running was expected"):
        ledger.finish("read", "a", {}, 0, 0, {})
    ledger.start("read", "a")
    with pytest.raises(LedgerError, match="is running, but waiting was expected"):
        ledger.start("read", "a")
    ledger.finish("read", "a", {"read": 1}, 0, 0, {})
    for change in (ledger.start, lambda *unit: ledger.failed(*unit, "x"), lambda *unit: ledger.set_aside(*unit, "x")):
        with pytest.raises(LedgerError, match="is done"):
            change("read", "a")
    with pytest.raises(LedgerError, match="not in the ledger"):
        ledger.start("fold", "a")
    assert ledger.counts() == {"read": 1}


def test_input_that_moved_or_changed(ledger: Ledger) -> None:
    ledger.add("read", [UnitSpec("a", {"path": "x"}, "1"), UnitSpec("b", {"path": "y"}, "1")])
    ledger.start("read", "b")
    ledger.finish("read", "b", {"read": 2}, 1, 1, VERSIONS)
    moved, changed, new = UnitSpec("a", {"path": "z"}, "1", 3), UnitSpec("b", {"path": "z"}, "2"), UnitSpec("c", {})
    ((unit, spec),) = ledger.differing("read", [moved, changed, new])
    assert (unit.name, unit.fingerprint, spec) == ("b", "1", changed)

    b, _, a = ledger.add("read", [changed, new, moved])
    assert (a.payload, a.size, b.payload, b.state) == ({"path": "z"}, 3, {"path": "y"}, "done")
    assert [unit.name for unit in ledger.units("read")] == ["a", "b", "c"]

    ledger.replace("read", [changed])
    b = replace(b, state="waiting", attempts=0, fingerprint="2", payload={"path": "z"}, counts={}, seconds=0)
    assert ledger.unit("read", "b") == replace(b, started=None, ended=None, peak_bytes=0, versions={})
    assert ledger.differing("read", [moved, changed, new]) == []
    ledger.forget("read", ["a", "c", "unknown"])
    assert [unit.name for unit in ledger.units()] == ["b"]
    with pytest.raises(LedgerError, match="two units of stage read have the name d"):
        ledger.add("read", [UnitSpec("d", {}), UnitSpec("d", {})])


def test_reset_and_put_back(ledger: Ledger) -> None:
    ledger.add("read", [UnitSpec(name, {}) for name in "abc"])
    for name in "abc":
        ledger.start("read", name)
    ledger.finish("read", "a", {"read": 7}, 1, 1, VERSIONS)
    ledger.set_aside("read", "b", "gave up")
    assert ledger.states() == {"read": {"waiting": 0, "running": 1, "done": 1, "aside": 1}}
    assert ledger.put_back() == 1
    assert [(unit.state, unit.attempts) for unit in ledger.units()] == [("done", 1), ("aside", 1), ("waiting", 0)]
    ledger.reset("read", ["a", "b"])
    assert ledger.counts("read") == {}
    assert {(unit.state, unit.attempts, unit.reason) for unit in ledger.units()} == {("waiting", 0, "")}


ACTIONS = st.tuples(
    st.sampled_from(["add", "start", "finish", "failed", "set_aside", "reset", "put_back", "reopen"]),
    st.sampled_from("abcd"),
    st.dictionaries(st.sampled_from(["read", "rows:object"]), st.integers(0, 9), max_size=2),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=25))
def test_like_a_dictionary(tmp_path_factory: pytest.TempPathFactory, actions: list) -> None:
    """Any sequence of calls leaves what a few lines on a dictionary do."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.open(folder)
    # State, attempts, counts.
    model: dict[str, tuple[str, int, dict[str, int]]] = {}
    for action, name, counts in actions:
        state, attempts, _ = model.get(name, ("", 0, {}))
        if action == "add":
            ledger.add("read", [UnitSpec(name, {})])
            model.setdefault(name, ("waiting", 0, {}))
        elif action == "start" and state == "waiting":
            ledger.start("read", name)
            model[name] = ("running", attempts + 1, {})
        elif action == "finish" and state == "running":
            ledger.finish("read", name, counts, 0, 0, {})
            model[name] = ("done", attempts, counts)
        elif action == "failed" and state == "running":
            assert ledger.failed("read", name, "no") == attempts
            model[name] = ("waiting", attempts, {})
        elif action == "set_aside" and state in ("waiting", "running"):
            ledger.set_aside("read", name, "no")
            model[name] = ("aside", attempts, {})
        elif action == "reset" and state:
            ledger.reset("read", [name])
            model[name] = ("waiting", 0, {})
        elif action in ("put_back", "reopen"):
            back = 1 if action == "put_back" else 0
            model = {n: ("waiting", a - back, {}) if s == "running" else (s, a, c) for n, (s, a, c) in model.items()}
            if action == "put_back":
                ledger.put_back()
            else:
                ledger.close()
                ledger = Ledger.open(folder)
    assert {unit.name: (unit.state, unit.attempts, unit.counts) for unit in ledger.units()} == model
    assert [unit.name for unit in ledger.units()] == list(model)
    assert {name: n for name, n in ledger.counts().items() if n} == dict(
        sum(map(Counter, done_counts(model)), Counter())
    )
    assert Counter(ledger.states().get("read", {})) == Counter(state for state, _, _ in model.values())
    ledger.close()


def done_counts(model: dict) -> list[dict[str, int]]:
    return [counts for state, _, counts in model.values() if state == "done"]


def test_settings_and_invocations(ledger: Ledger) -> None:
    assert ledger.settings() == {}
    ledger.set_settings({"buckets": 128})
    ledger.set_settings({"buckets": 64, "model": None})
    assert ledger.settings() == {"buckets": 64, "model": None}
    first, second = (ledger.begin(["backfill", word], VERSIONS) for word in ("one", "two"))
    ledger.end(second, "done")
    killed, ended = ledger.invocations()
    assert (killed.number, killed.command, killed.ended, killed.outcome) == (first, ("backfill", "one"), None, "")
    assert (ended.versions, ended.outcome) == (VERSIONS, "done")
    assert ended.ended is not None
    assert ended.started <= ended.ended


def test_names_that_are_no_text(ledger: Ledger) -> None:
    """A file's name may hold bytes that are no UTF-8, and an error may tell it."""
    name = b"/a/\xff.tar".decode(errors="surrogateescape")
    ledger.add("read", [UnitSpec("a", {"path": name})])
    ledger.start("read", "a")
    ledger.failed("read", "a", f"cannot read {name}")
    (unit,) = ledger.units()
    assert unit.payload == {"path": name}
    assert unit.reason == "cannot read /a/?.tar"


def test_samples_are_thinned(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.ledger, "_MOST_SAMPLES", 200)
    monkeypatch.setattr(run_folder.ledger, "_RECENT_SAMPLES", 20)
    hurry(ledger)
    # The run pauses for long in the middle.
    times = [1e9 + second + (1e6 if second > 700 else 0) for second in range(1500)]
    for number, time in enumerate(times):
        ledger.add_sample(Sample(time, number, 2 * number, 3 * number, 0))
    samples = ledger.samples()
    assert len(samples) <= 200
    assert (samples[0].time, samples[-1].time) == (times[0], times[-1])
    assert [sample.time for sample in samples[-20:]] == times[-20:]
    assert [sample.bytes for sample in samples] == [2 * sample.alerts for sample in samples]
    gaps = [later.alerts - earlier.alerts for earlier, later in pairwise(samples)]
    assert max(gaps) <= 32
    assert sum(sample.alerts < 700 for sample in samples) > 30


def test_none_newer_damaged_or_in_use(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="has no ledger"):
        Ledger.read_only(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with Ledger.open(tmp_path / "used"), pytest.raises(LedgerError, match="another process is writing"):
        Ledger.open(tmp_path / "used")
    with Ledger.open(tmp_path / "newer"):
        pass
    newer = sqlite3.connect(tmp_path / "newer" / FILE_NAME)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE_NAME).write_bytes(b"no ledger at all " * 100)
    for way in (Ledger.open, Ledger.read_only):
        with pytest.raises(LedgerError, match="a newer version"):
            way(tmp_path / "newer")
        with pytest.raises(LedgerError, match="is no ledger, or damaged"):
            way(tmp_path / "damaged")
    # A writer that was killed before the first transaction leaves an empty file.
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / FILE_NAME).touch()
    with pytest.raises(LedgerError, match="has no ledger"):
        Ledger.read_only(tmp_path / "empty")
    with Ledger.open(tmp_path / "empty") as ledger:
        assert ledger.units() == []


def test_readers_do_not_write(ledger: Ledger) -> None:
    ledger.add("read", [UnitSpec("a", {})])
    ledger.start("read", "a")
    with Ledger.read_only(ledger.folder) as reader:
        assert [unit.state for unit in reader.units()] == ["running"]
        with pytest.raises(OSError, match="may not be written"):
            reader.put_back()
    ledger.failed("read", "a", "no")


def test_full_disk(ledger: Ledger) -> None:
    """SQLite's own word for a full disk; nothing of the call that failed is kept, and the next one may succeed."""
    ledger.add("read", [UnitSpec("a", {})])
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="no space is left on the disk for the ledger") as raised:
        ledger.add("read", [UnitSpec(f"b{number}", {"text": "x" * 1000}) for number in range(50)])
    assert raised.value.errno == errno.ENOSPC
    assert [unit.name for unit in ledger.units()] == ["a"]
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    assert len(ledger.add("read", [UnitSpec(f"b{number}", {"text": "x" * 1000}) for number in range(50)])) == 50


def test_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel refuses to write, as it does on a full disk."""
    process = script(
        """
        import resource, sys
        from pathlib import Path
        from run_folder.ledger import FILE_NAME, Ledger, UnitSpec
        folder = Path(sys.argv[1])
        ledger = Ledger.open(folder)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / FILE_NAME).stat().st_size + 20_000, hard))
        number = 0
        try:
            while True:
                ledger.add("read", [UnitSpec(f"{number}-{part}", {"text": "x" * 500}) for part in range(4)])
                number += 1
        except OSError as error:
            print(number, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert len(ledger.units()) == 4 * number
        ledger.add("read", [UnitSpec("last", {})])
        """,
        tmp_path,
    )
    number, _, sentence = said_by(process).partition(" ")
    assert "[Errno 5] the disk does not let the ledger be written or read" in sentence
    with Ledger.open(tmp_path) as ledger:
        assert len(ledger.units()) == 4 * int(number) + 1


WRITER = """
    from itertools import count
    from run_folder.ledger import Ledger, UnitSpec

    def write(folder):
        with Ledger.open(folder) as ledger:
            ledger._connection.execute("PRAGMA synchronous = OFF")
            run = ledger.begin([], {})
            for number in count():
                names = [f"{run}-{number}-{part}" for part in range(5)]
                ledger.add("read", [UnitSpec(name, {"text": "x" * 300}) for name in names])
                for name in names[:3]:
                    ledger.start("read", name)
                    ledger.finish("read", name, {"read": 1}, 1.0, 1, {})
                ledger.start("read", names[3])
                ledger.failed("read", names[3], "no")
                ledger.start("read", names[4])
"""


def check_sound(ledger: Ledger) -> None:
    """What holds between any two transactions of the writer."""
    assert ledger._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    units = ledger.units()
    assert len(units) % 5 == 0
    for unit in units:
        assert (unit.state == "done") == (unit.counts == {"read": 1}) == (unit.ended is not None and not unit.reason)
        assert unit.state != "running" or unit.started is not None
    assert ledger.counts().get("read", 0) == sum(unit.state == "done" for unit in units)


def test_killed_writers(tmp_path: Path) -> None:
    """Writers are killed twenty times, at any moment of their life."""
    process = script(
        textwrap.dedent(WRITER)
        + textwrap.dedent("""
        import os, random, signal, sys, time
        from pathlib import Path
        from test_ledger import check_sound

        folder, chance = Path(sys.argv[1]), random.Random(7)
        began = 0
        for kill in range(20):
            pid = os.fork()
            if pid == 0:
                write(folder)
            time.sleep(chance.choice([0.002, 0.02, 0.1]) * chance.random() + 0.02 * (kill > 10))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if kill % 2 and (folder / "ledger.sqlite").exists():
                try:
                    reader = Ledger.read_only(folder)
                except ValueError as error:
                    assert "has no ledger" in str(error) and not began
                else:
                    check_sound(reader)
                    reader.close()
            with Ledger.open(folder) as ledger:
                check_sound(ledger)
                assert not ledger.units(state="running")
                assert len(ledger.invocations()) >= began
                began = len(ledger.invocations())
        print(began, len(Ledger.read_only(folder).units()))
        """).replace("from test_ledger", f"sys.path.insert(0, {str(PROJECT / 'tests')!r}); from test_ledger"),
        tmp_path,
    )
    began, units = map(int, said_by(process).split())
    assert began > 5
    assert units > 10


def test_reading_while_another_writes(tmp_path: Path) -> None:
    with Ledger.open(tmp_path):
        pass
    process = script(textwrap.dedent(WRITER) + "import sys, pathlib\nwrite(pathlib.Path(sys.argv[1]))", tmp_path)
    try:
        seen = set()
        while len(seen) < 10:
            assert process.poll() is None
            with Ledger.read_only(tmp_path) as reader:
                units = reader.units()
                states = Counter(unit.state for unit in units)
                assert len(units) % 5 == 0
                assert states["running"] <= 1 + len(units) // 5
                assert [unit.counts for unit in units if unit.state == "done"] == [{"read": 1}] * states["done"]
                seen.add(len(units))
    finally:
        process.kill()
        process.communicate()
    with Ledger.open(tmp_path) as ledger:
        check_sound(ledger)
