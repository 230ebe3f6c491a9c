"""Plain NumPy and SciPy reference of the irregular autoregressive feature."""

import math
from collections.abc import Mapping

import numpy as np
import scipy  # Its parts are loaded when they are used: here by tests only.
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]


def iar(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """IAR_phi of alerce.md 5.3 for every object and band, as ``iar.compute``."""
    phi = np.full((len(curves), 2), np.nan)
    with np.errstate(all="ignore"):
        for row in range(2 * len(curves)):
            points = slice(curves.offsets[row], curves.offsets[row + 1])
            t, m, e = curves.mjd[points], curves.magnitude[points], curves.error[points]
            if len(m) > 5:
                phi[row // 2, row % 2] = _phi(t, m, e, mode)
    return {"IAR_phi": phi}


def _phi(t: Values, m: Values, e: Values, mode: Mode) -> float:
    deviation = np.std(m, ddof=1)
    y, relative_error, gaps = (m - np.mean(m)) / deviation, e / deviation, np.diff(t)

    def deviance(phi: float) -> float:
        x, p, logarithms, squares = 0.0, 1.0, 0.0, 0.0
        for i in range(len(y) - 1):
            f = phi ** gaps[i]
            lam = p + relative_error[i + 1] ** 2
            if lam <= 0 or np.isnan(lam):
                return 1e10
            logarithms += math.log(lam)
            squares += (y[i] - x) ** 2 / lam
            theta = f * p
            x = f * x + theta / lam * (y[i] - x)
            p = f * p * f + (1 - phi ** (2 * gaps[i])) - theta / lam * theta
        return (logarithms + squares) / len(y)

    if mode is Mode.ALERCE:
        return scipy.optimize.minimize_scalar(deviance, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    if np.ptp(m) == 0:
        return np.nan
    grid = np.concatenate([[0], np.exp(-1 / np.geomspace(0.03, 2e4, 300)), [1]])
    best = np.argmin([deviance(phi) for phi in grid[1:-1]]) + 1
    bounds = grid[best - 1], grid[best + 1]
    return scipy.optimize.minimize_scalar(deviance, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
