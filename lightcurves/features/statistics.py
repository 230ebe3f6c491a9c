"""Simple statistics of the magnitudes of a band: the features of ALeRCE's turbo-fats, and the interquartile range.

Definitions: alerce.md 5.3, after Richards et al. (2011), Kim et al. (2014) and Nun et al. (2015, FATS).
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from lightcurves.features import statistics_reference as reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled, median, pairwise_sum, percentile

FEWEST_POINTS = 6
SLOPES_OF_PAIR_SLOPE_TREND = 30
# Below this, scipy.stats.skew calls a variance relative to the mean zero.
_RESOLUTION = 1e-15
_LOG_SQRT_2_PI = 0.5 * math.log(2.0 * math.pi)

_PER_BAND = (
    "Amplitude",
    "AndersonDarling",
    "Autocor_length",
    "Beyond1Std",
    "Con",
    "Eta_e",
    "ExcessVar",
    "Gskew",
    "LinearTrend",
    "MaxSlope",
    "Mean",
    "Meanvariance",
    "MedianAbsDev",
    "MedianBRP",
    "PairSlopeTrend",
    "PercentAmplitude",
    "Pvar",
    "Q31",
    "Rcs",
    "Skew",
    "SmallKurtosis",
    "Std",
    "StetsonK",
    "iqr",
)
(
    _AMPLITUDE,
    _ANDERSON_DARLING,
    _AUTOCOR_LENGTH,
    _BEYOND_1_STD,
    _CON,
    _ETA_E,
    _EXCESS_VAR,
    _GSKEW,
    _LINEAR_TREND,
    _MAX_SLOPE,
    _MEAN,
    _MEANVARIANCE,
    _MEDIAN_ABS_DEV,
    _MEDIAN_BRP,
    _PAIR_SLOPE_TREND,
    _PERCENT_AMPLITUDE,
    _PVAR,
    _Q31,
    _RCS,
    _SKEW,
    _SMALL_KURTOSIS,
    _STD,
    _STETSON_K,
    _IQR,
) = range(len(_PER_BAND))


@compiled
def _log_normal_cdf(z: float) -> float:
    if z > 0.0:
        return math.log1p(-0.5 * math.erfc(z * math.sqrt(0.5)))
    if z > -30.0:
        return math.log(0.5 * math.erfc(-z * math.sqrt(0.5)))
    # Before erfc underflows: asymptotic series of Mills' ratio, exact to rounding here.
    y = 1.0 / (z * z)
    return -0.5 * z * z - math.log(-z) - _LOG_SQRT_2_PI + math.log1p(-y * (1.0 - y * (3.0 - y * (15.0 - 105.0 * y))))


@compiled
def _amplitude(ordered):
    n = len(ordered)
    k = math.ceil(0.05 * n)
    return (median(ordered[n - k :]) - median(ordered[:k])) / 2.0


@compiled
def _anderson_darling(ordered, mean, squares):
    n = len(ordered)
    deviation = math.sqrt(squares / (n - 1))
    total = 0.0
    for i in range(n):
        low = (ordered[i] - mean) / deviation
        high = (ordered[n - 1 - i] - mean) / deviation
        total += (2 * i + 1) / n * (_log_normal_cdf(low) + _log_normal_cdf(-high))
    return 1.0 / (1.0 + math.exp(-10.0 * (-n - total - 0.3)))


@compiled
def _autocorrelation_length(residual, squares):
    n = len(residual)
    for lag in range(n):
        covariance = 0.0
        for i in range(n - lag):
            covariance += residual[i] * residual[i + lag]
        if covariance / squares < math.exp(-1.0):
            return lag
    return n


@compiled
def _beyond_one_std(magnitude, weighted_mean, work):
    n = len(magnitude)
    for i in range(n):
        work[i] = (magnitude[i] - weighted_mean) ** 2
    deviation = math.sqrt(pairwise_sum(work) / (n - 1))
    count = 0
    for value in magnitude:
        if value > weighted_mean + deviation or value < weighted_mean - deviation:
            count += 1
    return count / n


@compiled
def _three_consecutive_outliers(magnitude, mean, deviation):
    count, run = 0, 0
    for value in magnitude:
        if value > mean + 2.0 * deviation or value < mean - 2.0 * deviation:
            run += 1
        else:
            run = 0
        if run >= 3:
            count += 1
    return count / (len(magnitude) - 2)


@compiled
def _eta_e_and_max_slope(mjd, magnitude, variance):
    weighted, weights, steepest = 0.0, 0.0, 0.0
    for i in range(len(mjd) - 1):
        days = mjd[i + 1] - mjd[i]
        change = magnitude[i + 1] - magnitude[i]
        weight = 1.0 / (days * days)
        weighted += weight * (change * change)
        weights += weight
        slope = abs(change) / days
        if slope > steepest or math.isnan(slope):
            steepest = slope
    return (1.0 / variance) * (weighted / weights), steepest


@compiled
def _gskew(ordered, middle):
    n = len(ordered)
    low, high = percentile(ordered, 3.0), percentile(ordered, 97.0)
    faint = n - 1
    while faint > 0 and ordered[faint - 1] >= high:
        faint -= 1
    bright = 1
    while bright < n and ordered[bright] <= low:
        bright += 1
    return median(ordered[:bright]) + median(ordered[faint:]) - 2.0 * middle


@compiled
def _linear_trend(mjd, residual, work):
    n = len(mjd)
    if mjd[0] == mjd[n - 1]:
        return np.nan
    mean = pairwise_sum(mjd) / n
    products, squares = 0.0, 0.0
    for i in range(n):
        work[i] = mjd[i] - mean
        products += work[i] * residual[i]
        squares += work[i] * work[i]
    return products / squares


@compiled
def _deviations_from_median(ordered, middle, work):
    """Median of |m - median|, its largest value over the median, and the share within a tenth of the range."""
    n = len(ordered)
    tenth = (ordered[n - 1] - ordered[0]) / 10.0
    within = 0
    for i in range(n):
        work[i] = abs(ordered[i] - middle)
        if middle - tenth < ordered[i] < middle + tenth:
            within += 1
    largest = max(work[0], work[n - 1])
    work.sort()
    return median(work), within / n, largest / middle


@compiled
def _pair_slope_trend(magnitude):
    n = len(magnitude)
    balance = 0
    for i in range(max(n - SLOPES_OF_PAIR_SLOPE_TREND, 0), n - 1):
        balance += 1 if magnitude[i + 1] - magnitude[i] > 0.0 else -1
    return balance / SLOPES_OF_PAIR_SLOPE_TREND


@compiled
def _range_of_cumulative_sum(residual, deviation):
    scale = len(residual) * deviation
    total = 0.0
    lowest, highest = np.inf, -np.inf
    for value in residual:
        total += value
        lowest, highest = min(lowest, total), max(highest, total)
    return highest / scale - lowest / scale


@compiled
def _skew_and_kurtosis(residual, mean, variance, work):
    n = len(residual)
    for i in range(n):
        work[i] = residual[i] * residual[i] * residual[i]
    if variance <= (_RESOLUTION * mean) ** 2:
        skew = np.nan
    else:
        skew = pairwise_sum(work) / n / variance**1.5
    deviation = math.sqrt(variance)
    for i in range(n):
        work[i] = (residual[i] / deviation) ** 4
    scale = n * (n + 1) / ((n - 1) * (n - 2) * (n - 3))
    return skew, scale * pairwise_sum(work) - 3.0 * (n - 1) ** 2 / ((n - 2) * (n - 3))


@compiled
def _stetson_k(magnitude, error, weighted_mean):
    n = len(magnitude)
    absolute, squares = 0.0, 0.0
    for i in range(n):
        delta = math.sqrt(n / (n - 1)) * (magnitude[i] - weighted_mean) / error[i]
        absolute += abs(delta)
        squares += delta * delta
    return 1.0 / math.sqrt(n) * absolute / math.sqrt(squares)


@compiled
def _band_statistics(mjd, magnitude, error, exact_means, out):
    """Fill one row of `out`, in the order of `_PER_BAND`; the place of Pvar gets chi squared.

    `exact_means` takes the mean of equal magnitudes to be that magnitude, without the rounding of sum and division.
    """
    n = len(magnitude)
    ordered = np.sort(magnitude)
    quartiles = percentile(ordered, 75.0) - percentile(ordered, 25.0)
    out[_IQR] = quartiles
    if n < FEWEST_POINTS:
        return
    work, residual = np.empty(n), np.empty(n)
    for i in range(n):
        work[i] = magnitude[i] / (error[i] * error[i])
        residual[i] = 1.0 / (error[i] * error[i])
    weighted_mean = pairwise_sum(work) / pairwise_sum(residual)
    mean = pairwise_sum(magnitude) / n
    if exact_means and ordered[0] == ordered[n - 1]:
        mean = weighted_mean = ordered[0]
    chi_squared, excess = 0.0, 0.0
    for i in range(n):
        residual[i] = magnitude[i] - mean
        work[i] = residual[i] * residual[i]
        chi_squared += work[i] / (error[i] * error[i])
        excess += work[i] - error[i] * error[i]
    squares = pairwise_sum(work)
    variance = squares / n
    deviation = math.sqrt(variance)
    middle = median(ordered)
    out[_AMPLITUDE] = _amplitude(ordered)
    out[_ANDERSON_DARLING] = _anderson_darling(ordered, mean, squares)
    out[_AUTOCOR_LENGTH] = _autocorrelation_length(residual, squares)
    out[_BEYOND_1_STD] = _beyond_one_std(magnitude, weighted_mean, work)
    out[_CON] = _three_consecutive_outliers(magnitude, mean, deviation)
    out[_ETA_E], out[_MAX_SLOPE] = _eta_e_and_max_slope(mjd, magnitude, variance)
    out[_EXCESS_VAR] = excess / (n * mean * mean)
    out[_GSKEW] = _gskew(ordered, middle)
    out[_LINEAR_TREND] = _linear_trend(mjd, residual, work)
    out[_MEAN] = mean
    out[_MEANVARIANCE] = deviation / mean
    out[_MEDIAN_ABS_DEV], out[_MEDIAN_BRP], out[_PERCENT_AMPLITUDE] = _deviations_from_median(ordered, middle, work)
    out[_PAIR_SLOPE_TREND] = _pair_slope_trend(magnitude)
    out[_PVAR] = chi_squared
    out[_Q31] = quartiles
    out[_RCS] = _range_of_cumulative_sum(residual, deviation)
    out[_SKEW], out[_SMALL_KURTOSIS] = _skew_and_kurtosis(residual, mean, variance, work)
    out[_STD] = deviation
    out[_STETSON_K] = _stetson_k(magnitude, error, weighted_mean)


@compiled
def _statistics(offsets, mjd, magnitude, error, exact_means, out):
    for band in range(len(offsets) - 1):
        start, stop = offsets[band], offsets[band + 1]
        if stop > start:
            _band_statistics(mjd[start:stop], magnitude[start:stop], error[start:stop], exact_means, out[band])


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Statistics of each band; NaN with fewer than six points, but for `iqr`, which one point suffices for.

    Parameters
    ----------
    curves : Curves
    mode : Mode
        In `Mode.ALERCE` the rounding errors of NumPy's mean remain, which decide the values of equal magnitudes.
    known : mapping
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
    """
    rows = len(curves.offsets) - 1
    out = np.full((rows, len(_PER_BAND)), np.nan)
    _statistics(curves.offsets, curves.mjd, curves.magnitude, curves.error, mode is Mode.ACCURATE, out)
    chi_squared = out[:, _PVAR]
    points = np.diff(curves.offsets)
    out[:, _PVAR] = gammainc(np.maximum(points - 1, 1) / 2.0, chi_squared / 2.0)
    return {name: np.ascontiguousarray(out[:, i]).reshape(-1, 2) for i, name in enumerate(_PER_BAND)}


FAMILY = Family(per_band=_PER_BAND, per_object=(), compute=compute, reference=reference.statistics)
