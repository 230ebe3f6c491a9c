"""Plain NumPy reference of position, scores and colours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightcurves.features.curves import Columns, Curves, Mode

Values = NDArray[np.float64]

# Galactic unit vectors of the three ICRS axes, by astropy.
_ICRS_TO_GALACTIC = np.array(
    [
        [-0.05487565771259168, -0.8734370519556163, -0.4838350736167155],
        [0.4941094371927275, -0.44482972122329517, 0.7469821839866676],
        [-0.8676661375596587, -0.19807633727300075, 0.4559838136873016],
    ]
)


def position(curves: Curves, mode: Mode, known: Mapping[str, Values]) -> Columns:
    """Features of alerce.md 5.1 for every object, as ``position.compute``."""
    rows = [_of_object(curves, i, mode) for i in range(len(curves))]
    names = rows[0] if rows else {}
    return {name: np.array([row[name] for row in rows], np.float64) for name in names}


def _of_object(curves: Curves, i: int, mode: Mode) -> dict[str, float]:
    start, middle, stop = curves.offsets[2 * i : 2 * i + 3]
    g, r, both = slice(start, middle), slice(middle, stop), slice(start, stop)
    w1, w2, w3 = curves.wise[i]
    m, difference = curves.magnitude, curves.difference_magnitude
    colors: dict[str, Any] = {"g-r_max": np.nan, "g-r_mean": np.nan, "g-r_max_corr": np.nan, "g-r_mean_corr": np.nan}
    if start < middle < stop:
        colors["g-r_max"] = np.min(difference[g]) - np.min(difference[r])
        colors["g-r_mean"] = np.mean(difference[g]) - np.mean(difference[r])
        corrected = np.min(m[g]) - np.min(m[r]), np.mean(m[g]) - np.mean(m[r])
        if corrected != (colors["g-r_max"], colors["g-r_mean"]):
            colors["g-r_max_corr"], colors["g-r_mean_corr"] = corrected
    g_mean = np.mean(m[g]) if middle > start else np.nan
    r_mean = np.mean(m[r]) if stop > middle else np.nan
    latitude = longitude = score = np.nan
    if stop > start:
        latitude, longitude = _galactic(curves.ra[both], curves.dec[both], mode)
    if np.isfinite(curves.rb[both]).any():
        score = np.nanmedian(curves.rb[both])
    return colors | {
        "W1-W2": w1 - w2,
        "W2-W3": w2 - w3,
        "g-W2": g_mean - w2,
        "g-W3": g_mean - w3,
        "r-W2": r_mean - w2,
        "r-W3": r_mean - w3,
        "gal_b": latitude,
        "gal_l": longitude,
        "rb": score,
        "sgscore1": curves.sgscore1[i],
    }


def _galactic(ra: Values, dec: Values, mode: Mode) -> tuple[float, float]:
    mean_ra = np.radians(np.mean(ra))
    if mode is Mode.ACCURATE:
        mean_ra = np.angle(np.mean(np.exp(1j * np.radians(ra))))
    mean_dec = np.radians(np.mean(dec))
    towards = np.array([np.cos(mean_dec) * np.cos(mean_ra), np.cos(mean_dec) * np.sin(mean_ra), np.sin(mean_dec)])
    x, y, z = _ICRS_TO_GALACTIC @ towards
    return np.degrees(np.arcsin(z)), np.degrees(np.arctan2(y, x)) % 360
