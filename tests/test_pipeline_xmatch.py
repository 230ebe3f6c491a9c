"""The crossmatch pipeline from end to end, on the generated sample and on the reference data."""

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from database_fixtures import execute
from pipeline_fixtures import Sample, alerts_of, digests, letters_of, packets_of, write_packet, write_positions

from xmatch.catalog import build_catalog
from xmatch.reference import angular_separation_arcsec

Run = Callable[..., dict[str, Any]]
# Half a unit of the last of CDS's 7 decimals in both coordinates; see tests/test_xmatch_matcher.py.
CDS_ROUNDING_ARCSEC = 0.5e-7 * 3600.0 * np.sqrt(2.0)
TABLES = ("object", "allwise", "xmatch", "step")


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables with the transaction that wrote each."""
    return {name: execute(url, f"SELECT xmin::text, t.* FROM {name} t ORDER BY 2, 3") for name in TABLES}


def values(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {name: execute(url, f"SELECT * FROM {name} ORDER BY 1, 2") for name in TABLES if name != "step"}


def candid_of(alert: dict[str, Any]) -> int:
    return alert["candid"] if "candid" in alert else alert["candidate"]["candid"]


class TestSample:
    def test_results_are_the_truth(self, sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str) -> None:
        run = tmp_path / "run"
        counts = alertbeam(*sample.arguments, "--output", run, "--database", empty_url)
        matched = {candid: match for candid, match in sample.truth.items() if match}
        letters = letters_of(run)
        with tarfile.open(sample.archive) as archive:
            members = len(archive.getnames())
        assert counts["status"] == 1
        assert counts["read"] == counts["written"] == 300
        assert counts["read"] == sum(counts[name] for name in ("written", "filtered", "repeated", "failed"))
        assert members == counts["read"] + counts["empty"] + len(letters)
        assert counts["dead_letters"] == {"decode": len(letters)}
        assert (counts["matched"], counts["no_match"]) == (len(matched), 300 - len(matched))

        originals = {record["candid"]: record for _, record in packets_of(sample.archive)}
        enriched = {record["candid"]: record for record in alerts_of(run)}
        assert enriched.keys() == originals.keys() == sample.truth.keys()
        for candid, record in enriched.items():
            found = record.pop("xmatches")
            assert repr(record) == repr(originals[candid])
            if match := sample.truth[candid]:
                assert list(found) == ["allwise"]
                assert found["allwise"]["AllWISE"] == match[0]
                assert found["allwise"]["angDist"] == pytest.approx(match[1], rel=1e-6, abs=1e-6)
                assert len(found["allwise"]) == 18
            else:
                assert found is None

        table = pq.read_table(run / "crossmatches.parquet")
        assert table.num_rows == 300
        for row in table.to_pylist():
            match = sample.truth[row["candid"]]
            assert (row["status"], row["AllWISE"]) == (("matched", match[0]) if match else ("no match", None))
            assert row["angDist"] == (pytest.approx(match[1], rel=0, abs=1e-6) if match else None)
            assert row["ra"] == originals[row["candid"]]["candidate"]["ra"]

        nearest: dict[str, tuple[str, float]] = {}
        for candid, match in matched.items():
            oid = originals[candid]["objectId"]
            nearest[oid] = min(nearest.get(oid, match), match, key=lambda pair: pair[1])
        stored = execute(empty_url, "SELECT oid, oid_catalog, dist, catid, catalog_version FROM xmatch")
        assert {row[0] for row in stored} == nearest.keys()
        for oid, source, distance, catalog, version in stored:
            assert (source, catalog, version) == (nearest[oid][0], "allwise", "sample")
            assert distance == pytest.approx(nearest[oid][1], rel=0, abs=1e-6)
        with open(sample.archive.parent / "allwise_sample.csv", newline="") as file:
            sources = {row["AllWISE"]: row for row in csv.DictReader(file)}
        allwise = execute(empty_url, "SELECT oid_catalog, ra, dec, w1mpro FROM allwise")
        assert {row[0] for row in allwise} == {match[0] for match in matched.values()}
        for name, ra, dec, w1 in allwise:
            # Doubles: the very values of the catalogue.
            assert (ra, dec) == (float(sources[name]["RAJ2000"]), float(sources[name]["DEJ2000"]))
            assert w1 == (float(sources[name]["W1mag"]) if sources[name]["W1mag"] else None)
        assert execute(empty_url, "SELECT count(*) FROM object") == [(len(nearest),)]

    def test_a_second_run_changes_nothing(self, sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str) -> None:
        command = (*sample.arguments, "--output", tmp_path / "run", "--database", empty_url)
        first, files, stored = alertbeam(*command), digests(tmp_path / "run"), rows(empty_url)
        second = alertbeam(*command)
        assert digests(tmp_path / "run") == files
        assert rows(empty_url) == stored
        assert len(stored["step"]) == 1
        assert sum(first["rows"].values()) > 0
        assert sum(second["rows"].values()) == 0

    def test_smaller_batches_and_programmes_leave_nothing_stale(
        self, sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str
    ) -> None:
        run = tmp_path / "run"
        command = (*sample.arguments, "--output", run, "--database", empty_url)
        alertbeam(*command)
        first, stored, table = alerts_of(run), values(empty_url), pq.read_table(run / "crossmatches.parquet")
        alertbeam(*command, "--batch-alerts", 7)
        assert sorted(map(repr, alerts_of(run))) == sorted(map(repr, first))
        assert values(empty_url) == stored
        assert pq.read_table(run / "crossmatches.parquet").sort_by("candid").equals(table.sort_by("candid"))

        none = alertbeam(*command, "--programid", "2,3")
        assert (none["read"], none["filtered"], none["written"]) == (300, 300, 0)
        assert alerts_of(run) == []
        assert pq.read_table(run / "crossmatches.parquet").num_rows == 0
        assert values(empty_url) == stored
        assert list((run / "crossmatches").iterdir()) == []

    def test_inputs_add_up_in_one_folder(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        """Two nights, then two loose files of one folder, each in a run of its own, and one of them again."""
        packets, run = list(packets_of(sample.archive)), tmp_path / "run"
        paths = [tmp_path / "loose" / f"{number}.avro" for number in range(2)]
        for number, path in enumerate(paths):
            write_packet(path, packets[number], candid=number + 1)
        shutil.copy(sample.archive, tmp_path / "second.tar.gz")
        for source in (sample.archive, tmp_path / "second.tar.gz", *paths, paths[0]):
            alertbeam("xmatch", source, "--catalog", sample.catalog, "--output", run, "--database", "none")
        table = pq.read_table(run / "crossmatches.parquet")
        assert table.num_rows == 2 * 300 + 2
        assert {1, 2} < set(table["candid"].to_pylist())
        assert len(alerts_of(run)) == 2 * 300 + 2

    def test_names_that_are_no_text(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        folder, run = tmp_path / "caf\udce9", tmp_path / "run"
        write_packet(folder / "alert\udce9.avro", next(iter(packets_of(sample.archive))))
        (folder / "bad\udce9.avro").write_bytes(b"nonsense")
        options = ("--catalog", sample.catalog, "--output", run, "--database", "none", "--max-dead-letters", 1)
        alertbeam("xmatch", folder, *options)
        (row,) = pq.read_table(run / "crossmatches.parquet").to_pylist()
        assert (row["source"], row["member"]) == (str(tmp_path / "caf?"), "alert?.avro")

    def test_archives_in_either_order(self, sample: Sample, alertbeam: Run, tmp_path: Path, database_url: str) -> None:
        """Two archives that share alerts; the nearer of an object's two positions wins, whichever comes first."""
        other = tmp_path / "other"
        for number, packet in enumerate(list(packets_of(sample.archive))[:40]):
            odd, (_, record) = number % 2, packet
            # Every other one is an alert of its own, nearer to its source or farther from it.
            changes = {"candid": record["candid"] + odd * 5_000_000, "ra": record["candidate"]["ra"] + odd * 5e-5}
            write_packet(other / f"{number}.avro", packet, **changes)
        found = []
        for name, inputs in (("one", (sample.archive, other)), ("two", (other, sample.archive))):
            url = database_url.replace("/postgres?", f"/{name}?")
            execute(database_url, f"CREATE DATABASE {name}")
            arguments = ("--catalog", sample.catalog, "--quiet", "--json", "--output", tmp_path / name)
            counts = alertbeam("xmatch", *inputs, *arguments, "--database", url)
            assert (counts["read"], counts["repeated"]) == (340, 20)
            found.append((values(url), digests(tmp_path / name)))
        assert found[0] == found[1]


