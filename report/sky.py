"""Mollweide's projection of the sky, and counts in cells of equal area."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Rows (from the south) and columns (from the east) of the finest cells; 0.81 square degrees each.
SKY_SHAPE: Final = (180, 360)
CENTRE_RA: Final = 180.0


def _auxiliary_angles() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Declinations, and sines of the auxiliary angle, from 2 theta + sin 2 theta = pi sin dec (Snyder 1987)."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
    dec = np.degrees(np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1)))
    return dec, theta


_DEC, _THETA = _auxiliary_angles()


def mollweide(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Place of positions (degrees) on the map: x from -2 (east, left) to 2, y from -1 to 1 (north)."""
    longitude = np.mod(np.asarray(ra, np.float64) - CENTRE_RA + 180.0, 360.0) - 180.0
    theta = np.interp(np.asarray(dec, np.float64), _DEC, _THETA)
    # East is on the left, as one sees the sky.
    return -longitude / 90.0 * np.cos(theta), np.sin(theta)


def sky_cells(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of each position's cell in a map of shape :data:`SKY_SHAPE`; -1 if there is no such position."""
    rows, columns = SKY_SHAPE
    valid = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90.0)
    x, y = mollweide(np.where(valid, ra, 0.0), np.where(valid, dec, 0.0))
    column = np.clip(((x + 2.0) / 4.0 * columns).astype(np.int64), 0, columns - 1)
    row = np.clip(((y + 1.0) / 2.0 * rows).astype(np.int64), 0, rows - 1)
    return np.where(valid, row * columns + column, -1)


def coarser(counts: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """Sums over blocks of `factor` x `factor` cells."""
    rows, columns = counts.shape
    return counts.reshape(rows // factor, factor, columns // factor, factor).sum(axis=(1, 3))


def galactic_plane(points: int = 721) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension and declination (J2000, degrees) of the Galactic plane, from the Galactic centre on.

    The pole and the centre of the plane are those of Hipparcos (ESA 1997, volume 1, section 1.5.3).
    """
    pole_ra, pole_dec, node = np.radians([192.85948, 27.12825, 32.93192])
    longitude = np.linspace(0.0, 2 * np.pi, points) - node
    dec = np.arcsin(np.sin(longitude) * np.cos(pole_dec))
    ra = pole_ra + np.arctan2(np.cos(longitude), -np.sin(longitude) * np.sin(pole_dec))
    return np.mod(np.degrees(ra), 360.0), np.degrees(dec)
