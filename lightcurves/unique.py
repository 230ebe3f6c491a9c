"""Which rows stand for one point of a light curve, and which of them is taken.

* A detection is known by (oid, candid). Of its rows, the alert's own (``has_stamp``) is preferred, else the one that
  the earliest alert brought; of rows that still differ, the least by their values.
* A detection without candid is known by (oid, fid, mjd, ra, dec, magpsf): two sources of one exposure are two.
  Forced photometry is known by (oid, fid, mjd), since its position is that of the alert that brings it.
* Non-detections of an object and band form one group as long as each follows the one before within 1e-5 days. Of a
  group, the row that the earliest alert brought is preferred. Exposures take 30 s, so a group is one exposure.

What is kept for later questions must answer them for every date, so it may not be thinned out to the preferred rows:
an alert's own row is preferred as soon as it is known, but another may have been known sooner, and a non-detection
that arrives late may join two groups. :func:`lasting_detections` and :func:`lasting_non_detections` give the rows that
are enough at any date.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightcurves.columns import flags, group_starts, integers, known, lexsort, numbers

NON_DETECTION_TOLERANCE_DAYS: Final = 1e-5
NO_CANDID: Final = np.iinfo(np.int64).max


class Lasting(NamedTuple):
    """Rows that are enough at any date.

    Attributes
    ----------
    rows : int64 array
        Their numbers, sorted by object and time.
    identity : int64 array
        For every given row, whether it lasts or not, the number of the point that it stands for.
    """

    rows: NDArray[np.int64]
    identity: NDArray[np.int64]


def usable(rows: pa.Table, as_of_mjd: float | None = None) -> pa.Table:
    """Rows that have an object, a band and a finite time and, if a date is given, were known then."""
    mjd = numbers(rows, "mjd")
    keep = np.isfinite(mjd) & known(rows, "oid") & known(rows, "fid")
    if as_of_mjd is not None:
        keep &= known_from(rows) <= as_of_mjd
    return rows if keep.all() else rows.filter(pa.array(keep))


def known_from(rows: pa.Table) -> NDArray[np.float64]:
    """Time (MJD) from which each row is known: when it arrived, but not before it was measured."""
    return np.maximum(numbers(rows, "mjd"), arrival(rows)[0])


def arrival(rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Time (MJD) and candid of the alert that brought each row; a row that names none brought itself."""
    own = rows["candid"] if "candid" in rows.column_names else pa.nulls(rows.num_rows, pa.int64())
    candid = pc.fill_null(pc.coalesce(rows["alert_candid"], own), NO_CANDID).to_numpy()
    return pc.coalesce(rows["alert_mjd"], rows["mjd"]).to_numpy(), candid


def sorted_names(oid: pa.ChunkedArray) -> pa.StringArray:
    """Each name once, sorted."""
    unique = pc.unique(oid)
    return unique.take(pc.sort_indices(unique))


def group_numbers(rows: pa.Table, oid: pa.StringArray) -> NDArray[np.int64]:
    """Number of each row's object; -1 for an object that is not among them."""
    encoded = rows["oid"].combine_chunks().dictionary_encode()
    numbers_of = pc.fill_null(pc.index_in(encoded.dictionary, value_set=oid), -1).to_numpy(zero_copy_only=False)
    return numbers_of.astype(np.int64)[encoded.indices.to_numpy()] if rows.num_rows else np.zeros(0, np.int64)


def unique_detections(rows: pa.Table, oid: pa.StringArray) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each detection once, by object, mjd and candid, and the number of its object."""
    groups = group_numbers(rows, oid)
    kept = _best_rows(rows, _detection_identity(rows, groups), [~flags(rows, "has_stamp"), *arrival(rows)])
    order = kept[lexsort([key[kept] for key in _detection_order(rows, groups)])]
    return rows.take(pa.array(order)), groups[order]


def unique_non_detections(rows: pa.Table, oid: pa.StringArray) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each non-detection of the given objects once, by object, mjd and fid, and the number of its object."""
    groups = group_numbers(rows, oid)
    if (groups < 0).any():
        rows, groups = rows.filter(pa.array(groups >= 0)), groups[groups >= 0]
    fid, mjd = integers(rows, "fid", 0), numbers(rows, "mjd")
    order = lexsort([groups, fid, mjd])
    starts = group_starts([groups[order], fid[order]])
    starts[1:] |= np.diff(mjd[order]) > NON_DETECTION_TOLERANCE_DAYS
    exposure = np.empty(len(order), np.int64)
    exposure[order] = np.cumsum(starts)
    kept = _best_rows(rows, [exposure], [*arrival(rows), mjd])
    order = kept[lexsort([key[kept] for key in (groups, mjd, fid)])]
    return rows.take(pa.array(order)), groups[order]


