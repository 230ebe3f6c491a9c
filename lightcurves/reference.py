"""Light curves by dictionaries, one row after another: slow, obvious, and what the tests compare with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean, median, stdev
from typing import Any

Row = dict[str, Any]


def correct(
    magpsf: float, sigmapsf: float, magnr: float | None, sigmagnr: float | None, distnr: float | None, isdiffpos: int
) -> tuple[bool, float, float, float]:
    """Correct one detection: ``corrected`` and the three magnitudes; NaN is missing."""
    corrected = distnr is not None and distnr < 1.4
    if not corrected or magnr is None or magnr < 0 or magpsf < 0:
        return corrected, math.nan, math.nan, math.nan
    reference, difference = 10 ** (-0.4 * magnr), 10 ** (-0.4 * magpsf)
    total = reference + difference if isdiffpos > 0 else reference - difference
    if total <= 0:
        return corrected, 100.0, 100.0, 100.0
    radicand = -1.0 if sigmagnr is None else difference**2 * sigmapsf**2 - reference**2 * sigmagnr**2
    error = math.sqrt(radicand) / total if radicand >= 0 else 100.0
    return corrected, -2.5 * math.log10(total), error, difference * sigmapsf / total


def assemble(
    detections: Iterable[Mapping[str, Any]],
    non_detections: Iterable[Mapping[str, Any]],
    as_of_mjd: float | None = None,
) -> dict[str, tuple[list[Row], list[Row], list[Row], Row]]:
    """Light curves by object: detections, non-detections, a row per band and one for the object.

    The rows are complete: None is null, ``corrected`` is None where the magnitudes are to be computed.
    """
    points: dict[str, dict[Any, Row]] = defaultdict(dict)
    for row in _in_order(_known(detections, as_of_mjd)):
        points[row["oid"]].setdefault(_identity(row), dict(row))
    limits: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in _known(non_detections, as_of_mjd):
        limits[row["oid"], row["fid"]].append(dict(row))
    result = {}
    for oid in sorted(points):
        mine = sorted(points[oid].values(), key=_place)
        for row in mine:
            _correct_row(row)
        own = [row for row in mine if not row["forced"]]
        for fid in {row["fid"] for row in mine}:
            firsts = sorted((row for row in own if row["fid"] == fid), key=lambda row: _last(row["candid"]))
            for row in mine:
                if row["fid"] == fid:
                    first = firsts[0]["corrected"] if firsts else row["corrected"]
                    faint = row["isdiffpos"] is None or row["isdiffpos"] <= 0
                    row["dubious"] = (not row["corrected"] and faint) or first != row["corrected"]
        mine_not = [row for (name, _), rows in limits.items() if name == oid for row in _exposures(rows)]
        mine_not.sort(key=lambda row: (row["mjd"], row["fid"]))
        bands = [_band([row for row in own if row["fid"] == fid], mine_not) for fid in sorted({r["fid"] for r in own})]
        result[oid] = (mine, mine_not, bands, _object(own, bands))
    return result


def _known(rows: Iterable[Mapping[str, Any]], as_of_mjd: float | None) -> list[Mapping[str, Any]]:
    good = [row for row in rows if row["oid"] is not None and row["fid"] is not None and row["mjd"] is not None]
    if as_of_mjd is None:
        return good
    return [row for row in good if row["mjd"] <= as_of_mjd and _arrival(row)[0] <= as_of_mjd]


def _last(candid: int | None) -> float:
    return math.inf if candid is None else candid


def _arrival(row: Mapping[str, Any]) -> tuple[float, float]:
    mjd = row["mjd"] if row["alert_mjd"] is None else row["alert_mjd"]
    return mjd, _last(row.get("candid") if row["alert_candid"] is None else row["alert_candid"])


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["candid"] is not None:
        return (bool(row["forced"]), row["candid"])
    if row["forced"]:
        return (True, row["fid"], row["mjd"])
    return (False, row["fid"], row["mjd"], row["magpsf"], row["ra"], row["dec"])


def _in_order(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    # By the values in the order of the columns, nulls last, which settles what preference leaves open.
    def values(row: Mapping[str, Any]) -> list[tuple[bool, Any]]:
        return [(value is None, 0 if value is None else value) for value in row.values()]

    return sorted(rows, key=lambda row: (not row["has_stamp"], *_arrival(row), values(row)))


def _place(row: Row) -> tuple[Any, ...]:
    return (row["mjd"], bool(row["forced"]), _last(row["candid"]), row["fid"], row["magpsf"], row["ra"], row["dec"])


def _correct_row(row: Row) -> None:
    row["forced"], row["has_stamp"] = bool(row["forced"]), bool(row["has_stamp"])
    if row["corrected"] is None:
        given = (row[name] for name in ("magpsf", "sigmapsf", "magnr", "sigmagnr", "distnr", "isdiffpos"))
        found = correct(*given)
        row["corrected"] = found[0]
        for name, value in zip(("magpsf_corr", "sigmapsf_corr", "sigmapsf_corr_ext"), found[1:], strict=True):
            row[name] = None if math.isnan(value) else value


def _exposures(rows: list[Row]) -> list[Row]:
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row["mjd"]):
        if groups and row["mjd"] - groups[-1][-1]["mjd"] <= 1e-5:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [
        min(group, key=lambda row: (*_arrival(row), row["mjd"], row["diffmaglim"] is None, row["diffmaglim"]))
        for group in groups
    ]


def _band(rows: list[Row], non_detections: list[Row]) -> Row:
    by_candid = sorted(rows, key=lambda row: _last(row["candid"]))
    first, by_time = by_candid[0], rows[0]
    ps1 = {
        name: next((row[name] for row in by_candid if row[name] is not None), None)
        for name in ("distpsnr1", "sgscore1")
    }
    near_ztf = first["distnr"] is not None and 0 <= first["distnr"] < 1.4
    near_ps1 = ps1["distpsnr1"] is not None and 0 <= ps1["distpsnr1"] < 1.4
    shape = first["chinr"] is not None and first["sharpnr"] is not None
    star_ztf = shape and first["chinr"] < 2 and -0.13 < first["sharpnr"] < 0.1
    star_ps1 = ps1["sgscore1"] is not None and ps1["sgscore1"] > 0.4
    corrected = [row for row in rows if row["corrected"]]
    saturated = [row for row in corrected if row["magpsf_corr"] is not None and row["magpsf_corr"] < 13.2]
    result = {
        "fid": by_time["fid"],
        "stellar": near_ztf and (star_ps1 if near_ps1 else star_ztf),
        "corrected": first["corrected"],
        "ndet": len(rows),
        "ndubious": sum(row["dubious"] for row in rows),
        "nrfid": len({row["rfid"] for row in rows} - {None}),
        "firstmjd": by_time["mjd"],
        "lastmjd": rows[-1]["mjd"],
        "saturation_rate": len(saturated) / len(corrected) if corrected else None,
    }
    rises = []
    for limit in non_detections:
        if limit["fid"] == by_time["fid"] and limit["diffmaglim"] is not None and limit["mjd"] < by_time["mjd"] - 0.5:
            dt, maglim = by_time["mjd"] - limit["mjd"], limit["diffmaglim"]
            rise = (by_time["magpsf"] + by_time["sigmapsf"] - maglim) / dt
            rises.append((rise, limit["mjd"], by_time["magpsf"] - maglim, by_time["sigmapsf"] - maglim, dt))
    dmdt, _, dm, sigmadm, dt = min(rises, default=(None,) * 5)
    result |= {"dmdt_first": dmdt, "dm_first": dm, "sigmadm_first": sigmadm, "dt_first": dt}
    for name, pattern in {"magpsf": "mag{}", "magpsf_corr": "mag{}_corr", "magap": "magap{}"}.items():
        values = [row[name] for row in rows if row[name] is not None]
        found = {
            "mean": fmean(values) if values else None,
            "median": median(values) if values else None,
            "max": max(values, default=None),
            "min": min(values, default=None),
            "sigma": stdev(values) if len(values) > 1 else None,
            "first": by_time[name],
            "last": rows[-1][name],
        }
        result |= {pattern.format(statistic): value for statistic, value in found.items()}
    return result


def _object(rows: list[Row], bands: list[Row]) -> Row:
    by_fid = {band["fid"]: band for band in bands}

    def colour(name: str) -> float | None:
        g, r = (by_fid.get(fid, {}).get(name) for fid in (1, 2))
        return None if g is None or r is None else g - r

    dec = [row["dec"] for row in rows if row["dec"] is not None]
    first, last = (rows[0]["mjd"], rows[-1]["mjd"]) if rows else (math.nan, math.nan)
    references = [row["mjdendref"] for row in rows if row["mjdendref"] is not None]
    newest = next((row for row in reversed(rows) if row["ndethist"] is not None), None)
    own = [row["candid"] for row in rows if row["has_stamp"]]
    return {
        "ndet": len(rows),
        "candid": own[-1] if own else None,
        "ndethist": newest["ndethist"] if newest else None,
        "corrected": bool(bands) and all(band["corrected"] for band in bands),
        "stellar": bool(bands) and all(band["stellar"] for band in bands),
        "ndubious": sum(row["dubious"] for row in rows),
        "g_r_max": colour("magmin"),
        "g_r_max_corr": colour("magmin_corr"),
        "g_r_mean": colour("magmean"),
        "g_r_mean_corr": colour("magmean_corr"),
        "meandec": fmean(dec) if dec else None,
        "sigmadec": stdev(dec) if len(dec) > 1 else None,
        "firstmjd": first if rows else None,
        "lastmjd": last if rows else None,
        "deltajd": last - first if rows else None,
        "diffpos": bool(rows) and min(row["isdiffpos"] for row in rows) > 0,
        "reference_change": bool(references) and max(references) > first,
    }
