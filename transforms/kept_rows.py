"""Rows of the table ``light_curve``: all that is known of an object, packed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from database.client import Database
from database.tables import LIGHT_CURVE
from lightcurves.packed import lasting_rows, pack_by_object, unpack
from lightcurves.store import LightCurveStore, StoreRows

KEPT_SCHEMA: Final = pa.schema(
    {"oid": pa.string(), "rows": pa.binary(), "known_alerts": pa.int32(), "lastmjd": pa.float64()}
)


def kept_rows(rows: StoreRows) -> pa.Table:
    """Row of table ``light_curve`` for each object of some lasting rows, by name; equal rows give equal bytes."""
    packed = pack_by_object(rows)
    names = sorted(packed)
    own = rows.detections.filter(
        pc.and_(
            pc.fill_null(rows.detections["has_stamp"], False),
            pc.invert(pc.fill_null(rows.detections["forced"], False)),
        )
    )
    alerts = own.group_by("oid", use_threads=False).aggregate([("candid", "count_distinct"), ("mjd", "max")])
    place = pc.index_in(pa.array(names, pa.string()), value_set=alerts["oid"].combine_chunks())
    columns = [
        pa.array(names, pa.string()),
        pa.array([packed[name] for name in names], pa.binary()),
        pc.fill_null(alerts["candid_count_distinct"].take(place), 0).cast(pa.int32()),
        alerts["mjd_max"].take(place),
    ]
    return pa.table(columns, schema=KEPT_SCHEMA)


def store_to_database(store: Path, database: Database) -> int:
    """Copy a folded light-curve store to the table ``light_curve``; give the number of objects.

    A stream finds an object there in a fraction of the time that it takes to find it in the store, whose files hold the
    objects of a bucket together. Copying again changes nothing.

    Raises
    ------
    StoreError
        If the store cannot be read.
    DatabaseUnavailable
        If the database does not answer.
    """
    opened, objects = LightCurveStore.open(store), 0
    for bucket in range(opened.buckets):
        for rows in opened.batches(bucket):
            table = kept_rows(lasting_rows(unpack(pack_by_object(rows).values())))
            database.write({LIGHT_CURVE.name: table})
            objects += table.num_rows
    return objects
