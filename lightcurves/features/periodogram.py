"""What both period searches share: the grid, maxima and features of the shape (alerce.md, section 5.5)."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

GRID_STEP = 0.001
GRID_STOP = 20.0
MIN_POINTS = 6
MAXIMA = 10
FINE_POINTS = 20
FACTORS = np.array([1 / 4, 1 / 3, 1 / 2, 2, 3, 4])
# Multiband_period, Period_fit, the power rates by FACTORS, Period_band and delta_period of both bands.
COLUMNS = 2 + FACTORS.size + 4

_TOP = 100
_TOP_OFFSET = 0.01
_PERFECT = 1e-12


@njit(cache=True, nogil=True, error_model="numpy")
def powers(fraction, chi_square, freedom, power, band_power):
    """Write the multiband periodogram (m,) and those of the bands (2, m) from the fractions of chi² removed (2, m)."""
    total = chi_square[0] + chi_square[1]
    for j in range(power.size):
        removed = fraction[0, j] * chi_square[0] + fraction[1, j] * chi_square[1]
        power[j] = _ratio((freedom[0] + freedom[1]) / 2, removed, total)
        band_power[0, j] = _ratio(freedom[0] / 2, fraction[0, j], 1.0)
        band_power[1, j] = _ratio(freedom[1] / 2, fraction[1, j], 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def multiband_power(fraction, chi_square, freedom, power):
    """Write the multiband periodogram (m,) alone, as `powers`."""
    total = chi_square[0] + chi_square[1]
    g, r = fraction[0], fraction[1]
    for j in range(power.size):
        power[j] = _ratio((freedom[0] + freedom[1]) / 2, g[j] * chi_square[0] + r[j] * chi_square[1], total)


@njit(cache=True, nogil=True, error_model="numpy")
def _ratio(scale, removed, total):
    rest = total - removed
    return scale * removed / rest if rest > _PERFECT * total else np.inf


@njit(cache=True, nogil=True, error_model="numpy")
def highest_maxima(power: NDArray[np.float64], maxima: NDArray[np.int64]) -> int:
    """Write the positions of the highest local maxima, highest first; return how many there are.

    Of equal neighbours the first stands for all: phases rounded to float32 give whole runs of frequencies the same
    power, which in P4J only the rounding of its sums tells apart.
    """
    found = 0
    k = 1
    while k < power.size - 1:
        end = k
        while end < power.size - 1 and power[end + 1] == power[k]:
            end += 1
        if end < power.size - 1 and power[k] > power[k - 1] and power[k] > power[end + 1]:
            place = found
            while place > 0 and power[maxima[place - 1]] <= power[k]:
                if place < maxima.size:
                    maxima[place] = maxima[place - 1]
                place -= 1
            if place < maxima.size:
                maxima[place] = k
                found = min(found + 1, maxima.size)
        k = end + 1
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def period_fit(power: NDArray[np.float64]) -> float:
    """1 minus the entropy of the 100 largest powers over its maximum ln 100."""
    largest = np.full(_TOP, -np.inf)
    for value in power:
        if value > largest[0]:
            j = 0
            while j < _TOP - 1 and largest[j + 1] < value:
                largest[j] = largest[j + 1]
                j += 1
            largest[j] = value
    total = 0.0
    for value in largest:
        total += value + _TOP_OFFSET
    entropy = 0.0
    for value in largest:
        share = (value + _TOP_OFFSET) / total
        entropy -= share * np.log(share)
    return 1 - entropy / np.log(_TOP)


@njit(cache=True, nogil=True, error_model="numpy")
def nearest(frequency, wanted):
    """Find the position of the value nearest to `wanted` in a rising array, the lower one if two are equally near."""
    k = np.searchsorted(frequency, wanted)
    if k == 0:
        return 0
    if k == frequency.size or wanted - frequency[k - 1] <= frequency[k] - wanted:
        return k - 1
    return k
