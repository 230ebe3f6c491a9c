"""Plain NumPy and SciPy reference of the simple statistics: one band after another, formula by formula."""

import math
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import scipy  # Its parts are loaded when they are used: here by tests only.
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]


def statistics(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """Statistics of alerce.md 5.3 for every object and band, as ``statistics.compute``."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in (*_STATISTICS, "iqr")}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in range(2 * len(curves)):
            points = slice(curves.offsets[row], curves.offsets[row + 1])
            t, m, e = curves.mjd[points], curves.magnitude[points], curves.error[points]
            if len(m) > 0:
                columns["iqr"][row // 2, row % 2] = np.subtract(*np.percentile(m, [75, 25]))
            if len(m) > 5:
                means = float(np.mean(m)), float(np.sum(m / e**2) / np.sum(1 / e**2))
                if mode is Mode.ACCURATE and np.ptp(m) == 0:
                    means = float(m[0]), float(m[0])
                for name, statistic in _STATISTICS.items():
                    columns[name][row // 2, row % 2] = statistic(t, m, e, *means)
    return columns


def _sigma(m: Values, mean: float) -> float:
    return np.sqrt(np.mean((m - mean) ** 2))


def _amplitude(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    k = math.ceil(0.05 * len(m))
    ordered = np.sort(m)
    return (np.median(ordered[-k:]) - np.median(ordered[:k])) / 2


def _anderson_darling(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    n = len(m)
    z = (np.sort(m) - mean) / (_sigma(m, mean) * np.sqrt(n / (n - 1)))
    i = np.arange(1, n + 1)
    a2 = -n - np.sum((2 * i - 1) / n * (scipy.stats.norm.logcdf(z) + scipy.stats.norm.logsf(z[::-1])))
    return 1 / (1 + np.exp(-10 * (a2 - 0.3)))


def _autocor_length(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    x = m - mean
    for lag in range(len(x)):
        if np.sum(x[: len(x) - lag] * x[lag:]) / np.sum(x * x) < np.exp(-1):
            return lag
    return len(x)


def _beyond_1_std(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    s = np.sqrt(np.sum((m - weighted) ** 2) / (len(m) - 1))
    return np.mean((m > weighted + s) | (m < weighted - s))


def _con(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    sigma = _sigma(m, mean)
    outlier = (m > mean + 2 * sigma) | (m < mean - 2 * sigma)
    return np.sum(outlier[:-2] & outlier[1:-1] & outlier[2:]) / (len(m) - 2)


def _eta_e(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    w = 1 / np.diff(t) ** 2
    return 1 / _sigma(m, mean) ** 2 * (np.sum(w * np.diff(m) ** 2) / np.sum(w))


def _gskew(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    low, high = np.percentile(m, [3, 97])
    return float(np.median(m[m <= low]) + np.median(m[m >= high]) - 2 * np.median(m))


def _linear_trend(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    if np.ptp(t) == 0:
        return np.nan
    x = t - np.mean(t)
    return np.sum(x * (m - mean)) / np.sum(x * x)


def _median_brp(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    tenth = np.ptp(m) / 10
    return float(np.mean((m > np.median(m) - tenth) & (m < np.median(m) + tenth)))


def _pair_slope_trend(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    fainter = np.diff(m[-30:]) > 0
    return (np.count_nonzero(fainter) - np.count_nonzero(~fainter)) / 30


def _skew(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    return np.nan if np.ptp(m) == 0 else scipy.stats.skew(m)


def _small_kurtosis(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    n = len(m)
    fourth = np.sum(((m - mean) / _sigma(m, mean)) ** 4)
    return n * (n + 1) / ((n - 1) * (n - 2) * (n - 3)) * fourth - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))


def _stetson_k(t: Values, m: Values, e: Values, mean: float, weighted: float) -> float:
    delta = np.sqrt(len(m) / (len(m) - 1)) * (m - weighted) / e
    return 1 / np.sqrt(len(m)) * np.sum(np.abs(delta)) / np.sqrt(np.sum(delta**2))


_STATISTICS: dict[str, Callable[[Values, Values, Values, float, float], float]] = {
    "Amplitude": _amplitude,
    "AndersonDarling": _anderson_darling,
    "Autocor_length": _autocor_length,
    "Beyond1Std": _beyond_1_std,
    "Con": _con,
    "Eta_e": _eta_e,
    "ExcessVar": lambda t, m, e, mean, weighted: np.sum((m - mean) ** 2 - e**2) / (len(m) * mean**2),
    "Gskew": _gskew,
    "LinearTrend": _linear_trend,
    "MaxSlope": lambda t, m, e, mean, weighted: np.max(np.abs(np.diff(m)) / np.diff(t)),
    "Mean": lambda t, m, e, mean, weighted: mean,
    "Meanvariance": lambda t, m, e, mean, weighted: _sigma(m, mean) / mean,
    "MedianAbsDev": lambda t, m, e, mean, weighted: np.median(np.abs(m - np.median(m))),
    "MedianBRP": _median_brp,
    "PairSlopeTrend": _pair_slope_trend,
    "PercentAmplitude": lambda t, m, e, mean, weighted: np.max(np.abs(m - np.median(m))) / np.median(m),
    "Pvar": lambda t, m, e, mean, weighted: scipy.stats.chi2.cdf(np.sum(((m - mean) / e) ** 2), len(m) - 1),
    "Q31": lambda t, m, e, mean, weighted: np.percentile(m, 75) - np.percentile(m, 25),
    "Rcs": lambda t, m, e, mean, weighted: np.ptp(np.cumsum(m - mean) / (len(m) * _sigma(m, mean))),
    "Skew": _skew,
    "SmallKurtosis": _small_kurtosis,
    "Std": lambda t, m, e, mean, weighted: _sigma(m, mean),
    "StetsonK": _stetson_k,
}
