"""The connection to PostgreSQL: tables made, batches of rows written, failures of the server outlasted."""

import io
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg2
import psycopg2.errors
import pyarrow as pa
import pyarrow.csv as pacsv
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError

from database.rules import known_rules
from database.settings import normalise_url, safe_url
from database.tables import STEP, TableLayoutError, create_tables
from database.upsert import WriteResult, checked_columns, is_data_error, write_tables

__all__ = ["Database", "DatabaseUnavailable", "RetryPolicy"]

_LOGGER = logging.getLogger(__name__)

# A peer that vanished without a word is noticed within a minute instead of never.
_CONNECT_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "application_name": "alertbeam",
    "client_encoding": "utf8",
}

# libpq gives no code for what a server says to a connection that it does not let in. A server of another language is
# not understood, and asked again.
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "is not permitted to log in",
    "no pg_hba.conf entry",
    "permission denied for database",
    "pg_hba.conf rejects connection",
)
_PASSING_STATES = ("is starting up", "is shutting down", "recovery", "too many")

Answer = TypeVar("Answer")


class DatabaseUnavailable(ConnectionError):
    """The database did not answer for as long as the retry policy waits, or does not let us in.

    What was committed before is kept.
    """


@dataclass(frozen=True)
class RetryPolicy:
    """How long a failing database is waited for: exponential back-off with jitter.

    Parameters
    ----------
    attempts
        Number of attempts in all.
    first_delay_s
        Longest wait after the first failure, in seconds; it doubles with each further one.
    max_delay_s
        Longest wait between two attempts, in seconds.
    """

    attempts: int = 8
    first_delay_s: float = 0.2
    max_delay_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay_s < 0 or self.max_delay_s < 0:
            raise ValueError(f"{self}: attempts must be at least 1 and delays not negative.")

    def delay_s(self, failures: int) -> float:
        """Draw the wait, in seconds, after a number of failures (from 1)."""
        longest = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 60))
        # Workers that failed together should not come back together.
        return longest * random.uniform(0.5, 1.0)


