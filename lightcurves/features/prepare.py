"""From light curves to the points that features are computed from (alerce.md 5.0, release 1.2.3-P)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightcurves.batch import LightCurveBatch
from lightcurves.columns import flags, group_starts, integers, lexsort, numbers, offsets_of
from lightcurves.features.curves import BANDS, Curves
from lightcurves.statistics import STATISTICS, group_statistics
from lightcurves.summary import WISE

MIN_REAL_BOGUS: Final = 0.55
MAX_ERROR_MAG: Final = 1.0
MIN_POINTS: Final = 6
_NO_CANDID: Final = np.iinfo(np.int64).max


def prepare(batch: LightCurveBatch, *, forced: bool = False) -> Curves:
    """Choose and sort the points of each object.

    A detection is retained if it is in g or r, lacks none of its values, has rb of at least 0.55 and an error between
    0 and 1 mag. Of several retained detections of one exposure the one with the highest rb stays, then that of the
    smallest candid. ALeRCE keeps whichever its unstable sort puts first.

    Parameters
    ----------
    batch : LightCurveBatch
    forced : bool
        Whether forced photometry counts, which has no rb. Of an exposure with a detection, the detection stays.

    Returns
    -------
    Curves
        Of the objects of the batch, in order. `enough` where g or r has more than five points. `sgscore1` is the median
        over the retained detections that have one, else over all detections of the object.
    """
    rows = batch.detections
    groups = np.repeat(np.arange(len(batch)), np.diff(batch.detection_offsets))
    is_forced, fid, rb = flags(rows, "forced"), integers(rows, "fid", 0), numbers(rows, "rb")
    mjd, ra, dec = (numbers(rows, name) for name in ("mjd", "ra", "dec"))
    difference, difference_error = numbers(rows, "magpsf"), numbers(rows, "sigmapsf")
    corrected = flags(batch.objects, "corrected")[groups]
    magnitude = np.where(corrected, numbers(rows, "magpsf_corr"), difference)
    error = np.where(corrected, numbers(rows, "sigmapsf_corr_ext"), difference_error)
    keep = np.isin(fid, BANDS) & (rb >= MIN_REAL_BOGUS) & np.isfinite(rb) & ~is_forced
    if forced:
        keep |= np.isin(fid, BANDS) & is_forced
    for values in (mjd, ra, dec, difference, difference_error, magnitude, error):
        keep &= np.isfinite(values)
    keep &= (error > 0) & (error < MAX_ERROR_MAG)
    chosen = np.flatnonzero(keep)
    candid = integers(rows, "candid", _NO_CANDID)
    order = (groups, mjd, is_forced, -rb, candid, fid, difference, ra, dec)
    chosen = chosen[lexsort([key[chosen] for key in order])]
    chosen = chosen[group_starts([groups[chosen], mjd[chosen]])]
    chosen = chosen[lexsort([groups[chosen], fid[chosen]])]
    offsets = offsets_of(_bands(groups[chosen], fid[chosen]), len(BANDS) * len(batch))
    return Curves(
        offsets=offsets,
        mjd=mjd[chosen],
        magnitude=magnitude[chosen],
        error=error[chosen],
        difference_magnitude=difference[chosen],
        difference_error=difference_error[chosen],
        positive=integers(rows, "isdiffpos", 0)[chosen] > 0,
        ra=ra[chosen],
        dec=dec[chosen],
        rb=rb[chosen],
        **_limits(batch),
        sgscore1=_score(batch, groups, chosen),
        wise=np.column_stack([numbers(batch.objects, name) for name in WISE]),
        enough=np.diff(offsets).reshape(-1, len(BANDS)).max(axis=1) >= MIN_POINTS,
    )


def _bands(groups: NDArray[np.int64], fid: NDArray[np.int64]) -> NDArray[np.int64]:
    return len(BANDS) * groups + np.searchsorted(BANDS, fid)


def _limits(batch: LightCurveBatch) -> dict[str, NDArray]:
    rows = batch.non_detections
    groups = np.repeat(np.arange(len(batch)), np.diff(batch.non_detection_offsets))
    fid, limit = integers(rows, "fid", 0), numbers(rows, "diffmaglim")
    chosen = np.flatnonzero(np.isin(fid, BANDS) & np.isfinite(limit))
    chosen = chosen[lexsort([groups[chosen], fid[chosen]])]
    return {
        "non_offsets": offsets_of(_bands(groups[chosen], fid[chosen]), len(BANDS) * len(batch)),
        "non_mjd": numbers(rows, "mjd")[chosen],
        "non_limit": limit[chosen],
    }


def _score(batch: LightCurveBatch, groups: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    score = numbers(batch.detections, "sgscore1")
    # ZTF writes -999 where PS1 has no source.
    score = np.where(score < 0, np.nan, score)
    every = group_statistics(score, batch.detection_offsets)
    retained = np.full(len(score), np.nan)
    retained[chosen] = score[chosen]
    median = STATISTICS.index("median")
    found = group_statistics(retained, batch.detection_offsets)[:, median]
    return np.where(np.isnan(found), every[:, median], found)
