"""Statistics of light curves by the names of ALeRCE's tables ``magstat`` and ``object`` (alerce.md 4.2)."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightcurves.columns import flags, group_starts, integers, lexsort, nullable, numbers, offsets_of
from lightcurves.correction import stellar_flags
from lightcurves.statistics import STATISTICS, group_statistics, steepest_rise

WISE: Final = ("W1mag", "W2mag", "W3mag")
SATURATION_MAG: Final = 13.2
_G, _R = 1, 2
_LAST: Final = np.iinfo(np.int64).max
# Magnitude of a detection -> how the table magstat names its statistics.
_MAGNITUDES: Final = {"magpsf": "mag{}", "magpsf_corr": "mag{}_corr", "magap": "magap{}"}


def band_rows(
    oid: pa.StringArray,
    detections: pa.Table,
    groups: NDArray[np.int64],
    non_detections: pa.Table,
    non_groups: NDArray[np.int64],
) -> pa.Table:
    """Statistics of each object and band over its detections; forced photometry is left out.

    Parameters
    ----------
    oid : pyarrow.StringArray
        Names of the objects.
    detections, non_detections : pyarrow.Table
        Complete columns, by object and time.
    groups, non_groups : int64
        Number of each row's object.
    """
    own = ~flags(detections, "forced")
    rows = detections if own.all() else detections.filter(pa.array(own))
    groups = groups[own]
    order = lexsort([groups, integers(rows, "fid", 0)])
    rows, groups = rows.take(pa.array(order)), groups[order]
    fid, mjd, candid = integers(rows, "fid", 0), numbers(rows, "mjd"), integers(rows, "candid", _LAST)
    starts = group_starts([groups, fid])
    heads = np.flatnonzero(starts)
    offsets = np.append(heads, len(fid)).astype(np.int64)
    band, count = np.cumsum(starts) - 1, len(heads)
    first = lexsort([band, candid])[heads]

    def of_first(name: str) -> NDArray[np.float64]:
        return numbers(rows, name)[first]

    def first_known(name: str) -> NDArray[np.float64]:
        # Rows of prv_candidates know no PS1 source; the star does not change.
        values, result = numbers(rows, name), np.full(count, np.nan)
        with_value = np.flatnonzero(~np.isnan(values))
        with_value = with_value[lexsort([band[with_value], candid[with_value]])]
        chosen = with_value[group_starts([band[with_value]])]
        result[band[chosen]] = values[chosen]
        return result

    stars = stellar_flags(
        of_first("distnr"),
        first_known("distpsnr1"),
        first_known("sgscore1"),
        of_first("chinr"),
        of_first("sharpnr"),
    )
    corrected, magnitude = flags(rows, "corrected"), numbers(rows, "magpsf_corr")
    saturated = _count(corrected & (magnitude < SATURATION_MAG), band, count)
    all_corrected = _count(corrected, band, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        saturation_rate = saturated / all_corrected.astype(np.float64)
    columns: dict[str, pa.Array] = {
        "oid": oid.take(pa.array(groups[heads])),
        "fid": pa.array(fid[heads], pa.int32()),
        "stellar": pa.array(stars.stellar),
        "corrected": pa.array(corrected[first]),
        "ndet": pa.array(np.diff(offsets)),
        "ndubious": pa.array(_count(flags(rows, "dubious"), band, count)),
        "nrfid": pa.array(_count_distinct(band, integers(rows, "rfid", -1), count)),
        "nearZTF": pa.array(stars.near_ztf),
        "nearPS1": pa.array(stars.near_ps1),
        "stellarZTF": pa.array(stars.stellar_ztf),
        "stellarPS1": pa.array(stars.stellar_ps1),
    }
    first_error = numbers(rows, "sigmapsf")[heads]
    start, end = _rows_of_bands(groups[heads], fid[heads], non_detections, non_groups)
    limits = lexsort([non_groups, integers(non_detections, "fid", 0)])
    rise = steepest_rise(
        mjd[heads],
        numbers(rows, "magpsf")[heads],
        first_error,
        numbers(non_detections, "mjd")[limits],
        numbers(non_detections, "diffmaglim")[limits],
        start,
        end,
    )
    for name, values in zip(("dmdt_first", "dm_first", "sigmadm_first", "dt_first"), rise.T, strict=True):
        columns[name] = nullable(values)
    for name, pattern in _MAGNITUDES.items():
        found = group_statistics(numbers(rows, name), offsets)
        for statistic, values in zip(STATISTICS, found.T, strict=True):
            columns[pattern.format(statistic)] = nullable(values)
    columns["sigmapsf_first"] = nullable(first_error)
    columns["firstmjd"] = pa.array(mjd[heads])
    columns["lastmjd"] = pa.array(mjd[offsets[1:] - 1])
    columns["saturation_rate"] = nullable(saturation_rate)
    return pa.table(columns)


def _rows_of_bands(
    groups: NDArray[np.int64], fid: NDArray[np.int64], non_detections: pa.Table, non_groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of the non-detections of each object and band, in the order by object and band."""
    non_fid = integers(non_detections, "fid", 0)
    low = min(fid.min(initial=0), non_fid.min(initial=0))
    width = max(fid.max(initial=0), non_fid.max(initial=0)) - low + 1
    keys = np.sort(non_groups * width + non_fid - low)
    wanted = groups * width + fid - low
    return np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")


