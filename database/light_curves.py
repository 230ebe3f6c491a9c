"""What the database knows of the light curves of objects: the stream's own rows, or those of ALeRCE's tables.

Both are looked up for many objects in one query per table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa
from sqlalchemy import Boolean, Double, Integer, String, Table
from sqlalchemy.types import BigInteger

from database.client import Database
from database.tables import DETECTION, LIGHT_CURVE, NON_DETECTION

__all__ = ["AlerceRows", "alerce_rows", "packed_rows"]

_TYPES: Final = (
    (Double, pa.float64()),
    (BigInteger, pa.int64()),
    (Integer, pa.int32()),
    (Boolean, pa.bool_()),
    (String, pa.string()),
)
# What alertbeam computes anew, or what no light curve needs.
_LEFT_OUT: Final = frozenset({"dubious", "step_id_corr", "known_points"})
_MATCH: Final = {
    "oid": pa.string(),
    "candid": pa.int64(),
    **dict.fromkeys(("angDist", "W1mag", "W2mag", "W3mag"), pa.float64()),
}
_MATCHES: Final = """
SELECT x.oid, x.candid, x.dist, a.w1mpro, a.w2mpro, a.w3mpro
FROM xmatch x JOIN allwise a ON a.oid_catalog = x.oid_catalog
WHERE x.catid = 'allwise' AND x.oid = ANY(%s)
"""


class AlerceRows(NamedTuple):
    """Rows of ALeRCE's tables.

    Attributes
    ----------
    detections, non_detections : pyarrow.Table
        Columns by the names of the tables ``detection`` and ``non_detection``.
    crossmatches : pyarrow.Table
        ``oid``, ``candid``, ``angDist`` (arcsec), ``W1mag``, ``W2mag``, ``W3mag``.
    """

    detections: pa.Table
    non_detections: pa.Table
    crossmatches: pa.Table


def packed_rows(database: Database, oids: Sequence[str]) -> dict[str, bytes]:
    """Rows of objects in the table ``light_curve``; objects that it does not know are left out.

    Raises
    ------
    DatabaseUnavailable, TableLayoutError
        As :meth:`database.client.Database.read`.
    """
    if not oids:
        return {}
    found = database.read(f"SELECT oid, rows FROM {LIGHT_CURVE.name} WHERE oid = ANY(%s)", [_names(oids)])
    return {oid: bytes(rows) for oid, rows in found}


def alerce_rows(database: Database, oids: Sequence[str]) -> AlerceRows:
    """Rows of objects in ALeRCE's tables ``detection``, ``non_detection``, ``xmatch`` and ``allwise``.

    Raises
    ------
    DatabaseUnavailable, TableLayoutError
        As :meth:`database.client.Database.read`.
    """
    names = _names(oids)
    detections, non_detections = (_rows(database, table, names) for table in (DETECTION, NON_DETECTION))
    return AlerceRows(detections, non_detections, database.read_columns(_MATCHES, [names], _MATCH))


def _rows(database: Database, table: Table, names: Sequence[str]) -> pa.Table:
    types = {
        column.name: next(found for kind, found in _TYPES if isinstance(column.type, kind))
        for column in table.columns
        if column.name not in _LEFT_OUT
    }
    columns = ", ".join(f'"{name}"' for name in types)
    return database.read_columns(f"SELECT {columns} FROM {table.name} WHERE oid = ANY(%s)", [names], types)


def _names(oids: Sequence[str]) -> list[str]:
    # No text of PostgreSQL has a NUL, so there is nothing to be found of such an object.
    return [oid for oid in oids if "\0" not in oid]
