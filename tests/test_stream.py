"""The stream and the backfill are one: the same packets give the same rows, in any order, batch size and partition."""

from pathlib import Path

import pytest
from backfill_fixtures import DEMO_MODEL, Nights, backfilled
from database_fixtures import new_database
from left_fixtures import ONE_STEP
from live_stream_fixtures import Rows, packets_of, rows_in, send, streamed

from messaging.admin import create_topic
from messaging.local_broker import LocalBroker


@pytest.fixture(scope="module")
def wanted(nights: Nights, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Rows of all nights, as the backfill writes them."""
    return _backfilled_rows(tmp_path_factory.mktemp("backfill"), database_url, *nights.archives, *nights.options)


def _backfilled_rows(folder: Path, server: str, *arguments: object) -> Rows:
    with new_database(server) as url:
        backfilled(folder / "run", *arguments, "--database", url, variables=ONE_STEP)
        return rows_in(url)


def _options(nights: Nights, url: str) -> list[object]:
    return ["--step", "all", "--catalog", nights.catalog, "--model", DEMO_MODEL, "--database", url]


def _same(found: Rows, wanted: Rows) -> None:
    for table, rows in wanted.items():
        assert rows, table
        assert found[table] == rows, table


@pytest.mark.parametrize(("partitions", "messages"), [(1, 1000), (5, 17)])
def test_stream_writes_the_rows_of_the_backfill(
    partitions: int,
    messages: int,
    nights: Nights,
    wanted: Rows,
    kafka_broker: LocalBroker,
    database_url: str,
    tmp_path: Path,
) -> None:
    packets, topic = packets_of(*nights.archives), f"night-{partitions}"
    create_topic(kafka_broker.address, topic, partitions)
    # Some come twice.
    send(kafka_broker.address, topic, [*packets, *packets[:50]], seed=partitions)
    variables = {**ONE_STEP, "CONSUME_MESSAGES": str(messages)}
    with new_database(database_url) as url:
        summary = streamed(tmp_path, kafka_broker.address, topic, *_options(nights, url), variables=variables)
        assert summary["committed"] == summary["received"] == len(packets) + 50
        # Three broken members of each archive.
        assert summary["dead_letters"] >= 9
        _same(rows_in(url), wanted)


def test_a_stream_goes_on_where_a_backfill_ended(
    nights: Nights, wanted: Rows, kafka_broker: LocalBroker, database_url: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with new_database(database_url) as url:
        backfilled(run, nights.archives[0], *nights.options, "--database", url, variables=ONE_STEP)
        # Each night a stream of its own: the second one finds all objects in the database.
        for number, (archive, more) in enumerate(zip(nights.archives[1:], ([], ["--copy-light-curves"]), strict=True)):
            topic = f"later-{number}"
            send(kafka_broker.address, topic, packets_of(archive), seed=number)
            options = [*_options(nights, url), "--light-curves", run, *more]
            streamed(tmp_path / topic, kafka_broker.address, topic, *options, variables=ONE_STEP)
        _same(rows_in(url), wanted)


def test_whole_histories_of_real_objects(
    shared_data: Path, nights: Nights, kafka_broker: LocalBroker, database_url: str, tmp_path: Path
) -> None:
    objects = shared_data / "alerts" / "objects"
    options = ["--catalog", nights.catalog, "--model", DEMO_MODEL]
    wanted = _backfilled_rows(tmp_path, database_url, objects, *options, "--buckets", 2)
    packets = packets_of(objects)
    create_topic(kafka_broker.address, "objects", 3)
    send(kafka_broker.address, "objects", packets, seed=5)
    with new_database(database_url) as url:
        options += ["--step", "all", "--database", url]
        variables = {**ONE_STEP, "CONSUME_MESSAGES": "20"}
        streamed(tmp_path / "stream", kafka_broker.address, "objects", *options, variables=variables)
        found = rows_in(url)
        # No source of the sample catalogue lies beside these objects.
        for table in ("object", "detection", "non_detection", "magstat", "feature", "probability"):
            assert wanted[table], table
            assert found[table] == wanted[table], table
