"""Sums and order statistics for compiled kernels, with the bits of NumPy.

NumPy adds pairwise, with eight running sums in the innermost blocks. The kernels do the same: the result is more exact
than a running sum, and a constant light curve leaves the very rounding error that NumPy leaves.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")

_BLOCK = 128


@compiled
def _block_sum(values: NDArray[np.float64], start: int, stop: int) -> float:
    if stop - start < 8:
        total = 0.0
        for i in range(start, stop):
            total += values[i]
        return total
    s0, s1, s2, s3 = values[start], values[start + 1], values[start + 2], values[start + 3]
    s4, s5, s6, s7 = values[start + 4], values[start + 5], values[start + 6], values[start + 7]
    i = start + 8
    while i + 8 <= stop:
        s0 += values[i]
        s1 += values[i + 1]
        s2 += values[i + 2]
        s3 += values[i + 3]
        s4 += values[i + 4]
        s5 += values[i + 5]
        s6 += values[i + 6]
        s7 += values[i + 7]
        i += 8
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    while i < stop:
        total += values[i]
        i += 1
    return total


@compiled
def pairwise_sum(values: NDArray[np.float64]) -> float:
    """Sum of a contiguous float64 array, with the bits of ``numpy.sum``; 0 if it is empty."""
    if len(values) <= _BLOCK:
        return _block_sum(values, 0, len(values))
    # NumPy's recursive halving by an own stack, since numba cannot load recursive functions from its cache.
    starts, stops, left_sums = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64)
    halves_done = np.zeros(64, np.int8)
    depth, total = 0, 0.0
    starts[0], stops[0] = 0, len(values)
    while depth >= 0:
        start, stop = starts[depth], stops[depth]
        middle = start + (stop - start) // 16 * 8
        if stop - start <= _BLOCK:
            total = _block_sum(values, start, stop)
            depth -= 1
        elif halves_done[depth] == 0:
            halves_done[depth] = 1
            depth += 1
            starts[depth], stops[depth], halves_done[depth] = start, middle, 0
        elif halves_done[depth] == 1:
            left_sums[depth] = total
            halves_done[depth] = 2
            depth += 1
            starts[depth], stops[depth], halves_done[depth] = middle, stop, 0
        else:
            total = left_sums[depth] + total
            depth -= 1
    return total


@compiled
def percentile(ordered: NDArray[np.float64], percent: float) -> float:
    """Percentile of sorted values with linear interpolation, with the bits of ``numpy.percentile``."""
    position = (len(ordered) - 1) * (percent / 100.0)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    step = ordered[high] - ordered[low]
    fraction = position - low
    if fraction >= 0.5:
        return ordered[high] - step * (1.0 - fraction)
    return ordered[low] + step * fraction


@compiled
def median(ordered: NDArray[np.float64]) -> float:
    """Median of sorted values; NaN if there is none."""
    n = len(ordered)
    if n == 0:
        return np.nan
    if n % 2:
        return ordered[n // 2]
    return (ordered[n // 2 - 1] + ordered[n // 2]) / 2.0
