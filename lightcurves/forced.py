"""Forced photometry: flux at a known place, whether a source was found there or not."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAG_PER_RELATIVE_FLUX = 2.5 / math.log(10.0)


def forced_magnitudes(
    flux: ArrayLike, flux_error: ArrayLike, zero_point: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Magnitudes of fluxes of the difference image.

    Parameters
    ----------
    flux, flux_error : array_like of float, shape (n,)
        ``forcediffimflux`` and its error, DN; NaN where not measured.
    zero_point : array_like of float, shape (n,)
        ``magzpsci``, mag.

    Returns
    -------
    magpsf, sigmapsf : float64, shape (n,)
        ``zero_point - 2.5 log10 |flux|``, which is ALeRCE's -2.5 log10 |f/µJy| + 23.9, and ``1.0857 error/|flux|``; NaN
        where one of them is not finite or the error is not positive.
    isdiffpos : int64, shape (n,)
        1 where the flux is positive, else -1.
    """
    flux, flux_error, zero_point = (np.asarray(values, np.float64) for values in (flux, flux_error, zero_point))
    with np.errstate(all="ignore"):
        magnitude = zero_point - 2.5 * np.log10(np.abs(flux))
        error = _MAG_PER_RELATIVE_FLUX * flux_error / np.abs(flux)
    good = np.isfinite(magnitude) & np.isfinite(error) & (error > 0)
    return np.where(good, magnitude, np.nan), np.where(good, error, np.nan), np.where(flux > 0, 1, -1)
