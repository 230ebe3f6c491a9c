"""Plain reference of the MHPS features: the formulas of alerce.md, section 5.2, one band after another."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

NAMES = ("MHPS_low", "MHPS_high", "MHPS_ratio", "MHPS_non_zero", "MHPS_PN_flag")


def mhps(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute what ``mhps.compute`` computes, slowly."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in NAMES}
    for i in range(len(curves)):
        for b in range(2):
            rows = slice(curves.offsets[2 * i + b], curves.offsets[2 * i + b + 1])
            kind = np.float32 if mode is Mode.ALERCE else np.float64
            with np.errstate(all="ignore"):
                points = [x[rows].astype(kind).astype(np.float64) for x in (curves.mjd, curves.magnitude, curves.error)]
                values = _band(*points)
            for name, value in zip(NAMES, values, strict=True):
                columns[name][i, b] = value
    return columns


def _band(t: NDArray, m: NDArray, e: NDArray) -> tuple[float, ...]:
    nothing = (np.nan,) * 5
    if len(t) == 0:
        return nothing
    flux = 10 ** (0.4 * (19 - m))
    mean = flux.mean() if np.ptp(flux) else flux[0]
    low, low_used = _power(t, flux - mean, 100.0)
    high, high_used = _power(t, flux - mean, 10.0)
    if not high_used.any():
        return nothing
    noise = (np.mean(np.log(10) * 0.4 * flux[low_used] * e[low_used]) / mean) ** 2
    low = low / mean**2 - noise
    high = high / mean**2
    flag = 0 if high > noise else 1
    high = high - noise if high > noise else high
    return nothing if high == 0 else (low, high, low / high, high_used.sum(), flag)


def _power(t: NDArray, x: NDArray, scale: float) -> tuple[float, NDArray]:
    sigmas = np.array([0.225, 0.45]) * scale / np.sqrt(2)
    window = max(6 * sigmas[0], 30.0)
    u = np.linspace(-window, window, 1000, endpoint=False)
    shapes = np.exp(-(u**2) / (2 * sigmas[:, None] ** 2))
    integrals = shapes.sum(axis=1) * 2 * window / 1000
    norm = ((shapes[0] / integrals[0] - shapes[1] / integrals[1]) ** 2).sum() * 2 * window / 1000
    lags = np.abs(t[:, None] - t)
    used = (lags <= 2 * window / 3).sum(axis=1) > 3
    filtered = []
    for sigma in sigmas:
        kernel = np.where(lags < window, np.exp(-(lags**2) / (2 * sigma**2)), 0)
        filtered.append(kernel @ x / kernel.sum(axis=1))
    difference = (filtered[0] - filtered[1])[used]
    return (np.mean(difference**2) if used.any() else np.nan) / norm, used
