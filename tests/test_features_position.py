"""Galactic position, scores and colours against their reference, astropy and the golden values."""

from dataclasses import replace
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take

from lightcurves.features.curves import Curves, Mode
from lightcurves.features.position import FAMILY, icrs_to_galactic

pytestmark = pytest.mark.filterwarnings("error")


def test_golden_values(shared_data: Path):
    # The golden means of difference magnitudes were added up in float32.
    assert_golden(FAMILY, shared_data, {"g-r_mean": {"rtol": 0, "atol": 1e-5}}, default={"rtol": 1e-7})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(3))
def test_equals_reference(mode: Mode, seed: int):
    curves = random_curves(seed)
    got, expected = FAMILY.compute(curves, mode, {}), FAMILY.reference(curves, mode, {})
    assert set(got) == set(FAMILY.per_object) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_any_batch_gives_the_same_bits():
    assert_independent_of_batch(FAMILY, random_curves(9), {})


def at(ra: np.ndarray, dec: np.ndarray) -> Curves:
    """Objects with one point in g each, at given positions in degrees."""
    rows = np.full(len(ra), 19)
    curves = take(random_curves(0), rows)
    return replace(curves, ra=np.asarray(ra, np.float64), dec=np.asarray(dec, np.float64))


@pytest.mark.parametrize("mode", Mode)
def test_rotation_equals_that_of_astropy(mode: Mode):
    rng = np.random.default_rng(5)
    ra = np.concatenate([rng.uniform(0, 360, 2000), [0, 359.999999, 192.8594812, 266.4, 10, 10]])
    dec = np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, 2000))), [0, 1e-9, 27.12825, -28.9, 90, -90]])
    got = FAMILY.compute(at(ra, dec), mode, {})
    expected = SkyCoord(ra * u.deg, dec * u.deg, frame="icrs").galactic
    np.testing.assert_allclose(got["gal_b"], expected.b.deg, atol=1e-9, rtol=0)
    turned = np.mod(got["gal_l"] - expected.l.deg + 180, 360) - 180
    np.testing.assert_allclose(turned * np.cos(expected.b.rad), 0, atol=1e-9)
    assert np.all((got["gal_l"] >= 0) & (got["gal_l"] < 360))


def test_matrix_is_a_rotation():
    np.testing.assert_allclose(icrs_to_galactic() @ icrs_to_galactic().T, np.identity(3), atol=1e-15)


def test_mean_across_the_meridian():
    curves = take(random_curves(0), [0])
    n = len(curves.ra)
    ra = np.where(np.arange(n) % 2, 359.9999, 0.0001)[: n - n % 2]
    curves = replace(curves, ra=np.resize(ra, n), dec=np.full(n, 30.0))
    expected = SkyCoord(0 * u.deg, 30 * u.deg).galactic
    accurate = FAMILY.compute(curves, Mode.ACCURATE, {})
    np.testing.assert_allclose(accurate["gal_b"], expected.b.deg, atol=1e-3)
    wrong = SkyCoord(curves.ra.mean() * u.deg, 30 * u.deg).galactic
    np.testing.assert_allclose(FAMILY.compute(curves, Mode.ALERCE, {})["gal_b"], wrong.b.deg, atol=1e-9)


def test_colors_that_correction_leaves_as_they_are_stay_out():
    curves = take(random_curves(0), [0, 0])
    first = slice(0, curves.offsets[2])
    curves.magnitude[first] = curves.difference_magnitude[first]
    got = FAMILY.compute(curves, Mode.ALERCE, {})
    for name in ("g-r_max", "g-r_mean"):
        assert np.array_equal(np.isnan(got[f"{name}_corr"]), [True, False])
        assert not np.isnan(got[name]).any()


def test_colors_need_their_bands_and_wise():
    curves = take(random_curves(0), [0, 2, 3])
    curves = replace(curves, wise=np.array([[12.0, np.nan, 11], [12, 11.5, 11], [np.nan, 11.5, 11]]))
    got = FAMILY.compute(curves, Mode.ACCURATE, {})
    present = {name: list(~np.isnan(values)) for name, values in got.items()}
    assert present["W1-W2"] == [False, True, False]
    assert present["W2-W3"] == [False, True, True]
    assert present["g-W2"] == [False, True, False]
    assert present["g-W3"] == [True, True, False]
    assert present["r-W2"] == [False, False, True]
    assert present["r-W3"] == [True, False, True]
    assert present["g-r_max"] == present["g-r_mean_corr"] == [True, False, False]
    assert got["W1-W2"][1] == 0.5


def test_points_without_score_do_not_count_for_it():
    curves = take(random_curves(0), [0, 2])
    middle = curves.offsets[2]
    curves.rb[: middle - 3] = np.nan
    curves.rb[middle - 3 : middle] = [0.9, 0.6, 0.7]
    curves.rb[middle:] = np.nan
    got, expected = FAMILY.compute(curves, Mode.ALERCE, {}), FAMILY.reference(curves, Mode.ALERCE, {})
    assert np.array_equal(got["rb"], [0.7, np.nan], equal_nan=True)
    assert np.array_equal(expected["rb"], got["rb"], equal_nan=True)
