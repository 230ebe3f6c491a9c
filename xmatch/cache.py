"""Answers of a remote matcher kept on disk, so that a position is asked for once.

One SQLite file for all that an answer depends on besides the position (service, catalogue and its version, columns,
radius); in it a row per position, its key the 16 bytes of the two doubles. Only "matched" and "no match" are kept:
a failure is asked for again. Several processes may use one folder (write-ahead log; not on network file systems).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from xmatch.matcher import FAILED, Matches, as_positions
from xmatch.remote import RemoteMatcher, take_rows

# Other processes write for milliseconds.
_BUSY_TIMEOUT_S: Final = 60.0
_SQL_TYPES: Final = {pa.float64(): "REAL", pa.int64(): "INTEGER", pa.string(): "TEXT"}


class CacheError(OSError):
    """The folder of the cache cannot be used."""


@dataclass(frozen=True)
class CachedMatcher:
    """A remote matcher that asks only for positions that have no answer on disk.

    Parameters
    ----------
    matcher : RemoteMatcher
    folder : Path
        Folder of the cache, shared by matchers and processes.
    """

    matcher: RemoteMatcher
    folder: Path

    @property
    def name(self) -> str:
        """Name of the catalogue."""
        return self.matcher.name

    @property
    def identity(self) -> str:
        """All that an answer depends on besides the position."""
        return self.matcher.identity

    @cached_property
    def path(self) -> Path:
        """File with the answers."""
        readable = "".join(letter if letter.isalnum() else "_" for letter in self.name)[:60]
        return self.folder / f"{readable}-{hashlib.sha256(self.identity.encode()).hexdigest()[:16]}.sqlite"

    def validate(self) -> None:
        """Validate the matcher, and make the cache.

        Raises
        ------
        ValueError
            If the matcher is not set up well.
        CacheError
            If the folder cannot be used.
        """
        self.matcher.validate()
        with self._opened():
            pass

    def match(self, ra: ArrayLike, dec: ArrayLike) -> Matches:
        """Match positions in degrees: from disk, or else by the matcher, each position once.

        Raises
        ------
        CacheError
            If the cache cannot be read or written.
        """
        ra, dec = as_positions(ra, dec)
        keys, first, place = np.unique(_keys(ra, dec), return_index=True, return_inverse=True)
        with self._opened() as connection:
            stored, kept = self._read(connection, keys)
        missing = np.flatnonzero(stored < 0)
        asked = self.matcher.match(ra[first[missing]], dec[first[missing]])
        good = np.flatnonzero(asked.status != FAILED)
        if len(good):
            with self._opened() as connection:
                self._write(connection, keys[missing[good]], asked, good)
        rows = stored.copy()
        rows[missing] = len(kept) + np.arange(len(missing))
        rows = rows[place]
        columns = pa.concat_tables([kept.select(asked.columns.column_names), asked.columns])
        status = np.concatenate([kept[_STATUS].to_numpy().astype(np.int8), asked.status])
        separation = np.concatenate([kept[_SEPARATION].to_numpy().astype(np.float64), asked.separation_arcsec])
        errors = pa.concat_arrays([pa.nulls(len(kept), pa.string()), _one_chunk(asked.errors)])
        return replace(
            asked,
            status=status[rows],
            separation_arcsec=separation[rows],
            columns=take_rows(columns, rows),
            errors=errors.take(pa.array(rows)),
        )

    @cached_property
    def _schema(self) -> pa.Schema:
        return self.matcher.match([], []).columns.schema

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        # Opened anew for each batch: a connection must not cross a fork, and opening costs less than a millisecond.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(self._definition("answers"))
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise CacheError(f"the cache {self.path} cannot be used: {error}") from error

    def _definition(self, table: str) -> str:
        columns = "".join(f", {_quoted(field.name)} {_SQL_TYPES[field.type]}" for field in self._schema)
        return (
            f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, {_STATUS} INTEGER NOT NULL, "
            f"{_SEPARATION} REAL{columns}) WITHOUT ROWID"
        )

    def _read(self, connection: sqlite3.Connection, keys: NDArray[np.void]) -> tuple[NDArray[np.int64], pa.Table]:
        """Row of each key in a table of the answers on disk, or -1, and the table."""
        connection.execute("CREATE TEMP TABLE wanted (number INTEGER PRIMARY KEY, key BLOB)")
        connection.executemany("INSERT INTO wanted VALUES (?, ?)", enumerate(key.tobytes() for key in keys))
        names = ", ".join(["number", _STATUS, _SEPARATION, *(_quoted(name) for name in self._schema.names)])
        found = connection.execute(f"SELECT {names} FROM wanted JOIN answers USING (key)").fetchall()
        fields = [(_NUMBER, pa.int64()), (_STATUS, pa.int64()), (_SEPARATION, pa.float64())]
        schema = pa.schema(fields + [(field.name, field.type) for field in self._schema])
        cells = zip(*found, strict=True) if found else ((),) * len(schema)
        table = pa.table([pa.array(values, field.type) for values, field in zip(cells, schema, strict=True)], schema)
        rows = np.full(len(keys), -1, np.int64)
        rows[table[_NUMBER].to_numpy()] = np.arange(len(table))
        return rows, table

    def _write(
        self, connection: sqlite3.Connection, keys: NDArray[np.void], asked: Matches, rows: NDArray[np.int64]
    ) -> None:
        separation = [float(value) if value == value else None for value in asked.separation_arcsec[rows]]
        columns = [column.to_pylist() for column in asked.columns.take(pa.array(rows)).columns]
        cells = zip((key.tobytes() for key in keys), asked.status[rows].tolist(), separation, *columns, strict=True)
        marks = ", ".join("?" * (3 + len(columns)))
        connection.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", cells)


_NUMBER, _STATUS, _SEPARATION = "alertbeam_number", "alertbeam_status", "alertbeam_separation"


def _keys(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.void]:
    """The 16 bytes of each position."""
    return np.stack([ra, dec], axis=1).view("V16").ravel()


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
