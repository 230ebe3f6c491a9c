"""Features by name: from tables and messages to the columns that a model asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

OTHER_NAMES: Final = {"PPE": "Period_fit", "Period_fit": "PPE"}
"""What a feature has also been called (alerce.md 2.2)."""

OID_NAMES: Final = ("oid", "objectId")


class InputRowsError(ValueError):
    """Rows without what identifies their objects; the message says what they lack."""


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features of n objects.

    Attributes
    ----------
    oid : pyarrow.Array of string, shape (n,)
    candid : pyarrow.Array of int64, shape (n,)
        Alert up to which the features were computed; null where it is not known.
    names : tuple of str
        Features.
    values : float64 array, shape (n, names)
        NaN is a feature that could not be computed.
    absent : bool array, shape (n, names), optional
        Features that a row does not even name; none if it is not given.
    """

    oid: pa.Array
    candid: pa.Array
    names: tuple[str, ...]
    values: NDArray[np.float64]
    absent: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> FeatureRows:
        """Some of the rows, by number or by mask."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return FeatureRows(
            self.oid.take(pa.array(numbers)),
            self.candid.take(pa.array(numbers)),
            self.names,
            self.values[numbers],
            None if self.absent is None else self.absent[numbers],
        )

    def matrix(self, features: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Columns of some features.

        Parameters
        ----------
        features : sequence of str
            A feature that has had two names is found under either.

        Returns
        -------
        values : float64 array, shape (n, features)
            NaN where a value, or the feature itself, is missing.
        lacking : bool array, shape (n, features)
            Features that are missing by name (alerce.md 2.2): what cannot be classified.
        """
        places = {name: number for number, name in enumerate(self.names)}
        values = np.full((len(self), len(features)), np.nan)
        lacking = np.ones(values.shape, np.bool_)
        for column, name in enumerate(features):
            for spelling in (name, OTHER_NAMES.get(name)):
                if spelling in places:
                    number = places[spelling]
                    here = np.ones(len(self), np.bool_) if self.absent is None else ~self.absent[:, number]
                    new = here & lacking[:, column]
                    values[new, column] = self.values[new, number]
                    lacking[new, column] = False
        return values, lacking


def with_other_names(features: Collection[str]) -> frozenset[str]:
    """Features under all names that they have had."""
    return frozenset(features) | {OTHER_NAMES[name] for name in features if name in OTHER_NAMES}


def identifier_column(names: Collection[str]) -> str:
    """Name of the column that identifies objects.

    Raises
    ------
    InputRowsError
        If there is none.
    """
    for name in OID_NAMES:
        if name in names:
            return name
    raise InputRowsError("there is no column oid")


def newest_candid(value: Any) -> int | None:
    """Candid of a message: a number, a text of digits, or the largest of a list of either, as newer messages have it.

    Parameters
    ----------
    value : int, str, sequence of those, or None

    Raises
    ------
    ValueError
        If it is something else, or larger than 64 bits hold.
    """
    found = None
    for item in value if isinstance(value, list | tuple) else [value]:
        if item is None:
            continue
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueError(f"candid is no whole number but {type(item).__name__}")
        try:
            number = int(item)
        except ValueError:
            raise ValueError(f"candid is {str(item)[:40]!r}, which is no whole number") from None
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError("candid has more than 64 bits")
        found = number if found is None else max(found, number)
    return found


def rows_of_table(table: pa.Table | pa.RecordBatch, wanted: Collection[str]) -> tuple[FeatureRows, dict[int, str]]:
    """Rows of a table with a column ``oid`` (or ``objectId``), perhaps ``candid``, and one per feature.

    Parameters
    ----------
    table : pyarrow.Table or RecordBatch
        Numbers, or texts that stand for numbers; null, an empty text and NaN are missing values.
    wanted : collection of str
        Features to take, if they are there; other columns are left out.

    Returns
    -------
    FeatureRows
    faults : dict of int to str
        Rows that cannot be used, and why.

    Raises
    ------
    InputRowsError
        If there is no column ``oid``.
    """
    columns = {name: _flat(table.column(name)) for name in table.schema.names}
    faults: dict[int, str] = {}
    oid = columns[identifier_column(columns)].cast(pa.string())
    names = tuple(name for name in columns if name in wanted)
    values = np.empty((len(oid), len(names)))
    for number, name in enumerate(names):
        values[:, number] = _numbers(name, columns[name], faults)
    candid = _integers("candid", columns["candid"], faults) if "candid" in columns else pa.nulls(len(oid), pa.int64())
    for row in np.flatnonzero(pc.fill_null(pc.equal(oid, ""), True).to_numpy(zero_copy_only=False)):
        faults[int(row)] = "oid is missing"
    return FeatureRows(oid, candid, names, values), faults


