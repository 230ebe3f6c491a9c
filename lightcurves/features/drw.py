"""Damped random walk: variance and correlation time of the Gaussian process that best explains a light curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import drw_reference as reference
from lightcurves.features.bounded_scalar import minimize_bounded, minimize_bounded_within
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.lbfgs import minimize_lbfgs
from lightcurves.features.numeric import compiled, pairwise_sum

_LOG_TWO_PI = math.log(2.0 * math.pi)

# Where the accurate mode looks: correlation times in days, and variances in units of that of the magnitudes.
SHORTEST_DAYS, LONGEST_DAYS = 1e-2, 1e4
LEAST_VARIANCE, GREATEST_VARIANCE = 1e-6, 1e3
_LOG_TIMES = np.log(10.0 ** np.linspace(-2.0, 4.0, 13))
_LOG_VARIANCES = np.log(10.0 ** np.linspace(-6.0, 3.0, 19))
_TOLERANCE = 1e-7
# Difference of ln L that decides nothing.
_INDIFFERENCE = 1e-4
_MOST_EVALUATIONS = 100


@compiled
def _negative_log_likelihood(logarithms, data):
    """Of the logarithms of variance and inverse time: celerite's factorisation of the covariance.

    D. Foreman-Mackey et al. 2017, AJ 154, 220, for the single real term a exp(-c dt). Its order of operations is kept:
    the forward differences of the search feel the rounding.
    """
    gap, y, noise, pivots, squares = data
    n = len(y)
    a, c = math.exp(logarithms[0]), math.exp(logarithms[1])
    pivot, residual, carried, predicted = a + noise[0], y[0], 0.0, 0.0
    weight = 1.0 / pivot
    pivots[0], squares[0] = math.log(pivot), residual * residual / pivot
    for i in range(1, n):
        decay = math.exp(-c * gap[i - 1])
        carried = decay * (carried + pivot * weight * weight) * decay
        predicted = decay * (predicted + weight * residual)
        shared = a * carried
        pivot = (a + noise[i]) - shared * a
        if pivot <= 0.0:
            return np.inf
        weight = (1.0 - shared) / pivot
        residual = y[i] - a * predicted
        pivots[i] = math.log(pivot)
        squares[i] = residual * residual / pivot
    return -(-0.5 * (pairwise_sum(pivots) + n * _LOG_TWO_PI) - 0.5 * pairwise_sum(squares))


@compiled
def _deviance(log_variance, data):
    """As `_negative_log_likelihood`, by the Kalman recursion and with the decays given: no exponential per point."""
    decay, y, noise = data
    a = math.exp(log_variance)
    state, uncertainty = 0.0, a
    logarithms = squares = 0.0
    product = 1.0
    for i in range(len(y)):
        if i > 0:
            state *= decay[i - 1]
            uncertainty = a + decay[i - 1] * decay[i - 1] * (uncertainty - a)
        total = uncertainty + noise[i]
        residual = y[i] - state
        squares += residual * residual / total
        state += uncertainty / total * residual
        uncertainty *= noise[i] / total
        product *= total
        if not 1e-100 < product < 1e100:
            logarithms += math.log(product)
            product = 1.0
    return 0.5 * (logarithms + math.log(product) + squares)


@compiled
def _set_decays(log_time, gap, decay):
    rate = math.exp(-log_time)
    for i in range(len(gap)):
        decay[i] = math.exp(-gap[i] * rate)


@compiled
def _best_variance(log_time, data):
    """Logarithm of the most likely variance for one time between two bounds, and the deviance."""
    gap, decay, y, noise, low, high = data
    _set_decays(log_time, gap, decay)
    return minimize_bounded_within(_deviance, (decay, y, noise), low, high, _TOLERANCE, _MOST_EVALUATIONS)


@compiled
def _profile(log_time, data):
    return _best_variance(log_time, data)[1]


@compiled
def _most_likely(gap, y, noise):
    """Variance and time of the highest peak within the bounds: a grid, then the profile over time refined.

    A likelihood that hardly depends on the time, or not even on the variance, has no peak: the least of each then.
    """
    scale = pairwise_sum(y * y) / len(y)
    if not scale > 0.0:
        return np.nan, np.nan
    decay = np.empty(len(gap))
    variances = math.log(scale) + _LOG_VARIANCES
    best_time, best_variance, lowest = -1, -1, np.inf
    for i in range(len(_LOG_TIMES)):
        _set_decays(_LOG_TIMES[i], gap, decay)
        for k in range(len(variances)):
            value = _deviance(variances[k], (decay, y, noise))
            if value < lowest:
                best_time, best_variance, lowest = i, k, value
    if best_time < 0:
        return np.nan, np.nan
    low, high = variances[max(best_variance - 3, 0)], variances[min(best_variance + 3, len(variances) - 1)]
    early, late = _LOG_TIMES[max(best_time - 1, 0)], _LOG_TIMES[min(best_time + 1, len(_LOG_TIMES) - 1)]
    data = (gap, decay, y, noise, low, high)
    log_time, lowest = minimize_bounded(_profile, data, early, late, _TOLERANCE, _MOST_EVALUATIONS)
    log_variance = _best_variance(log_time, data)[0]
    white_variance, white = _best_variance(_LOG_TIMES[0], (gap, decay, y, noise, variances[0], variances[-1]))
    if white <= lowest + _INDIFFERENCE:
        log_time, log_variance = _LOG_TIMES[0], white_variance
        if _deviance(variances[0], (decay, y, noise)) <= lowest + _INDIFFERENCE:
            log_variance = variances[0]
    return math.exp(log_variance), math.exp(log_time)


@compiled
def _all_fits(offsets, mjd, magnitude, error, accurate):
    fits = np.full((len(offsets) - 1, 2), np.nan)
    for band in range(len(fits)):
        start, stop = offsets[band], offsets[band + 1]
        n = stop - start
        if n == 0:
            continue
        time = mjd[start:stop] - mjd[start]
        y = magnitude[start:stop] - pairwise_sum(magnitude[start:stop]) / n
        noise = error[start:stop] * error[start:stop]
        if accurate:
            fits[band, 0], fits[band, 1] = _most_likely(np.diff(time), y, noise)
        else:
            data = (np.diff(time), y, noise, np.empty(n), np.empty(n))
            logarithms, _ = minimize_lbfgs(_negative_log_likelihood, data, np.zeros(2))
            fits[band, 0], fits[band, 1] = math.exp(logarithms[0]), math.exp(-logarithms[1])
    return fits


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Variance (mag²) and correlation time (days) of a damped random walk for each band with a point.

    Parameters
    ----------
    curves : Curves
    mode : Mode
        `Mode.ALERCE`: where L-BFGS-B stops from a variance of 1 and a time of 1 d, without bounds; `Mode.ACCURATE`: the
        highest likelihood with the time between `SHORTEST_DAYS` and `LONGEST_DAYS` and the variance between
        `LEAST_VARIANCE` and `GREATEST_VARIANCE` times that of the magnitudes; the shortest time where none is
        preferred, the least variance where the errors explain everything; NaN for equal magnitudes.
    known : mapping
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
    """
    fits = _all_fits(curves.offsets, curves.mjd, curves.magnitude, curves.error, mode is Mode.ACCURATE)
    return {
        "GP_DRW_sigma": np.ascontiguousarray(fits[:, 0]).reshape(-1, 2),
        "GP_DRW_tau": np.ascontiguousarray(fits[:, 1]).reshape(-1, 2),
    }


FAMILY = Family(
    per_band=("GP_DRW_sigma", "GP_DRW_tau"), per_object=(), compute=compute, reference=reference.damped_random_walk
)
