"""Irregular autoregressive feature: how strongly a magnitude depends on the one before, by day."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import iar_reference as reference
from lightcurves.features.bounded_scalar import minimize_bounded
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled, pairwise_sum

_FEWEST_POINTS = 6
_TOLERANCE = 1e-12
_MOST_EVALUATIONS = 500
_BAD = 1e10

# Correlation times in days at which the accurate mode looks for the lowest valley: phi = exp(-1 / time).
_TIMES = 10.0 ** np.linspace(-1.4, 4.0, 28)


@compiled
def _objective(phi, data):
    """Mean deviance of the model: alerce.md section 5.3, S. Eyheramendy et al. 2018, MNRAS 481, 4311.

    This order of operations gives ALeRCE's golden values to the last bit; where the deviance hardly depends on phi, its
    rounding leads the search.
    """
    gap, y, variance = data
    state, uncertainty = 0.0, 1.0
    logarithms = squares = 0.0
    for i in range(len(gap)):
        total = uncertainty + variance[i + 1]
        if not total > 0.0:
            return _BAD
        residual = y[i] - state
        logarithms += math.log(total)
        squares += residual * residual / total
        decay = phi ** gap[i]
        carried = decay * uncertainty
        gain = carried / total
        state = decay * state + gain * residual
        uncertainty = carried * decay + (1.0 - phi ** (2.0 * gap[i])) - gain * carried
    return (logarithms + squares) / len(y)


@compiled
def _lowest_valley(data):
    """Bounds of phi around the best of `_TIMES`, 0 and 1 included."""
    best, lowest = 0, np.inf
    for k in range(len(_TIMES)):
        value = _objective(math.exp(-1.0 / _TIMES[k]), data)
        if value < lowest:
            best, lowest = k, value
    low = math.exp(-1.0 / _TIMES[best - 1]) if best > 0 else 0.0
    high = math.exp(-1.0 / _TIMES[best + 1]) if best + 1 < len(_TIMES) else 1.0
    return low, high


@compiled
def _phi(mjd, magnitude, error, accurate):
    n = len(mjd)
    y = magnitude - pairwise_sum(magnitude) / n
    deviation = math.sqrt(pairwise_sum(y * y) / (n - 1))
    if accurate and magnitude.min() == magnitude.max():
        return np.nan
    y /= deviation
    data = (np.diff(mjd), y, (error / deviation) ** 2)
    if accurate:
        low, high = _lowest_valley(data)
    else:
        low, high = 0.0, 1.0
    return minimize_bounded(_objective, data, low, high, _TOLERANCE, _MOST_EVALUATIONS)[0]


@compiled
def _all_phi(offsets, mjd, magnitude, error, accurate):
    phi = np.full(len(offsets) - 1, np.nan)
    for band in range(len(phi)):
        start, stop = offsets[band], offsets[band + 1]
        if stop - start >= _FEWEST_POINTS:
            phi[band] = _phi(mjd[start:stop], magnitude[start:stop], error[start:stop], accurate)
    return phi


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Most likely phi of the irregular autoregressive model of each band; NaN with fewer than six points.

    Parameters
    ----------
    curves : Curves
    mode : Mode
        `Mode.ALERCE`: the local minimum that Brent's method on (0, 1) finds, and for equal magnitudes its first point,
        0.38; `Mode.ACCURATE`: the global minimum, NaN for equal magnitudes.
    known : mapping
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
    """
    phi = _all_phi(curves.offsets, curves.mjd, curves.magnitude, curves.error, mode is Mode.ACCURATE)
    return {"IAR_phi": phi.reshape(-1, 2)}


FAMILY = Family(per_band=("IAR_phi",), per_object=(), compute=compute, reference=reference.iar)
