"""The period search with the roundings of ALeRCE's (alerce.md, section 5.5).

The basis of the sinusoid is sin²(θ/2) and sin(θ/2) cos(θ/2), with θ the phase relative to a reference epoch:
together with the constant they span the same functions as cos θ and sin θ, and they stay well conditioned where a
light curve covers only a small part of a period.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightcurves.features.periodogram import (
    FACTORS,
    FINE_POINTS,
    GRID_STEP,
    GRID_STOP,
    MAXIMA,
    MIN_POINTS,
    highest_maxima,
    nearest,
    period_fit,
    powers,
)

GRID = np.arange(GRID_STEP, GRID_STOP, GRID_STEP, dtype=np.float32)

_SHORT = 16
_TILE = 512
_MIN32 = float(np.finfo(np.float32).tiny)
_MAX32 = float(np.finfo(np.float32).max)

# Least-squares polynomials in u² on |u| <= 1/2 at Chebyshev nodes: sin(πu)/u within 1.6e-13, cos(πu) within 2.3e-15.
SINE = np.array([3.1415926535896359, -5.1677127799880438, 2.5501640359106696, -0.5992644340031702])
SINE = np.append(SINE, [0.082144795198164283, -0.0073640073792066753, 0.00044749467237689867])
COSINE = np.array([0.99999999999999822, -4.9348022005437073, 4.0587121263346582, -1.3352627662156602])
COSINE = np.append(COSINE, [0.23533058870695772, -0.025806534281860694, 0.0019278766719378786, -0.00010042388196517274])


@njit(cache=True, nogil=True, error_model="numpy")
def fraction_removed(
    mjd: NDArray[np.float32],
    weight: NDArray[np.floating],
    weighted_value: NDArray[np.floating],
    frequency: NDArray[np.float32],
    fraction: NDArray[np.float64],
) -> None:
    """Write the fraction of chi² that a sinusoid of each frequency removes, phases rounded to float32.

    The product of absolute time and frequency is rounded to float32 before its fractional part is taken, as P4J
    does: for MJD near 58,000 phases of frequencies above 9 per day are then multiples of 1/16 to 1/8 cycle. What
    follows is computed in the type of the weights.

    Parameters
    ----------
    mjd : float32 [n]
    weight : float32 or float64 [n]
        1/e², scaled to sum 1.
    weighted_value : float32 or float64 [n]
        `weight` times the magnitude minus its weighted mean, in units in which the weighted variance is 1.
    frequency : float32 [m]
        Per day.
    fraction : float64 [m]
        Output, from 0 to 1.
    """
    n = mjd.size
    degenerate = max(1e-9, 20 * float(np.finfo(weight.dtype).eps))
    s = SINE.astype(weight.dtype)
    c = COSINE.astype(weight.dtype)
    s0, s1, s2, s3, s4, s5, s6 = s[0], s[1], s[2], s[3], s[4], s[5], s[6]
    c0, c1, c2, c3, c4, c5, c6, c7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    sums = np.empty((6, _TILE), weight.dtype)
    reference = np.empty(_TILE, np.float32)
    for start in range(0, frequency.size, _TILE):
        tile = frequency[start : start + _TILE]
        m = tile.size
        for j in range(m):
            reference[j] = mjd[n // 2] * tile[j]
        sums[:] = 0
        for k in range(n):
            t, w, wy = mjd[k], weight[k], weighted_value[k]
            for j in range(m):
                turns = t * tile[j] - reference[j]
                u = turns - np.rint(turns)
                x = u * u
                sine = u * (s0 + x * (s1 + x * (s2 + x * (s3 + x * (s4 + x * (s5 + x * s6))))))
                cosine = c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * (c5 + x * (c6 + x * c7))))))
                a = sine * sine
                b = sine * cosine
                wa = w * a
                sums[0, j] += wa
                sums[1, j] += w * b
                sums[2, j] += wa * a
                sums[3, j] += wa * b
                sums[4, j] += wy * a
                sums[5, j] += wy * b
        for j in range(m):
            a = np.float64(sums[0, j])
            b = np.float64(sums[1, j])
            saa = np.float64(sums[2, j])
            aa = saa - a * a
            bb = a - saa - b * b
            ab = sums[3, j] - a * b
            ya = np.float64(sums[4, j])
            yb = np.float64(sums[5, j])
            determinant = aa * bb - ab * ab
            if determinant > degenerate * aa * bb and aa > 0.0 and bb > 0.0:
                fraction[start + j] = (bb * ya * ya - 2.0 * ab * ya * yb + aa * yb * yb) / determinant
            elif aa + bb > 0.0:
                fraction[start + j] = (ya * ya + yb * yb) / (aa + bb)
            else:
                fraction[start + j] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def scaled(
    mjd: NDArray[np.float64], magnitude: NDArray[np.float64], error: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], float]:
    """Round a band to float32 and scale it for `fraction_removed`.

    Returns
    -------
    mjd : float32 [n]
    weight, weighted_value : float64 [n]
    chi_square : float
        Of the constant model; NaN if it does not fit in float32 or all magnitudes are equal.
    """
    value = magnitude.astype(np.float32).astype(np.float64)
    weight = 1 / error.astype(np.float32).astype(np.float64) ** 2
    total = weight.sum()
    weight /= total
    equal = not np.any(value != value[:1])
    value -= (weight * value).sum()
    variance = (weight * value**2).sum()
    chi_square = variance * total
    if equal or not (_MIN32 < total < _MAX32 and _MIN32 < chi_square < _MAX32):
        chi_square = np.nan
    return mjd.astype(np.float32), weight, weight * (value / np.sqrt(variance)), chi_square


@njit(cache=True, nogil=True, error_model="numpy")
def _fraction_removed(mjd, weight, value, frequency, fraction):
    # A sinusoid nearly interpolates a few points, and the power then depends on the last digits of float32 sums.
    if mjd.size <= _SHORT:
        fraction_removed(mjd, weight, value, frequency, fraction)
    else:
        fraction_removed(mjd, weight.astype(np.float32), value.astype(np.float32), frequency, fraction)


@njit(cache=True, nogil=True, error_model="numpy")
def search(offsets, mjd, magnitude, error, enough, out):
    """Search the periods of all objects with float32 phases; for the columns of `out` see `periodogram.COLUMNS`."""
    workspace = (np.empty((2, GRID.size)), np.empty(GRID.size), np.empty((2, GRID.size)))
    for i in range(enough.size):
        bounds = offsets[2 * i : 2 * i + 3]
        used = (bounds[1] - bounds[0] >= MIN_POINTS, bounds[2] - bounds[1] >= MIN_POINTS)
        if not enough[i] or not (used[0] or used[1]):
            continue
        g = scaled(mjd[bounds[0] : bounds[1]], magnitude[bounds[0] : bounds[1]], error[bounds[0] : bounds[1]])
        r = scaled(mjd[bounds[1] : bounds[2]], magnitude[bounds[1] : bounds[2]], error[bounds[1] : bounds[2]])
        chi_square = np.array([g[3] if used[0] else 0.0, r[3] if used[1] else 0.0])
        freedom = np.array([g[0].size - 3.0 if used[0] else 0.0, r[0].size - 3.0 if used[1] else 0.0])
        if np.isfinite(chi_square[0] + chi_square[1]):
            _search_one((g[:3], r[:3]), used, chi_square, freedom, workspace, out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _search_one(bands, used, chi_square, freedom, workspace, out):
    fraction, power, band_power = workspace
    frequency = GRID.copy()
    _powers_at(bands, used, chi_square, freedom, frequency, fraction, power, band_power)
    maxima = np.empty(MAXIMA, np.int64)
    if highest_maxima(power, maxima) < MAXIMA:
        return
    fine = np.empty(FINE_POINTS, np.float32)
    fine_fraction = np.empty((2, FINE_POINTS))
    fine_power = np.empty(FINE_POINTS)
    fine_bands = np.empty((2, FINE_POINTS))
    for k in maxima:
        first, last = np.float64(frequency[k - 1]), np.float64(frequency[k + 1])
        for j in range(FINE_POINTS - 1):
            fine[j] = np.float32(first + j * ((last - first) / (FINE_POINTS - 1)))
        fine[FINE_POINTS - 1] = frequency[k + 1]
        _powers_at(bands, used, chi_square, freedom, fine, fine_fraction, fine_power, fine_bands)
        highest = np.argmax(fine_power)
        if fine_power[highest] > power[k]:
            frequency[k] = fine[highest]
            power[k] = fine_power[highest]
            band_power[:, k] = fine_bands[:, highest]
    best = maxima[0]
    for k in maxima:
        if power[k] > power[best]:
            best = k
    out[0] = 1.0 / np.float64(frequency[best])
    out[1] = period_fit(power)
    top = np.argmax(power)
    for j in range(FACTORS.size):
        # The period, its multiple and the frequency sought are float32 in ALeRCE: this decides between neighbours.
        multiple = np.float32(1) / frequency[top] * np.float32(FACTORS[j])
        out[2 + j] = power[nearest(frequency, np.float32(1) / multiple)] / power[top]
    for b in range(2):
        if used[b]:
            out[8 + b] = 1.0 / np.float64(frequency[np.argmax(band_power[b])])
            out[10 + b] = abs(out[0] - out[8 + b])


@njit(cache=True, nogil=True, error_model="numpy")
def _powers_at(bands, used, chi_square, freedom, frequency, fraction, power, band_power):
    for b in range(2):
        if used[b]:
            time, weight, value = bands[b]
            _fraction_removed(time, weight, value, frequency, fraction[b])
        else:
            fraction[b] = 0.0
    powers(fraction, chi_square, freedom, power, band_power)
