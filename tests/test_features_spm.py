"""Supernova parametric model, and the trust-region search against SciPy's."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, random_curves, take
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from lightcurves.features import spm, spm_reference, trust_region
from lightcurves.features.curves import Mode
from lightcurves.features.trust_region import FAILED, OUT_OF_EVALUATIONS, fit_bounded, forward_differences


@numba.njit
def decay(x, data, out):
    t, y = data
    for i in range(len(t)):
        out[i] = x[0] * np.exp(-x[1] * t[i]) + x[2] - y[i]


def decay_values(x, data):
    out = np.empty(len(data[0]))
    decay(x, data, out)
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.floats(0.1, 5), st.floats(0.05, 3), st.floats(-1, 1), st.sampled_from([1e-8, 1e-3, 0.3])
)
def test_follows_scipy(seed, height, rate, level, tolerance):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0, 5, 12))
    data = (t, height * np.exp(-rate * t) + level + rng.normal(0, 0.1, 12))
    low, high = np.array([0.5, 0.1, -0.5]), np.array([3.0, 2.0, 0.5])
    start = low + (high - low) * rng.choice([0.0, 0.1, 0.5, 1.0], 3)
    found = least_squares(decay_values, start, args=(data,), bounds=(low, high), ftol=tolerance)
    x, cost, status = fit_bounded(decay, forward_differences, data, 12, start, low, high, tolerance, 300)
    assert cost == pytest.approx(found.cost, rel=1e-6)
    np.testing.assert_allclose(x, found.x, rtol=1e-4, atol=1e-6)
    assert (status > 0) == found.success


def test_fails_where_scipy_raises():
    data = (np.arange(4.0), np.ones(4))
    low, high, start = np.zeros(3), np.ones(3), np.full(3, 0.5)

    def status(start, low, high, data, evaluations=100):
        return fit_bounded(decay, forward_differences, data, 4, start, low, high, 1e-8, evaluations)[2]

    assert status(start, low, high, data) > 0
    assert status(start * 3, low, high, data) == FAILED
    assert status(low, low, low, data) == FAILED
    assert status(start, low, high, (data[0], data[1] * np.inf)) == FAILED
    assert status(start, low, high, data, 2) == OUT_OF_EVALUATIONS


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 2))
def test_singular_values_are_those_of_lapack(seed, defects):
    rng = np.random.default_rng(seed)
    tall = rng.normal(size=(20, 6)) * 10.0 ** rng.uniform(-6, 6, 6)
    tall[:, :defects] = tall[:, -1:]
    right = rng.normal(size=20)
    factor, left, vectors, values = np.empty((6, 6)), np.empty((6, 6)), np.empty((6, 6)), np.empty(6)
    rows, transformed = tall.T.copy(), right.copy()
    trust_region._triangularise(rows, factor, transformed)
    np.testing.assert_allclose(factor.T @ factor, tall.T @ tall, atol=1e-9 * np.sum(tall**2))
    np.testing.assert_allclose(factor.T @ transformed[:6], tall.T @ right, atol=1e-9 * np.max(np.abs(tall)))
    trust_region._singular_values(factor, left, vectors, values)
    largest = np.max(values)
    np.testing.assert_allclose(np.sort(values)[::-1], np.linalg.svd(tall)[1], atol=1e-12 * largest)
    np.testing.assert_allclose(left * values @ vectors.T, factor, atol=1e-12 * largest)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_analytic_derivatives(seed):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 150, 20)
    low, high = np.array([0.3, -50, 1, 0, 1, 1]), np.array([3.0, 50, 100, 1, 100, 100])
    x = rng.uniform(low, high)
    data, values, exact = (t, np.zeros(20)), np.empty(20), np.empty((6, 20))
    spm._residuals(x, data, values)
    np.testing.assert_allclose(values, spm_reference.model(t, *x), rtol=1e-9, atol=1e-300)
    spm._jacobian(spm._residuals, data, x, low, high, values, exact)
    rounding = 1e-10 * (1.0 + np.max(np.abs(values)))
    for number, derivatives in enumerate(exact):
        # Short for the model, and long for the rounding of its terms near 1.
        step = np.zeros(6)
        step[number] = 1e-4 * max(1.0, abs(x[number]))
        slopes = (spm_reference.model(t, *(x + step)) - spm_reference.model(t, *(x - step))) / (2 * step[number])
        np.testing.assert_allclose(derivatives, slopes, rtol=1e-4, atol=1e-5 * np.max(np.abs(derivatives)) + rounding)


def test_golden_values(shared_data):
    assert_golden(spm.FAMILY, shared_data, {}, {"rtol": 5e-3})


@pytest.mark.filterwarnings("error")
def test_stops_where_scipy_stops():
    curves = random_curves(3, 210)
    expected = spm.FAMILY.reference(curves, Mode.ALERCE, {})
    got = spm.compute(curves, Mode.ALERCE, {})
    for name, values in got.items():
        assert np.array_equal(np.isnan(values), np.isnan(expected[name])), name
        wrong = np.abs(values - expected[name]) > 1e-3 * np.abs(expected[name]) + 1e-9
        # Two or three points leave most of the parameters to rounding.
        assert np.sum(wrong) <= 3, name


@pytest.mark.filterwarnings("error")
def test_accurate_mode_fits_at_least_as_well():
    curves = random_curves(4, 42)
    fits = [spm.compute(curves, mode, {}) for mode in Mode]
    fits.append(spm.FAMILY.reference(curves, Mode.ACCURATE, {}))
    stopped, got, expected = (np.stack(list(fit.values())[:6], axis=-1).reshape(-1, 6) for fit in fits)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    for row in np.flatnonzero(np.isfinite(got[:, 0])):
        points = slice(curves.offsets[row], curves.offsets[row + 1])
        t = curves.mjd[points] - curves.mjd[points.start]
        flux = 10 ** (26 - (curves.difference_magnitude[points] + 48.6) / 2.5)
        ours, scipys, alerces = (
            np.sum((spm_reference.model(t, *fit[row]) - flux) ** 2) for fit in (got, expected, stopped)
        )
        assert ours <= scipys * 1.01 + 1e-6 * np.sum(flux**2)
        assert ours <= alerces * 1.001 + 1e-6 * np.sum(flux**2)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("magnitude", [1e30, -1e30, 200.0, -200.0, 1e300, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_fluxes_out_of_range(mode, magnitude):
    curves = take(random_curves(0, 1), [0])
    far = replace(curves, difference_magnitude=np.full_like(curves.difference_magnitude, magnitude))
    values = np.stack(list(spm.compute(far, mode, {}).values()))
    if abs(magnitude) > 1e3:
        assert np.all(np.isnan(values))


def test_independent_of_batch():
    assert_independent_of_batch(spm.FAMILY, random_curves(5, 42), {})
