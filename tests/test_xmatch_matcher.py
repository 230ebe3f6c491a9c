"""The local matcher against CDS's answers, against brute force, and its laws."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from xmatch.catalog import Catalog, CatalogError, build_catalog
from xmatch.matcher import (
    FAILED,
    MATCHED,
    NO_MATCH,
    LocalMatcher,
    k_nearest,
    match_all,
    nearest,
    validate_matchers,
)
from xmatch.reference import angular_separation_arcsec, brute_force_nearest
from xmatch.search import MAX_RADIUS_ARCSEC, separations_arcsec

Builder = Callable[..., Catalog]

# CDS publishes its positions with 7 decimals but computes angDist from more digits: half a unit of the last decimal in
# both coordinates is what an angDist computed from the published positions may differ by.
CDS_ROUNDING_ARCSEC = 0.5e-7 * 3600.0 * np.sqrt(2.0)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Build a catalogue from positions and identifiers, in a folder used anew each time."""
    folder = tmp_path_factory.mktemp("sky")

    def build_from(ra: Sequence[float], dec: Sequence[float], identifiers: Sequence[str] | Sequence[int]) -> Catalog:
        kind = pa.int64() if len(identifiers) and isinstance(identifiers[0], int) else pa.string()
        table = pa.table(
            {
                "id": pa.array(identifiers, kind),
                "ra": pa.array(ra, pa.float64()),
                "dec": pa.array(dec, pa.float64()),
            }
        )
        pq.write_table(table, folder / "sky.parquet")
        return build_catalog(folder / "sky.parquet", folder / "catalog", name="sky", version="1")

    return build_from


