"""Features meant for supernovae: counts, the first point, and non-detections before and after it (alerce.md 5.4)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightcurves.features import supernova_reference as reference
from lightcurves.features.curves import Columns, Curves, Family, Mode
from lightcurves.features.numeric import compiled, median, pairwise_sum

_PER_BAND = (
    "delta_mag_fid",
    "delta_mjd_fid",
    "dmag_first_det_fid",
    "dmag_non_det_fid",
    "first_mag",
    "last_diffmaglim_before_fid",
    "last_mjd_before_fid",
    "max_diffmaglim_after_fid",
    "max_diffmaglim_before_fid",
    "mean_mag",
    "median_diffmaglim_after_fid",
    "median_diffmaglim_before_fid",
    "min_mag",
    "n_det",
    "n_neg",
    "n_non_det_after_fid",
    "n_non_det_before_fid",
    "n_pos",
    "positive_fraction",
)
(
    _DELTA_MAG_FID,
    _DELTA_MJD_FID,
    _DMAG_FIRST_DET_FID,
    _DMAG_NON_DET_FID,
    _FIRST_MAG,
    _LAST_DIFFMAGLIM_BEFORE_FID,
    _LAST_MJD_BEFORE_FID,
    _MAX_DIFFMAGLIM_AFTER_FID,
    _MAX_DIFFMAGLIM_BEFORE_FID,
    _MEAN_MAG,
    _MEDIAN_DIFFMAGLIM_AFTER_FID,
    _MEDIAN_DIFFMAGLIM_BEFORE_FID,
    _MIN_MAG,
    _N_DET,
    _N_NEG,
    _N_NON_DET_AFTER_FID,
    _N_NON_DET_BEFORE_FID,
    _N_POS,
    _POSITIVE_FRACTION,
) = range(len(_PER_BAND))


@compiled
def _detections(mjd, magnitude, positive, out):
    n = len(mjd)
    n_pos = positive.sum()
    brightest = magnitude.min()
    out[_N_DET] = n
    out[_N_POS] = n_pos
    out[_N_NEG] = n - n_pos
    out[_POSITIVE_FRACTION] = n_pos / n
    out[_DELTA_MAG_FID] = magnitude.max() - brightest
    out[_DELTA_MJD_FID] = mjd[n - 1] - mjd[0]
    out[_FIRST_MAG] = magnitude[0]
    out[_MEAN_MAG] = pairwise_sum(magnitude) / n
    out[_MIN_MAG] = brightest


@compiled
def _non_detections(first_mjd, mjd, limit, out):
    before = 0
    while before < len(mjd) and mjd[before] < first_mjd:
        before += 1
    out[_N_NON_DET_BEFORE_FID] = before
    out[_N_NON_DET_AFTER_FID] = len(mjd) - before
    if before > 0:
        ordered = np.sort(limit[:before])
        out[_MAX_DIFFMAGLIM_BEFORE_FID] = ordered[before - 1]
        out[_MEDIAN_DIFFMAGLIM_BEFORE_FID] = median(ordered)
        out[_LAST_DIFFMAGLIM_BEFORE_FID] = limit[before - 1]
        out[_LAST_MJD_BEFORE_FID] = mjd[before - 1]
        out[_DMAG_NON_DET_FID] = median(ordered) - out[_MIN_MAG]
        out[_DMAG_FIRST_DET_FID] = limit[before - 1] - out[_FIRST_MAG]
    if before < len(mjd):
        ordered = np.sort(limit[before:])
        out[_MAX_DIFFMAGLIM_AFTER_FID] = ordered[-1]
        out[_MEDIAN_DIFFMAGLIM_AFTER_FID] = median(ordered)


@compiled
def _supernova(offsets, mjd, magnitude, positive, non_offsets, non_mjd, non_limit, out):
    for band in range(len(offsets) - 1):
        start, stop = offsets[band], offsets[band + 1]
        if stop > start:
            _detections(mjd[start:stop], magnitude[start:stop], positive[start:stop], out[band])
            limits = slice(non_offsets[band], non_offsets[band + 1])
            _non_detections(mjd[start], non_mjd[limits], non_limit[limits], out[band])


def compute(curves: Curves, mode: Mode, known: Mapping[str, NDArray[np.float64]]) -> Columns:
    """Features of each band that has a point, alike in both modes; NaN, the counts too, where it has none.

    Parameters
    ----------
    curves : Curves
    mode, known
        Unused.

    Returns
    -------
    dict of str to float64 [n, 2]
        Magnitudes, days and counts. Non-detections are before where they are earlier than the first point of the band.
    """
    out = np.full((len(curves.offsets) - 1, len(_PER_BAND)), np.nan)
    _supernova(
        curves.offsets,
        curves.mjd,
        curves.magnitude,
        curves.positive,
        curves.non_offsets,
        curves.non_mjd,
        curves.non_limit,
        out,
    )
    return {name: np.ascontiguousarray(out[:, i]).reshape(-1, 2) for i, name in enumerate(_PER_BAND)}


FAMILY = Family(per_band=_PER_BAND, per_object=(), compute=compute, reference=reference.supernova)
