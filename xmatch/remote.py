"""What the matchers that ask a remote service have in common: positions in batches, and an answer for each position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmatch.http import HttpCaller, NoAnswerError, RefusedError, ServiceError
from xmatch.matcher import FAILED, MATCHED, NO_MATCH, Matcher, Matches, is_position, position_errors
from xmatch.sources import ALLWISE_COLUMNS

COLUMN_TYPES: Final = {"double": pa.float64(), "int64": pa.int64(), "string": pa.string()}
ALLWISE_TYPES: Final = {name: pa.string() if name == "AllWISE" else pa.float64() for name in ALLWISE_COLUMNS}

# A request that took too long is cut in halves down to so many rows.
_SMALLEST_SLOW_ROWS: Final = 500
# More refusals in a row than one bad row of a batch can cause: the service refuses everything.
_REFUSALS_IN_A_ROW: Final = 64


class RemoteMatcher(Matcher, Protocol):
    """A matcher whose answers come from a service, and can be kept."""

    @property
    def identity(self) -> str:
        """Text in which all stands that an answer depends on besides the position."""


@dataclass(frozen=True, eq=False)
class Found:
    """Answers for n positions.

    Attributes
    ----------
    status : int8 [n]
    separation_arcsec : float64 [n]
        NaN unless matched.
    columns : pyarrow.Table
        n rows; nulls unless matched.
    errors : object [n]
        Reason of a failure, else None.
    """

    status: NDArray[np.int8]
    separation_arcsec: NDArray[np.float64]
    columns: pa.Table
    errors: NDArray[np.object_]

    @classmethod
    def failed(cls, count: int, schema: pa.Schema, reason: str | None) -> Found:
        """Answers for positions that could not be looked up."""
        return cls(
            np.full(count, FAILED, np.int8),
            np.full(count, np.nan),
            empty_rows(schema, count),
            np.full(count, reason, object),
        )

    @classmethod
    def of_rows(cls, rows: NDArray[np.int64], separation_arcsec: NDArray[np.float64], sources: pa.Table) -> Found:
        """Answers from rows of a table of sources and their distances; a row of -1 is no match."""
        matched = rows >= 0
        separation = np.full(len(rows), np.nan)
        separation[matched] = separation_arcsec[rows[matched]]
        return cls(
            np.where(matched, np.int8(MATCHED), np.int8(NO_MATCH)),
            separation,
            take_rows(sources, rows),
            np.full(len(rows), None, object),
        )

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """Put answers one behind the other."""
        return cls(
            np.concatenate([part.status for part in parts]),
            np.concatenate([part.separation_arcsec for part in parts]),
            pa.concat_tables([part.columns for part in parts]).combine_chunks(),
            np.concatenate([part.errors for part in parts]),
        )

    def matches(self, catalog: str, version: str) -> Matches:
        """Answers of a catalogue; a service does not tell when it was built."""
        errors = pa.array(self.errors, pa.string())
        return Matches(catalog, version, "", self.status, self.separation_arcsec, self.columns, errors)

    def take(self, rows: NDArray[np.int64]) -> Found:
        """Answers in another order."""
        return Found(
            self.status[rows], self.separation_arcsec[rows], self.columns.take(pa.array(rows)), self.errors[rows]
        )


Ask = Callable[[NDArray[np.float64], NDArray[np.float64]], Found]


def look_up(
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    schema: pa.Schema,
    batch_rows: int,
    caller: HttpCaller,
    ask: Ask,
) -> Found:
    """Ask for positions in batches, several at once; positions that do not exist are not sent.

    Parameters
    ----------
    ra, dec : float64 [n]
        Degrees.
    schema : pyarrow.Schema
        Columns of the answers.
    batch_rows : int
        Positions in a request at most.
    caller : HttpCaller
    ask : callable
        Gives the answers for the right ascensions, within [0, 360), and declinations of a batch, or raises
        ServiceError.
    """
    valid = is_position(ra, dec)
    rows = np.flatnonzero(valid)
    wrapped = within_circle(ra[rows])
    ranges = [(first, min(first + batch_rows, len(rows))) for first in range(0, len(rows), batch_rows)]

    def batch(bounds: tuple[int, int]) -> Found:
        part = slice(*bounds)
        return ask_in_pieces(wrapped[part], dec[rows[part]], schema, ask)

    invalid = Found.failed(len(ra) - len(rows), schema, None)
    found = Found.join([*caller.map(batch, ranges), invalid])
    found.errors[len(rows) :] = position_errors(ra[~valid], dec[~valid], valid[~valid]).to_pylist()
    if valid.all():
        return found
    order = np.empty(len(ra), np.int64)
    order[np.concatenate([rows, np.flatnonzero(~valid)])] = np.arange(len(ra))
    return found.take(order)


def ask_in_pieces(ra: NDArray[np.float64], dec: NDArray[np.float64], schema: pa.Schema, ask: Ask) -> Found:
    """Ask for a batch, and if the service refuses it or takes too long, for its halves.

    So a size that the service does not take, or a row that it does not like, costs some requests and no other row.
    """
    parts: list[Found] = []
    left = [(0, len(ra))]
    refusals = 0
    while left:
        first, last = left.pop()
        try:
            parts.append(ask(ra[first:last], dec[first:last]))
            refusals = 0
            continue
        except ServiceError as error:
            reason = str(error)
            if isinstance(error, RefusedError):
                refusals += 1
                divisible = error.about_the_content and last - first > 1
            else:
                divisible = isinstance(error, NoAnswerError) and error.slow and last - first > _SMALLEST_SLOW_ROWS
        if divisible and refusals <= _REFUSALS_IN_A_ROW:
            middle = (first + last) // 2
            left += [(middle, last), (first, middle)]
        else:
            parts.append(Found.failed(last - first, schema, reason))
    return Found.join(parts)


def within_circle(ra: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right ascensions modulo 360, those already within [0, 360) unchanged."""
    wrapped = np.mod(ra, 360.0)
    # The remainder of a tiny negative number rounds to 360.
    return np.where((ra >= 0.0) & (ra < 360.0), ra, np.where(wrapped >= 360.0, 0.0, wrapped))


def empty_rows(schema: pa.Schema, count: int) -> pa.Table:
    """Rows of nulls."""
    return pa.table([pa.nulls(count, field.type) for field in schema], schema=schema)


def take_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Rows of a table; -1 gives nulls."""
    return table.take(pa.array(rows, pa.int64(), mask=rows < 0)).combine_chunks()


def typed_columns(
    columns: Sequence[str], known: Mapping[str, pa.DataType], default: pa.DataType
) -> dict[str, pa.DataType]:
    """Names and types of wanted columns, given as ``name`` or ``name:type``.

    Parameters
    ----------
    columns : sequence of str
        The types are double, int64 and string.
    known : mapping
        Types of columns known beforehand.
    default : pyarrow.DataType
        Of the others.

    Raises
    ------
    ValueError
        If a type is unknown, or a column is named twice.
    """
    found: dict[str, pa.DataType] = {}
    for text in columns:
        name, colon, kind = text.partition(":")
        if not name or (colon and kind not in COLUMN_TYPES):
            raise ValueError(f"Column {text!r}: write name or name:type, the types are {', '.join(COLUMN_TYPES)}.")
        if name in found:
            raise ValueError(f"Column {name} is asked twice.")
        found[name] = COLUMN_TYPES[kind] if colon else known.get(name, default)
    return found
