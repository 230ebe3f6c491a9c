"""Plain NumPy and SciPy reference of the supernova parametric model: SciPy's fits, one band at a time."""

import warnings
from collections.abc import Mapping

import numpy as np
import scipy  # Its parts are loaded when they are used: here by tests only.
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]
Bounds = tuple[list[float], list[float]]

_NAMES = ("SPM_A", "SPM_t0", "SPM_gamma", "SPM_beta", "SPM_tau_rise", "SPM_tau_fall", "SPM_chi")


def supernova_model(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """SPM features of alerce.md 5.4 for every object and band, as ``spm.compute``."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in _NAMES}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in range(2 * len(curves)):
            points = slice(curves.offsets[row], curves.offsets[row + 1])
            t, m = curves.mjd[points], curves.difference_magnitude[points]
            if len(t) > 0:
                fit = _fit(t - np.min(t), m, curves.difference_error[points], mode)
                for name, value in zip(_NAMES, fit, strict=True):
                    columns[name][row // 2, row % 2] = value
    return columns


def model(t: Values, a: float, t0: float, gamma: float, beta: float, rise: float, fall: float) -> Values:
    """Flux of the model at times t in days."""
    t1 = t0 + gamma
    step = 1 / (1 + np.exp(-(t - t1) / 3))
    late, early = (1 - beta) * np.exp(-(t - t1) / fall), 1 - beta * (t - t0) / gamma
    return a / (1 + np.exp(-(t - t0) / rise)) * (late * step + early * (1 - step))


def _flux(m: Values) -> Values:
    return 10 ** (-(m + 48.6) / 2.5 + 26)


def _fit(t: Values, m: Values, e: Values, mode: Mode) -> Values:
    flux = _flux(m)
    error = _flux(m - e) - flux
    if mode is Mode.ALERCE:
        t, flux = t.astype(np.float32), flux.astype(np.float32)
    largest, peak = float(np.max(flux)), float(t[np.argmax(flux)])
    bounds = ([largest / 3, -50, 1, 0, 1, 1], [largest * 3, 50, 100, 1, 100, 100])
    start = np.array([3 * largest, -5, np.clip(t[-1], 1, 100), 0.5, np.clip(peak / 2, 1, 100), 40])
    found = _stopped(t, flux, start, bounds) if mode is Mode.ALERCE else _best(t, flux, start, bounds, peak)
    if found is None:
        return np.full(7, np.nan)
    if len(t) < 7:
        return np.array([*found, np.nan])
    residuals = model(t.astype(np.float64), *found) - flux
    return np.array([*found, np.sum(residuals**2 / (error + 0.01) ** 2) / (len(t) - 6)])


def _stopped(t: Values, flux: Values, start: Values, bounds: Bounds) -> Values | None:
    for divisor in (20, 3):
        try:
            return scipy.optimize.curve_fit(model, t, flux, p0=start, bounds=bounds, ftol=start[0] / divisor)[0]
        except (ValueError, RuntimeError):
            continue
    return None


def _best(t: Values, flux: Values, start: Values, bounds: Bounds, peak: float) -> Values | None:
    intended = np.array([0.4 * start[0], *start[1:]])
    at_peak = np.array([0.4 * start[0], np.clip(peak - 10, -50, 50), 20, 0.5, 5, 40])
    try:
        fits = [
            scipy.optimize.least_squares(lambda x: model(t, *x) - flux, x0, bounds=bounds, max_nfev=100)
            for x0 in (intended, start, at_peak)
        ]
    except ValueError:
        return None
    return min(fits, key=lambda fit: fit.cost).x
