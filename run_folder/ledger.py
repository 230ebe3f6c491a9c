"""The ledger of a run: what its units of work are, what became of each, and how fast it all went.

One process writes it, others may read it meanwhile. It is an SQLite file with a rollback journal, not a write-ahead
log: that one needs memory which all readers share, and disks on a network have none. Each call is one transaction that
is on the disk when the call returns; after a power failure the last of them may be undone, and never a part of one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from storage.files import readable

FILE_NAME: Final = "ledger.sqlite"
WAITING, RUNNING, DONE, ASIDE = "waiting", "running", "done", "aside"

_FORMAT: Final = 1
_SECONDS_TO_WAIT: Final = 30.0
_MOST_SAMPLES: Final = 4000
_RECENT_SAMPLES: Final = 200
_TABLES: Final = (
    "CREATE TABLE settings (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), text TEXT NOT NULL)",
    """CREATE TABLE invocations (
        number INTEGER PRIMARY KEY, command TEXT NOT NULL, versions TEXT NOT NULL, started REAL NOT NULL, ended REAL,
        outcome TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE units (
        number INTEGER PRIMARY KEY, stage TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
        attempts INTEGER NOT NULL DEFAULT 0, fingerprint TEXT NOT NULL, size INTEGER NOT NULL, payload TEXT NOT NULL,
        counts TEXT NOT NULL DEFAULT '{}', reason TEXT NOT NULL DEFAULT '', started REAL, ended REAL,
        seconds REAL NOT NULL DEFAULT 0, peak_bytes INTEGER NOT NULL DEFAULT 0, versions TEXT NOT NULL DEFAULT '{}',
        UNIQUE (stage, name))""",
    "CREATE INDEX units_by_state ON units (stage, state)",
    """CREATE TABLE samples (
        number INTEGER PRIMARY KEY, time REAL NOT NULL, alerts INTEGER NOT NULL, bytes INTEGER NOT NULL,
        objects INTEGER NOT NULL, dead_letters INTEGER NOT NULL)""",
    f"PRAGMA user_version = {_FORMAT}",
)
_AS_NEW: Final = (
    "state = 'waiting', attempts = 0, counts = '{}', reason = '', started = NULL, ended = NULL, seconds = 0, "
    "peak_bytes = 0, versions = '{}'"
)


class LedgerError(ValueError):
    """The ledger cannot be used, or was asked for what makes no sense."""


@dataclass(frozen=True)
class UnitSpec:
    """A piece of work to be done by one process at a time.

    Attributes
    ----------
    name : str
        Unique within its stage.
    payload : Mapping
        What the work needs to know; JSON.
    fingerprint : str
        Of the content of its input: tells whether the unit is still the same.
    size : int
        Bytes to read or objects to do, for the time that is left.
    """

    name: str
    payload: Mapping[str, Any]
    fingerprint: str = ""
    size: int = 0


@dataclass(frozen=True)
class Unit:
    """A unit of work as the ledger has it.

    Attributes
    ----------
    stage, name : str
    state : str
        ``waiting``, ``running``, ``done`` or ``aside``.
    attempts : int
        How often it was begun, those left out that ended because the run was told to stop.
    fingerprint, size, payload
        See :class:`UnitSpec`.
    counts : dict of int
        What the work counted; empty unless done.
    reason : str
        Why it failed the last time, or is aside; empty if it did not.
    started, ended : float or None
        Begin and end of the last attempt, Unix seconds.
    seconds : float
        Duration of the work, without waiting.
    peak_bytes : int
        Largest resident memory of the process during the work.
    versions : dict
        Of code, catalogues and model that did it.
    """

    stage: str
    name: str
    state: str
    attempts: int
    fingerprint: str
    size: int
    payload: dict[str, Any]
    counts: dict[str, int]
    reason: str
    started: float | None
    ended: float | None
    seconds: float
    peak_bytes: int
    versions: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Totals of the run at a time in Unix seconds: alerts, compressed bytes read, objects, dead letters."""

    time: float
    alerts: int
    bytes: int
    objects: int
    dead_letters: int


@dataclass(frozen=True)
class Invocation:
    """One start of the command: its words, its versions, its times in Unix seconds.

    One that was killed, or that still runs, has neither end nor outcome.
    """

    number: int
    command: tuple[str, ...]
    versions: dict[str, Any]
    started: float
    ended: float | None
    outcome: str


_UNIT: Final = tuple(field.name for field in fields(Unit))
_COLUMNS: Final = ", ".join(_UNIT)


class Ledger:
    """The ledger in a folder; made by :meth:`open` or :meth:`read_only`, and used by the thread that made it.

    Methods raise OSError if the disk is full or fails, and LedgerError if the file is damaged or another process keeps
    it locked. The file must not be opened by other means in a process that has its ledger open: closing it would give
    up SQLite's locks.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the ledger of a folder for writing; make it if there is none.

        Units that a killed run left running wait again.

        Raises
        ------
        LedgerError
            If another process writes to it, or a newer version of the program wrote it.
        OSError
            If the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            ledger = cls(folder, _connected(folder, "rwc"), lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            ledger._prepare()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def read_only(cls, folder: Path) -> Self:
        """Open the ledger of a folder for reading, also while a run writes it.

        Raises
        ------
        LedgerError
            If there is none, or a newer version of the program wrote it.
        """
        if not (folder / FILE_NAME).is_file():
            raise LedgerError(f"{folder} has no ledger of a run")
        # Not mode=ro: what a killed writer began must be undone before anyone can read.
        ledger = cls(folder, _connected(folder, "rw"), None)
        try:
            if ledger._format() == 0:
                raise LedgerError(f"{folder} has no ledger of a run")
            ledger._connection.execute("PRAGMA query_only = ON")
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Settings and invocations.

    def settings(self) -> dict[str, Any]:
        """Settings of the run; empty if none were set."""
        rows = self._rows("SELECT text FROM settings")
        return json.loads(rows[0][0]) if rows else {}

    def set_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of the run, in the place of all earlier ones."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (1, ?)", [_json(settings)])

    def begin(self, command: Sequence[str], versions: Mapping[str, Any]) -> int:
        """Note that the command was started; give the number of the invocation."""
        row = [json.dumps(list(command)), _json(versions), time.time()]
        with self._transaction() as connection:
            cursor = connection.execute("INSERT INTO invocations (command, versions, started) VALUES (?, ?, ?)", row)
            return int(cursor.lastrowid or 0)

    def end(self, invocation: int, outcome: str) -> None:
        """Note how an invocation ended."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE invocations SET ended = ?, outcome = ? WHERE number = ?",
                [time.time(), readable(outcome), invocation],
            )

    def invocations(self) -> list[Invocation]:
        """All starts of the command, the first first."""
        rows = self._rows("SELECT number, command, versions, started, ended, outcome FROM invocations ORDER BY number")
        return [
            Invocation(number, tuple(json.loads(command)), json.loads(versions), *rest)
            for number, command, versions, *rest in rows
        ]

    # Units of work.

    def add(self, stage: str, units: Sequence[UnitSpec]) -> list[Unit]:
        """Add units that the stage does not have yet; give all of `units` as the ledger now has them, in their order.

        Of units that are there with the same fingerprint, payload and size become those given: their input may have
        moved. Units with another fingerprint stay as they are; see :meth:`differing` and :meth:`replace`.

        Raises
        ------
        LedgerError
            If two of the units have one name.
        """
        _check_names(stage, units)
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO units (stage, name, payload, fingerprint, size) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (stage, name) DO UPDATE SET payload = excluded.payload, size = excluded.size "
                "WHERE fingerprint = excluded.fingerprint "
                "AND (payload <> excluded.payload OR size <> excluded.size)",
                ((stage, unit.name, _json(unit.payload), unit.fingerprint, unit.size) for unit in units),
            )
        return self._of_names(stage, [unit.name for unit in units])

    def differing(self, stage: str, units: Sequence[UnitSpec]) -> list[tuple[Unit, UnitSpec]]:
        """Units whose fingerprint is not that of the ledger: what the ledger has, and what was given."""
        fingerprints = dict(self._rows("SELECT name, fingerprint FROM units WHERE stage = ?", [stage]))
        new = [unit for unit in units if fingerprints.get(unit.name, unit.fingerprint) != unit.fingerprint]
        return list(zip(self._of_names(stage, [unit.name for unit in new]), new, strict=True))

    def replace(self, stage: str, units: Sequence[UnitSpec]) -> None:
        """Take over fingerprint, payload and size of units that the stage has; they are to be done again."""
        _check_names(stage, units)
        with self._transaction() as connection:
            connection.executemany(
                f"UPDATE units SET {_AS_NEW}, payload = ?, fingerprint = ?, size = ? WHERE stage = ? AND name = ?",
                ((_json(unit.payload), unit.fingerprint, unit.size, stage, unit.name) for unit in units),
            )

    def reset(self, stage: str, names: Iterable[str]) -> None:
        """Let units wait as if they had never been begun."""
        with self._transaction() as connection:
            connection.executemany(
                f"UPDATE units SET {_AS_NEW} WHERE stage = ? AND name = ?", ((stage, name) for name in names)
            )

    def forget(self, stage: str, names: Iterable[str]) -> None:
        """Remove units."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM units WHERE stage = ? AND name = ?", ((stage, name) for name in names))

    def start(self, stage: str, name: str) -> None:
        """Note that a waiting unit is begun: one attempt more."""
        change = "state = 'running', attempts = attempts + 1, started = ?, ended = NULL"
        self._change(stage, name, change, [time.time()], (WAITING,))

    def finish(
        self,
        stage: str,
        name: str,
        counts: Mapping[str, int],
        seconds: float,
        peak_bytes: int,
        versions: Mapping[str, Any],
    ) -> None:
        """Note that a running unit is done."""
        change = "state = 'done', counts = ?, seconds = ?, peak_bytes = ?, versions = ?, ended = ?, reason = ''"
        values = [_json(counts), seconds, peak_bytes, _json(versions), time.time()]
        self._change(stage, name, change, values, (RUNNING,))

    def failed(self, stage: str, name: str, reason: str) -> int:
        """Note that an attempt failed, and let the unit wait; give the number of attempts so far."""
        change = "state = 'waiting', reason = ?, ended = ?"
        return self._change(stage, name, change, [readable(reason), time.time()], (RUNNING,))

    def set_aside(self, stage: str, name: str, reason: str) -> None:
        """Give a unit up that waits or runs."""
        change = "state = 'aside', reason = ?, ended = ?"
        self._change(stage, name, change, [readable(reason), time.time()], (WAITING, RUNNING))

    def put_back(self) -> int:
        """Let all running units wait because the run is told to stop, and do not count the attempt; give their number.

        Only for the process that does the work, when none of its workers is left.
        """
        with self._transaction() as connection:
            return connection.execute(
                "UPDATE units SET state = 'waiting', attempts = attempts - 1, started = NULL WHERE state = 'running'"
            ).rowcount

    def units(self, stage: str | None = None, state: str | None = None) -> list[Unit]:
        """Units of a stage or all, in a state or any, in the order in which they were added."""
        where, values = _where(stage=stage, state=state)
        return [_unit(row) for row in self._rows(f"SELECT {_COLUMNS} FROM units{where} ORDER BY number", values)]

    def unit(self, stage: str, name: str) -> Unit | None:
        """One unit; None if the stage has none of this name."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM units WHERE stage = ? AND name = ?", [stage, name])
        return _unit(rows[0]) if rows else None

    def counts(self, stage: str | None = None) -> dict[str, int]:
        """Sums of what the units that are done counted, of a stage or all."""
        where, values = _where(stage=stage, state=DONE)
        return dict(
            self._rows(
                "SELECT each.key, SUM(each.value) FROM units, json_each(units.counts) AS each"
                f"{where} GROUP BY each.key ORDER BY MIN(units.number), each.key",
                values,
            )
        )

    def states(self) -> dict[str, dict[str, int]]:
        """How many units each stage has in each state; stages in the order in which they began."""
        found: dict[str, dict[str, int]] = {}
        rows = self._rows("SELECT stage, state, COUNT(*) FROM units GROUP BY stage, state ORDER BY MIN(number)")
        for stage, state, number in rows:
            found.setdefault(stage, dict.fromkeys((WAITING, RUNNING, DONE, ASIDE), 0))[state] = number
        return found

    # Samples of progress.

    def add_sample(self, sample: Sample) -> None:
        """Keep the totals of a moment; older samples are thinned evenly in time when they are many."""
        row = [sample.time, sample.alerts, sample.bytes, sample.objects, sample.dead_letters]
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO samples (time, alerts, bytes, objects, dead_letters) VALUES (?, ?, ?, ?, ?)", row
            )
            if connection.execute("SELECT COUNT(*) FROM samples").fetchone()[0] > _MOST_SAMPLES:
                times = connection.execute("SELECT number, time FROM samples ORDER BY number").fetchall()
                dropped = _too_dense(times[:-_RECENT_SAMPLES], _MOST_SAMPLES // 2)
                connection.executemany("DELETE FROM samples WHERE number = ?", ([number] for number in dropped))

    def samples(self) -> list[Sample]:
        """Samples in the order in which they were added, some thousands at most."""
        rows = self._rows("SELECT time, alerts, bytes, objects, dead_letters FROM samples ORDER BY number")
        return [Sample(*row) for row in rows]

    # What the above stand on.

    def _prepare(self) -> None:
        with _explained(self.folder):
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.execute("PRAGMA synchronous = FULL")
        with self._transaction() as connection:
            if self._format() == 0:
                for statement in _TABLES:
                    connection.execute(statement)
            connection.execute(
                "UPDATE units SET state = 'waiting', reason = 'the run was killed' WHERE state = 'running'"
            )

    def _format(self) -> int:
        number: int = self._rows("PRAGMA user_version")[0][0]
        if number > _FORMAT:
            raise LedgerError(f"a newer version of alertbeam wrote the ledger in {self.folder}; use that one")
        return number

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _explained(self.folder):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # It may be undone already; what cannot be undone now is undone when the file is opened again.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def _change(self, stage: str, name: str, change: str, values: Sequence[Any], states: Sequence[str]) -> int:
        """Change a unit that is in one of some states; give its attempts."""
        marks = ", ".join("?" * len(states))
        with self._transaction() as connection:
            changed = connection.execute(
                f"UPDATE units SET {change} WHERE stage = ? AND name = ? AND state IN ({marks})",
                [*values, stage, name, *states],
            ).rowcount
            found = connection.execute(
                "SELECT state, attempts FROM units WHERE stage = ? AND name = ?", [stage, name]
            ).fetchone()
            if not changed:
                state = "not in the ledger" if found is None else found[0]
                raise LedgerError(f"unit {name} of stage {stage} is {state}, but {' or '.join(states)} was expected")
            return found[1]

    def _of_names(self, stage: str, names: Sequence[str]) -> list[Unit]:
        wanted = set(names)
        rows = self._rows(f"SELECT {_COLUMNS} FROM units WHERE stage = ?", [stage])
        found = {row[1]: _unit(row) for row in rows if row[1] in wanted}
        return [found[name] for name in names]


def _connected(folder: Path, mode: str) -> sqlite3.Connection:
    with _explained(folder):
        return sqlite3.connect(
            f"{(folder / FILE_NAME).resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=_SECONDS_TO_WAIT,
            isolation_level=None,
        )


def _locked(folder: Path) -> int:
    """Keep a second writer out as long as this process lives; SQLite's own locks are given up after each call."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise LedgerError(f"another process is writing to the ledger in {folder}; wait for it") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Give errors of SQLite the type that their cause has."""
    try:
        yield
    except sqlite3.Error as error:
        path = str(folder / FILE_NAME)
        # The lower byte tells the kind, the others where it arose.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "no space is left on the disk for the ledger", path) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            raise OSError(errno.EIO, f"the disk does not let the ledger be written or read ({error})", path) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise OSError(errno.EACCES, f"the ledger may not be written to ({error})", path) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerError(f"another process keeps the ledger {path} locked") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise LedgerError(f"{path} is no ledger, or damaged ({error})") from error
        raise


def _check_names(stage: str, units: Sequence[UnitSpec]) -> None:
    names: set[str] = set()
    for unit in units:
        if unit.name in names:
            raise LedgerError(f"two units of stage {stage} have the name {unit.name}")
        names.add(unit.name)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True)


def _unit(row: Sequence[Any]) -> Unit:
    values = dict(zip(_UNIT, row, strict=True))
    return Unit(**values | {name: json.loads(values[name]) for name in ("payload", "counts", "versions")})


def _where(**wanted: str | None) -> tuple[str, list[str]]:
    given = {column: value for column, value in wanted.items() if value is not None}
    condition = " AND ".join(f"{column} = ?" for column in given)
    return (f" WHERE {condition}" if given else ""), list(given.values())


def _too_dense(times: Sequence[tuple[int, float]], most: int) -> list[int]:
    """Numbers of the samples to drop so that at most some remain, at least a power of two of seconds apart."""
    kept = times
    spacing_s = 1.0
    while len(kept) > most:
        spacing_s *= 2
        sparse = [kept[0]]
        for number, at in kept[1:]:
            if abs(at - sparse[-1][1]) >= spacing_s:
                sparse.append((number, at))
        kept = sparse
    remaining = {number for number, _ in kept}
    return [number for number, _ in times if number not in remaining]
