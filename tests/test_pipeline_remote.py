"""Nights crossmatched by services that fail, and what they set aside, run again."""

import argparse
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from database_fixtures import execute
from pipeline_fixtures import Sample, alerts_of, letters_of, packets_of, write_packet, write_positions
from remote_fixtures import FakeCds, FakeCrossWave, FakeServer, Sky, serving

from alerts.dead_letters import write_dead_letters
from pipelines.environment import read_environment
from pipelines.matchers import add_matcher_options, make_matchers
from pipelines.usage import UsageError
from xmatch.cache import CachedMatcher
from xmatch.cds import CDS_URL, CdsMatcher
from xmatch.crosswave import CrossWaveMatcher
from xmatch.matcher import LocalMatcher, Matcher

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sky(sample: Sample) -> Sky:
    return Sky.read(sample.archive.parent / "allwise_sample.csv")


@pytest.fixture(autouse=True)
def hasty(alertbeam: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRY_INTERVAL", "0")


def is_the_truth(sample: Sample, alerts: list[dict[str, Any]]) -> None:
    for alert in alerts:
        found, match = alert["xmatches"], sample.truth[alert["candid"]]
        assert (found and found["allwise"]["AllWISE"]) == (match and match[0])


def server_of(kind: str, sky: Sky) -> FakeServer:
    return FakeCds(sky) if kind == "cds" else FakeCrossWave(sky)


@pytest.mark.parametrize("kind", ["cds", "crosswave"])
class TestNightOfFailures:
    def test_half_of_the_requests_fail(
        self, sample: Sample, sky: Sky, alertbeam: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """Without retries, so that much is given up; nothing is lost, nothing is wrongly "no match"."""
        monkeypatch.setenv("RETRIES", "0")
        server, chance = server_of(kind, sky), random.Random(5)
        bad = ("500", "503", "504", "html", "truncated", "hangs up", "empty")
        server.mood = lambda _: chance.choice(bad) if chance.random() < 0.5 else "good"
        run, again = tmp_path / "run", tmp_path / "again"
        with serving(server) as url:
            options = ("--matcher", kind, "--catalog", "allwise", "--service-url", url, "--requests-at-once", 2)
            options += ("--database", "none", "--json", "--quiet", "--max-dead-letters", 1000)
            night = ("xmatch", sample.archive, *options, "--batch-alerts", 20)
            counts = alertbeam(*night, "--output", run)
            assert counts["status"] == 0
            assert counts["read"] == 300 == counts["written"] + counts["failed"]
            assert 0 < counts["failed"] < 300
            letters = [letter for letter in letters_of(run) if letter.stage == "crossmatch"]
            first = alerts_of(run)
            assert len(letters) == counts["failed"]
            assert {letter.candid for letter in letters} | {alert["candid"] for alert in first} == sample.truth.keys()
            assert all("asked once" in letter.reason or "to confirm" in letter.reason for letter in letters)
            is_the_truth(sample, first)

            server.mood = lambda _: "good"
            counts = alertbeam("xmatch", run / "dead_letters", *options, "--output", again)
            second = alerts_of(again)
            assert counts["failed"] == 0
            assert {alert["candid"] for alert in second} == {letter.candid for letter in letters}
            is_the_truth(sample, second)
            # What was never a packet is none now.
            kept = [(letter.member, letter.payload) for letter in letters_of(run) if letter.stage != "crossmatch"]
            assert sorted((letter.member, letter.payload) for letter in letters_of(again)) == sorted(kept)
        originals = {record["candid"]: record for _, record in packets_of(sample.archive)}
        for alert in first + second:
            del alert["xmatches"]
            assert repr(alert) == repr(originals[alert["candid"]])
        assert server.most_at_once <= 2

    def test_retries_make_it_whole(
        self, sample: Sample, sky: Sky, alertbeam: Run, tmp_path: Path, empty_url: str, kind: str
    ) -> None:
        server = server_of(kind, sky)
        server.mood = lambda number: ("500", "good", "html", "good")[number % 4]
        run = tmp_path / "run"
        with serving(server) as url:
            options = ("--matcher", kind, "--catalog", "allwise", "--service-url", url, "--requests-at-once", 1)
            counts = alertbeam("xmatch", sample.archive, *options, "--output", run, "--database", empty_url, "--json")
        matched = [match for match in sample.truth.values() if match]
        assert (counts["written"], counts["matched"], counts["failed"]) == (300, len(matched), 0)
        is_the_truth(sample, alerts_of(run))
        table = pq.read_table(run / "crossmatches.parquet")
        for row in table.to_pylist():
            match = sample.truth[row["candid"]]
            assert (row["status"], row["AllWISE"]) == (("matched", match[0]) if match else ("no match", None))
        stored = execute(empty_url, "SELECT oid_catalog, catid, catalog_version, catalog_created FROM xmatch")
        assert {row[0] for row in stored} == {match[0] for match in matched}
        version = "vizier:II/328/allwise" if kind == "cds" else url
        assert {row[1:] for row in stored} == {("allwise", version, None)}
        assert len(execute(empty_url, "SELECT * FROM allwise")) == len({match[0] for match in matched})

    def test_a_cache_asks_once(self, sample: Sample, sky: Sky, alertbeam: Run, tmp_path: Path, kind: str) -> None:
        server = server_of(kind, sky)
        found = []
        with serving(server) as url:
            options = ("--matcher", kind, "--catalog", "allwise", "--service-url", url, "--cache", tmp_path / "cache")
            for name in ("one", "two"):
                before = len(server.seen)
                alertbeam("xmatch", sample.archive, *options, "--output", tmp_path / name, "--database", "none")
                found.append(pq.read_table(tmp_path / name / "crossmatches.parquet"))
        assert len(server.seen) == before > 0
        assert found[0].equals(found[1])

    def test_a_table_of_positions(self, sky: Sky, alertbeam: Run, tmp_path: Path, kind: str) -> None:
        rows = [("a", sky.ra[0], sky.dec[0]), ("b", sky.ra[1], sky.dec[1] + 0.01), ("c", "far", 0.0)]
        path = write_positions(tmp_path / "positions.csv", rows)
        server = server_of(kind, sky)
        with serving(server) as url:
            options = ("--matcher", kind, "--catalog", "allwise", "--service-url", url)
            alertbeam("xmatch", path, *options, "--output", tmp_path / "run")
            server.mood = lambda _: "401"
            alertbeam("xmatch", path, *options, "--output", tmp_path / "refused")
        table = pacsv.read_csv(tmp_path / "run" / "crossmatches.csv")
        assert table["status"].to_pylist() == ["matched", "no match", "failed"]
        assert table["AllWISE"].to_pylist()[0] == sky.sources[0]["AllWISE"]
        table = pacsv.read_csv(tmp_path / "refused" / "crossmatches.csv")
        assert table["status"].to_pylist() == ["failed"] * 3
        reasons = {letter.member: letter.reason for letter in letters_of(tmp_path / "refused")}
        assert "HTTP 401" in reasons["a"]
        assert "no such position" in reasons["c"]


class TestDeadLettersAsInput:
    def test_one_large_file_and_small_batches(
        self, sample: Sample, alertbeam: Run, tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.setenv("RETRIES", "0")
        run = tmp_path / "run"
        dead = ("--matcher", "crosswave", "--catalog", "allwise", "--service-url", "http://127.0.0.1:9")
        counts = alertbeam("xmatch", sample.archive, *dead, "--output", run, "--database", "none", "--json")
        assert (counts["failed"], counts["written"]) == (300, 0)
        monkeypatch.setattr("alerts.sources.LOOSE_BYTES", 0)
        (path,) = (run / "dead_letters").glob("*.crossmatch.*.avro")
        local = ("--catalog", sample.catalog, "--database", "none", "--json", "--batch-alerts", 7)
        again = alertbeam("xmatch", path, *local, "--output", tmp_path / "again")
        assert (again["status"], again["written"]) == (0, 300)
        is_the_truth(sample, alerts_of(tmp_path / "again"))
        table = pq.read_table(tmp_path / "again" / "crossmatches.parquet")
        first = alertbeam("xmatch", sample.archive, *local, "--output", tmp_path / "first")
        assert first["written"] == 300
        usual = pq.read_table(tmp_path / "first" / "crossmatches.parquet").drop_columns(["source"])
        assert table.drop_columns(["source"]).sort_by("candid").equals(usual.sort_by("candid"))

    def test_of_a_table_of_positions(self, sky: Sky, alertbeam: Run, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("RETRIES", "0")
        source = sky.sources[0]
        table = tmp_path / "positions.csv"
        write_positions(table, [('a, "quoted"', source["RAJ2000"], source["DEJ2000"]), ("b", 10.0, 80.0)])
        dead = ("--matcher", "crosswave", "--catalog", "allwise", "--service-url", "http://127.0.0.1:9")
        alertbeam("xmatch", table, *dead, "--output", tmp_path / "run")
        assert len(letters_of(tmp_path / "run")) == 2
        with serving(FakeCrossWave(sky)) as url:
            good = ("--matcher", "crosswave", "--catalog", "allwise", "--service-url", url)
            for number, given in enumerate([[tmp_path / "run" / "dead_letters"], (tmp_path / "run").rglob("*.avro")]):
                again = tmp_path / f"again{number}"
                counts = alertbeam("xmatch", *given, *good, "--output", again, "--json")
                assert (counts["status"], counts["read"], counts["dead_letters"]) == (0, 2, {})
                found = pacsv.read_csv(again / "crossmatches.csv")
                assert found["id"].to_pylist() == ['a, "quoted"', "b"]
                assert found["status"].to_pylist() == ["matched", "no match"]

    def test_damaged_letters(self, sample: Sample, alertbeam: Run, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("RETRIES", "0")
        dead = ("--matcher", "crosswave", "--catalog", "allwise", "--service-url", "http://127.0.0.1:9")
        alertbeam("xmatch", sample.archive, *dead, "--output", tmp_path / "run", "--database", "none")
        (path,) = (tmp_path / "run" / "dead_letters").glob("*.crossmatch.*.avro")
        broken = tmp_path / "broken" / "letters.avro"
        broken.parent.mkdir()
        broken.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        write_dead_letters(tmp_path / "broken" / "none.avro", [])
        write_packet(tmp_path / "broken" / "packet.avro", sample.packet)
        local = ("--catalog", sample.catalog, "--database", "none", "--json", "--output", tmp_path / "again")
        again = alertbeam("xmatch", tmp_path / "broken", *local)
        assert again["status"] == 1
        (letter,) = letters_of(tmp_path / "again")
        assert letter.member == "letters.avro"
        assert "dead letters that cannot be read" in letter.reason
        assert {alert["candid"] for alert in alerts_of(tmp_path / "again")} >= {sample.packet[1]["candid"]}


def matchers(*arguments: object, **variables: str) -> list[Matcher]:
    parser = argparse.ArgumentParser()
    add_matcher_options(parser)
    return make_matchers(parser.parse_args([str(argument) for argument in arguments]), read_environment(variables))


class TestChoice:
    def test_by_option(self, sample: Sample) -> None:
        (local,) = matchers("--catalog", sample.catalog, "--radius", 2)
        assert isinstance(local, LocalMatcher)
        assert local.radius_arcsec == 2.0
        (cds,) = matchers("--matcher", "cds", "--catalog", "allwise", "--requests-at-once", 9, "--timeout", 7)
        assert isinstance(cds, CdsMatcher)
        assert (cds.service_url, cds.http.requests_at_once, cds.http.timeout_s) == (CDS_URL, 9, 7.0)
        assert (cds.http.retries, cds.http.retry_interval_s, cds.radius_arcsec) == (3, 1.0, 1.0)
        two = matchers(
            "--matcher", "crosswave", "--catalog", "allwise", "--catalog", "gaia", "--service-url", "http://h"
        )
        assert [matcher.name for matcher in two] == ["allwise", "gaia"]

    def test_by_the_variables_of_the_seeds(self) -> None:
        setting = {
            "name": "allwise",
            "columns": ["W1mag"],
            "service_url": "http://xwave",
            "selection": 3,
            "radius": 1.5,
        }
        (matcher,) = matchers(CATALOG=json.dumps(setting), USE_XWAVE="True", RETRIES="5", RETRY_INTERVAL="0.5")
        assert isinstance(matcher, CrossWaveMatcher)
        assert (matcher.service_url, matcher.selection, matcher.radius_arcsec) == ("http://xwave", 3, 1.5)
        assert list(matcher.types) == ["AllWISE", "W1mag"]
        assert (matcher.http.retries, matcher.http.retry_interval_s) == (5, 0.5)
        for blank in ("False", "", "0"):
            (matcher,) = matchers(CATALOG=json.dumps([setting]), USE_XWAVE=blank)
            assert isinstance(matcher, CdsMatcher)
            assert (matcher.service_url, matcher.radius_arcsec) == (CDS_URL, 1.5)

    def test_options_come_before_variables(self, sample: Sample, tmp_path: Path) -> None:
        setting = json.dumps({"name": "allwise", "columns": ["W1mag"], "service_url": "http://xwave", "radius": 1.5})
        (local,) = matchers("--catalog", sample.catalog, CATALOG=setting, USE_XWAVE="true")
        assert isinstance(local, LocalMatcher)
        assert (local.radius_arcsec, local.columns) == (1.5, ("AllWISE", "W1mag"))
        options = ("--matcher", "crosswave", "--radius", 3, "--service-url", "http://other", "--cache", tmp_path)
        (matcher,) = matchers(*options, CATALOG=setting, USE_XWAVE="false")
        assert isinstance(matcher, CachedMatcher)
        assert isinstance(matcher.matcher, CrossWaveMatcher)
        assert (matcher.matcher.radius_arcsec, matcher.matcher.service_url) == (3.0, "http://other")

    @pytest.mark.parametrize(
        ("arguments", "variables", "message"),
        [
            ((), {}, "name a catalogue with --catalog DIR"),
            (("--matcher", "cds"), {}, "name a catalogue of the service: --matcher cds --catalog allwise"),
            (("--matcher", "crosswave", "--catalog", "allwise"), {}, "say where the CrossWave service"),
            (("--matcher", "cds", "--catalog", "allwise/"), {}, "is a folder"),
            (
                ("--matcher", "cds", "--catalog", "gaia"),
                {"CATALOG": "name: allwise"},
                "not among the catalogues of CATA",
            ),
            (("--matcher", "cds", "--catalog", "I/355/gaiadr3"), {}, "name the columns wanted"),
            (("--matcher", "cds", "--catalog", "allwise", "--timeout", "0"), {}, "time limit"),
            (("--matcher", "cds", "--catalog", "allwise", "--radius", "500"), {}, "180 arcsec"),
            (("--matcher", "cds", "--catalog", "allwise", "--service-url", "cds"), {}, "address"),
            (("--matcher", "cds", "--catalog", "allwise", "--catalog", "allwise"), {}, "Two catalogues have the name"),
            (("--matcher", "local", "--catalog", "nowhere"), {}, "is not a catalogue"),
            (("--catalog", "nowhere", "--cache", "folder"), {}, "--cache is for a catalogue service"),
            ((), {"USE_XWAVE": "maybe"}, "USE_XWAVE must be true or false"),
            ((), {"RETRIES": "many"}, "RETRIES must be a whole number, not 'many'"),
            ((), {"RETRY_INTERVAL": "-1"}, "RETRY_INTERVAL must not be negative"),
        ],
    )
    def test_mistakes(self, arguments: tuple[str, ...], variables: Mapping[str, str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            matchers(*arguments, **variables)
