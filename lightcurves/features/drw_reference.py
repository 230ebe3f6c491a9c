"""Plain NumPy and SciPy reference of the damped random walk: celerite's recursion and SciPy's L-BFGS-B."""

from collections.abc import Callable, Mapping

import numpy as np
import scipy  # Its parts are loaded when they are used: here by tests only.
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]


def damped_random_walk(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """GP_DRW_sigma and GP_DRW_tau of alerce.md 5.3 for every object and band, as ``drw.compute``."""
    columns = {name: np.full((len(curves), 2), np.nan) for name in ("GP_DRW_sigma", "GP_DRW_tau")}
    with np.errstate(all="ignore"):
        for row in range(2 * len(curves)):
            points = slice(curves.offsets[row], curves.offsets[row + 1])
            t, m, e = curves.mjd[points], curves.magnitude[points], curves.error[points]
            if len(m) > 0:
                fit = _stopped(t, m, e) if mode is Mode.ALERCE else _best(t, m, e)
                columns["GP_DRW_sigma"][row // 2, row % 2], columns["GP_DRW_tau"][row // 2, row % 2] = fit
    return columns


def negative_log_likelihood(t: Values, m: Values, e: Values) -> Callable[[Values], float]:
    """-ln L of the logarithms of variance and inverse time, by celerite's recursion in Foreman-Mackey et al. (2017)."""
    y, gaps = m - np.mean(m), np.diff(t)

    def objective(logarithms: Values) -> float:
        a, c = np.exp(logarithms)
        s, f, d, z = 0.0, 0.0, [a + e[0] ** 2], [y[0]]
        w = 1 / d[0]
        for i in range(1, len(y)):
            p = np.exp(-c * gaps[i - 1])
            s = p * (s + d[-1] * w * w) * p
            f = p * (f + w * z[-1])
            d.append((a + e[i] ** 2) - a * s * a)
            if d[-1] <= 0:
                return np.inf
            w = (1 - a * s) / d[-1]
            z.append(y[i] - a * f)
        squares = np.sum(np.square(z) / d)
        return -(-0.5 * (np.sum(np.log(d)) + len(y) * np.log(2 * np.pi)) - 0.5 * squares)

    return objective


def _stopped(t: Values, m: Values, e: Values) -> tuple[float, float]:
    log_a, log_c = scipy.optimize.minimize(negative_log_likelihood(t, m, e), np.zeros(2), method="L-BFGS-B").x
    return np.exp(log_a), np.exp(-log_c)


def _best(t: Values, m: Values, e: Values) -> tuple[float, float]:
    scale = np.mean((m - np.mean(m)) ** 2)
    if not scale > 0:
        return np.nan, np.nan
    objective = negative_log_likelihood(t, m, e)
    bounds = [(float(np.log(1e-6 * scale)), float(np.log(1e3 * scale))), (float(np.log(1e-4)), float(np.log(1e2)))]
    starts = [np.array([x, y]) for x in np.linspace(*bounds[0], 7)[1:-1] for y in np.linspace(*bounds[1], 9)[1:-1]]
    starts = sorted(starts, key=objective)[:6]
    options = {"ftol": 1e-14, "gtol": 1e-9}
    fits = [
        scipy.optimize.minimize(objective, start, method="L-BFGS-B", bounds=bounds, options=options) for start in starts
    ]
    best = min(fits, key=lambda fit: fit.fun)
    white = scipy.optimize.minimize_scalar(
        lambda log_a: objective(np.array([log_a, bounds[1][1]])), bounds=bounds[0], method="bounded"
    )
    log_a, log_c = best.x
    if white.fun <= best.fun + 1e-4:
        log_a, log_c = white.x, bounds[1][1]
        if objective(np.array([bounds[0][0], log_c])) <= best.fun + 1e-4:
            log_a = bounds[0][0]
    return np.exp(log_a), np.exp(-log_c)
