"""Light curves from the rows of many alerts: each point once, corrected, with statistics (alerce.md 4.2, 4.3).

The outcome does not depend on the order of the rows, on how they are spread over packets, nor on repetition: what a
point is known by, and which of its rows counts, is defined in :mod:`lightcurves.unique`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightcurves.batch import LightCurveBatch
from lightcurves.columns import (
    DETECTION_INPUT,
    JD_MINUS_MJD,
    NON_DETECTION,
    conform,
    flags,
    group_starts,
    integers,
    known,
    lexsort,
    nullable,
    numbers,
    offsets_of,
    set_columns,
)
from lightcurves.correction import correct, is_dubious
from lightcurves.summary import WISE, band_rows, object_rows
from lightcurves.unique import (
    NO_CANDID,
    group_numbers,
    sorted_names,
    unique_detections,
    unique_non_detections,
    usable,
)


def assemble(
    detections: pa.Table,
    non_detections: pa.Table,
    *,
    as_of_mjd: float | None = None,
    crossmatches: pa.Table | None = None,
) -> LightCurveBatch:
    """Assemble the light curves of all objects that have a detection.

    Parameters
    ----------
    detections : pyarrow.Table
        Rows in any order, repeated or not, with columns of :data:`lightcurves.columns.DETECTION_INPUT`; absent ones
        count as null. A row with ``corrected`` keeps its corrected magnitudes, others get theirs computed. Rows
        without oid, fid or mjd are left out.
    non_detections : pyarrow.Table
        The same with :data:`lightcurves.columns.NON_DETECTION`.
    as_of_mjd : float, optional
        What was known then: rows that a later alert brought are left out. A row that names no alert counts as brought
        at its own time.
    crossmatches : pyarrow.Table, optional
        AllWISE matches: ``oid``, ``W1mag``, ``W2mag``, ``W3mag``, and if known ``angDist`` (arcsec), ``candid`` and
        ``jd`` of the alert. Of several matches of an object the nearest counts, then that of the smallest candid.

    Raises
    ------
    ValueError
        If a column has a type that cannot be converted.
    """
    detections = usable(conform(detections, DETECTION_INPUT), as_of_mjd)
    non_detections = usable(conform(non_detections, NON_DETECTION), as_of_mjd)
    oid = sorted_names(detections["oid"])
    detections, groups = unique_detections(detections, oid)
    detection_offsets = offsets_of(groups, len(oid))
    detections = _corrected(detections, groups)
    non_detections, non_groups = unique_non_detections(non_detections, oid)
    magstats = band_rows(oid, detections, groups, non_detections, non_groups)
    wise = _wise(oid, crossmatches, as_of_mjd)
    objects = object_rows(oid, detections, detection_offsets, magstats, wise)
    return LightCurveBatch(
        oid, detections, detection_offsets, non_detections, offsets_of(non_groups, len(oid)), objects, magstats
    )


def _corrected(rows: pa.Table, groups: NDArray[np.int64]) -> pa.Table:
    """Rows with corrected magnitudes, their flag, ``dubious`` and no null in the flags."""
    given = known(rows, "corrected")
    sign = integers(rows, "isdiffpos", 0)
    found = correct(
        numbers(rows, "magpsf"),
        numbers(rows, "sigmapsf"),
        numbers(rows, "magnr"),
        numbers(rows, "sigmagnr"),
        numbers(rows, "distnr"),
        sign,
    )
    corrected = np.where(given, flags(rows, "corrected"), found.corrected)
    columns = {"corrected": pa.array(corrected)}
    for name in ("magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext"):
        columns[name] = nullable(np.where(given, numbers(rows, name), getattr(found, name)))
    for name in ("has_stamp", "forced"):
        columns[name] = pc.fill_null(rows[name], False)
    rows = set_columns(rows, columns)
    first = first_of_band(rows, groups)
    first_corrected = np.where(first >= 0, corrected[first], corrected) if len(first) else corrected
    return rows.append_column("dubious", pa.array(is_dubious(corrected, sign, first_corrected)))


def first_of_band(rows: pa.Table, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of the first detection (smallest candid) of each row's object and band; -1 if all are forced photometry."""
    fid, forced, candid = integers(rows, "fid", 0), flags(rows, "forced"), integers(rows, "candid", NO_CANDID)
    order = lexsort([groups, fid, forced, candid, numbers(rows, "mjd")])
    heads = np.flatnonzero(group_starts([groups[order], fid[order]]))
    firsts = np.where(forced[order[heads]], -1, order[heads])
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(firsts, np.diff(np.append(heads, len(order))))
    return first


def _wise(oid: pa.StringArray, crossmatches: pa.Table | None, as_of_mjd: float | None) -> NDArray[np.float64]:
    """Magnitudes W1, W2, W3 of each object's match; NaN without one; shape (n, 3)."""
    found = np.full((len(oid), len(WISE)), np.nan)
    if crossmatches is None or not crossmatches.num_rows:
        return found
    schema = pa.schema(
        {"oid": pa.string(), "candid": pa.int64(), **{n: pa.float64() for n in (*WISE, "angDist", "jd")}}
    )
    rows = conform(crossmatches, schema)
    groups = group_numbers(rows, oid)
    magnitudes = np.column_stack([numbers(rows, name) for name in WISE])
    keep = (groups >= 0) & ~np.isnan(magnitudes).all(axis=1)
    if as_of_mjd is not None:
        keep &= ~(numbers(rows, "jd") - JD_MINUS_MJD > as_of_mjd)
    separation, candid = numbers(rows, "angDist"), integers(rows, "candid", NO_CANDID)
    order = np.flatnonzero(keep)
    keys = (groups, np.nan_to_num(separation, nan=np.inf), candid, *np.nan_to_num(magnitudes, nan=np.inf).T)
    order = order[lexsort([key[order] for key in keys])]
    best = order[group_starts([groups[order]])]
    found[groups[best]] = magnitudes[best]
    return found
