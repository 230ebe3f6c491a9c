"""Damped random walk, and L-BFGS against SciPy's L-BFGS-B."""

import numba
import numpy as np
import pytest
from features_fixtures import assert_golden, assert_independent_of_batch, golden_curves, golden_features, random_curves
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lightcurves.features import drw, drw_reference
from lightcurves.features.curves import Mode
from lightcurves.features.lbfgs import minimize_lbfgs

NAMES = ("GP_DRW_sigma", "GP_DRW_tau")


@numba.njit
def valley(x, data):
    total = 0.0
    for i in range(len(x) - 1):
        total += data[0] * (x[i + 1] - x[i] ** 2) ** 2 + (1.0 - x[i]) ** 2
    return total


@numba.njit
def bowl(x, data):
    a, b, c = data
    return a * (x[0] - 3.0) ** 2 + b * (x[1] + 1.0) ** 2 + c * (x[0] - 3.0) * (x[1] + 1.0) + np.cosh(x[0] / 10.0)


def band(curves, row):
    points = slice(curves.offsets[row], curves.offsets[row + 1])
    return curves.mjd[points], curves.magnitude[points], curves.error[points]


def prepared(t, m, e):
    return np.diff(t - t[0]), m - np.mean(m), e * e, np.empty(len(t)), np.empty(len(t))


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(-1, 1), st.floats(-5, 5), st.floats(-5, 5))
def test_finds_the_minimum_of_scipy(a, b, slant, x, y):
    data, start = (a, b, slant * np.sqrt(a * b)), np.array([x, y])
    found = minimize(bowl, start, args=(data,), method="L-BFGS-B")
    at, value = minimize_lbfgs(bowl, data, start)
    np.testing.assert_allclose(value, found.fun, rtol=0, atol=1e-6)
    if abs(slant) < 0.9:
        np.testing.assert_allclose(at, found.x, rtol=0, atol=2e-3)


@pytest.mark.parametrize("start", [[-1.2, 1.0], [0.0, 0.0], [3.0, -4.0], [-1.2, 1.0, 2.0], [0.5, -3.0, 2.0, 1.0]])
@pytest.mark.parametrize("steepness", [1.0, 100.0])
def test_follows_scipy_through_a_curved_valley(start, steepness):
    found = minimize(valley, np.array(start), args=((steepness,),), method="L-BFGS-B")
    at, value = minimize_lbfgs(valley, (steepness,), np.array(start))
    np.testing.assert_allclose(at, found.x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, found.fun, rtol=1e-2, atol=1e-10)


def test_stops_where_scipy_stops():
    curves = random_curves(11, 210)
    differences, values = [], []
    for row in np.flatnonzero(np.diff(curves.offsets)):
        data = prepared(*band(curves, row))
        found = minimize(drw._negative_log_likelihood, np.zeros(2), args=(data,), method="L-BFGS-B")
        at, value = minimize_lbfgs(drw._negative_log_likelihood, data, np.zeros(2))
        values.append(abs(value - found.fun) / max(1.0, abs(value)))
        differences.append(np.max(np.abs(at - found.x)))
    # The rest stop on a plateau, where the rounding of the differences decides.
    assert np.quantile(differences, 0.5) < 1e-6
    assert np.quantile(differences, 0.8) < 1e-3
    assert np.quantile(values, 0.98) < 1e-6


def test_likelihood_is_that_of_the_whole_covariance():
    curves = random_curves(2, 21)
    for row in np.flatnonzero(np.diff(curves.offsets)):
        t, m, e = band(curves, row)
        if np.max(np.abs(m)) > 100 or not 1e-4 < np.min(e) < 1:
            continue
        for log_a, log_c in [(0.0, 0.0), (-3.0, 2.0), (1.0, -4.0)]:
            covariance = np.exp(log_a - np.exp(log_c) * np.abs(t[:, None] - t)) + np.diag(e**2)
            y = m - np.mean(m)
            expected = 0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
            logarithms = np.array([log_a, log_c])
            assert drw._negative_log_likelihood(logarithms, prepared(t, m, e)) == pytest.approx(expected, rel=1e-6)
            assert drw_reference.negative_log_likelihood(t, m, e)(logarithms) == pytest.approx(expected, rel=1e-6)
            decay = np.exp(-np.diff(t) * np.exp(log_c))
            constant = 0.5 * len(t) * np.log(2 * np.pi)
            assert drw._deviance(log_a, (decay, y, e**2)) + constant == pytest.approx(expected, rel=1e-6)


