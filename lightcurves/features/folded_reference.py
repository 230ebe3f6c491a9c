"""Plain reference of the features of folded light curves: the formulas of alerce.md, section 5.5."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

NAMES = (
    "Psi_CS",
    "Psi_eta",
    *(f"Harmonics_mag_{k}" for k in range(1, 8)),
    *(f"Harmonics_phase_{k}" for k in range(2, 8)),
)


def folded(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute what ``folded.compute`` computes, slowly."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in (*NAMES, "Harmonics_mse")}
    for i, period in enumerate(known["Multiband_period"]):
        for b in range(2):
            rows = slice(curves.offsets[2 * i + b], curves.offsets[2 * i + b + 1])
            t, m, e = curves.mjd[rows], curves.magnitude[rows], curves.error[rows]
            if len(t) and np.isfinite(period):
                with np.errstate(all="ignore"):
                    origin = 0.0 if mode is Mode.ALERCE else t[0]
                    values = _psi(t, m, period) | _harmonics(t - origin, m, e, period)
                for name, value in values.items():
                    columns[name][i, b] = value
    return columns


def _psi(t: NDArray, m: NDArray, period: float) -> dict[str, float]:
    m = m[np.argsort(np.mod(t, 2 * period) / (2 * period), kind="stable")]
    n, sigma = len(m), m.std()
    if n < 2 or sigma == 0:
        return {}
    walk = np.cumsum(m - m.mean()) / (n * sigma)
    return {"Psi_CS": walk.max() - walk.min(), "Psi_eta": np.sum(np.diff(m) ** 2) / ((n - 1) * sigma**2)}


def _harmonics(t: NDArray, m: NDArray, e: NDArray, period: float) -> dict[str, float]:
    angles = np.outer(2 * np.pi / period * np.arange(1, 8), t)
    design = np.vstack([np.ones((1, len(t))), np.cos(angles), np.sin(angles)]).T
    try:
        x = np.linalg.pinv(design * (1 / (e + 0.01))[:, None]) @ (m * (1 / (e + 0.01)))
    except np.linalg.LinAlgError:
        return {}
    a, b = x[1:8], x[8:]
    phase = np.arctan2(b, a)
    values = {f"Harmonics_mag_{k + 1}": np.hypot(a[k], b[k]) for k in range(7)}
    values |= {f"Harmonics_phase_{k + 1}": np.mod(phase[k] - (k + 1) * phase[0], 2 * np.pi) for k in range(1, 7)}
    return values | {"Harmonics_mse": np.mean((m - design @ x) ** 2)}
