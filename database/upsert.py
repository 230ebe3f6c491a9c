"""Idempotent bulk upsert: COPY of rows with new keys, else COPY to a temporary table and UPDATE and INSERT.

Functions here work inside the transaction of an open psycopg2 connection; `database.client.Database` adds the
connection, the commit and the repetition after a failure.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import psycopg2
import psycopg2.extensions
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.expression import ClauseElement, Select

from database.binary_copy import binary_rows
from database.rules import UpsertRule
from database.targets import Target, parents_are_there, rows_with_new_keys, targets_of

__all__ = ["RefusedRow", "TableCounts", "WriteResult", "checked_columns", "is_data_error", "write_tables"]

Connection = psycopg2.extensions.connection
Cursor = psycopg2.extensions.cursor

# PostgreSQL's class 54, "program limit exceeded": a value too long for an index is the fault of its row.
_LIMIT_EXCEEDED = "54"
_COPY_CHUNK_BYTES = 1 << 20
# Names of the statements that each connection has planned.
_PREPARED: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()
_BY_INDEX = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
    "SET LOCAL work_mem = '64MB'"
)

# Column types, what may hold them in Arrow, and the Arrow type whose CSV text PostgreSQL reads back exactly (None: as
# it is).
_KINDS: tuple[tuple[type, Callable[[pa.DataType], bool], pa.DataType | None], ...] = (
    (Double, lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind), pa.float64()),
    (Integer, pa.types.is_integer, None),
    (Boolean, pa.types.is_boolean, None),
    (
        String,
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        pa.large_string(),
    ),
    (LargeBinary, lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), pa.large_binary()),
    # Times without a zone are UTC throughout.
    (DateTime, pa.types.is_timestamp, pa.timestamp("us", tz="UTC")),
)


@dataclass(frozen=True)
class RefusedRow:
    """A row that the database does not take.

    Parameters
    ----------
    table
        Name of the table.
    key
        Values of the primary key.
    index
        Position of the row in the table given to `write`.
    reason
        Why, in the words of the database.
    """

    table: str
    key: tuple[Any, ...]
    index: int
    reason: str


@dataclass(frozen=True)
class TableCounts:
    """What became of the rows of one table; a row whose key is already settled as it says counts as unchanged."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0

    @property
    def written(self) -> int:
        """Rows of the database that were inserted or updated."""
        return self.inserted + self.updated


@dataclass(frozen=True)
class WriteResult:
    """Counts per table, and the rows that were refused."""

    counts: Mapping[str, TableCounts] = field(default_factory=dict)
    refused: tuple[RefusedRow, ...] = ()


@dataclass(frozen=True)
class _Statements:
    create: str
    settle_unique: str
    settle: str


def checked_columns(rule: UpsertRule, rows: pa.Table) -> pa.Table:
    """Give the rows with columns that can be copied exactly.

    Raises
    ------
    ValueError
        If a column is unknown, has another kind of type than the table's or a required one is absent: a mistake
        in the calling program, not in a row.
    """
    table = rule.table
    unknown = [name for name in rows.column_names if name not in table.columns]
    if unknown:
        raise ValueError(
            f"The table {table.name} has no column {', '.join(unknown)}: its columns are "
            f"{', '.join(table.columns.keys())}."
        )
    absent = [column.name for column in table.columns if not column.nullable and column.name not in rows.column_names]
    if absent:
        raise ValueError(f"The rows for the table {table.name} lack the column {', '.join(absent)}.")
    if len(set(rows.column_names)) < rows.num_columns:
        raise ValueError(f"The rows for the table {table.name} have a column twice: {', '.join(rows.column_names)}.")
    columns = {name: _checked_column(table.columns[name], rows[name]) for name in rows.column_names}
    return pa.table(columns)


