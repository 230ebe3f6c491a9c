"""Features of the light curve folded at `Multiband_period`: Psi_CS, Psi_eta and the harmonics."""

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightcurves.features import folded_reference
from lightcurves.features.curves import Columns, Curves, Family, Mode

HARMONICS = 7
ERROR_FLOOR = 0.01
_SIZE = 2 * HARMONICS + 1
_ILL_CONDITIONED = 1e-9
_NAMES = (
    "Psi_CS",
    "Psi_eta",
    *(f"Harmonics_mag_{k}" for k in range(1, HARMONICS + 1)),
    *(f"Harmonics_phase_{k}" for k in range(2, HARMONICS + 1)),
    "Harmonics_mse",
)


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Compute features of folded light curves (alerce.md, section 5.5; Kim et al. 2014, A&A 566, A43, for Psi).

    Psi_CS and Psi_eta take the magnitudes in the order of ``(t mod 2P) / 2P``. The harmonics are the least-squares
    Fourier series of order 7 in all mjd, weighted by 1/(error + 0.01), with the solution of least norm where it is
    not unique (fewer than 15 points). A harmonic whose amplitude is near zero has an arbitrary phase.

    Parameters
    ----------
    curves : Curves
        n objects.
    mode : Mode
        ``ALERCE`` takes the harmonics' angles from absolute mjd in ALeRCE's order of operations, ``ACCURATE`` from
        the first epoch of the band.
    known : mapping
        ``Multiband_period`` (n,), days; NaN gives NaN.

    Returns
    -------
    dict
        Arrays (n, 2): amplitudes in mag, phases in [0, 2π) relative to the first harmonic, `Harmonics_mse` in mag².
    """
    out = np.full((len(curves), 2, len(_NAMES)), np.nan)
    period = np.ascontiguousarray(known["Multiband_period"], np.float64)
    absolute = mode is Mode.ALERCE
    _compute(curves.offsets, curves.mjd, curves.magnitude, curves.error, period, absolute, out)
    return {name: np.ascontiguousarray(out[:, :, i]) for i, name in enumerate(_NAMES)}


@njit(cache=True, nogil=True, error_model="numpy")
def _compute(offsets, mjd, magnitude, error, period, absolute, out):
    for i in range(period.size):
        if not (period[i] > 0 and np.isfinite(period[i])):
            continue
        for b in range(2):
            start, stop = offsets[2 * i + b], offsets[2 * i + b + 1]
            if stop > start:
                _psi(mjd[start:stop], magnitude[start:stop], period[i], out[i, b, :2])
                _harmonics(
                    mjd[start:stop], magnitude[start:stop], error[start:stop], period[i], absolute, out[i, b, 2:]
                )


@njit(cache=True, nogil=True, error_model="numpy")
def _psi(mjd, magnitude, period, out):
    n = mjd.size
    folded = magnitude[np.argsort(np.mod(mjd, 2 * period) / (2 * period), kind="mergesort")]
    mean = folded.mean()
    variance = ((folded - mean) ** 2).mean()
    total = 0.0
    lowest = np.inf
    highest = -np.inf
    squares = 0.0
    for k in range(n):
        total += folded[k] - mean
        lowest = min(lowest, total)
        highest = max(highest, total)
        if k > 0:
            squares += (folded[k] - folded[k - 1]) ** 2
    if n > 1 and variance > 0:
        out[0] = (highest - lowest) / (n * np.sqrt(variance))
        out[1] = squares / ((n - 1) * variance)


@njit(cache=True, nogil=True, error_model="numpy")
def _harmonics(mjd, magnitude, error, period, absolute, out):
    n = mjd.size
    design = np.empty((_SIZE, n))
    weight = 1 / (error + ERROR_FLOOR)
    design[0] = weight
    for i in range(n):
        turns = (mjd[i] - mjd[0]) / period
        for k in range(1, HARMONICS + 1):
            # Phases of absolute mjd carry rounding errors that ill-conditioned fits (period beyond the time span)
            # magnify.
            angle = 2 * np.pi / period * k * mjd[i] if absolute else 2 * np.pi * k * (turns - np.floor(turns))
            design[2 * k - 1, i] = np.cos(angle) * weight[i]
            design[2 * k, i] = np.sin(angle) * weight[i]
    solution = _least_norm(design, magnitude * weight)
    first = np.arctan2(solution[2], solution[1])
    for k in range(1, HARMONICS + 1):
        a, b = solution[2 * k - 1], solution[2 * k]
        out[k - 1] = np.sqrt(a * a + b * b)
        if k > 1:
            out[HARMONICS + k - 2] = np.mod(np.arctan2(b, a) - k * first, 2 * np.pi)
    squares = 0.0
    for i in range(n):
        model = 0.0
        for j in range(_SIZE):
            model += solution[j] * design[j, i]
        squares += (magnitude[i] - model / weight[i]) ** 2
    out[2 * HARMONICS - 1] = squares / n


@njit(cache=True, nogil=True, error_model="numpy")
def _least_norm(columns, values):
    """Solve ``columns.T @ x = values`` for the least-squares x of least norm, by Householder's QR of the longer side.

    Where the triangular factor is nearly singular the singular values decide, as in NumPy's pseudo-inverse.
    """
    size, n = columns.shape
    tall = n >= size
    vectors = columns.copy() if tall else np.ascontiguousarray(columns.T)
    short, long = vectors.shape
    diagonal = np.empty(short)
    scale = np.empty(short)
    for k in range(short):
        norm = 0.0
        for i in range(k, long):
            norm += vectors[k, i] ** 2
        norm = np.sqrt(norm)
        diagonal[k] = -norm if vectors[k, k] > 0 else norm
        vectors[k, k] -= diagonal[k]
        squares = 0.0
        for i in range(k, long):
            squares += vectors[k, i] ** 2
        scale[k] = 2 / squares if squares > 0 else 0.0
        for j in range(k + 1, short):
            _reflect(vectors[k], scale[k], vectors[j], k)
    if not np.abs(diagonal).min() > _ILL_CONDITIONED * np.abs(diagonal).max():
        return _by_singular_values(columns, values)
    x = np.zeros(size)
    if tall:
        y = values.copy()
        for k in range(short):
            _reflect(vectors[k], scale[k], y, k)
        for k in range(short - 1, -1, -1):
            total = y[k]
            for j in range(k + 1, short):
                total -= vectors[j, k] * x[j]
            x[k] = total / diagonal[k]
    else:
        for k in range(short):
            total = values[k]
            for j in range(k):
                total -= vectors[k, j] * x[j]
            x[k] = total / diagonal[k]
        for k in range(short - 1, -1, -1):
            _reflect(vectors[k], scale[k], x, k)
    return x


@njit(cache=True, nogil=True, error_model="numpy")
def _reflect(vector, scale, target, start):
    product = 0.0
    for i in range(start, target.size):
        product += vector[i] * target[i]
    product *= scale
    for i in range(start, target.size):
        target[i] -= product * vector[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _by_singular_values(columns, values):
    x = np.zeros(columns.shape[0])
    if not (np.isfinite(columns).all() and np.isfinite(values).all()):
        return np.full(x.size, np.nan)
    left, singular, right = np.linalg.svd(np.ascontiguousarray(columns.T), False)
    for k in range(singular.size):
        if singular[k] > 1e-15 * singular[0]:
            product = 0.0
            for i in range(values.size):
                product += left[i, k] * values[i]
            for j in range(x.size):
                x[j] += right[k, j] * (product / singular[k])
    return x


FAMILY = Family(
    per_band=_NAMES, per_object=(), compute=compute, reference=folded_reference.folded, uses=("Multiband_period",)
)