@pytest.fixture(scope="module")
def cds(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    answers = shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv"
    return build_catalog(answers, tmp_path_factory.mktemp("cds") / "allwise", name="allwise", version="2013-11")


class TestAgainstCds:
    def test_every_position_has_the_answer_of_cds(self, cds: Catalog, shared_data: Path) -> None:
        positions = pacsv.read_csv(shared_data / "xmatch" / "positions.csv")
        answers = pacsv.read_csv(shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv")
        number = {source: i for i, source in enumerate(answers["id_in"].to_pylist())}
        truth = [number.get(source) for source in positions["id"].to_pylist()]
        matches = LocalMatcher(cds).match(positions["ra"].to_numpy(), positions["dec"].to_numpy())

        expected_status = np.array([NO_MATCH if i is None else MATCHED for i in truth])
        assert np.array_equal(matches.status, expected_status)
        assert np.count_nonzero(expected_status == NO_MATCH) == 57
        expected = answers.take(pa.array(truth, pa.int64()))
        for name in cds.columns:
            assert matches.columns[name].to_pylist() == expected[name].to_pylist(), name
        difference = np.abs(matches.separation_arcsec - expected["angDist"].to_numpy())
        assert np.nanmax(difference) <= CDS_ROUNDING_ARCSEC
        assert np.array_equal(np.isnan(matches.separation_arcsec), expected_status == NO_MATCH)

    def test_separation_is_that_of_the_published_positions(self, cds: Catalog, shared_data: Path) -> None:
        answers = pacsv.read_csv(shared_data / "xmatch" / "cds_allwise_best_1arcsec.csv")
        ra, dec = answers["ra_in"].to_numpy(), answers["dec_in"].to_numpy()
        expected = angular_separation_arcsec(ra, dec, answers["RAJ2000"].to_numpy(), answers["DEJ2000"].to_numpy())
        assert nearest(cds, ra, dec, 1.0)[1] == pytest.approx(expected, rel=0, abs=1e-9)

    def test_alerts(self, shared_data: Path, tmp_path: Path) -> None:
        path = shared_data / "xmatch" / "alerts_with_allwise_match.csv"
        catalog = build_catalog(path, tmp_path / "allwise", name="allwise")
        alerts = pacsv.read_csv(path)
        matches = LocalMatcher(catalog).match(alerts["ra_in"].to_numpy(), alerts["dec_in"].to_numpy())
        assert len(matches.status) == 10
        assert set(matches.status) == {MATCHED}
        assert matches.columns["AllWISE"].to_pylist() == alerts["AllWISE"].to_pylist()
        assert matches.separation_arcsec == pytest.approx(alerts["angDist"].to_numpy(), rel=0, abs=CDS_ROUNDING_ARCSEC)
        assert catalog.rows == len(set(alerts["AllWISE"].to_pylist())) < 10
        assert catalog.manifest["duplicates"] == 10 - catalog.rows


CENTRES = [(0.0, 0.0), (0.0, 90.0), (123.4, -90.0), (359.9999, 60.0), (10.0, 1.0 / 360.0), (200.0, -89.9), (77.7, 33.3)]
STEPS_ARCSEC = st.sampled_from([0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 20.0]) | st.floats(-3000.0, 3000.0)
POINTS = st.tuples(st.sampled_from(CENTRES), STEPS_ARCSEC, STEPS_ARCSEC, st.booleans())


def place(points: list[tuple[tuple[float, float], float, float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions around the centres; where the last value is set, on the other side of the sky in right ascension."""
    ra, dec = [], []
    for (centre_ra, centre_dec), east, north, turned in points:
        declination = min(90.0, max(-90.0, centre_dec + north / 3600.0))
        shrink = max(np.cos(np.radians(declination)), 1e-4)
        right_ascension = centre_ra + east / 3600.0 / shrink + (180.0 if turned and abs(centre_dec) > 89 else 0.0)
        ra.append(float(np.mod(right_ascension, 360.0) % 360.0))
        dec.append(declination)
    return np.array(ra, np.float64), np.array(dec, np.float64)


def all_neighbours(
    ra: np.ndarray, dec: np.ndarray, source_ra: np.ndarray, source_dec: np.ndarray, radius: float
) -> list[list[tuple[float, int]]]:
    """Separations and numbers of all sources within the radius, nearest first, by the matcher's own formula.

    Sources are in the order of their identifiers.
    """
    answers = []
    count = len(source_ra)
    for i in range(len(ra)):
        angle = separations_arcsec(np.full(count, ra[i]), np.full(count, dec[i]), source_ra, source_dec)
        answers.append(sorted((float(angle[j]), j) for j in range(count) if angle[j] <= radius))
    return answers


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


class TestAgainstBruteForce:
    @settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    @given(
        sources=st.lists(POINTS, max_size=30),
        positions=st.lists(POINTS, min_size=1, max_size=20),
        radius=st.sampled_from([1e-6, 0.25, 1.0, 20.0, 60.0, 1000.0, 3600.0, MAX_RADIUS_ARCSEC]),
        numeric=st.booleans(),
        k=st.sampled_from([1, 2, 5, None]),
    )
    def test_random_skies(self, build: Builder, sources, positions, radius, numeric, k) -> None:
        source_ra, source_dec = place(sources)
        ra, dec = place(positions)
        # Given in the reverse order of the identifiers, so that the order of the input cannot decide a tie.
        ids = list(range(len(sources))) if numeric else [f"J{i:03d}" for i in range(len(sources))]
        catalog = build(source_ra[::-1], source_dec[::-1], ids[::-1])
        rows, separation = nearest(catalog, ra, dec, radius)
        found = catalog.take(rows)["id"].to_pylist()

        expected = all_neighbours(ra, dec, source_ra, source_dec, radius)
        assert found == [ids[answer[0][1]] if answer else None for answer in expected]
        assert np.array_equal(separation, [answer[0][0] if answer else np.nan for answer in expected], equal_nan=True)

        neighbours = k_nearest(catalog, ra, dec, radius, k)
        assert np.array_equal(neighbours.offsets, np.cumsum([0, *(len(answer[:k]) for answer in expected)]))
        flat = [pair for answer in expected for pair in answer[:k]]
        assert catalog.take(neighbours.rows)["id"].to_pylist() == [ids[j] for _, j in flat]
        assert neighbours.separation_arcsec.tolist() == [angle for angle, _ in flat]

        _, brute_separation = brute_force_nearest(ra, dec, source_ra, source_dec, ids, radius)
        for i in range(len(ra)):
            if np.isnan(brute_separation[i]) or found[i] is None:
                either = separation[i] if found[i] is not None else brute_separation[i]
                assert np.isnan(either) or either == pytest.approx(radius, rel=1e-9)
                continue
            assert separation[i] == pytest.approx(brute_separation[i], rel=1e-8, abs=1e-9)
            j = ids.index(found[i])
            chosen = angular_separation_arcsec(ra[i], dec[i], source_ra[j], source_dec[j])
            assert chosen == pytest.approx(brute_separation[i], rel=1e-8, abs=1e-9)

    def test_dense_sky_has_the_neighbours_of_a_tree(self, build: Builder) -> None:
        random = np.random.default_rng(7)
        count = 30_000
        source_ra = np.mod(random.normal(0.0, 0.05, count), 360.0)
        source_dec = 40.0 + random.normal(0.0, 0.05, count)
        catalog = build(source_ra, source_dec, [f"{i:06d}" for i in range(count)])
        ra = np.mod(random.normal(0.0, 0.08, 5_000), 360.0)
        dec = 40.0 + random.normal(0.0, 0.08, 5_000)
        for radius in (1.0, 30.0):
            bound = 2.0 * np.sin(np.radians(radius / 3600.0) / 2.0)
            _, neighbour = cKDTree(unit_vectors(source_ra, source_dec)).query(
                unit_vectors(ra, dec), distance_upper_bound=bound
            )
            rows, _ = nearest(catalog, ra, dec, radius)
            found = [None if name is None else int(name) for name in catalog.take(rows)["id"].to_pylist()]
            assert found == [None if j == count else int(j) for j in neighbour]

    def test_neighbour_in_the_plane_of_coordinates_is_not_taken(self, build: Builder) -> None:
        shrink = np.cos(np.radians(85.0))
        catalog = build([100.0 + 0.3 / 3600 / shrink, 100.0], [85.0, 85.0 + 0.9 / 3600], ["east", "north"])
        rows, separation = nearest(catalog, [100.0], [85.0], 1.0)
        assert catalog.take(rows)["id"].to_pylist() == ["east"]
        assert separation[0] == pytest.approx(0.3, abs=1e-6)


def longdouble_separation(ra1: np.ndarray, dec1: np.ndarray, ra2: np.ndarray, dec2: np.ndarray) -> np.ndarray:
    """Angle in arcseconds by Vincenty's formula, written for close pairs, in extended precision."""
    degree = np.arctan(np.longdouble(1)) / 45
    half_turn = (np.asarray(ra2, np.longdouble) - ra1) * degree / 2
    tilt = (np.asarray(dec2, np.longdouble) - dec1) * degree
    dec1, dec2 = dec1 * degree, dec2 * degree
    across = np.cos(dec2) * np.sin(2 * half_turn)
    along = np.sin(tilt) + 2 * np.sin(dec1) * np.cos(dec2) * np.sin(half_turn) ** 2
    forward = np.sin(dec1) * np.sin(dec2) + np.cos(dec1) * np.cos(dec2) * np.cos(2 * half_turn)
    return np.arctan2(np.hypot(across, along), forward) / degree * 3600


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no extended precision here")
@pytest.mark.parametrize("size_arcsec", [1.0, 100.0, 7140.0, 7200.0, MAX_RADIUS_ARCSEC, 170 * 3600.0])
def test_separation_has_full_precision(size_arcsec: float) -> None:
    random = np.random.default_rng(11)
    dec1 = np.degrees(np.arcsin(random.uniform(-1, 1, 2_000)))
    ra1 = random.uniform(0, 360, 2_000)
    bearing = random.uniform(0, 2 * np.pi, 2_000)
    dec2 = np.clip(dec1 + size_arcsec / 3600 * np.cos(bearing), -90, 90)
    ra2 = np.mod(ra1 + size_arcsec / 3600 * np.sin(bearing) / np.maximum(np.cos(np.radians(dec1)), 0.01), 360)
    expected = longdouble_separation(ra1, dec1, ra2, dec2)
    assert np.max(np.abs(separations_arcsec(ra1, dec1, ra2, dec2) / expected - 1)) < 3e-15


@pytest.fixture(scope="module")
def sky(build: Builder) -> tuple[Catalog, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    count = 4_000
    catalog = build(
        random.uniform(0, 360, count),
        np.degrees(np.arcsin(random.uniform(-1, 1, count))),
        [f"{i}" for i in range(count)],
    )
    return catalog, random.uniform(-400, 800, 1_001), np.degrees(np.arcsin(random.uniform(-1, 1, 1_001)))


class TestLaws:
    @pytest.mark.parametrize("size", [1, 7, 32, 500])
    def test_batch_size_and_order_do_not_matter(self, sky, size: int) -> None:
        catalog, ra, dec = sky
        rows, separation = nearest(catalog, ra, dec, 3000.0)
        assert 0 < np.count_nonzero(rows >= 0) < len(ra)
        order = np.random.default_rng(size).permutation(len(ra))
        parts = [order[i : i + size] for i in range(0, len(ra), size)]
        answers = [nearest(catalog, ra[part], dec[part], 3000.0) for part in parts]
        assert np.array_equal(np.concatenate([answer[0] for answer in answers]), rows[order])
        assert np.array_equal(np.concatenate([answer[1] for answer in answers]), separation[order], equal_nan=True)

    @pytest.mark.parametrize("radius", [0.5, 60.0, 3000.0])
    def test_k_nearest_begins_with_nearest(self, sky, radius: float) -> None:
        catalog, ra, dec = sky
        rows, separation = nearest(catalog, ra, dec, radius)
        for k in (1, 3, None):
            answer = k_nearest(catalog, ra, dec, radius, k)
            some = np.diff(answer.offsets) > 0
            assert np.array_equal(some, rows >= 0)
            assert np.array_equal(answer.rows[answer.offsets[:-1][some]], rows[some])
            assert np.array_equal(answer.separation_arcsec[answer.offsets[:-1][some]], separation[some])

    def test_many_neighbours(self, sky) -> None:
        catalog, _, _ = sky
        ra, dec = np.array([10.0, np.nan, 200.0]), np.array([89.0, 0.0, -20.0])
        every = k_nearest(catalog, ra, dec, MAX_RADIUS_ARCSEC)
        tree = cKDTree(unit_vectors(*catalog.index.positions.T))
        chord = 2.0 * np.sin(np.radians(MAX_RADIUS_ARCSEC / 3600.0) / 2.0)
        for i in (0, 2):
            rows = every.rows[every.offsets[i] : every.offsets[i + 1]]
            assert sorted(rows) == sorted(tree.query_ball_point(unit_vectors(ra[i], dec[i]), chord))
            assert len(rows) > 10
            assert np.all(np.diff(every.separation_arcsec[every.offsets[i] : every.offsets[i + 1]]) >= 0)
        assert every.offsets[1] == every.offsets[2]
        few = k_nearest(catalog, ra, dec, MAX_RADIUS_ARCSEC, 7)
        assert np.array_equal(few.rows[:7], every.rows[:7])
        assert few.offsets.tolist() == [0, 7, 7, 14]

    def test_dense_block_has_more_pairs_than_room(self, build: Builder) -> None:
        random = np.random.default_rng(5)
        source_ra, source_dec = random.uniform(10, 10.02, 3_000), random.uniform(5, 5.02, 3_000)
        catalog = build(source_ra, source_dec, list(range(3_000)))
        ra, dec = random.uniform(10, 10.02, 600), random.uniform(5, 5.02, 600)
        rows, separation = nearest(catalog, ra, dec, 50.0)
        expected = all_neighbours(ra, dec, source_ra, source_dec, 50.0)
        assert catalog.take(rows)["id"].to_pylist() == [answer[0][1] for answer in expected]
        assert separation.tolist() == [answer[0][0] for answer in expected]

    def test_strided_input(self, sky) -> None:
        catalog, ra, dec = sky
        assert np.array_equal(nearest(catalog, ra[::2], dec[::2], 3000.0)[0], nearest(catalog, ra, dec, 3000.0)[0][::2])

    def test_radius_is_inclusive(self, build: Builder) -> None:
        catalog = build([10.0], [20.0], ["a"])
        distance = nearest(catalog, [10.0001], [20.0001], 10.0)[1][0]
        assert nearest(catalog, [10.0001], [20.0001], distance)[0].tolist() == [0]
        assert nearest(catalog, [10.0001], [20.0001], np.nextafter(distance, 0.0))[0].tolist() == [-1]

    def test_smallest_identifier_of_equals(self, build: Builder) -> None:
        catalog = build([5.0, 5.0, 5.0], [-3.0, -3.0, -3.0], ["b", "a", "ab"])
        assert catalog.take(nearest(catalog, [5.0], [-3.0], 1.0)[0])["id"].to_pylist() == ["a"]
        catalog = build([5.0, 5.0], [-3.0, -3.0], [10, 9])
        assert catalog.take(nearest(catalog, [5.0], [-3.0], 1.0)[0])["id"].to_pylist() == [9]

    def test_tie_across_zones(self, build: Builder) -> None:
        edge = 10.0 + 1.0 / 360.0
        step = 2.0**-20
        catalog = build([5.0, 5.0], [edge + step, edge - step], ["a", "b"])
        above, below = (
            nearest(build([5.0], [edge + sign * step], ["x"]), [5.0], [edge], 10.0)[1][0] for sign in (1, -1)
        )
        assert above == below
        catalog = build([5.0, 5.0], [edge + step, edge - step], ["a", "b"])
        assert catalog.take(nearest(catalog, [5.0], [edge], 10.0)[0])["id"].to_pylist() == ["a"]
        catalog = build([5.0, 5.0], [edge + step, edge - step], ["b", "a"])
        assert catalog.take(nearest(catalog, [5.0], [edge], 10.0)[0])["id"].to_pylist() == ["a"]

    @pytest.mark.parametrize("ra", [-0.0001, 359.9999, 719.9999, 360.0, -1e-20, 0.0])
    def test_right_ascension_is_a_circle(self, build: Builder, ra: float) -> None:
        catalog = build([0.0], [0.0], ["a"])
        assert nearest(catalog, [ra], [0.0], 1.0)[0].tolist() == [0]

    def test_whole_circle_at_the_pole(self, build: Builder) -> None:
        catalog = build([0.0, 90.0, 180.0, 270.0], [90.0 - 1e-4] * 4, ["a", "b", "c", "d"])
        ra = [1.0, 91.0, 181.0, 271.0]
        rows, _ = nearest(catalog, ra, [90.0 - 1e-4] * 4, 1.0)
        assert catalog.take(rows)["id"].to_pylist() == ["a", "b", "c", "d"]
        assert catalog.take(nearest(catalog, [33.0], [90.0], 0.5)[0])["id"].to_pylist() == ["a"]

    def test_empty_catalogue(self, build: Builder) -> None:
        matches = LocalMatcher(build([], [], [])).match([1.0, np.nan], [2.0, 2.0])
        assert matches.status.tolist() == [NO_MATCH, FAILED]
        assert matches.columns.num_rows == 2

    def test_no_positions(self, sky) -> None:
        matches = LocalMatcher(sky[0]).match([], [])
        assert matches.columns.num_rows == len(matches.status) == len(matches.errors) == 0


class TestMatcher:
    def test_invalid_positions_fail(self, build: Builder) -> None:
        catalog = build([10.0], [20.0], ["a"])
        ra = [10.0, np.nan, 10.0, np.inf, 10.0, 50.0, 10.0]
        dec = [20.0, 20.0, np.nan, 20.0, 90.1, 20.0, -np.inf]
        matches = LocalMatcher(catalog).match(ra, dec)
        expected = [MATCHED, FAILED, FAILED, FAILED, FAILED, NO_MATCH, FAILED]
        assert matches.status.dtype == np.int8
        assert matches.status.tolist() == expected
        assert [error is not None for error in matches.errors.to_pylist()] == [s == FAILED for s in expected]
        assert "dec 90.1" in matches.errors[4].as_py()
        assert matches.columns["id"].to_pylist() == ["a"] + [None] * 6
        assert matches.columns["ra"].null_count == 6
        assert (matches.catalog, matches.catalog_version) == ("sky", "1")
        assert matches.catalog_created == catalog.created

    def test_columns_and_path(self, cds: Catalog) -> None:
        matcher = LocalMatcher(cds.path, columns=["W2mag", "AllWISE"])
        matcher.validate()
        matches = pickle.loads(pickle.dumps(matcher)).match([190.38112], [26.04266])
        assert matches.columns.column_names == ["W2mag", "AllWISE"]
        assert matches.columns.to_pylist() == [{"W2mag": 10.444, "AllWISE": "J124131.46+260233.6"}]

    @pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf, 36000.1])
    def test_bad_radius(self, cds: Catalog, radius: float) -> None:
        with pytest.raises(ValueError, match="radius must be above 0 and at most 36000 arcsec"):
            LocalMatcher(cds, radius).validate()
        with pytest.raises(ValueError, match="radius"):
            nearest(cds, [0.0], [0.0], radius)

    def test_unknown_column_and_missing_catalogue(self, cds: Catalog, tmp_path: Path) -> None:
        with pytest.raises(CatalogError, match="allwise has no column W9mag; its columns are: AllWISE, RAJ2000"):
            LocalMatcher(cds, columns=["W9mag"]).validate()
        with pytest.raises(CatalogError, match="not a catalogue"):
            LocalMatcher(tmp_path / "nothing").validate()

    def test_memory_does_not_grow_with_batches(self, sky) -> None:
        catalog, ra, dec = sky
        matcher = LocalMatcher(catalog, 10.0)
        process = psutil.Process()
        for _ in range(20):
            matcher.match(ra, dec)
        before = process.memory_info().rss
        for _ in range(300):
            matcher.match(ra, dec)
        # A single batch takes 60 kB: were it kept, 300 of them would take 18 MB.
        assert process.memory_info().rss - before < 6e6

    def test_number_of_neighbours_must_be_positive(self, cds: Catalog) -> None:
        with pytest.raises(ValueError, match="neighbours must be at least 1, not 0"):
            k_nearest(cds, [0.0], [0.0], 1.0, 0)

    def test_unequal_lengths(self, cds: Catalog) -> None:
        with pytest.raises(ValueError, match="equally long"):
            nearest(cds, [1.0, 2.0], [1.0], 1.0)

    def test_several_catalogues(self, cds: Catalog, tmp_path: Path) -> None:
        (tmp_path / "near.csv").write_text("id,ra,dec\nx1,190.3811,26.0427\n")
        near = LocalMatcher(build_catalog(tmp_path / "near.csv", tmp_path / "near", name="near"))
        matchers = [LocalMatcher(cds), near]
        validate_matchers(matchers)
        matches = match_all(matchers, [190.38112, 0.0], [26.04266, 0.0])
        assert [m.catalog for m in matches] == ["allwise", "near"]
        assert [m.status.tolist() for m in matches] == [[1, 0], [1, 0]]
        with pytest.raises(ValueError, match="Two catalogues have the name near"):
            validate_matchers([near, *matchers])
