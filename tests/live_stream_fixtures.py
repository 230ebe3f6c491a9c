"""What the tests of the stream share: packets in topics, streams that are run to their end, and what they left."""

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg2
import pytest
from backfill_fixtures import TABLES, Nights, called, make_nights
from kafka_fixtures import produce
from sqlalchemy import make_url

from alerts.reader import Limits, Portion, read_portions
from alerts.sources import find_sources

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Nights of a hundred alerts."""
    return make_nights(tmp_path_factory.mktemp("nights"), 100)


@pytest.fixture(scope="module")
def packets(nights: Nights) -> list[bytes]:
    """Packets of all nights, broken ones too."""
    return packets_of(*nights.archives)


def packets_of(*inputs: Path) -> list[bytes]:
    """Packets of archives and folders, damaged ones too, as they are."""
    found = []
    for source in find_sources([str(path) for path in inputs]):
        for item in read_portions(source, Limits(), lambda _: None):
            assert isinstance(item, Portion)
            bounds = zip(item.starts, item.ends, strict=True)
            found += [item.data[start:end].tobytes() for start, end in bounds]
    return found


def send(address: str, topic: str, packets: Sequence[bytes], seed: int | None = None) -> None:
    """Put packets into a topic, shuffled if there is a seed."""
    packets = list(packets)
    if seed is not None:
        random.Random(seed).shuffle(packets)
    produce(address, topic, [(None, packet) for packet in packets])


def stream_words(output: Path, address: str, topic: str, *options: object) -> list[str]:
    """Words of the command."""
    words = [sys.executable, "-m", "pipelines.cli", "stream", "--server", address, "--topics", topic]
    return [*words, "--group", "ours", "--output", str(output), *map(str, options)]


def streamed(
    output: Path,
    address: str,
    topic: str,
    *options: object,
    status: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Run a stream until its topic is drained; give its summary and what it said.

    In this process: the counts of the transforms are those of all streams so far.
    """
    words = stream_words(output, address, topic, "--stop-at-end", "--json", "--quiet", *options)
    return called(words[3:], status, variables)


def rows_in(url: str, tables: Mapping[str, str] = MappingProxyType(TABLES)) -> Rows:
    """Rows of tables, sorted."""
    connection = psycopg2.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        with connection.cursor() as cursor:
            found = {}
            for table, columns in tables.items():
                cursor.execute(f"SELECT {columns} FROM {table}")
                found[table] = sorted(cursor.fetchall(), key=repr)
            return found
    finally:
        connection.close()