def test_golden_values(shared_data):
    # One time is decided by ALeRCE's rounding: changes of 1e-16 in its input scatter it by 4 percent.
    assert_golden(drw.FAMILY, shared_data, {"GP_DRW_sigma": {"rtol": 1e-4}, "GP_DRW_tau": {"rtol": 5e-2}})
    golden = golden_features(shared_data)
    tau = drw.compute(golden_curves(shared_data)[1], Mode.ALERCE, {})["GP_DRW_tau"]
    error = np.abs(tau / golden[["GP_DRW_tau_1", "GP_DRW_tau_2"]].to_numpy() - 1)
    assert np.sum(error > 5e-3) <= 1


@pytest.mark.filterwarnings("error")
def test_agrees_with_the_reference_where_alerce_stops():
    curves = random_curves(3, 63)
    expected = drw.FAMILY.reference(curves, Mode.ALERCE, {})
    got = drw.compute(curves, Mode.ALERCE, {})
    present = np.diff(curves.offsets).reshape(-1, 2) > 0
    for name, share in zip(NAMES, (0.95, 0.8), strict=True):
        assert np.array_equal(np.isnan(got[name]), np.isnan(expected[name]))
        close = np.isclose(got[name], expected[name], rtol=1e-3, atol=0)
        assert np.mean(close[present]) > share


@pytest.mark.filterwarnings("error")
def test_accurate_mode_is_at_least_as_likely_as_the_reference():
    curves = random_curves(7, 42, longest=40)
    expected = drw.FAMILY.reference(curves, Mode.ACCURATE, {})
    got = drw.compute(curves, Mode.ACCURATE, {})
    for name in NAMES:
        assert np.array_equal(np.isnan(got[name]), np.isnan(expected[name]))
    for row in np.flatnonzero(np.isfinite(got["GP_DRW_tau"].ravel())):
        objective = drw_reference.negative_log_likelihood(*band(curves, row))
        ours, theirs = (
            objective(np.log([fit["GP_DRW_sigma"].ravel()[row], 1 / fit["GP_DRW_tau"].ravel()[row]]))
            for fit in (got, expected)
        )
        assert ours <= theirs + 1e-3


def test_accurate_mode_recovers_a_strong_random_walk():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(20):
        t = np.sort(rng.uniform(0, 1500, 300))
        covariance = 0.09 * np.exp(-np.abs(t[:, None] - t) / 30.0) + np.diag(np.full(300, 1e-4))
        y = np.linalg.cholesky(covariance) @ rng.normal(size=300)
        found.append(drw._most_likely(np.diff(t), y - y.mean(), np.full(300, 1e-4)))
    variance, time = np.median(found, axis=0)
    assert 0.07 < variance < 0.11
    assert 22 < time < 40


def test_white_noise_has_the_shortest_time():
    rng = np.random.default_rng(4)
    t = np.arange(60) * 1.0
    y = rng.normal(0, 1, 60)
    y -= np.array([np.mean(y[i % 2 :: 2]) for i in range(60)])
    y *= np.where(np.arange(60) % 2 == 0, 1, -1) * np.sign(y)
    assert drw._most_likely(np.diff(t), y - y.mean(), np.full(60, 1e-4))[1] == pytest.approx(drw.SHORTEST_DAYS)


def test_independent_of_batch():
    assert_independent_of_batch(drw.FAMILY, random_curves(5, 42), {})
