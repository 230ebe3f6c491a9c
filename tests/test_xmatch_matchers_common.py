"""What all matchers must do alike: CDS's own answers through each of them, and the laws of the interface."""

import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from remote_fixtures import FAST, FakeCds, FakeCrossWave, Sky, serving
from service_fixtures import running_server

from xmatch.cache import CachedMatcher
from xmatch.catalog import build_catalog
from xmatch.cds import CdsMatcher
from xmatch.crosswave import CrossWaveMatcher
from xmatch.matcher import FAILED, MATCHED, NO_MATCH, LocalMatcher, Matcher
from xmatch.sources import ALLWISE_COLUMNS

# See tests/test_xmatch_matcher.py.
CDS_ROUNDING_ARCSEC = 0.5e-7 * 3600.0 * np.sqrt(2.0)
BATCHED = ("local", "cds", "cached cds", "crosswave", "extended crosswave", "own service", "own service, upper case")
SINGLE = ("crosswave without index", "crosswave with structs", "crosswave in upper case")
FORMS = {
    "crosswave": "present",
    "extended crosswave": "extended",
    "crosswave without index": "no index",
    "crosswave with structs": "structs",
    "crosswave in upper case": "upper",
}


@dataclass(frozen=True)
class Truth:
    """Positions and CDS's answer for each, or None."""

    ra: np.ndarray
    dec: np.ndarray
    answers: pa.Table
    rows: list[int | None]


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> Truth:
    positions = pacsv.read_csv(shared_data / "xmatch" / "positions.csv")
    answers = pacsv.read_csv(shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv")
    number = {source: i for i, source in enumerate(answers["id_in"].to_pylist())}
    rows = [number.get(source) for source in positions["id"].to_pylist()]
    return Truth(positions["ra"].to_numpy(), positions["dec"].to_numpy(), answers, rows)


@pytest.fixture(scope="module")
def matchers(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Matcher]]:
    """Every kind of matcher over the same sources."""
    folder, path = tmp_path_factory.mktemp("matchers"), shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv"
    sky = Sky.read(path)
    catalog = build_catalog(path, folder / "allwise", name="allwise", version="2013-11")
    with ExitStack() as stack:
        cds = CdsMatcher(service_url=stack.enter_context(serving(FakeCds(sky))), http=FAST, batch_rows=1000)
        crosswaves = {
            name: CrossWaveMatcher(stack.enter_context(serving(FakeCrossWave(sky, form))), http=FAST, batch_rows=1000)
            for name, form in FORMS.items()
        }
        for name, form in (("own service", "present"), ("own service, upper case", "upper")):
            url, _ = stack.enter_context(running_server([catalog], json_format=form))
            crosswaves[name] = CrossWaveMatcher(url, http=FAST, batch_rows=1000)
        cached = CachedMatcher(cds, folder / "cache")
        yield {"local": LocalMatcher(catalog), "cds": cds, "cached cds": cached, **crosswaves}


@pytest.mark.parametrize(("kind", "step"), [(kind, 1) for kind in BATCHED] + [(kind, 20) for kind in SINGLE])
def test_every_position_has_the_answer_of_cds(matchers: dict[str, Matcher], truth: Truth, kind: str, step: int) -> None:
    matcher = matchers[kind]
    matcher.validate()
    rows = truth.rows[::step]
    matches = matcher.match(truth.ra[::step], truth.dec[::step])
    assert np.array_equal(matches.status, [NO_MATCH if row is None else MATCHED for row in rows])
    assert step > 1 or np.bincount(matches.status).tolist() == [57, 2732]
    expected = truth.answers.take(pa.array(rows, pa.int64()))
    assert matches.columns.column_names == list(ALLWISE_COLUMNS)
    for name in ALLWISE_COLUMNS:
        assert matches.columns[name].to_pylist() == expected[name].to_pylist(), name
        assert matches.columns[name].type == (pa.string() if name == "AllWISE" else pa.float64())
    difference = np.abs(matches.separation_arcsec - expected["angDist"].to_numpy())
    assert np.nanmax(difference) <= CDS_ROUNDING_ARCSEC
    assert np.array_equal(np.isnan(matches.separation_arcsec), matches.status == NO_MATCH)
    assert matches.errors.null_count == len(rows)
    assert matches.catalog == matcher.name == "allwise"


@pytest.mark.parametrize("kind", BATCHED + SINGLE)
class TestLaws:
    def test_no_positions(self, matchers: dict[str, Matcher], kind: str) -> None:
        matches = matchers[kind].match([], [])
        full = matchers[kind].match([190.38112], [26.04266])
        assert len(matches.status) == len(matches.errors) == matches.columns.num_rows == 0
        assert matches.columns.schema == full.columns.schema
        assert full.columns["AllWISE"].to_pylist() == ["J124131.46+260233.6"]

    def test_positions_that_do_not_exist_fail_alone(
        self, matchers: dict[str, Matcher], truth: Truth, kind: str
    ) -> None:
        ra, dec = truth.ra[:40].copy(), truth.dec[:40].copy()
        ra[3], dec[5], dec[7], ra[9] = np.nan, np.nan, 90.5, np.inf
        matches = matchers[kind].match(ra, dec)
        bad = [3, 5, 7, 9]
        assert np.flatnonzero(matches.status == FAILED).tolist() == bad
        for i in bad:
            assert "no such position" in matches.errors[i].as_py()
            assert set(matches.columns.slice(i, 1).to_pylist()[0].values()) == {None}
        good = np.delete(np.arange(40), bad)
        alone = matchers[kind].match(truth.ra[good], truth.dec[good])
        assert np.array_equal(matches.status[good], alone.status)
        assert matches.columns.take(pa.array(good)).equals(alone.columns)
        assert np.array_equal(matches.separation_arcsec[good], alone.separation_arcsec, equal_nan=True)

    def test_order_and_repetition_do_not_matter(self, matchers: dict[str, Matcher], truth: Truth, kind: str) -> None:
        order = np.array([7, 3, 3, 11, 0, 7, 20, 3])
        once = matchers[kind].match(truth.ra[:21], truth.dec[:21])
        again = matchers[kind].match(truth.ra[order], truth.dec[order])
        assert np.array_equal(again.status, once.status[order])
        assert np.array_equal(again.separation_arcsec, once.separation_arcsec[order], equal_nan=True)
        assert again.columns.equals(once.columns.take(pa.array(order)))

    def test_right_ascensions_are_taken_modulo_360(self, matchers: dict[str, Matcher], truth: Truth, kind: str) -> None:
        here = matchers[kind].match(truth.ra[:5], truth.dec[:5])
        there = matchers[kind].match(truth.ra[:5] - 360.0, truth.dec[:5])
        assert there.columns.equals(here.columns)
        assert there.separation_arcsec == pytest.approx(here.separation_arcsec, abs=1e-6)

    def test_a_pickle_matches_alike(self, matchers: dict[str, Matcher], truth: Truth, kind: str) -> None:
        used = matchers[kind].match(truth.ra[:9], truth.dec[:9])
        copy = pickle.loads(pickle.dumps(matchers[kind]))
        assert copy.match(truth.ra[:9], truth.dec[:9]).columns.equals(used.columns)

    def test_shapes_are_checked(self, matchers: dict[str, Matcher], kind: str) -> None:
        with pytest.raises(ValueError, match="equally long"):
            matchers[kind].match([1.0, 2.0], [3.0])
