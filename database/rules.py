"""How two rows of one key are settled, for each table.

A rule holds for duplicates inside a batch and for a row that meets a stored one, so the outcome does not depend on how
rows are spread over batches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    String,
    Table,
    and_,
    case,
    false,
    func,
    literal_column,
    not_,
    or_,
    tuple_,
)
from sqlalchemy.sql.expression import ColumnElement

from database.tables import (
    ALLWISE,
    DETECTION,
    FEATURE,
    LIGHT_CURVE,
    MAGSTAT,
    METADATA,
    NON_DETECTION,
    OBJECT,
    STEP,
    XMATCH,
)

__all__ = ["PROVISIONAL_STEP_ID", "Merge", "Rank", "UpsertRule", "known_rules", "rule_of"]

# step_id_corr of an object that the correction step has not seen yet.
PROVISIONAL_STEP_ID = "0.0.0"

Columns = Mapping[str, ColumnElement[Any]]


@dataclass(frozen=True)
class Rank:
    """One criterion by which a row is better than another.

    Parameters
    ----------
    value
        From the columns of a row to an expression that is never null.
    smallest
        Whether the smaller value is the better one.
    column
        Name of the column that the criterion settles wholly, if any.
    """

    value: Callable[[Columns], ColumnElement[Any]]
    smallest: bool = False
    column: str | None = None


@dataclass(frozen=True)
class Merge:
    """How a column is settled that does not simply come with the better row.

    Parameters
    ----------
    pair
        From (stored columns, incoming columns, whether the incoming row is the better one) to the value.
    batch
        From (incoming columns, key, order from the best row to the worst) to the value over all rows of the key,
        as a window function.
    """

    pair: Callable[[Columns, Columns, ColumnElement[bool]], ColumnElement[Any]]
    batch: Callable[[Columns, list[ColumnElement[Any]], list[ColumnElement[Any]]], ColumnElement[Any]]


@dataclass(frozen=True, eq=False)
class UpsertRule:
    """How two rows of one key of a table are settled.

    Parameters
    ----------
    table
        The table; its primary key is the key.
    ranks
        What makes a row the better one. Ties are settled by the remaining values, largest first, so that the outcome
        never depends on the order of rows.
    last_writer_wins
        Whether a stored row gives way to any incoming row that differs, as in a table of settings, instead of to a
        better one.
    merges
        Columns that do not simply come with the better row.
    unimportant
        Columns whose difference alone is no change.
    replaceable
        Condition that a stored row must meet to be changed; None lets every row be changed.
    """

    table: Table
    ranks: tuple[Rank, ...] = ()
    last_writer_wins: bool = True
    merges: Mapping[str, Merge] = field(default_factory=dict)
    unimportant: tuple[str, ...] = ()
    replaceable: Callable[[Columns], ColumnElement[bool]] | None = None

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Names of the columns of the primary key."""
        return tuple(column.name for column in self.table.primary_key.columns)

    @cached_property
    def value_names(self) -> tuple[str, ...]:
        """Names of the columns outside the key."""
        return tuple(column.name for column in self.table.columns if column.name not in self.key)

    def key_order(self, row: Columns) -> list[ColumnElement[Any]]:
        """Give the key as expressions that sort alike on every server and in Arrow."""
        return [_sortable(row[name], self.table.c[name]) for name in self.key]

    def order(self, row: Columns) -> list[ColumnElement[Any]]:
        """Give the order of the rows of one key, from the best to the worst."""
        return [rank.value(row).asc() if rank.smallest else rank.value(row).desc() for rank in self._all_ranks]

    def wins(self, stored: Columns, incoming: Columns) -> ColumnElement[bool]:
        """Give the condition that an incoming row is better than the stored one."""
        if self.last_writer_wins:
            return literal_column("true", Boolean)
        greater = [rank.value(stored if rank.smallest else incoming) for rank in self._all_ranks]
        lesser = [rank.value(incoming if rank.smallest else stored) for rank in self._all_ranks]
        return tuple_(*greater) > tuple_(*lesser)

    def settled(self, stored: Columns, incoming: Columns) -> dict[str, ColumnElement[Any]]:
        """Give the values of a key after an incoming row met the stored one."""
        wins = self.wins(stored, incoming)
        return {
            name: self.merges[name].pair(stored, incoming, wins)
            if name in self.merges
            else self._of_better(name, stored, incoming, wins)
            for name in self.value_names
        }

    def changes(self, stored: Columns, incoming: Columns) -> ColumnElement[bool]:
        """Give the condition that the stored row must be written again."""
        if self.last_writer_wins:
            changed = or_(
                false(),
                *(
                    stored[name].is_distinct_from(incoming[name])
                    for name in self.value_names
                    if name not in self.unimportant
                ),
            )
        else:
            settled = self.settled(stored, incoming)
            merged = [settled[name].is_distinct_from(stored[name]) for name in self.merges]
            changed = or_(self.wins(stored, incoming), *merged)
        return changed if self.replaceable is None else and_(self.replaceable(stored), changed)

    @cached_property
    def _all_ranks(self) -> tuple[Rank, ...]:
        settled = {*self.merges, *(rank.column for rank in self.ranks)}
        remaining = [self.table.c[name] for name in self.value_names if name not in settled]
        return self.ranks + tuple(rank for column in remaining for rank in ranks(column))

    def _of_better(
        self, name: str, stored: Columns, incoming: Columns, wins: ColumnElement[bool]
    ) -> ColumnElement[Any]:
        # Without merges a row is only written if the incoming one is better.
        return case((wins, incoming[name]), else_=stored[name]) if self.merges else incoming[name]


