"""Supernova parametric model: an analytic rise, plateau and fall fitted to the flux of the difference image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import spm_reference as reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled
from lightcurves.features.trust_region import FAILED, OUT_OF_EVALUATIONS, fit_bounded, forward_differences

_PER_BAND = ("SPM_A", "SPM_t0", "SPM_gamma", "SPM_beta", "SPM_tau_rise", "SPM_tau_fall", "SPM_chi")
_PARAMETERS = 6
_LOW = np.array([np.nan, -50.0, 1.0, 0.0, 1.0, 1.0])
_HIGH = np.array([np.nan, 50.0, 100.0, 1.0, 100.0, 100.0])
_SMOOTHING_DAYS = 3.0
_MOST_EVALUATIONS = 600
# The accurate mode: relative decrease of the cost at which it stops, and evaluations allowed to each start.
_ACCURATE_TOLERANCE = 1e-8
_ACCURATE_EVALUATIONS = 100


@compiled
def _model_flux(x, t):
    """Flux of the model: V. A. Villar et al. 2019, ApJ 884, 83, with the step smoothed; alerce.md section 5.4."""
    since_start = t - x[1]
    since_end = since_start - x[2]
    later = 1.0 / (1.0 + math.exp(-since_end / _SMOOTHING_DAYS))
    rise = x[0] / (1.0 + math.exp(-since_start / x[4]))
    fall = (1.0 - x[3]) * math.exp(-since_end / x[5]) * later
    return rise * (fall + (1.0 - x[3] * since_start / x[2]) * (1.0 - later))


@compiled
def _residuals(x, data, out):
    t, flux = data
    for i in range(len(t)):
        out[i] = _model_flux(x, t[i]) - flux[i]


@compiled
def _jacobian(residuals, data, x, low, high, values, jacobian):
    """Analytic derivatives, in the place of `forward_differences`."""
    t = data[0]
    amplitude, start, gamma, beta, rise_time, fall_time = x[0], x[1], x[2], x[3], x[4], x[5]
    for i in range(len(t)):
        since_start = t[i] - start
        since_end = since_start - gamma
        later = 1.0 / (1.0 + math.exp(-since_end / _SMOOTHING_DAYS))
        rise = 1.0 / (1.0 + math.exp(-since_start / rise_time))
        fall = math.exp(-since_end / fall_time) * later
        earlier = 1.0 - later
        plateau = 1.0 - beta * since_start / gamma
        shape = (1.0 - beta) * fall + plateau * earlier
        by_end = (1.0 - beta) * fall * (1.0 / fall_time - earlier / _SMOOTHING_DAYS)
        by_end += plateau * later * earlier / _SMOOTHING_DAYS
        rise_slope = rise * (1.0 - rise) / rise_time
        jacobian[0, i] = rise * shape
        jacobian[1, i] = amplitude * (rise * (by_end + beta / gamma * earlier) - rise_slope * shape)
        jacobian[2, i] = amplitude * rise * (by_end + beta * since_start / (gamma * gamma) * earlier)
        jacobian[3, i] = -amplitude * rise * (fall + since_start / gamma * earlier)
        jacobian[4, i] = -amplitude * rise_slope * since_start / rise_time * shape
        jacobian[5, i] = amplitude * rise * (1.0 - beta) * fall * since_end / (fall_time * fall_time)


@compiled
def _flux(magnitude):
    """AB flux in units of 1e-26 erg/s/cm²/Hz."""
    return 10.0 ** (-(magnitude + 48.6) / 2.5 + 26.0)


@compiled
def _chi(x, t, flux, flux_error):
    n = len(t)
    if n <= _PARAMETERS:
        return np.nan
    total = 0.0
    for i in range(n):
        total += ((_model_flux(x, t[i]) - flux[i]) / (flux_error[i] + 0.01)) ** 2
    return total / (n - _PARAMETERS)


@compiled
def _clipped(value, low, high):
    return max(low, min(high, value))


@compiled
def _bounds(largest, low, high):
    low[:], high[:] = _LOW, _HIGH
    low[0], high[0] = largest / 3.0, largest * 3.0


@compiled
def _fit_like_alerce(mjd, magnitude, error, out):
    """Fit in ALeRCE's steps: single precision input, and the loose tolerance that grows with the flux."""
    n = len(mjd)
    t, flux, flux_error = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        t[i] = np.float32(mjd[i] - mjd[0])
        flux[i] = np.float32(_flux(magnitude[i]))
        flux_error[i] = _flux(magnitude[i] - error[i]) - _flux(magnitude[i])
        if not math.isfinite(flux[i]):
            return
    peak = np.argmax(flux)
    low, high = np.empty(_PARAMETERS), np.empty(_PARAMETERS)
    _bounds(flux[peak], low, high)
    start = np.array([high[0], -5.0, _clipped(t[-1], 1.0, 100.0), 0.5, _clipped(t[peak] / 2.0, 1.0, 100.0), 40.0])
    for divisor in (20.0, 3.0):
        x, _, status = fit_bounded(
            _residuals,
            forward_differences,
            (t, flux),
            n,
            start,
            low,
            high,
            start[0] / divisor,
            _MOST_EVALUATIONS,
        )
        if status != FAILED and status != OUT_OF_EVALUATIONS:
            out[:_PARAMETERS] = x
            out[_PARAMETERS] = _chi(x, t, flux, flux_error)
            return


