"""Dead letters fed again: what succeeds goes where it belongs and is removed, what fails again stays, once."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fastavro
import psycopg2
import pytest
from backfill_fixtures import (
    DEMO_MODEL,
    Nights,
    backfilled,
    contents,
    frame,
    make_nights,
    rows_of_tables,
    units_of,
)
from pipeline_fixtures import alerts_of, letters_of, packets_of
from remote_fixtures import FakeCrossWave, Sky, serving

from alerts.dead_letters import read_dead_letters, write_dead_letters
from database.client import Database
from database.embedded import start_embedded
from pipelines.cli import main
from run_folder.layout import RunLayout


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return make_nights(tmp_path_factory.mktemp("nights"), alerts=60)


@pytest.fixture(scope="module")
def undisturbed(nights: Nights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    backfilled(run, *nights.archives, *nights.options)
    return run


def execute(run: Path, *statements: str) -> None:
    with start_embedded(run / "database") as server:
        with Database(server.url) as database:
            database.create_tables()
        connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
        try:
            with connection, connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()


def stages(run: Path) -> Counter[str]:
    return Counter(letter.stage for letter in letters_of(run))


def test_a_service_that_was_down(nights: Nights, tmp_path: Path) -> None:
    hasty = {"RETRIES": "0", "RETRY_INTERVAL": "0"}
    sky = Sky.read(nights.catalog.parent / "20260101" / "allwise_sample.csv")
    server = FakeCrossWave(sky)
    whole, run = tmp_path / "whole", tmp_path / "run"
    with serving(server) as url:
        options = ["--matcher", "crosswave", "--catalog", "allwise", "--service-url", url, "--database", "none"]
        options += ["--model", DEMO_MODEL, "--buckets", "4", "--no-hats"]
        backfilled(whole, *nights.archives, *options)
        seen = Counter[str]()

        def mood(_: object) -> str:
            seen["requests"] += 1
            return "503" if seen["requests"] % 3 else "good"

        server.mood = mood
        backfilled(run, *nights.archives, *options, "--batch-alerts", "7", variables=hasty)
        failed = stages(run)["crossmatch"]
        assert 0 < failed < 180
        server.mood = lambda _: "503"
        summary = backfilled(run, run, "--no-hats", name="replay", variables=hasty)
        assert summary["adds_up"]
        assert stages(run)["crossmatch"] == failed
        server.mood = lambda _: "good"
        summary = backfilled(run, run, "--no-hats", name="replay")
    assert summary["adds_up"]
    # Three broken packets of each night fail whatever is done.
    assert stages(run) == stages(whole) == {"decode": 9}
    assert sorted(alert["candid"] for alert in alerts_of(run)) == sorted(alert["candid"] for alert in alerts_of(whole))
    for folder in ("objects", "all_features", "all_probabilities"):
        ours, theirs = (frame(getattr(RunLayout(one).results(), folder)) for one in (run, whole))
        assert ours.equals(theirs)


def test_a_database_that_refused(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    execute(
        run,
        "ALTER TABLE xmatch ADD CONSTRAINT narrow CHECK (dist < 0.2)",
        "ALTER TABLE magstat ADD CONSTRAINT few CHECK (ndet < 4)",
    )
    backfilled(run, *nights.archives, *nights.options)
    refused = [letter for letter in letters_of(run) if letter.stage == "write"]
    assert any(letter.payload.startswith(b"{") for letter in refused)
    assert any(letter.payload.startswith(b"Obj") for letter in refused)
    # Refused as long as the reason stands, and not multiplied; a match that meanwhile lost against a nearer one is not.
    backfilled(run, run, name="replay")
    assert len(refused) // 2 < stages(run)["write"] <= len(refused)
    execute(run, "ALTER TABLE xmatch DROP CONSTRAINT narrow", "ALTER TABLE magstat DROP CONSTRAINT few")
    summary = backfilled(run, run, name="replay")
    assert summary["adds_up"]
    assert stages(run) == {"decode": 9}
    assert rows_of_tables(run) == rows_of_tables(undisturbed)
    now, then = contents(run), contents(undisturbed)
    assert {name for name in now if name.startswith("alerts")} == {name for name in then if name.startswith("alerts")}


def test_a_packet_that_was_mended(nights: Nights, undisturbed: Path, tmp_path: Path) -> None:
    """A letter whose packet is replaced by a good one joins the light curves."""
    run = tmp_path / "run"
    backfilled(run, *nights.archives[:1], *nights.options, "--database", "none")
    path = next((run / "dead_letters").glob("*.avro"))
    letters = list(read_dead_letters(path))
    donor = tmp_path / "donor"
    backfilled(donor, nights.archives[1], *nights.options, "--database", "none", "--only", "pass1")
    packet = alerts_of(donor)[0]
    schema, record = next(item for item in packets_of(nights.archives[1]) if item[1]["candid"] == packet["candid"])
    buffer = io.BytesIO()
    fastavro.writer(buffer, fastavro.parse_schema(schema), [record])
    write_dead_letters(path, [replace(letters[0], payload=buffer.getvalue()), *letters[1:]])
    summary = backfilled(run, path, "--no-hats", name="replay")
    assert summary["alerts"]["written"] == len(alerts_of(run))
    assert packet["candid"] in {alert["candid"] for alert in alerts_of(run)}
    assert len(letters_of(run)) == len(letters) - 1
    assert not path.exists()
    assert all(unit.state == "done" for unit in units_of(run))
    assert packet["objectId"] in frame(RunLayout(run).results().objects).index


def test_a_file_of_something_else(nights: Nights, undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = next((undisturbed / "light_curves").rglob("*.parquet"))
    assert main(["replay", str(some), "--database", "none", "--quiet"]) == 2
    assert "not all of the inputs are dead letters" in capsys.readouterr().err
    assert some.exists()


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "nothing")]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    assert main(["replay", str(tmp_path)]) == 2
    assert "belongs to no backfill" in capsys.readouterr().err
