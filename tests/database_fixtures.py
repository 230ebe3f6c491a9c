"""A real PostgreSQL server for the tests that write to one; ``conftest.py`` gives its fixtures to all files.

Each process of pytest starts one when the first test asks for it.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url

from database.client import Database, RetryPolicy
from database.embedded import start_embedded

IMPATIENT = RetryPolicy(attempts=2, first_delay_s=0.01, max_delay_s=0.01)


def execute(url: str, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
    """Run one statement outside any transaction and give its rows."""
    connection = psycopg2.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded server that lasts as long as the tests."""
    with start_embedded(tmp_path_factory.mktemp("postgresql")) as server:
        yield server.url


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """URL of a new database of a server, without tables."""
    name = f"test_{uuid.uuid4().hex}"
    execute(server, f"CREATE DATABASE {name}")
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_url(database_url: str) -> Iterator[str]:
    """URL of a new database without tables."""
    with new_database(database_url) as url:
        yield url


@pytest.fixture
def database(empty_url: str) -> Iterator[Database]:
    """A new database with ALeRCE's tables."""
    with Database(empty_url, IMPATIENT) as opened:
        opened.create_tables()
        yield opened


@pytest.fixture
def rows_of(database: Database) -> Callable[[str], list[tuple[Any, ...]]]:
    """Give a function that runs a query on the new database."""
    return lambda query: execute(database.url, query)
