"""Galactic position, scores and colours of an object (alerce.md 5.1)."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import position_reference as reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled, median, pairwise_sum

_W1, _W2, _W3 = range(3)


def _rotation(axis: int, degrees: float) -> NDArray[np.float64]:
    """Matrix of a rotation of the axes about one of them."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    matrix = np.identity(3)
    following, last = (axis + 1) % 3, (axis + 2) % 3
    matrix[following, following] = matrix[last, last] = cosine
    matrix[following, last], matrix[last, following] = sine, -sine
    return matrix


def icrs_to_galactic() -> NDArray[np.float64]:
    """Matrix from ICRS to Galactic unit vectors.

    By way of FK5 at J2000: the frame bias of Mignard & Froeschlé (2000), and the galactic pole and the position angle
    of the galactic centre of the IAU of 1958 moved to J2000, with the digits of astropy.

    Returns
    -------
    float64 [3, 3]
    """
    pole_ra, pole_dec, longitude_of_celestial_pole = 192.8594812065348, 27.12825118085622, 122.9319185680026
    milliarcsecond = 1.0 / 3.6e6
    to_fk5 = (
        _rotation(0, 19.9 * milliarcsecond) @ _rotation(1, 9.1 * milliarcsecond) @ _rotation(2, -22.9 * milliarcsecond)
    )
    to_galactic = (
        _rotation(2, 180.0 - longitude_of_celestial_pole) @ _rotation(1, 90.0 - pole_dec) @ _rotation(2, pole_ra)
    )
    return to_galactic @ to_fk5


_ICRS_TO_GALACTIC = icrs_to_galactic()


@compiled
def _galactic(ra, dec, matrix):
    """Galactic latitude and longitude, in degrees."""
    ra, dec = math.radians(ra), math.radians(dec)
    x, y, z = math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)
    to_centre = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z
    to_rotation = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z
    to_pole = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z
    longitude = math.degrees(math.atan2(to_rotation, to_centre))
    latitude = math.degrees(math.atan2(to_pole, math.hypot(to_centre, to_rotation)))
    return latitude, longitude + 360.0 if longitude < 0.0 else longitude


@compiled
def _circular_mean(degrees):
    """Direction of the sum of unit vectors, in degrees within (-180, 180]."""
    sine, cosine = 0.0, 0.0
    for value in degrees:
        sine += math.sin(math.radians(value))
        cosine += math.cos(math.radians(value))
    return math.degrees(math.atan2(sine, cosine))


@compiled
def _positions(offsets, ra, dec, rb, circular, matrix, latitude, longitude, score):
    for i in range(len(latitude)):
        start, stop = offsets[2 * i], offsets[2 * i + 2]
        n = stop - start
        if n > 0:
            mean_ra = _circular_mean(ra[start:stop]) if circular else pairwise_sum(ra[start:stop]) / n
            latitude[i], longitude[i] = _galactic(mean_ra, pairwise_sum(dec[start:stop]) / n, matrix)
            # Forced photometry has no score; NaN sorts last.
            scores = np.sort(rb[start:stop])
            score[i] = median(scores[: n - np.isnan(scores).sum()])


@compiled
def _brightest_and_mean(offsets, magnitude, brightest, mean):
    for band in range(len(offsets) - 1):
        values = magnitude[offsets[band] : offsets[band + 1]]
        if len(values) > 0:
            brightest[band] = values.min()
            mean[band] = pairwise_sum(values) / len(values)


def _brightest_and_mean_of_bands(
    offsets: NDArray[np.int64], magnitude: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    brightest, mean = (np.full(len(offsets) - 1, np.nan) for _ in range(2))
    _brightest_and_mean(offsets, magnitude, brightest, mean)
    return brightest.reshape(-1, 2), mean.reshape(-1, 2)


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Galactic position (degrees), scores and colours (mag) of each object.

    Parameters
    ----------
    curves : Curves
    mode : Mode
        `Mode.ALERCE` takes the arithmetic mean of the right ascensions, which fails across 0 h; `Mode.ACCURATE` the
        circular one.
    known : mapping
        Unused.

    Returns
    -------
    dict of str to float64 [n]
        NaN where a band or an AllWISE magnitude is missing. ``g-r_max_corr`` and ``g-r_mean_corr`` are NaN also where
        they say no more than the colours of the difference magnitudes, as in an object that is not corrected.
    """
    latitude, longitude, score = (np.full(len(curves), np.nan) for _ in range(3))
    circular = mode is Mode.ACCURATE
    _positions(
        curves.offsets, curves.ra, curves.dec, curves.rb, circular, _ICRS_TO_GALACTIC, latitude, longitude, score
    )
    brightest, mean = _brightest_and_mean_of_bands(curves.offsets, curves.difference_magnitude)
    brightest_ml, mean_ml = _brightest_and_mean_of_bands(curves.offsets, curves.magnitude)
    max_color, mean_color = brightest[:, 0] - brightest[:, 1], mean[:, 0] - mean[:, 1]
    max_color_ml, mean_color_ml = brightest_ml[:, 0] - brightest_ml[:, 1], mean_ml[:, 0] - mean_ml[:, 1]
    uncorrected = (max_color_ml == max_color) & (mean_color_ml == mean_color)
    wise = curves.wise
    return {
        "W1-W2": wise[:, _W1] - wise[:, _W2],
        "W2-W3": wise[:, _W2] - wise[:, _W3],
        "g-W2": mean_ml[:, 0] - wise[:, _W2],
        "g-W3": mean_ml[:, 0] - wise[:, _W3],
        "g-r_max": max_color,
        "g-r_max_corr": np.where(uncorrected, np.nan, max_color_ml),
        "g-r_mean": mean_color,
        "g-r_mean_corr": np.where(uncorrected, np.nan, mean_color_ml),
        "gal_b": latitude,
        "gal_l": longitude,
        "r-W2": mean_ml[:, 1] - wise[:, _W2],
        "r-W3": mean_ml[:, 1] - wise[:, _W3],
        "rb": score,
        "sgscore1": curves.sgscore1.astype(np.float64),
    }


FAMILY = Family(
    per_band=(),
    per_object=(
        *("W1-W2", "W2-W3", "g-W2", "g-W3", "g-r_max", "g-r_max_corr", "g-r_mean", "g-r_mean_corr", "gal_b", "gal_l"),
        *("r-W2", "r-W3", "rb", "sgscore1"),
    ),
    compute=compute,
    reference=reference.position,
)
