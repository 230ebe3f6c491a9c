"""Slow and obvious crossmatch that the tests compare the fast one with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def angular_separation_arcsec(ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> NDArray[np.float64]:
    """Angle between positions in degrees, by the Vincenty formula (accurate at all separations), in arcseconds."""
    ra1, dec1, ra2, dec2 = (np.asarray(angle, np.float64) for angle in (ra1, dec1, ra2, dec2))
    # Differences are taken before the turn into radians, the short way around: it keeps the digits of close pairs.
    turn = np.abs(ra2 - ra1)
    turn = np.radians(np.where(turn > 180.0, (360.0 - np.maximum(ra1, ra2)) + np.minimum(ra1, ra2), turn))
    tilt = np.radians(dec2 - dec1)
    cosine1, sine1 = np.sin(np.radians(90.0 - np.abs(dec1))), np.sin(np.radians(dec1))
    cosine2, sine2 = np.sin(np.radians(90.0 - np.abs(dec2))), np.sin(np.radians(dec2))
    across = cosine2 * np.sin(turn)
    along = np.sin(tilt) + 2.0 * sine1 * cosine2 * np.sin(turn / 2.0) ** 2
    forward = sine1 * sine2 + cosine1 * cosine2 * np.cos(turn)
    return np.degrees(np.arctan2(np.hypot(across, along), forward)) * 3600.0


def brute_force_nearest(
    ra: ArrayLike,
    dec: ArrayLike,
    catalog_ra: ArrayLike,
    catalog_dec: ArrayLike,
    identifiers: Sequence[str] | Sequence[int],
    radius_arcsec: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest source by trying all pairs; of equally near ones the smallest identifier.

    Parameters
    ----------
    ra, dec : float64 [n]
        Positions in degrees.
    catalog_ra, catalog_dec : float64 [m]
        Sources in degrees.
    identifiers : sequence of m str or int
    radius_arcsec : float
        Largest separation, inclusive.

    Returns
    -------
    sources : int64 [n]
        Number of the source, -1 for none.
    separation_arcsec : float64 [n]
        NaN for none.
    """
    ra, dec = np.mod(np.asarray(ra, np.float64), 360.0), np.asarray(dec, np.float64)
    sources = np.full(len(ra), -1, np.int64)
    separations = np.full(len(ra), np.nan)
    for i in range(len(ra)):
        separation = angular_separation_arcsec(ra[i], dec[i], catalog_ra, catalog_dec)
        within = [j for j in range(len(identifiers)) if separation[j] <= radius_arcsec]
        if within:
            sources[i] = min(within, key=lambda j: (separation[j], identifiers[j]))
            separations[i] = separation[sources[i]]
    return sources, separations
