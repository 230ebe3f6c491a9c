"""Apparent magnitudes from difference images, and what the nearest reference source says of a detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEAR_ARCSEC: Final = 1.4
POINT_SCORE: Final = 0.4
MAX_POINT_CHI: Final = 2.0
POINT_SHARPNESS: Final = (-0.13, 0.1)
NO_FLUX_MAG: Final = 100.0


@dataclass(frozen=True, eq=False)
class Corrected:
    """Apparent magnitudes of n detections.

    Attributes
    ----------
    corrected : bool, shape (n,)
        Whether a reference source is near enough for its flux to be added.
    magpsf_corr : float64, shape (n,)
        Apparent magnitude, mag; NaN if not corrected, 100 if the sum of the fluxes is not positive.
    sigmapsf_corr : float64, shape (n,)
        Its error with the reference's noise taken out, mag; 100 if that leaves nothing.
    sigmapsf_corr_ext : float64, shape (n,)
        Its error where the reference is an extended source, mag.
    """

    corrected: NDArray[np.bool_]
    magpsf_corr: NDArray[np.float64]
    sigmapsf_corr: NDArray[np.float64]
    sigmapsf_corr_ext: NDArray[np.float64]


def correct(
    magpsf: ArrayLike,
    sigmapsf: ArrayLike,
    magnr: ArrayLike,
    sigmagnr: ArrayLike,
    distnr: ArrayLike,
    isdiffpos: ArrayLike,
) -> Corrected:
    """Add the flux of the nearest reference source to that of the difference image.

    Parameters
    ----------
    magpsf, sigmapsf : float arrays, shape (n,)
        Magnitude and error of the difference image, mag.
    magnr, sigmagnr : float arrays, shape (n,)
        Of the nearest reference source, mag.
    distnr : float array, shape (n,)
        Distance of that source, arcsec; NaN if there is none.
    isdiffpos : array, shape (n,)
        Positive where the source is brighter than in the reference, else negative.

    Notes
    -----
    ALeRCE's correction (Förster et al. 2021, section 4.2 of the project's fact sheet): fluxes add,
    :math:`a_3 = 10^{-0.4 m_{nr}} \\pm 10^{-0.4 m_{psf}}`.
    """
    magpsf, sigmapsf, magnr, sigmagnr, distnr = (
        np.asarray(values, np.float64) for values in (magpsf, sigmapsf, magnr, sigmagnr, distnr)
    )
    with np.errstate(all="ignore"):
        corrected = distnr < NEAR_ARCSEC
        usable = corrected & ~(magnr < 0) & ~(magpsf < 0)
        reference, difference = 10.0 ** (-0.4 * magnr), 10.0 ** (-0.4 * magpsf)
        total = reference + np.where(np.asarray(isdiffpos) > 0, 1.0, -1.0) * difference
        magnitude = -2.5 * np.log10(total)
        radicand = difference**2 * sigmapsf**2 - reference**2 * sigmagnr**2
        error = np.where(radicand >= 0, np.sqrt(radicand) / total, NO_FLUX_MAG)
        extended = difference * sigmapsf / total
    positive = total > 0

    def result(values: NDArray[np.float64]) -> NDArray[np.float64]:
        known = usable & ~np.isnan(total)
        return np.where(known, np.where(positive, values, NO_FLUX_MAG), np.nan)

    return Corrected(corrected, result(magnitude), result(error), result(extended))


def is_dubious(
    corrected: NDArray[np.bool_], isdiffpos: ArrayLike, first_corrected: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Detections whose magnitudes do not fit together with the others of their band.

    Parameters
    ----------
    corrected : bool array, shape (n,)
    isdiffpos : array, shape (n,)
    first_corrected : bool array, shape (n,)
        Whether the first detection of the same object and band is corrected.
    """
    return (~corrected & (np.asarray(isdiffpos) < 0)) | (corrected != first_corrected)


@dataclass(frozen=True, eq=False)
class StellarFlags:
    """What the nearest sources of ZTF's reference and of PS1 tell of n sources; bool, shape (n,) each.

    Attributes
    ----------
    near_ztf, near_ps1 : bool
        Whether ZTF's reference, and PS1, have the source.
    stellar_ztf, stellar_ps1 : bool
        Whether it is a star by its shape in ZTF's reference, and by PS1's score.
    """

    near_ztf: NDArray[np.bool_]
    near_ps1: NDArray[np.bool_]
    stellar_ztf: NDArray[np.bool_]
    stellar_ps1: NDArray[np.bool_]

    @property
    def stellar(self) -> NDArray[np.bool_]:
        """Whether the source is a star, by PS1 if it has the source, else by ZTF's reference."""
        return self.near_ztf & np.where(self.near_ps1, self.stellar_ps1, self.stellar_ztf)


def stellar_flags(
    distnr: ArrayLike, distpsnr1: ArrayLike, sgscore1: ArrayLike, chinr: ArrayLike, sharpnr: ArrayLike
) -> StellarFlags:
    """Flags of the sources; parameters as of :func:`is_stellar`."""
    distnr, distpsnr1, sgscore1, chinr, sharpnr = (
        np.asarray(values, np.float64) for values in (distnr, distpsnr1, sgscore1, chinr, sharpnr)
    )
    low, high = POINT_SHARPNESS
    return StellarFlags(
        near_ztf=(distnr >= 0) & (distnr < NEAR_ARCSEC),
        near_ps1=(distpsnr1 >= 0) & (distpsnr1 < NEAR_ARCSEC),
        stellar_ztf=(chinr < MAX_POINT_CHI) & (sharpnr > low) & (sharpnr < high),
        stellar_ps1=sgscore1 > POINT_SCORE,
    )


def is_stellar(
    distnr: ArrayLike, distpsnr1: ArrayLike, sgscore1: ArrayLike, chinr: ArrayLike, sharpnr: ArrayLike
) -> NDArray[np.bool_]:
    """Whether the nearest source is a star by PS1's score, or by its shape in ZTF's reference where PS1 has none.

    Parameters
    ----------
    distnr, distpsnr1 : float arrays, shape (n,)
        Distance of the nearest source of ZTF's reference and of PS1, arcsec; negative or NaN if there is none.
    sgscore1 : float array, shape (n,)
        PS1's star/galaxy score, 1 for stars.
    chinr, sharpnr : float arrays, shape (n,)
        Fit quality and extent of the reference source.
    """
    return stellar_flags(distnr, distpsnr1, sgscore1, chinr, sharpnr).stellar
