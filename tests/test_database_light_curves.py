"""Rows of light curves in PostgreSQL: bytes that come back as they were, and ALeRCE's tables as columns."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from database_fixtures import IMPATIENT, execute

from database.client import Database
from database.light_curves import alerce_rows, packed_rows
from database.tables import TableLayoutError

EVERY_BYTE = bytes(range(256)) * 40


def kept(*rows: tuple[str, bytes]) -> dict[str, pa.Table]:
    names, values = zip(*rows, strict=True)
    counts = [[1] * len(rows), [58000.0] * len(rows)]
    return {"light_curve": pa.table([names, values, *counts], names=["oid", "rows", "known_alerts", "lastmjd"])}


def test_bytes_come_back(database: Database, rows_of: Callable[[str], list]) -> None:
    database.write(kept(("a", EVERY_BYTE), ("b", b""), ("ü", b"\0")))
    assert packed_rows(database, ["a", "ü", "none", "b"]) == {"a": EVERY_BYTE, "b": b"", "ü": b"\0"}
    assert packed_rows(database, []) == {}
    assert packed_rows(database, ["a\0"]) == {}
    column = "attrelid = 'light_curve'::regclass AND attname = 'rows'"
    assert rows_of(f"SELECT attstorage FROM pg_attribute WHERE {column}") == [("e",)]


def test_bytes_come_back_where_texts_must_be_copied(database: Database) -> None:
    """A name with NUL has no binary form, so that all rows are copied as text."""
    result = database.write(kept(("a", EVERY_BYTE), ("b\0", b"x"), ("c", b"\\x00")))
    assert [row.key for row in result.refused] == [("b\0",)]
    assert packed_rows(database, ["a", "b", "c"]) == {"a": EVERY_BYTE, "c": b"\\x00"}


def test_an_older_state_replaces_no_newer_one(database: Database) -> None:
    states = [(b"one", 1, 58000.0), (b"late", 2, 58000.0), (b"two", 2, 58001.0), (b"two!", 2, 58001.0)]

    def write(rows: bytes, known_alerts: int, lastmjd: float) -> None:
        table = {"oid": ["a"], "rows": [rows], "known_alerts": [known_alerts], "lastmjd": [lastmjd]}
        database.write({"light_curve": pa.table(table)})

    for state in states:
        write(*state)
        assert packed_rows(database, ["a"]) == {"a": state[0]}
    for state in states:
        write(*state)
        assert packed_rows(database, ["a"]) == {"a": b"two!"}


def test_rows_of_alerce(database: Database) -> None:
    names = ["a", "ü,\"'\n"]
    columns = {
        "candid": [2**62, 5],
        "oid": names,
        "mjd": [58000.1, 58000.2],
        "fid": [1, 2],
        "pid": [1.0, 2.0],
        "isdiffpos": [1, -1],
        "ra": [0.1, 1 / 3],
        "dec": [-1e-300, 2.0],
        "magpsf": [18.1, 19.0],
        "sigmapsf": [0.1, 0.2],
        "rbversion": ["", None],
        "drb": [None, float("inf")],
        "corrected": [True, False],
        "dubious": [False, True],
        "has_stamp": [True, False],
        "step_id_corr": ["x", "x"],
    }
    database.write({"detection": pa.table(columns), "object": pa.table({"oid": ["a"]})})
    database.write({"non_detection": pa.table({"oid": ["a"], "fid": [1], "mjd": [57999.1], "diffmaglim": [20.5]})})
    source = {"oid_catalog": ["J1"], "ra": [1.0], "dec": [2.0], "w1mpro": [11.5]}
    match = {"oid": ["a"], "catid": ["allwise"], "oid_catalog": ["J1"], "dist": [0.3]}
    database.write({"allwise": pa.table(source), "xmatch": pa.table(match)})
    found = alerce_rows(database, ["a", names[1], "none"])
    rows = sorted(found.detections.to_pylist(), key=lambda row: row["mjd"])
    for name in found.detections.column_names:
        assert [row[name] for row in rows] == columns.get(name, [None, None]), name
    assert found.non_detections.to_pylist() == [{"oid": "a", "fid": 1, "mjd": 57999.1, "diffmaglim": 20.5}]
    assert found.crossmatches.to_pylist() == [
        {"oid": "a", "candid": None, "angDist": 0.3, "W1mag": 11.5, "W2mag": None, "W3mag": None}
    ]
    nothing = alerce_rows(database, ["none"])
    assert [part.num_rows for part in nothing] == [0, 0, 0]
    assert [part.schema for part in nothing] == [part.schema for part in found]


def test_a_database_without_the_table_says_so(empty_url: str) -> None:
    with Database(empty_url, IMPATIENT) as opened, pytest.raises(TableLayoutError, match="light_curve"):
        packed_rows(opened, ["a"])


def test_a_lost_connection_is_made_anew(database: Database) -> None:
    database.write(kept(("a", b"x")))
    execute(
        database.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()",
    )
    assert packed_rows(database, ["a"]) == {"a": b"x"}
