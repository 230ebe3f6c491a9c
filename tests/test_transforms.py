"""Each transform on FnApiRunner, and the graph that they make."""

import dataclasses
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from pipeline_fixtures import Sample, letters_of, make_sample, packets_of, write_packet

from alerts.batch import AlertBatch
from alerts.dead_letters import DeadLetter, read_dead_letters
from alerts.reader import Limits, read_source
from alerts.sources import Source, find_sources
from database.client import Database
from pipelines.xmatch import XmatchJob, build
from transforms.counts import RunCounts, counters, run_counts
from transforms.crossmatch import MATCHED_ALERTS, Crossmatch, MatchedAlerts
from transforms.dead_letters import DEAD_LETTERS, WriteDeadLetters
from transforms.reading import BATCHES, ReadAlerts
from transforms.tables import crossmatches_of_alerts
from transforms.writing import WriteAlerts, WriteRows, WriteTables, join_parts
from xmatch.catalog import build_catalog
from xmatch.matcher import FAILED, LocalMatcher, Matches

Rows = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Without cutouts: what is given to Create becomes part of the graph."""
    return make_sample(tmp_path_factory.mktemp("sample"), alerts=300, cutouts=False)


def counted(apply: Callable[[beam.Pipeline], Any]) -> RunCounts:
    """Run what `apply` adds to a pipeline; give the counts."""
    pipeline = TestPipeline(runner=FnApiRunner())
    apply(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return run_counts(counters(result))


def read(*inputs: Path) -> list[AlertBatch]:
    found = [item for source in find_sources(map(str, inputs)) for item in read_source(source)]
    return [item for item in found if isinstance(item, AlertBatch)]


def candids(batch: AlertBatch | MatchedAlerts) -> list[int]:
    return (batch.batch if isinstance(batch, MatchedAlerts) else batch).candid.tolist()


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A matcher of which every third lookup fails, or, with `raises`, the whole of it."""

    inner: LocalMatcher
    name: str = "faulty"
    raises: str = ""

    def validate(self) -> None:
        self.inner.validate()

    def match(self, ra: Any, dec: Any) -> Matches:
        if self.raises:
            raise OSError(5, self.raises)
        found = self.inner.match(ra, dec)
        status = found.status.copy()
        status[::3] = FAILED
        errors = pa.array(["the service did not answer" if i % 3 == 0 else None for i in range(len(status))])
        return dataclasses.replace(found, catalog=self.name, status=status, errors=errors)


class TestReadAlerts:
    def test_programmes_repetitions_and_empty_containers(self, sample: Sample, tmp_path: Path) -> None:
        packets = list(packets_of(sample.archive))[:6]
        for number, (packet, programid) in enumerate(zip(packets, (1, 1, 2, 3, 1, 1), strict=True)):
            write_packet(tmp_path / f"{number}.avro", packet, candid=100 + number, programid=programid)
        write_packet(tmp_path / "again.avro", packets[0], candid=101)
        (tmp_path / "bad.avro").write_bytes(b"<html>no alert</html>")
        sources = find_sources([str(tmp_path)])

        def apply(pipeline: beam.Pipeline) -> None:
            found = pipeline | beam.Create(sources) | ReadAlerts(Limits(alerts=2))
            kept = found[BATCHES] | beam.FlatMap(candids)
            letters = found[DEAD_LETTERS] | beam.Map(lambda element: (element[0], element[1].member))
            assert_that(kept, equal_to([100, 101, 104, 105]), label="kept")
            assert_that(letters, equal_to([(sources[0].name, "bad.avro")]), label="letters")

        counts = counted(apply)
        assert (counts.read, counts.filtered, counts.repeated) == (7, 2, 1)

    @pytest.mark.parametrize(("programs", "expected"), [((), 300), ((1,), 300), ((2, 3), 0)])
    def test_counts_of_the_sample(self, sample: Sample, programs: tuple[int, ...], expected: int) -> None:
        def apply(pipeline: beam.Pipeline) -> None:
            found = pipeline | beam.Create(find_sources([str(sample.archive)])) | ReadAlerts(programs=programs)
            sizes = found[BATCHES] | beam.Map(len) | beam.CombineGlobally(sum)
            assert_that(sizes, equal_to([expected]))

        counts = counted(apply)
        assert (counts.read, counts.filtered, counts.empty) == (300, 300 - expected, 1)