def _checked_column(column: Column[Any], values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if isinstance(column.type, ARRAY):
        return _array_literals(column, values)
    for column_type, accepts, copied in _KINDS:
        if isinstance(column.type, column_type):
            if not (accepts(kind) or pa.types.is_null(kind)):
                raise ValueError(f"{column} is {column.type}, but the rows hold {kind}: convert them first.")
            return values if copied is None else values.cast(copied, safe=False)
    raise TypeError(f"{column} cannot be copied: name the type {column.type} in database.upsert.")


def _array_literals(column: Column[Any], values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write lists of texts as PostgreSQL does; only small tables have such a column."""
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_string(kind.value_type):
        raise ValueError(f"{column} is {column.type}, but the rows hold {kind}: convert them first.")
    return pa.chunked_array([[None if row is None else _array_literal(row) for row in values.to_pylist()]], pa.string())


def _array_literal(items: list[str | None]) -> str:
    quoted = (item and item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
    return "{" + ",".join("NULL" if item is None else f'"{item}"' for item in quoted) + "}"


def write_tables(connection: Connection, tables: Mapping[UpsertRule, pa.Table]) -> WriteResult:
    """Write the rows of several tables, in the order given, inside the open transaction.

    Rows that the database does not take are found by halving and left out, and so are the rows that refer to them.
    A stored row that stays as it is, is not locked: writers that bring the same rows do not wait for each other.

    Parameters
    ----------
    connection
        Open connection; the caller commits.
    tables
        Rows by the rule of their table, referred-to tables first, columns as `checked_columns` gives them.
    """
    counts: dict[str, TableCounts] = {}
    refused: list[RefusedRow] = []
    with connection.cursor() as cursor:
        # What the planner knows lags behind a growing table; a wrong guess would read all of it for every batch.
        cursor.execute(_BY_INDEX)
        targets = targets_of(cursor, tables)
        for rule, rows in tables.items():
            indices, orphans = _without_orphans(rule, rows, refused)
            tally = _Tally(orphans)
            _write(cursor, targets[rule], *_in_key_order(rule, rows, indices), tally)
            counts[rule.table.name] = TableCounts(
                tally.inserted,
                tally.updated,
                rows.num_rows - tally.inserted - tally.updated - len(tally.refused),
                len(tally.refused),
            )
            refused += sorted(tally.refused, key=lambda row: row.index)
    return WriteResult(counts, tuple(refused))


def is_data_error(error: BaseException) -> bool:
    """Say whether a failure is the fault of the rows, so that it would come again with them."""
    if isinstance(error, psycopg2.DataError | psycopg2.IntegrityError):
        return True
    return isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith(_LIMIT_EXCEEDED)


@dataclass
class _Tally:
    refused: list[RefusedRow]
    inserted: int = 0
    updated: int = 0


def _in_key_order(rule: UpsertRule, rows: pa.Table, indices: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    # All writers lock the rows of a table in one order, so none waits for another in a circle.
    if len(indices) < rows.num_rows:
        rows = rows.take(indices)
    if _are_ascending(rule, rows):
        return rows, indices
    order = pc.sort_indices(rows.select(rule.key), sort_keys=[(name, "ascending") for name in rule.key])
    return rows.take(order), indices[order.to_numpy()]


def _without_orphans(
    rule: UpsertRule, rows: pa.Table, refused: list[RefusedRow]
) -> tuple[np.ndarray, list[RefusedRow]]:
    """Set apart the rows that refer to a row that was just refused; give the indices of the others."""
    orphans: dict[int, RefusedRow] = {}
    for foreign_key in rule.table.foreign_keys:
        parent, name = foreign_key.column.table.name, foreign_key.parent.name
        reasons = {row.key[0]: row.reason for row in refused if row.table == parent}
        if not reasons or name not in rows.column_names:
            continue
        guilty = pc.is_in(rows[name], value_set=pa.array(list(reasons), rows[name].type))
        for index in np.flatnonzero(guilty.to_numpy()).tolist():
            cause = reasons[rows[name][index].as_py()]
            reason = f"the row of the table {parent} to which {name} refers was refused: {cause}"
            orphans[index] = _refused_row(rule, rows, index, index, reason)
    indices = np.delete(np.arange(rows.num_rows), list(orphans)) if orphans else np.arange(rows.num_rows)
    return indices, list(orphans.values())


def _refused_row(rule: UpsertRule, rows: pa.Table, row: int, index: int, reason: str) -> RefusedRow:
    return RefusedRow(rule.table.name, tuple(rows[name][row].as_py() for name in rule.key), index, reason)


def _write(cursor: Cursor, target: Target, rows: pa.Table, indices: np.ndarray, tally: _Tally) -> None:
    """Write rows sorted by key; `indices` are their positions in the table given."""
    if target.takes_copies and rows.num_rows and _are_ascending(target.rule, rows):
        new = rows_with_new_keys(cursor, target.rule, rows)
        done = _attempt(cursor, target, rows.filter(pa.array(new)), _copy_new) if new.any() else (0, 0)
        # Another writer may have stored a key in the meantime: then it is new no more.
        if not isinstance(done, psycopg2.Error):
            tally.inserted += done[0]
            rows, indices = rows.filter(pa.array(~new)), indices[~new]
    if rows.num_rows:
        cursor.execute(_statements(target.rule).create)
        _upsert_or_halve(cursor, target, rows, indices, tally)


def _upsert_or_halve(cursor: Cursor, target: Target, rows: pa.Table, indices: np.ndarray, tally: _Tally) -> None:
    done = _attempt(cursor, target, rows, _upsert)
    if not isinstance(done, psycopg2.Error):
        tally.inserted += done[0]
        tally.updated += done[1]
    elif rows.num_rows == 1:
        tally.refused.append(_refused_row(target.rule, rows, 0, int(indices[0]), _reason(done)))
    else:
        middle = rows.num_rows // 2
        for half in (slice(0, middle), slice(middle, None)):
            # The parts of one transaction share the temporary table, which empties itself only at the commit.
            cursor.execute(f"TRUNCATE {_incoming_name(target.rule.table)}")
            _upsert_or_halve(cursor, target, rows[half], indices[half], tally)


def _attempt(
    cursor: Cursor,
    target: Target,
    rows: pa.Table,
    way: Callable[[Cursor, Target, pa.Table], tuple[int, int]],
) -> tuple[int, int] | psycopg2.Error:
    """Write rows in some way; give the numbers inserted and updated, or the failure if it is the fault of the rows."""
    cursor.execute("SAVEPOINT part")
    try:
        done = way(cursor, target, rows)
    except psycopg2.Error as error:
        if not is_data_error(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        return error
    cursor.execute("RELEASE SAVEPOINT part")
    return done


def _copy_new(cursor: Cursor, target: Target, rows: pa.Table) -> tuple[int, int]:
    rule = target.rule
    in_bulk = target.checks_in_bulk and parents_are_there(cursor, rule, rows)
    if in_bulk:
        cursor.execute("SET LOCAL session_replication_role = replica")
    _copy(cursor, rule, rule.table.name, rows)
    inserted = cursor.rowcount
    if in_bulk:
        cursor.execute("SET LOCAL session_replication_role TO DEFAULT")
    return inserted, 0


def _upsert(cursor: Cursor, target: Target, rows: pa.Table) -> tuple[int, int]:
    rule, statements = target.rule, _statements(target.rule)
    _copy(cursor, rule, _incoming_name(rule.table), rows)
    _execute_prepared(cursor, statements.settle_unique if _are_ascending(rule, rows) else statements.settle)
    inserted, updated = cursor.fetchone() or (0, 0)
    return inserted, updated


def _execute_prepared(cursor: Cursor, statement: str) -> None:
    """Execute a statement that a connection plans once: planning that of table ``object`` takes 11 ms."""
    known = _PREPARED.setdefault(cursor.connection, set())
    name = f"alertbeam_{hashlib.sha256(statement.encode()).hexdigest()[:16]}"
    if name not in known:
        cursor.execute(f"PREPARE {name} AS {statement}")
        known.add(name)
    cursor.execute(f"EXECUTE {name}")


def _copy(cursor: Cursor, rule: UpsertRule, name: str, rows: pa.Table) -> None:
    data: memoryview | pa.Buffer | None = binary_rows([rule.table.c[column] for column in rows.column_names], rows)
    form = "binary"
    if data is None:
        form, sink = "csv", pa.BufferOutputStream()
        pyarrow.csv.write_csv(_bytes_as_text(rows), sink, pyarrow.csv.WriteOptions(include_header=False))
        data = sink.getvalue()
    names = ", ".join(f'"{column}"' for column in rows.column_names)
    statement = f"COPY {name} ({names}) FROM STDIN (FORMAT {form}, ENCODING 'UTF8')"
    cursor.copy_expert(statement, pa.BufferReader(data), size=_COPY_CHUNK_BYTES)


def _bytes_as_text(rows: pa.Table) -> pa.Table:
    """Write bytes as PostgreSQL's hexadecimal texts."""
    for number, name in enumerate(rows.column_names):
        if pa.types.is_large_binary(rows[name].type):
            texts = [None if value is None else f"\\x{value.hex()}" for value in rows[name].to_pylist()]
            rows = rows.set_column(number, name, pa.array(texts, pa.string()))
    return rows


def _are_ascending(rule: UpsertRule, rows: pa.Table) -> bool:
    """Say whether the rows are sorted by key and no two have the same one."""
    ascending: Any = False
    for name in reversed(rule.key):
        former, latter = rows[name][:-1], rows[name][1:]
        ascending = pc.or_(pc.greater(latter, former), pc.and_(pc.equal(latter, former), ascending))
    return bool(pc.all(ascending, skip_nulls=False, min_count=0).as_py())


def _reason(error: psycopg2.Error) -> str:
    message = error.diag.message_primary or str(error).strip() or type(error).__name__
    if error.diag.message_detail:
        message = f"{message}: {error.diag.message_detail}"
    if error.diag.context and ", column " in error.diag.context:
        message = f"{message} (column {error.diag.context.split(', column ')[1].split(':')[0].strip()})"
    return message


def _incoming_name(table: Table) -> str:
    return f"incoming_{table.name}"


@lru_cache(maxsize=64)
def _statements(rule: UpsertRule) -> _Statements:
    incoming = Table(
        _incoming_name(rule.table),
        MetaData(),
        *(Column(column.name, column.type) for column in rule.table.columns),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DELETE ROWS",
    )
    return _Statements(
        _sql(CreateTable(incoming, if_not_exists=True)),
        _sql(_settle_statement(rule, incoming, unique=True)),
        _sql(_settle_statement(rule, incoming, unique=False)),
    )


def _settle_statement(rule: UpsertRule, incoming: Table, unique: bool) -> ClauseElement:
    """Build the statement that settles the incoming rows among themselves and with the stored ones, and counts.

    `unique` leaves out the first half, for rows in the order of their keys of which no two are the same. ON CONFLICT
    alone would do the rest, but it locks every stored row before it looks whether the row changes.
    """
    chosen = incoming if unique else _best_of_each_key(rule, incoming).cte("chosen")
    stored, before = dict(rule.table.c), rule.table.alias("before")
    is_absent = before.c[rule.key[0]].is_(None)
    met = (
        select(*chosen.c, is_absent.label("is_absent"))
        .select_from(chosen.outerjoin(before, and_(*(before.c[name] == chosen.c[name] for name in rule.key))))
        .where(or_(is_absent, rule.changes(dict(before.c), dict(chosen.c))))
        .cte("met")
    )
    row = {name: met.c[name] for name in stored}
    insert = postgresql.insert(rule.table).from_select(list(row), select(*row.values()).where(met.c.is_absent))
    if not rule.value_names:
        written = insert.on_conflict_do_nothing(index_elements=list(rule.key)).returning(true()).cte("inserted")
        return select(func.count(), literal(0)).select_from(written)
    excluded = dict(insert.excluded)
    # What another writer has stored in the meantime.
    insert = insert.on_conflict_do_update(
        index_elements=list(rule.key), set_=rule.settled(stored, excluded), where=rule.changes(stored, excluded)
    )
    # A row version that this statement inserted has never been locked or replaced by anyone.
    inserted = insert.returning(literal_column("xmax = 0", Boolean).label("is_new")).cte("inserted")
    same_key = and_(*(stored[name] == row[name] for name in rule.key))
    change = (
        update(rule.table)
        .values(rule.settled(stored, row))
        .where(same_key, ~met.c.is_absent, rule.changes(stored, row))
    )
    updated = change.returning(true()).cte("updated")
    is_new = inserted.c.is_new
    late = select(func.count().filter(~is_new)).select_from(inserted).scalar_subquery()
    return select(
        select(func.count().filter(is_new)).select_from(inserted).scalar_subquery(),
        select(func.count() + late).select_from(updated).scalar_subquery(),
    )


def _best_of_each_key(rule: UpsertRule, incoming: Table) -> Select[Any]:
    row = dict(incoming.c)
    key, order = rule.key_order(row), rule.order(row)
    merged = {name: merge.batch(row, key, order).label(name) for name, merge in rule.merges.items()}
    distinct_on = text(f"DISTINCT ON ({', '.join(map(_sql, key))})")
    columns = [merged.get(name, column) for name, column in row.items()]
    return select(*columns).prefix_with(distinct_on).order_by(*key, *order)


def _sql(statement: ClauseElement) -> str:
    dialect = postgresql.dialect(paramstyle="named")
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
