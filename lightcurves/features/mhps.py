"""Variance of a light curve on two time scales by Mexican hat filters (MHPS; Arévalo et al. 2012, MNRAS 426, 1793)."""

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightcurves.features import mhps_reference
from lightcurves.features.curves import Columns, Curves, Family, Mode

SCALES_DAYS = (100.0, 10.0)
ZERO_MAGNITUDE = 19.0
SHORTEST_WINDOW_DAYS = 30.0
FEWEST_NEIGHBOURS = 3
STEPS = 1000
NAMES = ("MHPS_low", "MHPS_high", "MHPS_ratio", "MHPS_non_zero", "MHPS_PN_flag")


def _filter(scale: float) -> tuple[float, float, float, float, float]:
    """Width σ1 (days) and half window of a scale, integrals of both Gaussians, and of the filter's square."""
    sigma = 0.225 * scale / np.sqrt(2)
    window = max(6 * sigma, SHORTEST_WINDOW_DAYS)
    step = 2 * window / STEPS
    u = -window + step * np.arange(STEPS)
    narrow, wide = (np.exp(-0.5 * (u / width) ** 2) for width in (sigma, 2 * sigma))
    narrow_integral, wide_integral = narrow.sum() * step, wide.sum() * step
    norm = ((narrow / narrow_integral - wide / wide_integral) ** 2).sum() * step
    return sigma, window, narrow_integral, wide_integral, norm


_LOW, _HIGH = (_filter(scale) for scale in SCALES_DAYS)


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute the five features of each band (alerce.md, section 5.2).

    A band without a point that has more than three points within 20 days (itself counted) gets NaN throughout.

    Parameters
    ----------
    curves : Curves
        n objects.
    mode : Mode
        ``ALERCE`` rounds times, magnitudes and errors to float32 first, as ALeRCE's C code does (up to 0.5 %); both
        compute in double precision.
    known : mapping
        Unused.

    Returns
    -------
    dict
        Arrays (n, 2) by the names of `NAMES`; powers are relative to the squared mean flux.
    """
    out = np.full((len(curves), 2, len(NAMES)), np.nan)
    mjd, magnitude, error = curves.mjd, curves.magnitude, curves.error
    if mode is Mode.ALERCE:
        mjd, magnitude, error = (_through_float32(values) for values in (mjd, magnitude, error))
    _compute(curves.offsets, mjd, magnitude, error, out.reshape(-1, len(NAMES)))
    return {name: np.ascontiguousarray(out[:, :, i]) for i, name in enumerate(NAMES)}


def _through_float32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


@njit(cache=True, nogil=True, error_model="numpy")
def _compute(offsets, mjd, magnitude, error, out):
    for i in range(offsets.size - 1):
        start, stop = offsets[i], offsets[i + 1]
        if stop > start:
            _band(mjd[start:stop], magnitude[start:stop], error[start:stop], out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _band(mjd, magnitude, error, out):
    n = mjd.size
    relative = 10 ** (0.4 * (ZERO_MAGNITUDE - magnitude))
    # The mean of equal numbers can differ from them in the last place, which the ratio would show.
    flux_mean = relative[0] if relative.min() == relative.max() else relative.mean()
    flux = relative - flux_mean
    low_power, low_used = _power(mjd, flux, _LOW)
    high_power, high_used = _power(mjd, flux, _HIGH)
    noise = 0.0
    used = 0
    for i in range(n):
        if low_used[i]:
            used += 1
            noise += np.log(10.0) * 0.4 * relative[i] * error[i]
    non_zero = 0
    for i in range(n):
        non_zero += high_used[i]
    noise = (noise / used / flux_mean) ** 2
    low = low_power / flux_mean**2 - noise
    high = high_power / flux_mean**2
    flag = 1.0
    if high > noise:
        high -= noise
        flag = 0.0
    if non_zero > 0 and high != 0:
        out[0] = low
        out[1] = high
        out[2] = low / high
        out[3] = non_zero
        out[4] = flag


@njit(cache=True, nogil=True, error_model="numpy")
def _power(mjd, flux, parameters):
    """Mean square of the filtered flux over its norm, and which points are used."""
    sigma, window, narrow_integral, wide_integral, norm = parameters
    n = mjd.size
    narrow_sum = np.full(n, 1 / narrow_integral)
    wide_sum = np.full(n, 1 / wide_integral)
    narrow_flux = flux / narrow_integral
    wide_flux = flux / wide_integral
    neighbours = np.ones(n, np.int64)
    for i in range(n):
        for j in range(i + 1, n):
            lag = mjd[j] - mjd[i]
            if not lag < window:
                break
            if lag <= 2 * window / 3:
                neighbours[i] += 1
                neighbours[j] += 1
            # The wide Gaussian has twice the width of the narrow one, which is its fourth power.
            wide = np.exp(-0.125 * (lag / sigma) ** 2)
            narrow = wide**4 / narrow_integral
            wide /= wide_integral
            narrow_sum[i] += narrow
            narrow_sum[j] += narrow
            wide_sum[i] += wide
            wide_sum[j] += wide
            narrow_flux[i] += narrow * flux[j]
            narrow_flux[j] += narrow * flux[i]
            wide_flux[i] += wide * flux[j]
            wide_flux[j] += wide * flux[i]
    used = neighbours > FEWEST_NEIGHBOURS
    total = 0.0
    count = 0
    for i in range(n):
        if used[i]:
            total += (narrow_flux[i] / narrow_sum[i] - wide_flux[i] / wide_sum[i]) ** 2
            count += 1
    return total / count / norm, used


FAMILY = Family(per_band=NAMES, per_object=(), compute=compute, reference=mhps_reference.mhps)