class TestCrossmatch:
    def test_matched_and_no_match_are_the_truth(self, sample: Sample) -> None:
        expected = [(c, sample.truth[c][0] if sample.truth[c] else None) for c in sample.truth]  # type: ignore[index]

        def apply(pipeline: beam.Pipeline) -> None:
            found = pipeline | beam.Create(read(sample.archive)) | Crossmatch([LocalMatcher(sample.catalog)])
            answers = found[MATCHED_ALERTS] | beam.FlatMap(
                lambda a: list(zip(candids(a), a.matches[0].columns["AllWISE"].to_pylist(), strict=True))
            )
            assert_that(answers, equal_to(expected), label="answers")
            assert_that(found[DEAD_LETTERS], equal_to([]), label="letters")

        counts = counted(apply)
        matched = sum(match is not None for match in sample.truth.values())
        assert (counts.matched, counts.no_match, counts.failed) == (matched, 300 - matched, 0)
        assert counts.catalogs == {"allwise": matched}

    def test_failing_lookups_become_dead_letters_of_those_alerts_only(self, sample: Sample) -> None:
        batches = read(sample.archive)
        inner = LocalMatcher(sample.catalog)
        fail = [candid for batch in batches for candid in candids(batch)[::3]]
        good = [candid for batch in batches for i, candid in enumerate(candids(batch)) if i % 3]

        def apply(pipeline: beam.Pipeline) -> None:
            found = pipeline | beam.Create(batches) | Crossmatch([inner, Faulty(inner)])
            assert_that(found[MATCHED_ALERTS] | beam.FlatMap(candids), equal_to(good), label="matched")
            told = found[DEAD_LETTERS] | beam.Map(lambda e: (e[1].candid, e[1].stage, e[1].reason))
            wanted = [(candid, "crossmatch", "the service did not answer") for candid in fail]
            assert_that(told, equal_to(wanted), label="letters")

        counts = counted(apply)
        assert (counts.failed, counts.matched + counts.no_match) == (len(fail), len(good))

    def test_impossible_position_fails(self, sample: Sample, tmp_path: Path) -> None:
        write_packet(tmp_path / "a.avro", sample.packet, candid=1, ra=float("nan"))
        write_packet(tmp_path / "b.avro", sample.packet, candid=2)
        write_packet(tmp_path / "c.avro", sample.packet, candid=3, dec=91.0)

        def apply(pipeline: beam.Pipeline) -> None:
            found = pipeline | beam.Create(read(tmp_path)) | Crossmatch([LocalMatcher(sample.catalog)])
            assert_that(found[MATCHED_ALERTS] | beam.FlatMap(candids), equal_to([2]), label="matched")
            assert_that(found[DEAD_LETTERS] | beam.Map(lambda e: e[1].candid), equal_to([1, 3]), label="letters")

        assert counted(apply).failed == 2

    def test_a_matcher_that_raises_stops_the_run(self, sample: Sample) -> None:
        matcher = Faulty(LocalMatcher(sample.catalog), raises="Input/output error")
        with pytest.raises(Exception, match="Input/output error"):
            counted(lambda pipeline: pipeline | beam.Create(read(sample.archive)) | Crossmatch([matcher]))


@pytest.fixture
def matched(sample: Sample) -> list[MatchedAlerts]:
    matcher = LocalMatcher(sample.catalog)
    return [MatchedAlerts(batch, (matcher.match(batch.ra, batch.dec),)) for batch in read(sample.archive)]


