"""What may be done with a table of the database at hand, and what it already holds of a batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg2.extensions
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Integer, String

from database.binary_copy import wire_types
from database.rules import UpsertRule

__all__ = ["Target", "parents_are_there", "rows_with_new_keys", "targets_of"]

Cursor = psycopg2.extensions.cursor

_ROWS_WORTH_A_LOOK = 2

_LAYOUTS = """
SELECT c.relname,
    c.relkind = 'r' AND NOT c.relrowsecurity,
    EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
    ARRAY(SELECT a.attname || ' ' || t.typname
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    ARRAY(SELECT a.attname || ' ' || p.relname || ' ' || b.attname || repeat(' and more', cardinality(f.conkey) - 1)
        FROM pg_constraint f
            JOIN pg_class p ON p.oid = f.confrelid
            JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = f.conkey[1]
            JOIN pg_attribute b ON b.attrelid = f.confrelid AND b.attnum = f.confkey[1]
        WHERE f.conrelid = c.oid AND f.contype = 'f')
FROM unnest(%s::text[]) AS wanted(name) JOIN pg_class c ON c.oid = to_regclass(wanted.name)
"""


@dataclass(frozen=True)
class Target:
    """A table of the database at hand.

    Parameters
    ----------
    rule
        How its rows are settled.
    takes_copies
        Whether COPY may fill it: an ordinary table with the types that we send.
    checks_in_bulk
        Whether its foreign keys may be checked for a batch at once instead of for each row by a trigger: there are
        no others than we know, there is no trigger that would be left out with them, and we may switch them off.
    """

    rule: UpsertRule
    takes_copies: bool = False
    checks_in_bulk: bool = False


def targets_of(cursor: Cursor, rules: Iterable[UpsertRule]) -> dict[UpsertRule, Target]:
    """Look up the tables of some rules, in the order given; of an absent table nothing is promised."""
    by_name = {rule.table.name: rule for rule in rules}
    found = {name: Target(rule) for name, rule in by_name.items()}
    cursor.execute(_LAYOUTS, (list(by_name),))
    is_superuser = cursor.connection.info.parameter_status("is_superuser") == "on"
    for name, is_plain, has_triggers, columns, foreign_keys in cursor.fetchall():
        rule = by_name[name]
        has_our_types = all(
            any(f"{column.name} {kind}" in columns for kind in wire_types(column)) for column in rule.table.columns
        )
        known = {f"{key.parent.name} {key.column.table.name} {key.column.name}" for key in rule.table.foreign_keys}
        in_bulk = is_superuser and not has_triggers and known >= set(foreign_keys) and bool(foreign_keys)
        found[name] = Target(rule, is_plain and has_our_types, in_bulk)
    return {rule: found[name] for name, rule in by_name.items()}


def rows_with_new_keys(cursor: Cursor, rule: UpsertRule, rows: pa.Table) -> NDArray[np.bool_]:
    """Say of each row whether its key is surely not stored yet.

    Looked for are the values of the key's first column, together with those texts of the key that are the same in all
    rows, such as the version of features. Where a value has hardly more than one row, telling new and stored ones
    apart would cost what it saves: no row is said to be new if one is stored.
    """
    lead, *others = rule.key
    nothing = np.zeros(rows.num_rows, np.bool_)
    if not isinstance(rule.table.c[lead].type, String | Integer):
        return nothing
    conditions, parameters = [f'"{lead}" = wanted.value'], [_distinct(rows[lead])]
    for name in others:
        if isinstance(rule.table.c[name].type, String) and pc.count_distinct(rows[name], mode="all").as_py() == 1:
            conditions.append(f'"{name}" = ANY(%s)')
            parameters.append(_distinct(rows[name]))
    if any(values is None for values in parameters):
        return nothing
    leads = parameters[0] or []
    all_or_none = rows.num_rows < _ROWS_WORTH_A_LOOK * len(leads)
    # A subquery with a limit is not joined: each value is looked up in an index, whatever the statistics say.
    stored = f'SELECT true FROM "{rule.table.name}" WHERE {" AND ".join(conditions)} LIMIT 1'
    limit = "LIMIT 1" if all_or_none else ""
    cursor.execute(f"SELECT value FROM unnest(%s) AS wanted(value) WHERE ({stored}) {limit}", parameters)
    found = pa.array([value for (value,) in cursor.fetchall()], rows[lead].type)
    if all_or_none and len(found):
        return nothing
    return ~pc.is_in(rows[lead], value_set=found).to_numpy()


def parents_are_there(cursor: Cursor, rule: UpsertRule, rows: pa.Table) -> bool:
    """Say whether all rows that the rows refer to are stored, and keep those until the end of the transaction.

    It is what the triggers of foreign keys do, once for each row referred to.
    """
    for key in rule.table.foreign_keys:
        if key.parent.name not in rows.column_names:
            return False
        values = _distinct(rows[key.parent.name].drop_null())
        if values is None:
            return False
        parent = f'SELECT FROM "{key.column.table.name}" WHERE "{key.column.name}" = ANY(%s) FOR KEY SHARE'
        cursor.execute(f"SELECT count(*) FROM ({parent}) AS parent", (values,))
        if cursor.fetchone() != (len(values),):
            return False
    return True


def _distinct(values: pa.ChunkedArray) -> list[Any] | None:
    """Give the distinct values for an array of the database, None if one of them cannot be in such an array."""
    found = values.unique().to_pylist()
    impossible = any(value is None or (isinstance(value, str) and "\0" in value) for value in found)
    return None if impossible or not found else found
