"""Light curves of the objects that the page shows, as small lists of integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lightcurves.assembly import assemble
from lightcurves.store import LightCurveStore
from storage.buckets import bucket_of

MOST_DETECTIONS: Final = 300
MOST_LIMITS: Final = 80
# Errors and limits of hopeless images would squeeze the light curve into a line.
_MAX_ERROR_MAG: Final = 1.0
# 100 stands for "fainter than nothing" in corrected magnitudes.
_NO_MAGNITUDE: Final = 90.0
_TICKS_PER_DAY: Final = 1e5
_NEGATIVE, _FORCED = 4, 8


def compact_light_curves(
    store: Path,
    oids: Sequence[str],
    most_points: int,
    as_of_mjd: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Read light curves, those named first before others, until there are `most_points` points.

    Parameters
    ----------
    store : Path
        Folder of the light-curve store.
    oids : sequence of str
        Some thousands at most: all of them are in memory at once.
    most_points : int
    as_of_mjd : float, optional
        What was known then.
    advance : callable, optional
        Told 1 for each object.

    Returns
    -------
    dict of str to dict
        By oid, in the order of `oids`; see :func:`compact`.
    """
    if not oids:
        return {}
    opened = LightCurveStore.open(store)
    buckets = bucket_of(pa.array(oids, pa.string()), opened.buckets)
    read: dict[str, dict[str, Any]] = {}
    for bucket in np.unique(buckets).tolist():
        names = [oid for oid, of_oid in zip(oids, buckets.tolist(), strict=True) if of_oid == bucket]
        read |= _of_bucket(opened, bucket, names, as_of_mjd)
        if advance:
            advance(len(names))
    found: dict[str, dict[str, Any]] = {}
    points = 0
    for oid in (oid for oid in oids if oid in read):
        points += len(read[oid]["t"]) + len(read[oid]["lt"])
        if points > most_points:
            break
        found[oid] = read[oid]
    return found


def _of_bucket(
    store: LightCurveStore, bucket: int, names: Sequence[str], as_of_mjd: float | None
) -> dict[str, dict[str, Any]]:
    rows = store.read(bucket, pa.array(sorted(names), pa.string()))
    batch = assemble(rows.detections, rows.non_detections, as_of_mjd=as_of_mjd)
    known = set(batch.oid.to_pylist())
    corrected = dict(zip(batch.oid.to_pylist(), batch.objects["corrected"].to_pylist(), strict=True))
    return {oid: compact(*batch.light_curve(oid), apparent=bool(corrected[oid])) for oid in names if oid in known}


def compact(detections: pd.DataFrame, non_detections: pd.DataFrame, apparent: bool) -> dict[str, Any]:
    """Light curve as lists.

    Parameters
    ----------
    detections, non_detections : DataFrame
        As in a batch of light curves.
    apparent : bool
        Whether to take apparent magnitudes instead of those of the difference image.

    Returns
    -------
    dict
        ``t0`` (MJD, days); of detections ``t`` (1e-5 days after t0), ``m``, ``e`` (thousandths of a magnitude) and
        ``f`` (filter, + 4 if fainter than the reference, + 8 if forced photometry; a hexadecimal digit each); of
        limits ``lt``, ``lm``, ``lf``; ``a`` is 1 for apparent magnitudes; ``n`` and ``ln`` count them all, also those
        that are left out.
    """
    magnitude, error = ("magpsf_corr", "sigmapsf_corr_ext") if apparent else ("magpsf", "sigmapsf")
    mag, err = detections[magnitude].to_numpy(np.float64), detections[error].to_numpy(np.float64)
    usable = np.isfinite(mag) & (mag < _NO_MAGNITUDE) & (err < _MAX_ERROR_MAG)
    usable &= detections["fid"].isin([1, 2, 3]).to_numpy()
    limit = non_detections["diffmaglim"].to_numpy(np.float64)
    limits = np.isfinite(limit) & non_detections["fid"].isin([1, 2, 3]).to_numpy()
    shown, below = _thinned(np.flatnonzero(usable), MOST_DETECTIONS), _thinned(np.flatnonzero(limits), MOST_LIMITS)
    time, limit_time = detections["mjd"].to_numpy(np.float64), non_detections["mjd"].to_numpy(np.float64)
    first = np.floor(min([*time[shown], *limit_time[below]], default=0.0))
    code = detections["fid"].to_numpy(np.int64, na_value=0)[shown]
    code = code + _NEGATIVE * (detections["isdiffpos"].to_numpy(np.float64, na_value=1.0)[shown] < 0)
    code += _FORCED * detections["forced"].fillna(False).to_numpy(np.bool_)[shown]
    return {
        "t0": float(first),
        "t": _integers((time[shown] - first) * _TICKS_PER_DAY),
        "m": _integers(mag[shown] * 1000),
        "e": _integers(err[shown] * 1000),
        "f": "".join(f"{one:x}" for one in code),
        "lt": _integers((limit_time[below] - first) * _TICKS_PER_DAY),
        "lm": _integers(limit[below] * 1000),
        "lf": "".join(str(one) for one in non_detections["fid"].to_numpy(np.int64)[below]),
        "a": int(apparent),
        "n": int(usable.sum()),
        "ln": int(limits.sum()),
    }


def _thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _integers(values: NDArray[np.float64]) -> list[int]:
    return np.round(values).astype(np.int64).tolist()