class TestWriteAlerts:
    def test_no_name_is_used_twice_when_files_are_rolled(
        self, matched: list[MatchedAlerts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Batches of one portion bear the same number: the files that they begin must not replace each other."""
        monkeypatch.setattr("transforms.writing.MAX_FILE_BYTES", 0)
        halves = [
            MatchedAlerts(alerts.batch.take(rows), tuple(match_rows(match, rows) for match in alerts.matches))
            for alerts in matched
            for rows in np.array_split(np.arange(len(alerts.batch)), 2)
        ]
        counts = counted(lambda p: p | beam.Create(halves, reshuffle=False) | WriteAlerts(tmp_path))
        written = [candid for path in tmp_path.iterdir() for b in read(path) for candid in b.candid.tolist()]
        assert sorted(written) == sorted(c for alerts in matched for c in alerts.batch.candid.tolist())
        assert counts.written == len(written) == 300

    def test_nothing_but_whole_files(self, matched: list[MatchedAlerts], tmp_path: Path) -> None:
        counted(lambda p: p | beam.Create(matched) | WriteAlerts(tmp_path, codec="deflate"))
        assert [path for path in tmp_path.iterdir() if path.suffix != ".avro" or path.name.startswith(".")] == []


def match_rows(matches: Matches, rows: np.ndarray) -> Matches:
    return dataclasses.replace(
        matches,
        status=matches.status[rows],
        separation_arcsec=matches.separation_arcsec[rows],
        columns=matches.columns.take(pa.array(rows)),
        errors=matches.errors.take(pa.array(rows)),
    )


class TestWriteTables:
    def test_refused_rows_are_dead_letters_and_their_neighbours_are_written(
        self, sample: Sample, tmp_path: Path, database: Database, rows_of: Rows
    ) -> None:
        # In two folders, so two units; the letters come back in the order of the tables, not of the units.
        for folder, first in (("a", 1), ("b", 11)):
            place = tmp_path / folder
            write_packet(place / "1.avro", sample.packet, candid=first, objectId=f"ZTF{folder}good")
            write_packet(place / "2.avro", sample.packet, candid=first + 1, objectId="ZTF\0nul")
            write_packet(place / "3.avro", sample.packet, candid=first + 2, objectId="Z" * 9000 + folder + noise())
            write_packet(place / "4.avro", sample.packet, candid=first + 3, objectId=f"ZTF{folder}also")
        matcher = LocalMatcher(sample.catalog)
        batches = read(tmp_path / "a", tmp_path / "b")
        alerts = [MatchedAlerts(batch, (matcher.match(batch.ra, batch.dec),)) for batch in batches]
        out = tmp_path / "run" / "dead_letters"

        def apply(pipeline: beam.Pipeline) -> None:
            stored = pipeline | beam.Create(alerts, reshuffle=False) | WriteTables(database)
            stored[DEAD_LETTERS] | WriteDeadLetters(out, "write")

        counts = counted(apply)
        assert rows_of("SELECT oid FROM object ORDER BY oid") == [
            (f"ZTF{folder}{name}",) for folder in "ab" for name in ("also", "good")
        ]
        assert rows_of("SELECT count(*) FROM xmatch") == [(4,)]
        letters = letters_of(tmp_path / "run")
        assert sorted(letter.candid or 0 for letter in letters) == [2, 3, 12, 13]
        assert counts.dead == 4
        assert all(letter.stage == "write" and letter.reason.startswith("table object") for letter in letters)
        nul = next(letter for letter in letters if letter.candid == 2)
        (tmp_path / "again.avro").write_bytes(nul.payload)
        assert read(tmp_path / "again.avro")[0].object_id.to_pylist() == ["ZTF\0nul"]


def noise() -> str:
    """Text that does not compress: an index entry of it is too long for PostgreSQL."""
    return "".join(chr(0x4E00 + n) for n in np.random.default_rng(1).integers(0, 20000, 6000))


class TestDeadLetters:
    def test_units_that_alternate_lose_nothing(self, tmp_path: Path) -> None:
        letters = [(unit, DeadLetter("write", "r", "s", f"{unit}{i}", b"x")) for i, unit in enumerate("abaab")]
        counted(lambda p: p | beam.Create(letters, reshuffle=False) | WriteDeadLetters(tmp_path, "write"))
        found: dict[str, list[str]] = {"a": [], "b": []}
        for path in sorted(tmp_path.iterdir()):
            found[path.name.partition(".")[0]] += [letter.member for letter in read_dead_letters(path)]
        assert found == {"a": ["a0", "a2", "a3"], "b": ["b1", "b4"]}


class TestRows:
    def test_parts_are_joined_in_order(self, tmp_path: Path) -> None:
        tables = [(unit, pa.table({"x": [i]})) for i, unit in enumerate("bbca")]
        counted(lambda p: p | beam.Create(tables, reshuffle=False) | WriteRows(tmp_path / "parts", lambda e: e))
        output = tmp_path / "all.parquet"
        schema = pa.schema({"x": pa.int64()})
        assert join_parts(tmp_path / "parts", output, schema, as_csv=True) == 4
        assert pq.read_table(output)["x"].to_pylist() == [3, 0, 1, 2]
        assert output.with_suffix(".csv").read_text() == '"x"\n3\n0\n1\n2\n'

    def test_parts_with_other_columns_are_joined_with_nulls(self, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()
        pq.write_table(pa.table({"x": [1], "y": ["one"]}), tmp_path / "parts" / "a.parquet")
        pq.write_table(pa.table({"x": [2]}), tmp_path / "parts" / "b.parquet")
        assert join_parts(tmp_path / "parts", tmp_path / "all.parquet", pa.schema({"x": pa.int64()})) == 2
        assert pq.read_table(tmp_path / "all.parquet").to_pylist() == [{"x": 1, "y": "one"}, {"x": 2, "y": None}]

    def test_no_parts_give_an_empty_table(self, tmp_path: Path) -> None:
        schema = pa.schema({"x": pa.int64()})
        assert join_parts(tmp_path / "parts", tmp_path / "all.parquet", schema) == 0
        assert pq.read_table(tmp_path / "all.parquet").schema.equals(schema)

    def test_catalogues_whose_columns_differ_in_type(self, sample: Sample, tmp_path: Path) -> None:
        batch = read(sample.archive)[0]
        matchers = []
        for name, identifiers in (("numbers", pa.array([7])), ("texts", pa.array(["seven"]))):
            source = {"id": identifiers, "ra": [batch.ra[0]], "dec": [batch.dec[0]]}
            pq.write_table(pa.table(source), tmp_path / f"{name}.parquet")
            matchers.append(
                LocalMatcher(build_catalog(tmp_path / f"{name}.parquet", tmp_path / name, name=name, version="1"))
            )
        alerts = MatchedAlerts(batch, tuple(matcher.match(batch.ra, batch.dec) for matcher in matchers))
        table = crossmatches_of_alerts(alerts)
        assert table["id"][0].as_py() == 7
        assert table["texts_id"][len(batch)].as_py() == "seven"


def test_nothing_is_shuffled(sample: Sample, tmp_path: Path) -> None:
    sources = [Source(name, name, (name,)) for name in ("a", "b", "c")]
    job = XmatchJob(tuple(sources), (LocalMatcher(sample.catalog),), tmp_path, Database("postgresql://nobody@none/x"))
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build(pipeline, job)
    transforms = pipeline.to_runner_api().components.transforms.values()
    urns = {transform.spec.urn for transform in transforms}
    assert "beam:transform:pardo:v1" in urns
    assert not [urn for urn in urns if "group_by_key" in urn or "reshuffle" in urn]


def test_archive_of_the_sample_is_what_the_tests_think(sample: Sample) -> None:
    with tarfile.open(sample.archive) as tar:
        assert len(tar.getnames()) == 305
