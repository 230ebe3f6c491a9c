"""Light curves from the rows of many alerts: each point once, corrected, with statistics (alerce.md 4.2, 4.3).

The outcome does not depend on the order of the rows, on how they are spread over packets, nor on repetition:

* A detection is known by (oid, candid). Of its rows, the alert's own (``has_stamp``) is kept, else the one that the
  earliest alert brought; of rows that still differ, the least by their values.
* A detection without candid is known by (oid, fid, mjd, ra, dec, magpsf): two sources of one exposure are two.
  Forced photometry is known by (oid, fid, mjd), since its position is that of the alert that brings it.
* Non-detections of an object and band form one group as long as each follows the one before within 1e-5 days. Of a
  group, the row that the earliest alert brought is kept. Exposures take 30 s, so a group is one exposure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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

NON_DETECTION_TOLERANCE_DAYS: Final = 1e-5
_NO_CANDID: Final = np.iinfo(np.int64).max


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
    detections = _usable(conform(detections, DETECTION_INPUT), as_of_mjd)
    non_detections = _usable(conform(non_detections, NON_DETECTION), as_of_mjd)
    oid = _sorted_unique(detections["oid"])
    detections, groups = _unique_detections(detections, oid)
    detection_offsets = offsets_of(groups, len(oid))
    detections = _corrected(detections, groups)
    non_detections, non_groups = _unique_non_detections(non_detections, oid)
    magstats = band_rows(oid, detections, groups, non_detections, non_groups)
    wise = _wise(oid, crossmatches, as_of_mjd)
    objects = object_rows(oid, detections, detection_offsets, magstats, wise)
    return LightCurveBatch(
        oid, detections, detection_offsets, non_detections, offsets_of(non_groups, len(oid)), objects, magstats
    )


def _usable(rows: pa.Table, as_of_mjd: float | None) -> pa.Table:
    mjd = numbers(rows, "mjd")
    keep = np.isfinite(mjd) & known(rows, "oid") & known(rows, "fid")
    if as_of_mjd is not None:
        keep &= (mjd <= as_of_mjd) & (_arrival(rows)[0] <= as_of_mjd)
    return rows if keep.all() else rows.filter(pa.array(keep))


def _arrival(rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Time and candid of the alert that brought each row; a row that names none brought itself."""
    own = rows["candid"] if "candid" in rows.column_names else pa.nulls(rows.num_rows, pa.int64())
    candid = pc.fill_null(pc.coalesce(rows["alert_candid"], own), _NO_CANDID).to_numpy()
    return pc.coalesce(rows["alert_mjd"], rows["mjd"]).to_numpy(), candid


def _sorted_unique(oid: pa.ChunkedArray) -> pa.StringArray:
    unique = pc.unique(oid)
    return unique.take(pc.sort_indices(unique))


def _group_numbers(rows: pa.Table, oid: pa.StringArray) -> NDArray[np.int64]:
    """Number of each row's object; -1 for an object that is not among them."""
    encoded = rows["oid"].combine_chunks().dictionary_encode()
    numbers_of = pc.fill_null(pc.index_in(encoded.dictionary, value_set=oid), -1).to_numpy(zero_copy_only=False)
    return numbers_of.astype(np.int64)[encoded.indices.to_numpy()] if rows.num_rows else np.zeros(0, np.int64)