def ranks(column: Column[Any], smallest: bool = False) -> tuple[Rank, ...]:
    """Rank rows by a column; an unknown value is worse than any other."""
    name = column.name
    if not column.nullable:
        return (Rank(lambda row: _sortable(row[name], column), smallest, name),)
    unknown = _unknown(column)
    return (
        Rank(lambda row: row[name].is_not(None)),
        Rank(lambda row: _sortable(func.coalesce(row[name], unknown), column), smallest, name),
    )


def _sortable(value: ColumnElement[Any], column: Column[Any]) -> ColumnElement[Any]:
    return value.collate("C") if isinstance(column.type, String) else value


def _unknown(column: Column[Any]) -> ColumnElement[Any]:
    """Give some value of the column's type to stand for null beside the rank that tells null from known."""
    kinds = {Boolean: "false", Integer: "0", Double: "0", String: "''", DateTime: "'epoch'", LargeBinary: "''"}
    for kind, text in kinds.items():
        if isinstance(column.type, kind):
            return literal_column(text, column.type)
    raise TypeError(f"Rows cannot be ranked by {column}: name the type {column.type} in database.rules.")


def _first_known(name: str) -> Merge:
    """Take the value of the better row, or of the other one where that is null."""

    def pair(stored: Columns, incoming: Columns, wins: ColumnElement[bool]) -> ColumnElement[Any]:
        return case(
            (wins, func.coalesce(incoming[name], stored[name])), else_=func.coalesce(stored[name], incoming[name])
        )

    def batch(row: Columns, key: list[ColumnElement[Any]], order: list[ColumnElement[Any]]) -> ColumnElement[Any]:
        return func.first_value(row[name]).over(partition_by=key, order_by=[row[name].is_(None), *order])

    return Merge(pair, batch)


def _is_provisional(row: Columns) -> ColumnElement[bool]:
    return row["step_id_corr"].is_not_distinct_from(PROVISIONAL_STEP_ID)


def _over_provisional(
    pair: Callable[[Columns, Columns], ColumnElement[Any]], over: Callable[..., ColumnElement[Any]], name: str
) -> Merge:
    """Settle a column over all provisional rows of an object; a row of the whole light curve is never mixed."""

    def of_pair(stored: Columns, incoming: Columns, wins: ColumnElement[bool]) -> ColumnElement[Any]:
        both = and_(_is_provisional(stored), _is_provisional(incoming))
        return case((both, pair(stored, incoming)), (wins, incoming[name]), else_=stored[name])

    def of_batch(row: Columns, key: list[ColumnElement[Any]], order: list[ColumnElement[Any]]) -> ColumnElement[Any]:
        provisional = _is_provisional(row)
        return case((provisional, over(row, [*key, provisional])), else_=row[name])

    return Merge(of_pair, of_batch)