class TestReferenceData:
    def test_all_packets(self, shared_data: Path, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        command = ("xmatch", shared_data / "alerts", "--catalog", sample.catalog, "--database", "none", "--json")
        counts = alertbeam(*command, "--output", tmp_path)
        assert counts["status"] == 1
        assert counts["read"] == 650
        assert counts["written"] + counts["repeated"] == 650
        assert counts["empty"] == 5
        letters = letters_of(tmp_path)
        assert len(letters) == 15
        assert all(letter.reason and "/bad/" in f"/{letter.member}" for letter in letters)
        assert len(alerts_of(tmp_path)) == counts["written"] == len({candid_of(alert) for alert in alerts_of(tmp_path)})
        assert alertbeam(*command, "--output", tmp_path, "--max-dead-letters", 15)["status"] == 0

    def test_known_allwise_answers(self, shared_data: Path, alertbeam: Run, tmp_path: Path) -> None:
        answers = shared_data / "xmatch" / "alerts_with_allwise_match.csv"
        build_catalog(answers, tmp_path / "allwise", name="allwise", version="2013-11")
        inputs = shared_data / "alerts" / "with_allwise_match"
        run = tmp_path / "run"
        command = ("xmatch", inputs, "--catalog", tmp_path / "allwise", "--output", run, "--database", "none")
        assert alertbeam(*command, "--xmatch-precision", "double")["status"] == 0
        found = [
            (alert["objectId"], alert["candidate"]["ra"], alert["candidate"]["dec"], alert["xmatches"]["allwise"])
            for alert in alerts_of(run)
            if alert["xmatches"]
        ]
        with open(answers, newline="") as file:
            wanted = list(csv.DictReader(file))
        assert len(wanted) == 10
        for row in wanted:
            place = float(row["ra_in"]), float(row["dec_in"])
            same = [f for f in found if f[0] == row["oid_in"] and np.allclose(f[1:3], place, rtol=0, atol=1e-9)]
            assert same, row
            match = same[0][3]
            assert match["AllWISE"] == row["AllWISE"]
            assert match["angDist"] == pytest.approx(float(row["angDist"]), rel=0, abs=CDS_ROUNDING_ARCSEC)
            exact = angular_separation_arcsec(*([value] for value in (*place, match["RAJ2000"], match["DEJ2000"])))
            assert match["angDist"] == pytest.approx(float(np.ravel(exact)[0]), rel=0, abs=1e-5)
            for name in row.keys() - {"angDist", "col1", "oid_in", "ra_in", "dec_in", "AllWISE"}:
                assert match[name] == (float(row[name]) if row[name] else None), name

    def test_positions(self, shared_data: Path, alertbeam: Run, tmp_path: Path) -> None:
        answers = shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv"
        catalog = build_catalog(answers, tmp_path / "allwise", name="allwise", version="2013-11")
        run = tmp_path / "run"
        positions = shared_data / "xmatch" / "positions.csv"
        counts = alertbeam("xmatch", positions, "--catalog", tmp_path / "allwise", "--output", run, "--json")
        assert (counts["status"], counts["matched"], counts["no_match"]) == (0, 2732, 57)
        truth = {row["id_in"]: row for row in pacsv.read_csv(answers).to_pylist()}
        table = pq.read_table(run / "crossmatches.parquet").to_pylist()
        assert len(table) == 2789
        for row in table:
            expected = truth.get(int(row["id"]))
            assert row["status"] == ("matched" if expected else "no match")
            for name in catalog.columns:
                assert row[name] == (expected[name] if expected else None)
            if expected:
                assert row["angDist"] == pytest.approx(expected["angDist"], rel=0, abs=CDS_ROUNDING_ARCSEC)
        with open(run / "crossmatches.csv", newline="") as file:
            as_text = list(csv.DictReader(file))
        assert [row["id"] for row in as_text] == [row["id"] for row in table]
        assert [row["AllWISE"] or None for row in as_text] == [row["AllWISE"] for row in table]


class TestPositions:
    def test_what_is_no_position_fails(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        bad: list[tuple[str, object, object]] = [
            ("nan", "nan", 1.0),
            ("text, with comma", "12h", 1.0),
            ("below", 1.0, -90.5),
            ("empty", "", 3.0),
            ("inf", "inf", 3.0),
        ]
        path = write_positions(tmp_path / "p.csv", [("good", " 10.5 ", "-3e1"), *bad, ("turned", 370.5, -30)])
        with open(path, "a") as file:
            file.write("cut,1.0\n")
        counts = alertbeam("xmatch", path, "--catalog", sample.catalog, "--output", tmp_path / "run", "--json")
        assert (counts["status"], counts["read"], counts["failed"], counts["written"]) == (1, 7, 5, 2)
        table = pq.read_table(tmp_path / "run" / "crossmatches.parquet")
        status = dict(zip(table["id"].to_pylist(), table["status"].to_pylist(), strict=True))
        assert status == {"good": "no match", "turned": "no match"} | {name: "failed" for name, _, _ in bad}
        letters = {letter.member: letter for letter in letters_of(tmp_path / "run")}
        assert letters.keys() == {name for name, _, _ in bad} | {"cut"}
        assert letters["text, with comma"].payload == b'"id","ra","dec"\n"text, with comma","12h","1.0"\n'
        assert (letters["cut"].stage, letters["cut"].payload) == ("read", b"cut,1.0")

    def test_other_columns_are_not_looked_at(self, sample: Sample, alertbeam: Run, tmp_path: Path) -> None:
        """A column that begins with numbers and ends with texts, further down than a block."""
        path = tmp_path / "p.csv"
        lines = [f"1,{i},{i % 360},0\n" for i in range(150_000)]
        path.write_text("note,id,ra,dec\n" + "".join(lines) + "a note,last,0,0\n")
        counts = alertbeam("xmatch", path, "--catalog", sample.catalog, "--output", tmp_path / "run", "--json")
        assert (counts["status"], counts["read"]) == (0, 150_001)


def test_columns_of_catalog_variable(
    sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer columns, in another order: the match keeps the identifier, and the tables name the right source."""
    monkeypatch.setenv("CATALOG", json.dumps([{"name": "allwise", "columns": ["W2mag", "W1mag"]}]))
    for name in ("ID", "NAME", "VERSION", "COMMENTS"):
        monkeypatch.setenv(f"STEP_{name}", f"my {name}")
    run = tmp_path / "run"
    counts = alertbeam(*sample.arguments, "--output", run, "--database", empty_url, "--max-dead-letters", 9)
    assert counts["status"] == 0
    found = {alert["candid"]: alert["xmatches"] for alert in alerts_of(run)}
    for candid, match in sample.truth.items():
        if match:
            assert found[candid]["allwise"].keys() == {"angDist", "AllWISE", "W2mag", "W1mag"}
            assert found[candid]["allwise"]["AllWISE"] == match[0]
    names = {match[0] for match in sample.truth.values() if match}
    assert {row[0] for row in execute(empty_url, "SELECT oid_catalog FROM xmatch")} <= names
    assert execute(empty_url, "SELECT count(*) FROM allwise") == [(0,)]
    assert execute(empty_url, "SELECT step_id, name, version, comments FROM step") == [
        ("my ID", "my NAME", "my VERSION", "my COMMENTS")
    ]


def test_two_catalogues(sample: Sample, alertbeam: Run, tmp_path: Path, empty_url: str) -> None:
    """Both are asked, and the sources of both are stored, also where they have one set of columns."""
    source = sample.archive.parent / "allwise_sample.csv"
    lines = source.read_text().splitlines(keepends=True)
    moved = tmp_path / "moved.csv"
    moved.write_text(lines[0] + "".join("X" + line for line in lines[1:]))
    build_catalog(moved, tmp_path / "moved", name="moved", version="1")
    counts = alertbeam(
        *sample.arguments, "--catalog", tmp_path / "moved", "--output", tmp_path / "run", "--database", empty_url
    )
    matched = sum(match is not None for match in sample.truth.values())
    assert counts["catalogs"] == {"allwise": matched, "moved": matched}
    names = {match[0] for match in sample.truth.values() if match}
    stored = {row[0] for row in execute(empty_url, "SELECT oid_catalog FROM allwise")}
    assert stored == names | {"X" + name for name in names}
    assert pq.read_table(tmp_path / "run" / "crossmatches.parquet").num_rows == 600
