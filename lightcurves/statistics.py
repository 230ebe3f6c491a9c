"""Statistics of groups of rows, compiled."""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

STATISTICS: Final = ("mean", "median", "max", "min", "sigma", "last", "first")
# A non-detection of the night of the first detection says nothing of the rise.
_BEFORE_DAYS: Final = 0.5


@njit(cache=True, nogil=True)
def _group_statistics(values, offsets, out):
    for group in range(len(offsets) - 1):
        start, end = offsets[group], offsets[group + 1]
        chosen = np.empty(end - start)
        count = 0
        total = 0.0
        for i in range(start, end):
            if values[i] == values[i]:
                chosen[count] = values[i]
                total += values[i]
                count += 1
        for k in range(out.shape[1]):
            out[group, k] = np.nan
        if end > start:
            out[group, 5] = values[end - 1]
            out[group, 6] = values[start]
        if count == 0:
            continue
        mean = total / count
        ordered = np.sort(chosen[:count])
        middle = count // 2
        out[group, 0] = mean
        out[group, 1] = ordered[middle] if count % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
        out[group, 2] = ordered[count - 1]
        out[group, 3] = ordered[0]
        if count > 1:
            squares = 0.0
            for i in range(count):
                squares += (chosen[i] - mean) ** 2
            out[group, 4] = np.sqrt(squares / (count - 1))


def group_statistics(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Statistics of consecutive groups of rows.

    Parameters
    ----------
    values : float64, shape (rows,)
        NaN is left out, but for the first and the last.
    offsets : int64, shape (groups + 1,)

    Returns
    -------
    float64, shape (groups, 7)
        In the order of :data:`STATISTICS`; sigma is the standard deviation with n - 1. NaN where there is none.
    """
    out = np.empty((len(offsets) - 1, len(STATISTICS)))
    _group_statistics(np.ascontiguousarray(values, np.float64), offsets, out)
    return out


@njit(cache=True, nogil=True)
def _steepest_rise(first_mjd, magpsf, sigmapsf, mjd, limit, start, end, out):
    for group in range(len(first_mjd)):
        for k in range(4):
            out[group, k] = np.nan
        for i in range(start[group], end[group]):
            if not mjd[i] < first_mjd[group] - _BEFORE_DAYS:
                continue
            dt = first_mjd[group] - mjd[i]
            dmdt = (magpsf[group] + sigmapsf[group] - limit[i]) / dt
            # The first comparison is false for NaN, the second true for the first candidate.
            if dmdt == dmdt and not out[group, 0] <= dmdt:
                out[group, 0] = dmdt
                out[group, 1] = magpsf[group] - limit[i]
                out[group, 2] = sigmapsf[group] - limit[i]
                out[group, 3] = dt


def steepest_rise(
    first_mjd: NDArray[np.float64],
    magpsf: NDArray[np.float64],
    sigmapsf: NDArray[np.float64],
    mjd: NDArray[np.float64],
    limit: NDArray[np.float64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Fastest rise from a non-detection to the first detection of a band (alerce.md 4.2).

    Parameters
    ----------
    first_mjd, magpsf, sigmapsf : float64, shape (groups,)
        First detection of each object and band.
    mjd, limit : float64, shape (rows,)
        Non-detections: time and limiting magnitude.
    start, end : int64, shape (groups,)
        Rows of each group's non-detections.

    Returns
    -------
    float64, shape (groups, 4)
        ``dmdt_first`` (mag/day), ``dm_first`` (mag), ``sigmadm_first`` (ALeRCE's difference of error and limit, no
        error), ``dt_first`` (days); NaN without a non-detection more than half a day earlier.
    """
    out = np.empty((len(first_mjd), 4))
    _steepest_rise(first_mjd, magpsf, sigmapsf, mjd, limit, start, end, out)
    return out
