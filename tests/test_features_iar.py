"""Irregular autoregressive feature, and Brent's method against SciPy's."""

import numba
import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lightcurves.features import iar
from lightcurves.features.bounded_scalar import minimize_bounded
from lightcurves.features.curves import Mode


@numba.njit
def wave(x, data):
    amplitude, frequency, centre = data
    return (x - centre) ** 2 + amplitude * np.cos(frequency * x)


@numba.njit
def steps(x, data):
    return np.floor(abs(x - data[0]) * 8.0)


@numba.njit
def undefined(x, data):
    return np.nan


@settings(deadline=None)
@given(st.floats(0, 3), st.floats(0, 60), st.floats(-2, 3), st.floats(-3, 0), st.floats(0.01, 4))
def test_visits_the_points_of_scipy(amplitude, frequency, centre, low, width):
    data, bounds = (amplitude, frequency, centre), (low, low + width)
    found = minimize_scalar(wave, args=(data,), bounds=bounds, method="bounded", options={"xatol": 1e-12})
    assert minimize_bounded(wave, data, *bounds, 1e-12, 500) == (found.x, found.fun)


@pytest.mark.parametrize("centre", [0.0, 0.3, 0.99, 5.0])
def test_plateaus_lead_where_they_lead_scipy(centre):
    found = minimize_scalar(steps, args=((centre,),), bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    assert minimize_bounded(steps, (centre,), 0.0, 1.0, 1e-12, 500)[0] == found.x


def test_undefined_function_leaves_the_first_point():
    found = minimize_scalar(undefined, args=((0.0,),), bounds=(0, 1), method="bounded")
    assert minimize_bounded(undefined, (0.0,), 0.0, 1.0, 1e-12, 500)[0] == found.x


def test_evaluations_are_limited():
    found = minimize_scalar(wave, args=((1.0, 40.0, 0.1),), bounds=(0, 1), method="bounded", options={"maxiter": 5})
    assert minimize_bounded(wave, (1.0, 40.0, 0.1), 0.0, 1.0, 1e-5, 5)[0] == found.x


def test_golden_values(shared_data):
    assert_golden(iar.FAMILY, shared_data, {"IAR_phi": {"rtol": 0, "atol": 1e-5}})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.filterwarnings("error")
def test_agrees_with_the_reference(mode):
    curves = random_curves(3, 42)
    expected = iar.FAMILY.reference(curves, mode, {})["IAR_phi"]
    got = iar.compute(curves, mode, {})["IAR_phi"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    points = np.diff(curves.offsets).reshape(-1, 2)
    assert np.all(np.isnan(got[points < 6]))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_accurate_mode_finds_no_higher_a_valley(seed):
    curves = random_curves(seed, 21, longest=30)
    local, best = (iar.compute(curves, mode, {})["IAR_phi"].ravel() for mode in Mode)
    for row in np.flatnonzero(np.isfinite(best)):
        points = slice(curves.offsets[row], curves.offsets[row + 1])
        magnitude, deviation = curves.magnitude[points], np.std(curves.magnitude[points], ddof=1)
        y, variance = (magnitude - magnitude.mean()) / deviation, (curves.error[points] / deviation) ** 2
        data = (np.diff(curves.mjd[points]), y, variance)
        lower = iar._objective(best[row], data) <= iar._objective(local[row], data) + 1e-9
        # Brent's method resolves phi no finer, and at 1 the deviance is steep.
        assert lower or abs(best[row] - local[row]) < 4 * np.sqrt(np.finfo(float).eps)


def test_equal_magnitudes():
    curves = random_curves(0, 21)
    bands = np.split(curves.magnitude, curves.offsets[1:-1])
    equal = [len(band) > 5 and np.ptp(band) == 0 for band in bands]
    assert np.any(equal)
    assert np.all(np.abs(iar.compute(curves, Mode.ALERCE, {})["IAR_phi"].ravel()[equal] - 0.381966) < 1e-6)
    assert np.all(np.isnan(iar.compute(curves, Mode.ACCURATE, {})["IAR_phi"].ravel()[equal]))


def test_independent_of_batch():
    assert_independent_of_batch(iar.FAMILY, random_curves(5, 42), {})
