"""Idempotent bulk upsert: COPY to a temporary table, then INSERT … SELECT DISTINCT ON … ON CONFLICT.

Functions here work inside the transaction of an open psycopg2 connection; `database.client.Database` adds the
connection, the commit and the repetition after a failure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

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
    MetaData,
    String,
    Table,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.expression import ClauseElement

from database.rules import UpsertRule

__all__ = ["RefusedRow", "TableCounts", "WriteResult", "checked_columns", "is_data_error", "write_tables"]

Connection = psycopg2.extensions.connection

# PostgreSQL's class 54, "program limit exceeded": a value too long for an index is the fault of its row.
_LIMIT_EXCEEDED = "54"
_COPY_CHUNK_BYTES = 1 << 20

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
    upsert_unique: str
    upsert: str


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
        for rule, rows in tables.items():
            indices, orphans = _without_orphans(rule, rows, refused)
            indices = indices[_key_order(rule, rows, indices)]
            tally = _Tally(orphans)
            cursor.execute(_statements(rule).create)
            _write_or_halve(cursor, rule, rows, indices, tally)
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


def _key_order(rule: UpsertRule, rows: pa.Table, indices: np.ndarray) -> np.ndarray:
    # All writers lock the rows of a table in one order, so none waits for another in a circle.
    keys = rows.select(rule.key).take(indices)
    return pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in rule.key]).to_numpy()


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
            orphans[index] = _refused_row(rule, rows, index, reason)
    indices = np.delete(np.arange(rows.num_rows), list(orphans)) if orphans else np.arange(rows.num_rows)
    return indices, list(orphans.values())


def _refused_row(rule: UpsertRule, rows: pa.Table, index: int, reason: str) -> RefusedRow:
    return RefusedRow(rule.table.name, tuple(rows[name][index].as_py() for name in rule.key), index, reason)


def _write_or_halve(
    cursor: psycopg2.extensions.cursor, rule: UpsertRule, rows: pa.Table, indices: np.ndarray, tally: _Tally
) -> None:
    if not len(indices):
        return
    if len(indices) < rows.num_rows:
        # The halves of one transaction share the temporary table, which empties itself only at the commit.
        cursor.execute(f"TRUNCATE {_incoming_name(rule.table)}")
    cursor.execute("SAVEPOINT part")
    try:
        inserted, updated = _upsert(cursor, rule, rows.take(indices))
    except psycopg2.Error as error:
        if not is_data_error(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
        if len(indices) == 1:
            tally.refused.append(_refused_row(rule, rows, int(indices[0]), _reason(error)))
            return
        middle = len(indices) // 2
        _write_or_halve(cursor, rule, rows, indices[:middle], tally)
        _write_or_halve(cursor, rule, rows, indices[middle:], tally)
        return
    cursor.execute("RELEASE SAVEPOINT part")
    tally.inserted += inserted
    tally.updated += updated


def _upsert(cursor: psycopg2.extensions.cursor, rule: UpsertRule, rows: pa.Table) -> tuple[int, int]:
    statements = _statements(rule)
    incoming = _incoming_name(rule.table)
    names = ", ".join(f'"{name}"' for name in rows.column_names)
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(rows, sink, pyarrow.csv.WriteOptions(include_header=False))
    cursor.copy_expert(
        f"COPY {incoming} ({names}) FROM STDIN (FORMAT csv, ENCODING 'UTF8')",
        pa.BufferReader(sink.getvalue()),
        size=_COPY_CHUNK_BYTES,
    )
    cursor.execute(statements.upsert_unique if _sorted_keys_are_unique(rule, rows) else statements.upsert)
    inserted, updated = cursor.fetchone() or (0, 0)
    return inserted, updated


def _sorted_keys_are_unique(rule: UpsertRule, rows: pa.Table) -> bool:
    if rows.num_rows < 2:
        return True
    same = [pc.equal(rows[name][1:], rows[name][:-1]).fill_null(False) for name in rule.key]
    equal = same[0]
    for other in same[1:]:
        equal = pc.and_(equal, other)
    return not pc.any(equal).as_py()


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
        _sql(_upsert_statement(rule, incoming, unique=True)),
        _sql(_upsert_statement(rule, incoming, unique=False)),
    )


def _upsert_statement(rule: UpsertRule, incoming: Table, unique: bool) -> ClauseElement:
    """Build the statement that settles the incoming rows among themselves and with the stored ones, and counts.

    `unique` leaves out the first half, for rows of which no two have one key.
    """
    row = dict(incoming.c)
    key, order = rule.key_order(row), rule.order(row)
    if unique:
        chosen = select(*row.values()).order_by(*key)
    else:
        merged = {name: merge.batch(row, key, order).label(name) for name, merge in rule.merges.items()}
        distinct_on = text(f"DISTINCT ON ({', '.join(map(_sql, key))})")
        columns = [merged.get(name, column) for name, column in row.items()]
        chosen = select(*columns).prefix_with(distinct_on).order_by(*key, *order)
    insert = postgresql.insert(rule.table).from_select(list(row), chosen)
    stored, excluded = dict(rule.table.c), dict(insert.excluded)
    if rule.value_names:
        insert = insert.on_conflict_do_update(
            index_elements=list(rule.key),
            set_=rule.settled(stored, excluded),
            where=rule.changes(stored, excluded),
        )
    else:
        insert = insert.on_conflict_do_nothing(index_elements=list(rule.key))
    # A row version that this statement inserted has never been locked or replaced by anyone.
    written = insert.returning(literal_column("xmax = 0", Boolean).label("is_new")).cte("written")
    is_new = written.c.is_new
    return select(func.count().filter(is_new), func.count().filter(~is_new)).select_from(written)


def _sql(statement: ClauseElement) -> str:
    dialect = postgresql.dialect(paramstyle="named")
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