def _of_whole(name: str) -> tuple[Rank, ...]:
    """Rank rows of the whole light curve by a column that tells nothing of provisional ones."""

    def value(row: Columns) -> ColumnElement[Any]:
        return case((_is_provisional(row), 0), else_=func.coalesce(row[name], 0))

    return (Rank(lambda row: or_(_is_provisional(row), row[name].is_not(None))), Rank(value))


_FIRST_MJD = _over_provisional(
    lambda stored, incoming: func.least(stored["firstmjd"], incoming["firstmjd"]),
    lambda row, group: func.min(row["firstmjd"]).over(partition_by=group),
    "firstmjd",
)
_DELTA_JD = _over_provisional(
    lambda stored, incoming: (
        func.greatest(stored["lastmjd"], incoming["lastmjd"]) - func.least(stored["firstmjd"], incoming["firstmjd"])
    ),
    lambda row, group: (
        func.max(row["lastmjd"]).over(partition_by=group) - func.min(row["firstmjd"]).over(partition_by=group)
    ),
    "deltajd",
)

_ALLWISE_MEASUREMENTS = tuple(column.name for column in ALLWISE.columns if not column.primary_key)

_RULES = {
    rule.table.name: rule
    for rule in (
        # The xmatch step knows an object by single alerts only: what a later step wrote of it, it never touches. Of
        # rows of whole light curves the one that saw more stays.
        UpsertRule(
            OBJECT,
            ranks=(
                Rank(lambda row: not_(_is_provisional(row))),
                *_of_whole("ndet"),
                *_of_whole("known_points"),
                *ranks(OBJECT.c.lastmjd),
                *_of_whole("firstmjd"),
                *_of_whole("deltajd"),
            ),
            last_writer_wins=False,
            merges={"firstmjd": _FIRST_MJD, "deltajd": _DELTA_JD},
        ),
        # The alert's own row, then the one that knew more of the object's history, which settles `dubious`.
        UpsertRule(
            DETECTION,
            ranks=(*ranks(DETECTION.c.has_stamp), *ranks(DETECTION.c.known_points)),
            last_writer_wins=False,
        ),
        UpsertRule(NON_DETECTION, ranks=ranks(NON_DETECTION.c.known_points), last_writer_wins=False),
        UpsertRule(
            MAGSTAT,
            ranks=(*ranks(MAGSTAT.c.ndet), *ranks(MAGSTAT.c.known_points), *ranks(MAGSTAT.c.lastmjd)),
            last_writer_wins=False,
        ),
        UpsertRule(FEATURE, ranks=ranks(FEATURE.c.known_points), last_writer_wins=False),
        # A state that knew more of the object, which for equal alerts shows in its length.
        UpsertRule(
            LIGHT_CURVE,
            ranks=(
                *ranks(LIGHT_CURVE.c.known_alerts),
                *ranks(LIGHT_CURVE.c.lastmjd),
                Rank(lambda row: func.octet_length(row["rows"])),
            ),
            last_writer_wins=False,
        ),
        # A catalogue source does not change: of two descriptions the more complete one stays.
        UpsertRule(
            ALLWISE,
            ranks=(Rank(lambda row: func.num_nonnulls(*(row[name] for name in _ALLWISE_MEASUREMENTS))),),
            last_writer_wins=False,
        ),
        # The order of writing can show in class_catalog and period in one case only: of three rows of a key the best
        # has none and the two others have different ones. The table cannot say from which row a value was kept.
        UpsertRule(
            XMATCH,
            ranks=(
                *ranks(XMATCH.c.catalog_created),
                *ranks(XMATCH.c.dist, smallest=True),
                *ranks(XMATCH.c.oid_catalog, smallest=True),
                *ranks(XMATCH.c.candid, smallest=True),
            ),
            last_writer_wins=False,
            merges={"class_catalog": _first_known("class_catalog"), "period": _first_known("period")},
        ),
        # The step that runs is what is recorded, whatever ran before under its name.
        UpsertRule(STEP, ranks=ranks(STEP.c.date), unimportant=("date",)),
    )
}


def rule_of(table: Table) -> UpsertRule:
    """Give the rule of a table: its own, or that a row replaces a stored one from which it differs."""
    return _RULES.get(table.name) or UpsertRule(table)


def known_rules() -> dict[str, UpsertRule]:
    """Give the rules of all tables, in an order in which foreign keys can be written."""
    return {table.name: rule_of(table) for table in METADATA.sorted_tables}