def rows_of_records(
    records: Sequence[Mapping[str, Any]], wanted: Collection[str]
) -> tuple[FeatureRows, dict[int, str]]:
    """Rows of messages that were decoded one by one, as maps of features need it.

    Parameters
    ----------
    records : sequence of mapping
        With ``oid``, perhaps ``candid`` (as :func:`newest_candid` takes it), and ``features``: a mapping, or null.
    wanted : collection of str
        Features to take.

    Returns
    -------
    FeatureRows, dict of int to str
        As :func:`rows_of_table` gives them.
    """
    faults: dict[int, str] = {}
    oids: list[str | None] = []
    candids: list[int | None] = []
    alike: dict[tuple[str, ...], list[int]] = {}
    for row, record in enumerate(records):
        oid, candid, features = record.get("oid"), record.get("candid"), record.get("features")
        oids.append(oid if isinstance(oid, str) else None)
        candids.append(None)
        try:
            candids[-1] = newest_candid(candid)
        except ValueError as error:
            faults[row] = str(error)
        if not oids[-1]:
            faults[row] = "oid is missing"
        alike.setdefault(tuple(features) if isinstance(features, Mapping) else (), []).append(row)
    names = tuple(sorted({name for keys in alike for name in keys if name in wanted}))
    places = {name: number for number, name in enumerate(names)}
    values = np.full((len(records), len(names)), np.nan)
    absent = np.ones(values.shape, np.bool_)
    for keys, rows in alike.items():
        taken = [name for name in keys if name in places]
        if taken:
            table = [[records[row]["features"][name] for name in taken] for row in rows]
            there = np.ix_(rows, [places[name] for name in taken])
            values[there] = _matrix(table, taken, rows, faults)
            absent[there] = False
    return FeatureRows(pa.array(oids, pa.string()), pa.array(candids, pa.int64()), names, values, absent), faults


def _matrix(
    table: list[list[Any]], keys: Sequence[str], rows: Sequence[int], faults: dict[int, str]
) -> NDArray[np.float64]:
    try:
        numbers = np.array(table, np.float64)
        # Lists of equal length would make a third axis.
        if numbers.ndim == 2:
            return numbers
    except (TypeError, ValueError, OverflowError):
        pass
    for row, values in zip(rows, table, strict=True):
        for column, value in enumerate(values):
            if not (value is None or isinstance(value, float) or _is_moderate(value)):
                faults[row] = f"{keys[column]} is no number"
                values[column] = None
    return np.array(table, np.float64)


def _is_moderate(value: Any) -> bool:
    """Say whether a value is a whole number that a float can hold."""
    return isinstance(value, int) and abs(value) < 1 << 1023


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return flat.cast(flat.type.value_type) if pa.types.is_dictionary(flat.type) else flat


def _numbers(name: str, column: pa.Array, faults: dict[int, str]) -> NDArray[np.float64]:
    """Numbers of a column, NaN where there is none; a text that is no number is a fault of its row."""
    if _is_text(column.type):
        column = _parsed(name, column, pa.float64(), faults)
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except pa.ArrowException as error:
        raise InputRowsError(f"column {name} holds {column.type}, not numbers") from error
    return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)


def _integers(name: str, column: pa.Array, faults: dict[int, str]) -> pa.Array:
    if _is_text(column.type):
        return _parsed(name, column, pa.int64(), faults)
    if pa.types.is_floating(column.type):
        # pandas turns integers with gaps into floats.
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        return column.cast(pa.int64())
    except pa.ArrowException as error:
        raise InputRowsError(f"column {name} holds {column.type}, which are no whole numbers") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _parsed(name: str, column: pa.Array, kind: pa.DataType, faults: dict[int, str]) -> pa.Array:
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    text = pc.if_else(pc.equal(text, ""), None, text)
    try:
        return text.cast(kind)
    except pa.ArrowException:
        parsed = []
        for row, value in enumerate(text):
            try:
                parsed.append(value.cast(kind).as_py())
            except pa.ArrowException:
                faults.setdefault(row, f"{name} is {value.as_py()[:40]!r}, which is no number")
                parsed.append(None)
        return pa.array(parsed, kind)
