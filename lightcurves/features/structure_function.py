"""Structure function of the magnitudes of a band: amplitude at one year and slope of a power law.

The structure function is that of Schmidt et al. (2010, equation 3 and the fit of their section 3.3), in the binning of
ALeRCE (alerce.md 5.3).
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import structure_function_reference as reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled

FEWEST_POINTS = 6
SHORTEST_DAYS, LONGEST_DAYS = 5.0, 365.0
DAYS_PER_YEAR = 365.0
SHORTEST_FITTED_YEARS, LONGEST_FITTED_YEARS = 0.01, 0.5
SMALLEST_AMPLITUDE, LARGEST_AMPLITUDE = 0.005, 15.0
SMALLEST_GAMMA, LARGEST_GAMMA = -0.5, 3.0
NOT_FITTED = -0.5

_EDGES_DAYS = 10.0 ** np.arange(math.log10(SHORTEST_DAYS), math.log10(2000.0), 0.1)


@compiled
def _line(x, y, n):
    """Slope and intercept of the first n points; of all lines through a single point the one of least norm.

    The norm is that of the intercept and of the slope times |x|, which is what scaled columns and a singular value
    decomposition (``numpy.polyfit``) minimise.
    """
    if n == 1:
        return 0.5 * y[0] / x[0], 0.5 * y[0]
    mean_x, mean_y = 0.0, 0.0
    for i in range(n):
        mean_x += x[i]
        mean_y += y[i]
    mean_x /= n
    mean_y /= n
    products, squares = 0.0, 0.0
    for i in range(n):
        products += (x[i] - mean_x) * (y[i] - mean_y)
        squares += (x[i] - mean_x) ** 2
    slope = products / squares
    return slope, mean_y - slope * mean_x


@compiled
def _binned_structure(mjd, magnitude, error, edges, sums, counts):
    """Sum the squared differences beyond the noise, and count the pairs, of each bin of time lag."""
    sums[:] = 0.0
    counts[:] = 0
    for i in range(len(mjd)):
        index = 0
        for j in range(i + 1, len(mjd)):
            lag = mjd[j] - mjd[i]
            if lag < SHORTEST_DAYS or lag < edges[0]:
                continue
            if lag > LONGEST_DAYS:
                break
            while lag >= edges[index + 1]:
                index += 1
            difference = magnitude[i] - magnitude[j]
            sums[index] += difference * difference - (error[i] * error[i] + error[j] * error[j])
            counts[index] += 1


@compiled
def _power_law(edges, sums, counts):
    bins = len(sums)
    lag, structure = np.empty(bins), np.empty(bins)
    used, fitted = 0, 0
    for i in range(bins):
        if counts[i] > 0 and sums[i] / counts[i] >= 0.0:
            used += 1
            years = (edges[i] + edges[i + 1]) / 2.0 / DAYS_PER_YEAR
            if SHORTEST_FITTED_YEARS < years <= LONGEST_FITTED_YEARS:
                lag[fitted] = math.log10(years)
                structure[fitted] = math.log10(math.sqrt(sums[i] / counts[i]))
                fitted += 1
    if used < 2 or fitted == 0:
        return NOT_FITTED, NOT_FITTED
    gamma, intercept = _line(lag, structure, fitted)
    amplitude = 10.0**intercept
    if amplitude < SMALLEST_AMPLITUDE:
        return 0.0, 0.0
    return min(amplitude, LARGEST_AMPLITUDE), min(max(gamma, SMALLEST_GAMMA), LARGEST_GAMMA)


@compiled
def _structure_functions(offsets, mjd, magnitude, error, edges, amplitude, gamma):
    sums, counts = np.empty(len(edges) - 1), np.empty(len(edges) - 1, np.int64)
    for band in range(len(offsets) - 1):
        start, stop = offsets[band], offsets[band + 1]
        if stop - start >= FEWEST_POINTS:
            _binned_structure(mjd[start:stop], magnitude[start:stop], error[start:stop], edges, sums, counts)
            amplitude[band], gamma[band] = _power_law(edges, sums, counts)


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Amplitude at one year (mag) and slope of the structure function of each band, alike in both modes.

    Parameters
    ----------
    curves : Curves
    mode, known
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
        NaN with fewer than six points, -0.5 where fewer than two bins of time lag have a structure function.
    """
    amplitude, gamma = (np.full(len(curves.offsets) - 1, np.nan) for _ in range(2))
    _structure_functions(curves.offsets, curves.mjd, curves.magnitude, curves.error, _EDGES_DAYS, amplitude, gamma)
    return {"SF_ML_amplitude": amplitude.reshape(-1, 2), "SF_ML_gamma": gamma.reshape(-1, 2)}


FAMILY = Family(
    per_band=("SF_ML_amplitude", "SF_ML_gamma"),
    per_object=(),
    compute=compute,
    reference=reference.structure_function,
)