def lasting_detections(rows: pa.Table) -> Lasting:
    """Rows that are preferred at some date, by object, mjd and candid; all must be usable.

    Of alerts whose own time is not before that of what they bring, that is one row of each detection.
    """
    groups = group_numbers(rows, sorted_names(rows["oid"]))
    came = arrival(rows)
    stamp = ~flags(rows, "has_stamp")
    lasting = _lasting_rows(rows, _detection_identity(rows, groups), [stamp, *came], known_from(rows))
    return _in_order(lasting, [*_detection_order(rows, groups), stamp, *came])


def lasting_non_detections(rows: pa.Table) -> Lasting:
    """Of the rows of each object, band and very time the one that the earliest alert brought; by object, mjd and fid.

    Rows within the tolerance all last: any of them may link others to a group.
    """
    groups = group_numbers(rows, sorted_names(rows["oid"]))
    mjd, fid = numbers(rows, "mjd"), integers(rows, "fid", 0)
    return _in_order(_lasting_rows(rows, [groups, mjd, fid], arrival(rows), known_from(rows)), [groups, mjd, fid])


def distinct_rows(rows: pa.Table) -> Lasting:
    """Rows that differ in some column, by the columns."""
    codes = _codes(rows, np.arange(rows.num_rows))
    return _in_order(_lasting_rows(rows, codes, [], np.zeros(rows.num_rows)), codes)


def _detection_identity(rows: pa.Table, groups: NDArray[np.int64]) -> list[NDArray]:
    forced, named = flags(rows, "forced"), known(rows, "candid")
    placed = ~named & ~forced
    # What tells rows apart: -inf where another column does.
    identity = [groups, forced, integers(rows, "candid", NO_CANDID)]
    identity += [np.where(named, 0, integers(rows, "fid", 0)), np.where(named, -np.inf, numbers(rows, "mjd"))]
    for name in ("magpsf", "ra", "dec"):
        # An array that never changes costs nothing.
        values = np.nan_to_num(numbers(rows, name), nan=-np.inf) if placed.any() else -np.inf
        identity.append(np.where(placed, values, -np.inf))
    return identity


def _detection_order(rows: pa.Table, groups: NDArray[np.int64]) -> list[NDArray]:
    _, forced, candid, _, _, *place = _detection_identity(rows, groups)
    return [groups, numbers(rows, "mjd"), forced, candid, integers(rows, "fid", 0), *place]


def _in_order(lasting: Lasting, keys: Sequence[NDArray]) -> Lasting:
    return Lasting(lasting.rows[lexsort([key[lasting.rows] for key in keys])], lasting.identity)


def _best_rows(rows: pa.Table, identity: Sequence[NDArray], preference: Sequence[NDArray]) -> NDArray[np.int64]:
    """Of the rows of each identity, the one that is least by preference, then by its values."""
    return _first_by_value(rows, *_ranked(identity, preference), preference)


def _lasting_rows(
    rows: pa.Table, identity: Sequence[NDArray], preference: Sequence[NDArray], known_mjd: NDArray[np.float64]
) -> Lasting:
    """Of the rows of each identity, those that are the best of what is known at some date."""
    order, starts = _ranked(identity, preference)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(starts) - 1
    best = _first_by_value(rows, order, starts, preference)
    kept = [best]
    sooner = np.flatnonzero(known_mjd < known_mjd[best][number]) if len(best) else best
    while len(sooner):
        chosen = _best_rows(rows.take(pa.array(sooner)), [number[sooner]], [key[sooner] for key in preference])
        kept.append(sooner[chosen])
        since = np.full(len(best), np.inf)
        since[number[kept[-1]]] = known_mjd[kept[-1]]
        sooner = sooner[known_mjd[sooner] < since[number[sooner]]]
    return Lasting(np.concatenate(kept), number)


def _ranked(identity: Sequence[NDArray], preference: Sequence[NDArray]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Order of rows by identity, then preference, and where in it an identity begins."""
    order = lexsort([*identity, *preference])
    return order, group_starts([key[order] for key in identity])


def _first_by_value(
    rows: pa.Table, order: NDArray[np.int64], starts: NDArray[np.bool_], preference: Sequence[NDArray]
) -> NDArray[np.int64]:
    """First row of each identity, among those of equal preference the least by its values."""
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
            bits = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy().view(np.int64)
            # Sign and magnitude: of negative numbers the larger bits are the lesser number.
            values = np.where(bits < 0, bits ^ np.iinfo(np.int64).max, bits)
        else:
            values = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
        codes += [column.is_null().to_numpy().astype(np.int64), values]
    return codes
