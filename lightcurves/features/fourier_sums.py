"""Sums of sinusoids over the points of a light curve, at many equidistant frequencies."""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

_HALF = 32
_TILE = 2 * _HALF
_TOGETHER = 4
_RENEWED = 16
_SINE = tuple((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(8))
_COSINE = tuple((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(9))


@njit(cache=True, nogil=True, error_model="numpy")
def sine_and_cosine(turns: float) -> tuple[float, float]:
    """Sine and cosine of an angle in turns, within 1e-15: Taylor series of the quarter angle, doubled twice.

    Without branches, so that the compiler makes loops over it vectors.
    """
    u = 0.5 * (turns - np.rint(turns))
    x = u * u
    a = _SINE[4] + x * (_SINE[5] + x * (_SINE[6] + x * _SINE[7]))
    a = u * (_SINE[0] + x * (_SINE[1] + x * (_SINE[2] + x * (_SINE[3] + x * a))))
    b = _COSINE[4] + x * (_COSINE[5] + x * (_COSINE[6] + x * (_COSINE[7] + x * _COSINE[8])))
    b = _COSINE[0] + x * (_COSINE[1] + x * (_COSINE[2] + x * (_COSINE[3] + x * b)))
    half_sine, half_cosine = 2 * a * b, 1 - 2 * a * a
    return 2 * half_sine * half_cosine, 1 - 2 * half_sine * half_sine


@njit(cache=True, nogil=True, error_model="numpy")
def fill_rotations(cosine, sine, turns):
    """Continue cos and sin of an angle, in the first places, by multiples of `turns` added to it.

    Doubling keeps the rounding error at a few units in the last place.
    """
    filled = 1
    while filled < cosine.size:
        s, c = sine_and_cosine(turns * filled)
        for j in range(min(filled, cosine.size - filled)):
            cosine[filled + j] = cosine[j] * c - sine[j] * s
            sine[filled + j] = sine[j] * c + cosine[j] * s
        filled *= 2


@njit(cache=True, nogil=True, error_model="numpy")
def _accumulate(a, b, cosine, sine, sums):
    """Add a cos, b cos, a sin and b sin of the tabulated angles of all points: several points per load and store."""
    for k in range(0, a.size, _TOGETHER):
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
        c = cosine[k * _HALF : (k + _TOGETHER) * _HALF]
        s = sine[k * _HALF : (k + _TOGETHER) * _HALF]
        for j in range(_HALF):
            c0, c1, c2, c3 = c[j], c[_HALF + j], c[2 * _HALF + j], c[3 * _HALF + j]
            s0, s1, s2, s3 = s[j], s[_HALF + j], s[2 * _HALF + j], s[3 * _HALF + j]
            sums[j] += a0 * c0 + a1 * c1 + a2 * c2 + a3 * c3
            sums[_HALF + j] += b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3
            sums[2 * _HALF + j] += a0 * s0 + a1 * s1 + a2 * s2 + a3 * s3
            sums[3 * _HALF + j] += b0 * s0 + b1 * s1 + b2 * s2 + b3 * s3


@njit(cache=True, nogil=True, error_model="numpy")
def fourier_sums(
    time: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    step: float,
    first: int,
    cosines: NDArray[np.float64],
    sines: NDArray[np.float64],
) -> None:
    """Write the sums of `amplitude` times cosine and sine of 2π f t, for f = (first + j) step.

    The frequencies lie in tiles symmetric about a centre: the products of the centre's sines and cosines with those
    of a distance from it, which all tiles share, give both frequencies of that distance.

    Parameters
    ----------
    time, amplitude : float64 [n]
        Days, and any unit.
    step : float
        Per day.
    first : int
        Steps of the first frequency.
    cosines, sines : float64 [m]
        Outputs.
    """
    n = time.size
    padded = -(-n // _TOGETHER) * _TOGETHER
    cosine, sine = np.zeros(padded * _HALF), np.zeros(padded * _HALF)
    tile_cosine, tile_sine = np.empty(n), np.empty(n)
    for k in range(n):
        c, s = cosine[k * _HALF : (k + 1) * _HALF], sine[k * _HALF : (k + 1) * _HALF]
        s[0], c[0] = sine_and_cosine(0.5 * step * time[k])
        fill_rotations(c, s, step * time[k])
        tile_sine[k], tile_cosine[k] = sine_and_cosine(_TILE * step * time[k])
    a, b = np.zeros(padded), np.zeros(padded)
    sums, tile_c, tile_s = np.empty(4 * _HALF), np.empty(_TILE), np.empty(_TILE)
    for start in range(0, cosines.size, _TILE):
        if start % (_RENEWED * _TILE) == 0:
            for k in range(n):
                at_sine, at_cosine = sine_and_cosine((first + start + _HALF - 0.5) * step * time[k])
                a[k], b[k] = amplitude[k] * at_cosine, amplitude[k] * at_sine
        else:
            for k in range(n):
                turned = a[k] * tile_cosine[k] - b[k] * tile_sine[k]
                b[k] = b[k] * tile_cosine[k] + a[k] * tile_sine[k]
                a[k] = turned
        sums[:] = 0.0
        _accumulate(a, b, cosine, sine, sums)
        for j in range(_HALF):
            tile_c[_HALF - 1 - j] = sums[j] + sums[3 * _HALF + j]
            tile_s[_HALF - 1 - j] = sums[_HALF + j] - sums[2 * _HALF + j]
            tile_c[_HALF + j] = sums[j] - sums[3 * _HALF + j]
            tile_s[_HALF + j] = sums[_HALF + j] + sums[2 * _HALF + j]
        m = min(_TILE, cosines.size - start)
        cosines[start : start + m] = tile_c[:m]
        sines[start : start + m] = tile_s[:m]
