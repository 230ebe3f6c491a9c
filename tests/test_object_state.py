"""Light curves of a stream against those of all alerts at once; restarts, repetitions and what the origins know."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.utils.timestamp import Timestamp
from stream_fixtures import in_bundles, in_one_bundle

from alerts.batch import AlertBatch
from alerts.reader import Limits, read_source
from alerts.sources import find_sources
from database.client import Database
from database.light_curves import packed_rows
from lightcurves.batch import LightCurveBatch
from lightcurves.packed import KEY_BYTES, lasting_rows, pack_by_alert, pack_by_object, unpack
from lightcurves.store import LightCurveStore, StoreRows
from simulation import simulate_sample
from transforms import object_state
from transforms.crossmatch import MatchedAlerts
from transforms.kept_rows import kept_rows, store_to_database
from transforms.light_curve_tables import light_curve_tables
from transforms.light_curves import assemble_chunks, chunks, slim_rows, wise_rows
from transforms.object_state import KeepLightCurves, LightCurvesByObject, News, ObjectState, merge
from transforms.origins import Origins
from xmatch.matcher import MATCHED, NO_MATCH, Matches

FOUND: list[LightCurveBatch] = []
LETTERS: list[Any] = []


def matched(batch: AlertBatch) -> MatchedAlerts:
    """Alerts with an AllWISE match for every second one, by its candid."""
    found = batch.candid % 2 == 0
    columns = {name: pa.array(np.where(found, 10.0 + batch.candid % 7, np.nan)) for name in ("W1mag", "W2mag", "W3mag")}
    status = np.where(found, MATCHED, NO_MATCH).astype(np.int8)
    separation = np.where(found, (batch.candid % 11) / 11, np.nan)
    errors = pa.nulls(len(batch), pa.string())
    return MatchedAlerts(batch, (Matches("allwise", "1", "", status, separation, pa.table(columns), errors),))


def alerts_of(paths: Iterable[Path], size: int) -> list[AlertBatch]:
    found = [item for s in find_sources(map(str, paths)) for item in read_source(s, Limits(size, 1 << 26))]
    return [item for item in found if isinstance(item, AlertBatch)]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    return Path(simulate_sample(folder, alerts=120, bad_members=0, cutouts=False, seed=4).night.archive)


@pytest.fixture(scope="module")
def batches(night: Path) -> list[MatchedAlerts]:
    return [matched(batch) for batch in alerts_of([night], 30)]


def reference(batches: Sequence[MatchedAlerts]) -> LightCurveBatch:
    """What AssembleLightCurves makes of them, in one bucket."""
    return assemble_chunks(0, [chunk for batch in batches for _, chunk in chunks(batch, 1)])


def of_objects(batch: LightCurveBatch) -> dict[str, list[pa.Table]]:
    """Tables of each object."""
    parts = []
    for rows in batch.to_arrow().values():
        number = pc.index_in(rows["oid"], value_set=batch.oid).to_numpy()
        ends = np.searchsorted(number, np.arange(len(batch) + 1))
        parts.append([rows.slice(start, end - start) for start, end in pairwise(ends)])
    return {oid: list(tables) for oid, *tables in zip(batch.oid.to_pylist(), *parts, strict=True)}


def assert_equal(found: dict[str, list[pa.Table]], expected: dict[str, list[pa.Table]]) -> None:
    for oid, tables in found.items():
        assert all(one.equals(other) for one, other in zip(tables, expected[oid], strict=True)), oid


def last_of(found: Sequence[LightCurveBatch]) -> dict[str, list[pa.Table]]:
    return {oid: tables for batch in found for oid, tables in of_objects(batch).items()}


def assert_last_are(found: Sequence[LightCurveBatch], expected: LightCurveBatch) -> None:
    last, whole = last_of(found), of_objects(expected)
    assert last.keys() == whole.keys()
    assert_equal(last, whole)


def collect(batch: LightCurveBatch) -> None:
    FOUND.append(batch)


def collect_letter(letter: Any) -> None:
    LETTERS.append(letter)


def streamed(
    alerts: Sequence[MatchedAlerts], origins: Origins, write: bool = False, days_apart: float = 0.01, **options: Any
) -> list[LightCurveBatch]:
    """Light curves in the order in which they come out of a pipeline that gets each batch in a bundle of its own."""
    FOUND.clear()
    LETTERS.clear()
    timed = [(batch, 1_700_000_000 + number * days_apart * 86400) for number, batch in enumerate(alerts)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        out = pipeline | in_bundles(timed) | LightCurvesByObject(origins, **options)
        if write and origins.database is not None:
            letters = out["kept"] | KeepLightCurves(origins.database, "stream")
            letters["dead_letters"] | beam.Map(collect_letter)
        out["light_curves"] | beam.Map(collect)
    return list(FOUND)


def at_once(alerts: Sequence[MatchedAlerts], origins: Origins, **options: Any) -> list[LightCurveBatch]:
    """The same with all batches in one bundle."""
    FOUND.clear()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        out = pipeline | in_one_bundle(alerts) | LightCurvesByObject(origins, **options)
        out["light_curves"] | beam.Map(collect)
    return list(FOUND)


def shuffled(batches: Sequence[MatchedAlerts], seed: int) -> list[MatchedAlerts]:
    return [batches[k] for k in np.random.default_rng(seed).permutation(len(batches))]


class TestOrders:
    """The light curves at the end are those of all alerts at once."""

    @pytest.mark.parametrize("size", [11, 50])
    def test_simulated_night(self, night: Path, batches: list[MatchedAlerts], size: int) -> None:
        expected = reference(batches)
        parts = [matched(batch) for batch in alerts_of([night], size)]
        order = shuffled([*parts, *parts[::2]], 1)
        assert_last_are(streamed(order, Origins(), objects_per_batch=20), expected)
        assert_last_are(at_once(parts, Origins(), objects_per_batch=9), expected)

    def test_real_objects(self, shared_data: Path) -> None:
        paths = sorted((shared_data / "alerts" / "objects").iterdir())
        assert len(paths) > 1
        one_by_one = shuffled([matched(batch) for batch in alerts_of(paths, 1)], 2)
        expected = reference(one_by_one)
        assert len(expected) == len(paths)
        assert_last_are(at_once([*one_by_one, *one_by_one[:9]], Origins()), expected)
        parts = [matched(batch) for batch in alerts_of(paths, 20)]
        assert_last_are(streamed([*parts[1::2], *parts[::-1]], Origins()), expected)

    def test_each_batch_gives_its_objects_once(self, batches: list[MatchedAlerts]) -> None:
        found = streamed(batches, Origins())
        assert [len(batch) for batch in found] == [len(batch.batch.object_id.unique()) for batch in batches]
        known = [reference(batches[: number + 1]) for number in range(len(batches))]
        for batch, before in zip(found, known, strict=True):
            assert_equal(of_objects(batch), of_objects(before))

    def test_repeated_alerts_give_nothing(self, batches: list[MatchedAlerts]) -> None:
        assert len(streamed([*batches, *batches[::-1]], Origins())) == len(batches)


class TestRestarts:
    """A process begins with what another one, or a backfill, left."""

    def test_from_the_database(self, batches: list[MatchedAlerts], database: Database) -> None:
        streamed(batches[:3], Origins(None, database), write=True)
        found = streamed([batches[2], *batches[3:]], Origins(None, database), write=True)
        whole = reference(batches)
        touched = {oid for batch in found for oid in batch.oid.to_pylist()}
        assert touched == {oid for part in batches[2:] for oid in part.batch.object_id.to_pylist()}
        assert_equal(last_of(found), of_objects(whole))
        assert packed_rows(database, whole.oid.to_pylist()) == {
            row["oid"]: row["rows"] for row in kept_rows(lasting_rows(every_row(batches))).to_pylist()
        }
        assert LETTERS == []

    def test_objects_whose_rows_were_written_and_no_more_come_again(
        self, batches: list[MatchedAlerts], database: Database, rows_of: Callable[[str], list]
    ) -> None:
        first = streamed(batches, Origins(None, database), write=True)
        before = rows_of("SELECT oid, xmin::text, rows FROM light_curve ORDER BY 1")
        again = streamed(batches, Origins(None, database), write=True)
        assert [batch.oid for batch in again] == [batch.oid for batch in first]
        assert_last_are(again, reference(batches))
        assert rows_of("SELECT oid, xmin::text, rows FROM light_curve ORDER BY 1") == before

    @pytest.mark.parametrize("folded", [True, False])
    def test_from_a_store(self, batches: list[MatchedAlerts], tmp_path: Path, folded: bool) -> None:
        store = stored(batches[:3], tmp_path / "store", folded)
        found = streamed(batches[3:], Origins(store))
        assert_same_rows(found, batches)

    def test_from_a_store_copied_to_the_database(
        self, batches: list[MatchedAlerts], tmp_path: Path, database: Database, rows_of: Callable[[str], list]
    ) -> None:
        store = stored(batches[:3], tmp_path / "store", True)
        assert store_to_database(store, database) == len(reference(batches[:3]))
        before = rows_of("SELECT oid, xmin::text FROM light_curve ORDER BY 1")
        store_to_database(store, database)
        assert rows_of("SELECT oid, xmin::text FROM light_curve ORDER BY 1") == before
        assert_same_rows(streamed(batches[3:], Origins(None, database)), batches)
        assert_same_rows(streamed(batches[3:], Origins(store, database)), batches)

    def test_from_the_tables_of_alerce(self, batches: list[MatchedAlerts], database: Database) -> None:
        known = reference(batches[:3])
        tables = light_curve_tables(known, "step")
        database.write_step("step", "test", "1")
        database.write(tables)
        oids = known.oid.to_pylist()
        database.write(
            {
                "allwise": pa.table({"oid_catalog": ["J1"], "ra": [1.0], "dec": [2.0], "w1mpro": [11.5]}),
                "xmatch": pa.table(
                    {"oid": oids[:2], "catid": ["allwise"] * 2, "oid_catalog": ["J1"] * 2, "dist": [0.25] * 2}
                ),
            }
        )
        origins = Origins(None, database)
        found = light_curves(origins.rows_of([*oids, "unknown"]))
        assert found.oid.to_pylist() == oids
        for name in (
            "candid",
            "mjd",
            "fid",
            "magpsf",
            "magpsf_corr",
            "sigmapsf_corr_ext",
            "corrected",
            "dubious",
            "ra",
        ):
            measured = known.detections.filter(pc.invert(known.detections["forced"]))
            assert found.detections[name].equals(measured[name]), name
        assert found.non_detections.select(["oid", "fid", "mjd", "diffmaglim"]).equals(
            known.non_detections.select(["oid", "fid", "mjd", "diffmaglim"])
        )
        assert found.objects["W1mag"].to_pylist()[:3] == [11.5, 11.5, None]
        streamed(batches[:1], origins, write=True)
        packed = packed_rows(database, oids)
        assert {*packed} == {*batches[0].batch.object_id.to_pylist()}
        # From now on these are what is known of them.
        assert {oid: origins.rows_of(oids)[oid] for oid in packed} == packed

    def test_forgotten_objects_are_found_again(self, batches: list[MatchedAlerts], database: Database) -> None:
        options: dict[str, Any] = {"write": True, "days_apart": 3.0}
        found = streamed([*batches, batches[0]], Origins(None, database), **options)
        assert_last_are(found, reference(batches))
        # The first objects have been forgotten, so that their alerts count as new.
        assert len(found) == len(batches) + 1
        for objects_kept, expected in ((1000, 0), (5, 1)):
            options |= {"expiry_days": 99, "objects_kept": objects_kept}
            found = streamed([*batches, batches[0]], Origins(None, database), **options)
            assert len(found) == len(batches) + expected
            assert_last_are(found, reference(batches))


def every_row(batches: Sequence[MatchedAlerts]) -> StoreRows:
    blobs = [c.blob for b in batches for c in pack_by_alert(StoreRows(*slim_rows(b.batch), wise_rows(b)))]
    return unpack(blobs)


def light_curves(states: Any) -> LightCurveBatch:
    return object_state.light_curves_of(states.values())[1]


def stored(batches: Sequence[MatchedAlerts], folder: Path, folded: bool) -> Path:
    store = LightCurveStore.open(folder, 4)
    with store.append("unit") as unit:
        for batch in batches:
            unit.add(StoreRows(*slim_rows(batch.batch), wise_rows(batch)))
        unit.commit()
    for bucket in range(4 if folded else 0):
        store.fold(bucket, 1, ["unit"])
    if folded:
        store.remove_incoming(["unit"])
    return folder


def assert_same_rows(found: Sequence[LightCurveBatch], batches: Sequence[MatchedAlerts]) -> None:
    last = last_of(found)
    assert last
    assert_equal(last, of_objects(reference(batches)))


class TestMerging:
    """The state of one object."""

    @pytest.fixture
    def news(self, batches: list[MatchedAlerts]) -> list[News]:
        rows = every_row(batches)
        of_one = pack_by_alert(rows)
        oid = max({chunk.oid for chunk in of_one}, key=[chunk.oid for chunk in of_one].count)
        found = [News([(chunk.key, chunk.blob)], None) for chunk in of_one if chunk.oid == oid]
        assert len(found) > 1
        return found

    def test_bytes(self, news: list[News]) -> None:
        for history in (None, b"", news[0].chunks[0][1]):
            for brought in ([], [*news[0].chunks, *news[1].chunks]):
                assert News.from_bytes(News(brought, history).to_bytes()) == News(brought, history)
        state = ObjectState(-(2**60), 5, b"12345678" * 3, b"rows")
        assert ObjectState.from_bytes(state.to_bytes()) == state

    def test_what_is_known_is_no_news(self, news: list[News]) -> None:
        state = merge(None, news[0], 7, lambda: b"")
        assert state is not None
        assert merge(state, news[0], 8, never) is None
        more = merge(state, News([*news[0].chunks, *news[1].chunks], b"ignored"), 5, never)
        assert more is not None
        assert more.newest_us == 7
        assert more.rows == state.rows + news[1].chunks[0][1]

    def test_the_first_is_news_even_if_the_history_has_it(self, news: list[News]) -> None:
        key, blob = news[0].chunks[0]
        for state in (merge(None, news[0], 7, lambda: blob), merge(None, News([(key, blob)], blob), 7, never)):
            assert state is not None
            assert light_curves({"": state.rows}).detections.equals(light_curves({"": blob}).detections)

    def test_a_state_stays_small(self, batches: list[MatchedAlerts]) -> None:
        rows = StoreRows(*slim_rows(batches[0].batch), wise_rows(batches[0]))
        chunk = pack_by_alert(rows)[0]
        state, most = merge(None, News([(chunk.key, chunk.blob)], b""), 0, never), 0
        for number in range(400):
            assert state is not None
            key = number.to_bytes(8, "little")
            state = merge(state, News([(key, chunk.blob)], None), number, never)
            most = max(most, len(state.to_bytes()) if state else 0)
        alone = pack_by_object(rows)[chunk.oid]
        assert most < 3 * max(len(alone), object_state._UNTHINNED_BYTES)
        assert state is not None
        assert light_curves({"": state.rows}).detections.equals(light_curves({"": chunk.blob}).detections)


def never() -> bytes:
    raise AssertionError("the origins were asked")


class Cell:
    """State of one object."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


@dataclass(frozen=True)
class Told(Origins):
    """Origins that know one thing of every object."""

    rows: bytes = b""

    def rows_of(self, oids: Sequence[str]) -> dict[str, bytes]:
        return dict.fromkeys(oids, self.rows)


def test_what_was_asked_before_an_object_was_forgotten_is_not_believed() -> None:
    """On Flink the next alert may ask the origins while the one before is still on its way to the state."""
    first, second, cell = (b"1" * KEY_BYTES, b"first"), (b"2" * KEY_BYTES, b"second"), Cell()
    keep = object_state._Keep(Told(rows=first[1]), shuffled=True)
    forget = b"\x02" + (1_000_000).to_bytes(8, "little")
    found = []
    for data in (News([first], b"").to_bytes(), forget, News([second], b"").to_bytes()):
        keep.start_bundle()
        found += keep.process(("a", data), Timestamp(1), cell)
    assert found == [("a", b"first"), ("a", b"firstsecond")]


@pytest.mark.parametrize("options", [{"expiry_days": 0}, {"objects_per_batch": 0}, {"objects_kept": 0}])
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        LightCurvesByObject(Origins(), **options)
