"""Rows per second into PostgreSQL: the COPY-based upsert beside psycopg2's `execute_values`, same rows, same server."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
from psycopg2.extras import execute_values
from sqlalchemy import make_url

from benchmarks.measure import conditions, figure
from database.client import Database
from database.embedded import start_embedded

__all__ = ["run"]

_BATCH_ROWS = 10_000
_FEATURES = 178
_OBJECTS_PER_BATCH = 1000
_UNIT = "rows/s"
_KEYS = {"xmatch": ("oid", "catid"), "feature": ("oid", "name", "fid", "version")}


def run(rows: int = 200_000) -> Iterator[dict[str, Any]]:
    """Measure the first insert and the repeated write of crossmatches and of features.

    Parameters
    ----------
    rows
        Number of rows of each of the tables `xmatch`, in batches of 10,000 rows, and `feature`, in batches of 1,000
        objects; the rows that they refer to are written beforehand, unmeasured.

    Yields
    ------
    dict
        `name`, `rate` (rows/s), `unit`, `conditions`, `ratio` to the peer and, for the peer, `peer`.
    """
    matches = _matches(rows)
    features = _features(max(rows // _FEATURES, 1))
    with (
        tempfile.TemporaryDirectory(prefix="alertbeam-") as folder,
        start_embedded(folder) as server,
        Database(server.url) as database,
        closing(psycopg2.connect(_dsn(server.url))) as connection,
    ):
        database.create_tables()
        for oid in (matches["oid"], features["oid"].unique()):
            database.write({"object": pa.table({"oid": oid, "step_id_corr": pa.repeat("0.0.0", len(oid))})})
        database.write({"feature_version": pa.table({"version": ["1"]})})
        yield from _compare("upsert", "xmatch", matches, _BATCH_ROWS, database, connection)
        yield from _compare("upsert-feature", "feature", features, _OBJECTS_PER_BATCH * _FEATURES, database, connection)


def _compare(
    label: str, name: str, table: pa.Table, batch_rows: int, database: Database, connection: Any
) -> Iterator[dict[str, Any]]:
    def upsert(batch: pa.Table) -> None:
        database.write({name: batch})

    def peer(batch: list[tuple[Any, ...]]) -> None:
        _execute_values(connection, name, table.column_names, batch)

    versions = ("psycopg2-binary", "pyarrow")
    given = conditions(*versions, rows=table.num_rows, batch_rows=batch_rows, server=connection.server_version)
    batches = [table.slice(start, batch_rows) for start in range(0, table.num_rows, batch_rows)]
    # The peer wants Python tuples: they are made beforehand, unmeasured.
    tuples = [list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in batches]
    peers = [_rate(peer, tuples), _rate(peer, tuples)]
    _empty(connection, name)
    ours = [_rate(upsert, batches), _rate(upsert, batches)]
    peer_label = label.replace("upsert", "execute_values")
    for suffix, our_rate, peer_rate in zip(("", "-repeat"), ours, peers, strict=True):
        yield figure(f"{peer_label}{suffix}", peer_rate, _UNIT, given, peer_rate, peer=True)
        yield figure(f"{label}{suffix}", our_rate, _UNIT, given, peer_rate)


def _matches(rows: int, seed: int = 1) -> pa.Table:
    """Make rows like those of the xmatch step, objects in the order of the sky and so not of the key."""
    random = np.random.default_rng(seed)
    numbers = random.permutation(rows)
    return pa.table(
        {
            "oid": pa.array([f"ZTF18{number:07x}" for number in numbers]),
            "catid": pa.repeat("allwise", rows),
            "oid_catalog": pa.array([f"J{number:010d}+{number % 900000:06d}" for number in numbers]),
            "dist": random.exponential(0.2, rows),
            "candid": random.integers(6 * 10**17, 2 * 10**18, rows),
            "catalog_version": pa.repeat("2013-11-13", rows),
            "catalog_created": pa.repeat(pa.scalar(1384300800000000, pa.timestamp("us", tz="UTC")), rows),
        }
    )


def _features(objects: int, seed: int = 2) -> pa.Table:
    """Make rows like those of the features step, some values missing."""
    random = np.random.default_rng(seed)
    count = objects * _FEATURES
    each = pa.array(np.repeat(np.arange(objects), _FEATURES))
    names = np.array([f"feature_{number:03d}" for number in range(_FEATURES)], dtype=object)
    return pa.table(
        {
            "oid": pa.array([f"ZTF19{number:07x}" for number in range(objects)]).take(each),
            "name": np.tile(names, objects),
            "fid": np.tile(np.arange(_FEATURES, dtype=np.int32) % 2 + 1, objects),
            "version": pa.repeat("1", count),
            "value": pa.array(random.normal(size=count), mask=random.uniform(size=count) < 0.2),
            "known_points": np.repeat(random.integers(6, 500, objects), _FEATURES),
        }
    )


def _execute_values(connection: Any, table: str, names: list[str], batch: list[tuple[Any, ...]]) -> None:
    """Write a batch as the peer does, with the plain rule "replace what differs"."""
    key = _KEYS[table]
    values = [name for name in names if name not in key]
    statement = (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES %s ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in values)
        + " WHERE "
        + " OR ".join(f"{table}.{name} IS DISTINCT FROM excluded.{name}" for name in values)
    )
    with connection.cursor() as cursor:
        execute_values(cursor, statement, batch, page_size=1000)
    connection.commit()


def _rate(function: Callable[[Any], None], batches: Sequence[Any]) -> float:
    start = time.perf_counter()
    for batch in batches:
        function(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _empty(connection: Any, table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table}")
    connection.commit()


def _dsn(url: str) -> str:
    parsed = make_url(url)
    return f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}"
