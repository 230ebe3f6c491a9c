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
_UNIT = "rows/s"


def run(rows: int = 200_000) -> Iterator[dict[str, Any]]:
    """Measure the first insert and the repeated write of crossmatches, batches of 10,000 rows.

    Parameters
    ----------
    rows
        Number of rows of the table `xmatch`; the objects that they refer to are written beforehand, unmeasured.

    Yields
    ------
    dict
        `name`, `rate` (rows/s), `unit`, `conditions`, `ratio` to the peer and, for the peer, `peer`.
    """
    table = _matches(rows)
    batches = [table.slice(start, _BATCH_ROWS) for start in range(0, rows, _BATCH_ROWS)]
    with (
        tempfile.TemporaryDirectory(prefix="alertbeam-") as folder,
        start_embedded(folder) as server,
        Database(server.url) as database,
        closing(psycopg2.connect(_dsn(server.url))) as connection,
    ):
        database.create_tables()
        objects = pa.table({"oid": table["oid"], "step_id_corr": pa.repeat("0.0.0", rows)})
        database.write({"object": objects})

        def upsert(batch: pa.Table) -> None:
            database.write({"xmatch": batch})

        def peer(batch: list[tuple[Any, ...]]) -> None:
            _execute_values(connection, table.column_names, batch)

        given = conditions(
            "psycopg2-binary", "pyarrow", rows=rows, batch_rows=_BATCH_ROWS, server=connection.server_version
        )
        # The peer wants Python tuples: they are made beforehand, unmeasured.
        tuples = [list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in batches]
        peers = [_rate(peer, tuples), _rate(peer, tuples)]
        _empty(connection)
        ours = [_rate(upsert, batches), _rate(upsert, batches)]
    for suffix, our_rate, peer_rate in zip(("", "-repeat"), ours, peers, strict=True):
        yield figure(f"execute_values{suffix}", peer_rate, _UNIT, given, peer_rate, peer=True)
        yield figure(f"upsert{suffix}", our_rate, _UNIT, given, peer_rate)


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


def _execute_values(connection: Any, names: list[str], batch: list[tuple[Any, ...]]) -> None:
    """Write a batch as the peer does, with the plain rule "replace what differs"."""
    values = [name for name in names if name not in ("oid", "catid")]
    statement = (
        f"INSERT INTO xmatch ({', '.join(names)}) VALUES %s ON CONFLICT (oid, catid) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in values)
        + " WHERE "
        + " OR ".join(f"xmatch.{name} IS DISTINCT FROM excluded.{name}" for name in values)
    )
    with connection.cursor() as cursor:
        execute_values(cursor, statement, batch, page_size=1000)
    connection.commit()


def _rate(function: Callable[[Any], None], batches: Sequence[Any]) -> float:
    start = time.perf_counter()
    for batch in batches:
        function(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _empty(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE xmatch")
    connection.commit()


def _dsn(url: str) -> str:
    parsed = make_url(url)
    return f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}"