@compiled
def _fit_accurately(mjd, magnitude, error, out):
    """Best of the converged fits from three starts: ALeRCE's intended one, its actual one, and a rise at the peak."""
    n = len(mjd)
    t, flux, flux_error = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        t[i] = mjd[i] - mjd[0]
        flux[i] = _flux(magnitude[i])
        flux_error[i] = _flux(magnitude[i] - error[i]) - flux[i]
        if not math.isfinite(flux[i]):
            return
    peak = np.argmax(flux)
    low, high = np.empty(_PARAMETERS), np.empty(_PARAMETERS)
    _bounds(flux[peak], low, high)
    start = np.empty(_PARAMETERS)
    lowest = np.inf
    for attempt in range(3):
        start[0] = (3.0 if attempt == 1 else 1.2) * flux[peak]
        start[1] = _clipped(t[peak] - 10.0, -50.0, 50.0) if attempt == 2 else -5.0
        start[2] = 20.0 if attempt == 2 else _clipped(t[-1], 1.0, 100.0)
        start[3] = 0.5
        start[4] = 5.0 if attempt == 2 else _clipped(t[peak] / 2.0, 1.0, 100.0)
        start[5] = 40.0
        x, cost, status = fit_bounded(
            _residuals, _jacobian, (t, flux), n, start, low, high, _ACCURATE_TOLERANCE, _ACCURATE_EVALUATIONS
        )
        if status != FAILED and cost < lowest:
            lowest = cost
            out[:_PARAMETERS] = x
    if lowest < np.inf:
        out[_PARAMETERS] = _chi(out[:_PARAMETERS], t, flux, flux_error)


@compiled
def _all_fits(offsets, mjd, magnitude, error, accurate):
    fits = np.full((len(offsets) - 1, _PARAMETERS + 1), np.nan)
    for band in range(len(fits)):
        start, stop = offsets[band], offsets[band + 1]
        if stop == start:
            continue
        if accurate:
            _fit_accurately(mjd[start:stop], magnitude[start:stop], error[start:stop], fits[band])
        else:
            _fit_like_alerce(mjd[start:stop], magnitude[start:stop], error[start:stop], fits[band])
    return fits


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Parameters of the supernova parametric model and its reduced chi squared for each band with a point.

    Parameters
    ----------
    curves : Curves
    mode : Mode
        `Mode.ALERCE`: where the trust-region search stops from the upper bound of the amplitude with the tolerance of
        release 1.2.3-P, in single precision up to the flux; `Mode.ACCURATE`: the best converged least squares of three
        starts, in double precision.
    known : mapping
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
        NaN where no fit succeeds (flux zero or infinite), and `SPM_chi` with fewer than seven points. Amplitude in
        1e-26 erg/s/cm²/Hz, times in days; t0 since the first point of the band.
    """
    accurate = mode is Mode.ACCURATE
    fits = _all_fits(curves.offsets, curves.mjd, curves.difference_magnitude, curves.difference_error, accurate)
    return {name: np.ascontiguousarray(fits[:, i]).reshape(-1, 2) for i, name in enumerate(_PER_BAND)}


FAMILY = Family(per_band=_PER_BAND, per_object=(), compute=compute, reference=reference.supernova_model)
