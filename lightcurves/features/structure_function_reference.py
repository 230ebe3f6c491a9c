"""Plain NumPy reference of the structure function: all pairs at once, NumPy's own line fit."""

import itertools
import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]


def structure_function(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """Structure function of alerce.md 5.3 for every object and band, as ``structure_function.compute``."""
    values = np.full((2 * len(curves), 2), np.nan)
    for row in range(2 * len(curves)):
        points = slice(curves.offsets[row], curves.offsets[row + 1])
        if points.stop - points.start > 5:
            values[row] = _amplitude_and_gamma(curves.mjd[points], curves.magnitude[points], curves.error[points])
    amplitude, gamma = values.T.reshape(2, -1, 2)
    return {"SF_ML_amplitude": amplitude, "SF_ML_gamma": gamma}


def _amplitude_and_gamma(t: Values, m: Values, e: Values) -> tuple[float, float]:
    i, j = np.triu_indices(len(t), 1)
    lag = t[j] - t[i]
    excess = (m[i] - m[j]) ** 2 - (e[i] ** 2 + e[j] ** 2)
    kept = (lag >= 5) & (lag <= 365)
    lag, excess = lag[kept], excess[kept]
    edges = 10 ** np.arange(np.log10(5), np.log10(2000), 0.1)
    years, structure = [], []
    for low, high in itertools.pairwise(edges):
        inside = excess[(lag >= low) & (lag < high)]
        if len(inside) > 0 and np.mean(inside) >= 0:
            years.append((low + high) / 2 / 365)
            structure.append(np.sqrt(np.mean(inside)))
    if len(years) < 2:
        return -0.5, -0.5
    fitted = [k for k, year in enumerate(years) if 0.01 < year <= 0.5]
    if not fitted:
        return -0.5, -0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.RankWarning)
        gamma, intercept = np.polyfit(np.log10(np.array(years)[fitted]), np.log10(np.array(structure)[fitted]), 1)
    if 10**intercept < 0.005:
        return 0.0, 0.0
    return min(10**intercept, 15.0), float(np.clip(gamma, -0.5, 3))