def _count(mask: NDArray[np.bool_], group: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.bincount(group[mask], minlength=count)


def _count_distinct(group: NDArray[np.int64], values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    order = lexsort([group, values])
    order = order[group_starts([group[order], values[order]])]
    return _count(values[order] >= 0, group[order], count)


def object_rows(
    oid: pa.StringArray,
    detections: pa.Table,
    offsets: NDArray[np.int64],
    magstats: pa.Table,
    wise: NDArray[np.float64],
) -> pa.Table:
    """Statistics of each object over its detections of all bands; forced photometry is left out.

    Parameters
    ----------
    oid : pyarrow.StringArray
        Names of the n objects.
    detections : pyarrow.Table
        Complete columns, by object and time.
    offsets : int64, shape (n + 1,)
        Detections of each object.
    magstats : pyarrow.Table
        What :func:`band_rows` gives for them.
    wise : float64, shape (n, 3)
        Magnitudes W1, W2, W3.
    """
    count = len(oid)
    own = ~flags(detections, "forced")
    groups = np.repeat(np.arange(count), np.diff(offsets))[own]
    rows = detections if own.all() else detections.filter(pa.array(own))
    offsets = offsets_of(groups, count)
    mjd = numbers(rows, "mjd")
    times = group_statistics(mjd, offsets)
    last, first = times[:, STATISTICS.index("last")], times[:, STATISTICS.index("first")]
    ra, sigma_ra = _mean_angle(numbers(rows, "ra"), offsets)
    dec = group_statistics(numbers(rows, "dec"), offsets)
    newest = _last_known(numbers(rows, "ndethist"), groups, count)
    bands = pc.index_in(magstats["oid"], value_set=oid).to_numpy().astype(np.int64)
    in_bands = _count(np.ones(len(bands), np.bool_), bands, count)
    reference = group_statistics(numbers(rows, "mjdendref"), offsets)[:, STATISTICS.index("max")]
    signs = group_statistics(integers(rows, "isdiffpos", 0).astype(np.float64), offsets)[:, STATISTICS.index("min")]

    def newest_integer(name: str) -> pa.Array:
        return rows[name].take(pa.array(newest, mask=newest < 0)).combine_chunks()

    def all_bands(name: str) -> pa.Array:
        return pa.array((in_bands > 0) & (_count(flags(magstats, name), bands, count) == in_bands))

    def colour(name: str) -> pa.Array:
        values, fid = numbers(magstats, name), integers(magstats, "fid", 0)
        pair = np.full((2, count), np.nan)
        for k, wanted in enumerate((_G, _R)):
            pair[k, bands[fid == wanted]] = values[fid == wanted]
        return nullable(pair[0] - pair[1])

    columns = {
        "oid": oid,
        "candid": _newest_alert(rows, groups, count),
        "ndethist": newest_integer("ndethist"),
        "ncovhist": newest_integer("ncovhist"),
        "mjdstarthist": newest_integer("mjdstarthist"),
        "mjdendhist": newest_integer("mjdendhist"),
        "corrected": all_bands("corrected"),
        "stellar": all_bands("stellar"),
        "ndet": pa.array(np.diff(offsets)),
        "ndubious": pa.array(_count(flags(rows, "dubious"), groups, count)),
        "g_r_max": colour("magmin"),
        "g_r_max_corr": colour("magmin_corr"),
        "g_r_mean": colour("magmean"),
        "g_r_mean_corr": colour("magmean_corr"),
        "meanra": nullable(ra),
        "meandec": nullable(dec[:, STATISTICS.index("mean")]),
        "sigmara": nullable(sigma_ra),
        "sigmadec": nullable(dec[:, STATISTICS.index("sigma")]),
        "deltajd": nullable(last - first),
        "firstmjd": nullable(first),
        "lastmjd": nullable(last),
        "diffpos": pa.array(signs > 0),
        "reference_change": pa.array(reference > first),
        **{name: nullable(wise[:, k]) for k, name in enumerate(WISE)},
    }
    return pa.table(columns)


def _newest_alert(rows: pa.Table, groups: NDArray[np.int64], count: int) -> pa.Array:
    """Candid of each object's newest alert, of rows by object, mjd and candid; null if it has none of its own."""
    own = flags(rows, "has_stamp").astype(np.float64)
    last = _last_known(np.where(own > 0, own, np.nan), groups, count)
    return rows["candid"].take(pa.array(last, mask=last < 0)).combine_chunks()


def _mean_angle(
    angle: NDArray[np.float64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of right ascensions, degrees, also across 0/360."""
    # The plain mean where no object lies across, so that it equals ALeRCE's to the last digit.
    plain = group_statistics(angle, offsets)
    high, low = plain[:, STATISTICS.index("max")], plain[:, STATISTICS.index("min")]
    across = high - low > 180.0
    if across.any():
        shifted = np.where(np.repeat(across, np.diff(offsets)) & (angle > 180.0), angle - 360.0, angle)
        plain = np.where(across[:, None], group_statistics(shifted, offsets), plain)
    mean = plain[:, STATISTICS.index("mean")]
    return np.where(across, np.mod(mean, 360.0), mean), plain[:, STATISTICS.index("sigma")]


def _last_known(values: NDArray[np.float64], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Row of the newest known value of each group, in rows by time; -1 if there is none."""
    last = np.full(count, -1)
    known_rows = np.flatnonzero(~np.isnan(values))
    ends = (
        np.append(np.flatnonzero(np.diff(groups[known_rows])), len(known_rows) - 1) if len(known_rows) else known_rows
    )
    last[groups[known_rows[ends]]] = known_rows[ends]
    return last
