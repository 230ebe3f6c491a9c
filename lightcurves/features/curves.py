"""What every feature is computed from: the points of many light curves, in columns, by object and band."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

BANDS = (1, 2)


class Mode(StrEnum):
    """How features are computed."""

    ALERCE = "alerce"
    ACCURATE = "accurate"


@dataclass(frozen=True, eq=False)
class Curves:
    """Retained points of n objects; the points of an object lie together, g before r, by time in each band.

    Attributes
    ----------
    offsets : int64, shape (2 n + 1,)
        Points of object i in band b (0 for g, 1 for r) are the rows ``offsets[2 * i + b]:offsets[2 * i + b + 1]``.
    mjd : float64, shape (points,)
        Days.
    magnitude, error : float64, shape (points,)
        Apparent magnitude and its error where the object is corrected, else those of the difference image
        (``magpsf_ml``, ``sigmapsf_ml``), mag.
    difference_magnitude, difference_error : float64, shape (points,)
        Of the difference image (``magpsf``, ``sigmapsf``), mag.
    positive : bool, shape (points,)
        Whether the source is brighter than in the reference image.
    ra, dec : float64, shape (points,)
        Degrees, J2000.
    rb : float64, shape (points,)
        Real/bogus score.
    non_offsets : int64, shape (2 n + 1,)
        As `offsets`, of the non-detections.
    non_mjd : float64, shape (non-detections,)
        Days, rising in each band.
    non_limit : float64, shape (non-detections,)
        Limiting magnitude of the difference image.
    sgscore1 : float64, shape (n,)
        Star/galaxy score of the nearest PS1 source; NaN if unknown.
    wise : float64, shape (n, 3)
        W1, W2, W3 of the AllWISE match, mag; NaN if unknown.
    enough : bool, shape (n,)
        Whether features are computed; the others get NaN throughout.
    """

    offsets: NDArray[np.int64]
    mjd: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    error: NDArray[np.float64]
    difference_magnitude: NDArray[np.float64]
    difference_error: NDArray[np.float64]
    positive: NDArray[np.bool_]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    rb: NDArray[np.float64]
    non_offsets: NDArray[np.int64]
    non_mjd: NDArray[np.float64]
    non_limit: NDArray[np.float64]
    sgscore1: NDArray[np.float64]
    wise: NDArray[np.float64]
    enough: NDArray[np.bool_]

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.enough)

    def part(self, start: int, end: int) -> Curves:
        """Objects from one number up to another; the columns are not copied."""
        bands, objects = slice(2 * start, 2 * end + 1), slice(start, end)
        offsets, non_offsets = self.offsets[bands], self.non_offsets[bands]
        points, limits = slice(offsets[0], offsets[-1]), slice(non_offsets[0], non_offsets[-1])
        places = {"offsets": offsets - offsets[0], "non_offsets": non_offsets - non_offsets[0]}
        slices = dict.fromkeys(("non_mjd", "non_limit"), limits) | dict.fromkeys(
            ("sgscore1", "wise", "enough"), objects
        )
        names = [field.name for field in fields(self) if field.name not in places]
        return replace(self, **places, **{name: getattr(self, name)[slices.get(name, points)] for name in names})


Columns = dict[str, NDArray[np.float64]]
Compute = Callable[[Curves, Mode, Mapping[str, NDArray[np.float64]]], Columns]


@dataclass(frozen=True)
class Family:
    """Features that are computed together.

    Attributes
    ----------
    per_band : tuple of str
        Base names; `compute` gives an array of shape (n, 2) for each, whose columns become ``<name>_1``, ``<name>_2``.
    per_object : tuple of str
        Names of features of shape (n,).
    compute : callable
        From curves, mode and the features computed before (those of `uses`) to the arrays by name; NaN is missing.
    reference : callable
        The same by plain NumPy, slow and obvious, one object after another: what the tests compare with.
    uses : tuple of str
        Features of other families that are needed.
    """

    per_band: tuple[str, ...]
    per_object: tuple[str, ...]
    compute: Compute
    reference: Compute
    uses: tuple[str, ...] = ()