def _unique_detections(rows: pa.Table, oid: pa.StringArray) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each detection once, by object, mjd and candid, and the number of its object."""
    groups = _group_numbers(rows, oid)
    forced, named = flags(rows, "forced"), known(rows, "candid")
    candid = integers(rows, "candid", _NO_CANDID)
    fid, mjd = integers(rows, "fid", 0), numbers(rows, "mjd")
    arrival = _arrival(rows)
    placed = ~named & ~forced
    # What tells rows apart: -inf where another column does.
    identity = [groups, forced, candid, np.where(named, 0, fid), np.where(named, -np.inf, mjd)]
    identity += [
        np.where(placed, np.nan_to_num(numbers(rows, name), nan=-np.inf), -np.inf) for name in ("magpsf", "ra", "dec")
    ]
    kept = _best_rows(rows, identity, [~flags(rows, "has_stamp"), *arrival])
    order = kept[lexsort([key[kept] for key in (groups, mjd, forced, candid, fid, *identity[5:])])]
    return rows.take(pa.array(order)), groups[order]


def _unique_non_detections(rows: pa.Table, oid: pa.StringArray) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each non-detection of the given objects once, by object, mjd and fid, and the number of its object."""
    groups = _group_numbers(rows, oid)
    if (groups < 0).any():
        rows, groups = rows.filter(pa.array(groups >= 0)), groups[groups >= 0]
    fid, mjd = integers(rows, "fid", 0), numbers(rows, "mjd")
    order = lexsort([groups, fid, mjd])
    starts = group_starts([groups[order], fid[order]])
    starts[1:] |= np.diff(mjd[order]) > NON_DETECTION_TOLERANCE_DAYS
    exposure = np.empty(len(order), np.int64)
    exposure[order] = np.cumsum(starts)
    kept = _best_rows(rows, [exposure], [*_arrival(rows), mjd])
    order = kept[lexsort([key[kept] for key in (groups, mjd, fid)])]
    return rows.take(pa.array(order)), groups[order]


def _best_rows(rows: pa.Table, identity: Sequence[NDArray], preference: Sequence[NDArray]) -> NDArray[np.int64]:
    """Of the rows of each identity, the one that is least by preference, then by its values."""
    order = lexsort([*identity, *preference])
    starts = group_starts([key[order] for key in identity])
    heads = np.flatnonzero(starts)
    if len(heads) == len(order):
        return order
    head_of = np.repeat(heads, np.diff(np.append(heads, len(order))))
    tied = ~starts
    for key in preference:
        tied &= key[order] == key[order[head_of]]
    row, head = order[tied], order[head_of[tied]]
    codes = _codes(rows, np.concatenate([row, head]))
    different = np.any([code[: len(row)] != code[len(row) :] for code in codes], axis=0)
    contested = np.unique(head_of[tied][different])
    best = order[heads]
    if len(contested):
        among = np.isin(head_of, contested) & (tied | starts)
        candidates, place = order[among], np.searchsorted(heads, head_of[among])
        by_value = lexsort([place, *_codes(rows, candidates)])
        first = by_value[group_starts([place[by_value]])]
        best[place[first]] = candidates[first]
    return best


def _codes(rows: pa.Table, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Integers for each column of the chosen rows that are equal and ordered as the values, nulls last."""
    codes = []
    for column in rows.take(pa.array(chosen)).columns:
        kind = column.type
        if pa.types.is_string(kind):
            encoded = column.combine_chunks().dictionary_encode()
            rank = np.empty(len(encoded.dictionary), np.int64)
            rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
            found = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
            values = rank[found] if len(rank) else np.zeros(len(chosen), np.int64)
        elif pa.types.is_floating(kind):
            values = pc.fill_null(column, 0.0).to_numpy().view(np.int64)
        else:
            values = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
        codes += [column.is_null().to_numpy().astype(np.int64), values]
    return codes


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
    fid, forced, candid = integers(rows, "fid", 0), flags(rows, "forced"), integers(rows, "candid", _NO_CANDID)
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
    groups = _group_numbers(rows, oid)
    magnitudes = np.column_stack([numbers(rows, name) for name in WISE])
    keep = (groups >= 0) & ~np.isnan(magnitudes).all(axis=1)
    if as_of_mjd is not None:
        keep &= ~(numbers(rows, "jd") - JD_MINUS_MJD > as_of_mjd)
    separation, candid = numbers(rows, "angDist"), integers(rows, "candid", _NO_CANDID)
    order = np.flatnonzero(keep)
    keys = (groups, np.nan_to_num(separation, nan=np.inf), candid, *np.nan_to_num(magnitudes, nan=np.inf).T)
    order = order[lexsort([key[order] for key in keys])]
    best = order[group_starts([groups[order]])]
    found[groups[best]] = magnitudes[best]
    return found