class Database:
    """A PostgreSQL database with ALeRCE's tables.

    It connects when first needed, holds one connection per process, and can be pickled: the copy connects anew.

    Parameters
    ----------
    url
        URL such as `postgresql://user:password@host:port/name`.
    retry
        How long a failing database is waited for.

    Examples
    --------
    >>> with Database("postgresql://me@db/ztf") as database:  # doctest: +SKIP
    ...     database.create_tables()
    ...     result = database.write({"object": objects, "allwise": sources, "xmatch": matches})
    """

    def __init__(self, url: str, retry: RetryPolicy = RetryPolicy()) -> None:
        self.url = normalise_url(url)
        self.retry = retry
        self._engine: Engine | None = None
        self._process_id = 0

    def __repr__(self) -> str:
        return f"Database({safe_url(self.url)!r}, {self.retry!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retry": self.retry, "_engine": None, "_process_id": 0}

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A later call opens another."""
        if self._engine is not None:
            # A connection that was open before a fork is the parent's to close.
            self._engine.dispose(close=self._process_id == os.getpid())
            self._engine = None

    def create_tables(self) -> None:
        """Create the tables that are absent, and add the provenance columns to those of an existing ALeRCE database.

        Raises
        ------
        TableLayoutError
            If an existing table is not ALeRCE's.
        DatabaseUnavailable
            If the database does not answer.
        """
        self._persist(lambda: create_tables(self._connected_engine()))

    def write(self, tables: Mapping[str, pa.Table | pa.RecordBatch]) -> WriteResult:
        """Write rows of several tables in one transaction; writing them again changes nothing.

        Parameters
        ----------
        tables
            Rows by the name of their table, columns named as the table's; an absent column is null. The order of
            tables does not matter: those that are referred to are written first. Times without a zone are UTC.

        Returns
        -------
        WriteResult
            Counts per table, and the rows that the database refused with its reason. All other rows are committed.

        Raises
        ------
        ValueError
            If a table or column is unknown or of a wrong type.
        TableLayoutError
            If the database lacks a table or column.
        DatabaseUnavailable
            If the database does not answer. The same rows can be written again, whatever became of this attempt.
        """
        rules = known_rules()
        unknown = [name for name in tables if name not in rules]
        if unknown:
            raise ValueError(f"There is no table {', '.join(unknown)}: the tables are {', '.join(sorted(rules))}.")
        rows = {rule: checked_columns(rule, _as_table(tables[name])) for name, rule in rules.items() if name in tables}
        return self._persist(lambda: self._write_once(rows))

    def write_step(
        self, step_id: str, name: str, version: str, comments: str = "", date: datetime | None = None
    ) -> WriteResult:
        """Record the step that runs; one that changed under the same `step_id` is updated, with its date.

        Parameters
        ----------
        step_id, name, version, comments
            As in ALeRCE's table `step`.
        date
            When the step started; now if not given. A time without a zone is UTC.

        Raises
        ------
        ValueError
            If the database refuses the values.
        """
        moment = date or datetime.now(UTC)
        values = {"step_id": step_id, "name": name, "version": version, "comments": comments, "date": moment}
        result = self.write({STEP.name: pa.table({column: [value] for column, value in values.items()})})
        for row in result.refused:
            raise ValueError(f"The step {step_id!r} cannot be recorded: {row.reason}.")
        return result

    def read(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Parameters
        ----------
        query
            With ``%s`` for each parameter; a list is an array of the database.

        Raises
        ------
        TableLayoutError
            If the database lacks a table or column.
        DatabaseUnavailable
            If the database does not answer.
        """
        return self._persist(lambda: self._ask(lambda cursor: _fetched(cursor, query, parameters)))

    def read_columns(self, query: str, parameters: Sequence[Any], types: Mapping[str, pa.DataType]) -> pa.Table:
        """Rows of a query as columns, without an object per value.

        Parameters
        ----------
        query, parameters
            As of :meth:`read`.
        types
            Of the query's columns, by name.

        Raises
        ------
        TableLayoutError, DatabaseUnavailable
            As :meth:`read`.
        """
        return self._persist(lambda: self._ask(lambda cursor: _copied(cursor, query, parameters, types)))

    def _ask(self, question: Callable[[Any], Answer]) -> Answer:
        with closing(self._connected_engine().raw_connection()) as pooled:
            connection: Any = pooled.driver_connection
            try:
                with connection.cursor() as cursor:
                    answer = question(cursor)
                connection.rollback()
            except BaseException:
                pooled.invalidate()
                raise
        return answer

    def _connected_engine(self) -> Engine:
        if self._process_id != os.getpid():
            self.close()
        if self._engine is None:
            # A thread that finds the connection in use waits for it, however long.
            self._engine = create_engine(
                self.url, pool_size=1, max_overflow=0, pool_timeout=None, connect_args=_CONNECT_ARGUMENTS
            )
            self._process_id = os.getpid()
        return self._engine

    def _write_once(self, rows: Mapping[Any, pa.Table]) -> WriteResult:
        with closing(self._connected_engine().raw_connection()) as pooled:
            connection: Any = pooled.driver_connection
            try:
                result = write_tables(connection, rows)
                connection.commit()
            except BaseException:
                # Whatever state the connection is in: the next attempt starts with a new one.
                pooled.invalidate()
                raise
        return result

    def _persist(self, action: Callable[[], Answer]) -> Answer:
        """Do something that may be done several times, until the database answers or the retry policy ends."""
        started = time.monotonic()
        for attempt in range(1, self.retry.attempts + 1):
            try:
                return action()
            except (psycopg2.Error, DBAPIError) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if isinstance(cause, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
                    raise TableLayoutError(
                        f"The database {safe_url(self.url)} lacks a table or column ({_first_line(cause)}): "
                        "call create_tables() first."
                    ) from error
                if _lets_nobody_in(cause):
                    raise DatabaseUnavailable(
                        f"The database {safe_url(self.url)} does not let us in: {_what_the_server_said(cause)}. "
                        "Check the user, the password and the name of the database."
                    ) from error
                if not _is_transient(cause):
                    raise
                self.close()
                failure = error
            if attempt < self.retry.attempts:
                delay_s = self.retry.delay_s(attempt)
                _LOGGER.warning(
                    "Database: %s; attempt %d follows in %.1f s.", _first_line(failure), attempt + 1, delay_s
                )
                time.sleep(delay_s)
        raise DatabaseUnavailable(
            f"The database {safe_url(self.url)} failed {self.retry.attempts} times in "
            f"{time.monotonic() - started:.0f} s, at last with: {_first_line(failure)}. What was committed is kept; "
            "start again when the database is back."
        ) from failure


def _fetched(cursor: Any, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    cursor.execute(query, parameters)
    return cursor.fetchall()


def _copied(cursor: Any, query: str, parameters: Sequence[Any], types: Mapping[str, pa.DataType]) -> pa.Table:
    sink = io.BytesIO()
    statement = cursor.mogrify(query, parameters).decode()
    cursor.copy_expert(f"COPY ({statement}) TO STDOUT (FORMAT csv)", sink)
    if not sink.tell():
        return pa.schema([*types.items()]).empty_table()
    read = pacsv.ReadOptions(column_names=[*types], use_threads=False)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    # PostgreSQL quotes an empty text, and writes nothing for null.
    convert = pacsv.ConvertOptions(
        column_types=dict(types),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t"],
        false_values=["f"],
    )
    return pacsv.read_csv(pa.BufferReader(sink.getvalue()), read, parse, convert)


def _as_table(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows


def _is_transient(error: BaseException | None) -> bool:
    """Say whether a failure may pass: lost connection, restart, deadlock, serialisation, lack of resources."""
    if error is None or is_data_error(error):
        return False
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return True
    # libpq reports some lost connections in this class itself, without a code of the server.
    return type(error) is psycopg2.DatabaseError and error.pgcode is None


def _lets_nobody_in(error: BaseException | None) -> bool:
    """Say whether a server turned a connection away for a reason that stays, such as a wrong password."""
    if not isinstance(error, psycopg2.OperationalError) or error.pgcode is not None:
        return False
    message = str(error)
    return any(text in message for text in _REFUSALS) and not any(text in message for text in _PASSING_STATES)


def _what_the_server_said(error: BaseException | None) -> str:
    # The last line with such a word: a host may have several addresses, of which some do not answer.
    said = [line for line in str(error).splitlines() if any(text in line for text in _REFUSALS)]
    return said[-1].rpartition("FATAL:")[2].strip()


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
