"""The page: one HTML file that holds all it needs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightcurves.columns import numbers
from report.classes import ClassInfo
from report.colours import ramp
from report.crossmatches import CatalogStatistics
from report.data import ReportData
from report.figures import (
    MOST_POINTS,
    duration,
    match_rate_chart,
    probability_chart,
    rate_chart,
    separation_chart,
    sky_density,
    sky_points,
    sky_share,
)
from report.random_matches import RandomLevel
from report.summary import Summary

#: Where a person looks an object up; nothing is loaded from there.
BROKER_PAGE: Final = "https://alerce.online/object/"
# Of classes without a hierarchy: entropy of the highest powers beyond which a period is taken for real.
LEAST_PERIOD_FIT: Final = 0.1
_TOP_CLASSES: Final = 4
_JD_OF_UNIX_EPOCH: Final = 2440587.5
_STAGES: Final = {
    "read": "read, crossmatch, write",
    "fold": "sort light curves",
    "replay": "rows once refused",
    "features": "features",
    "classify": "classes",
    "export": "HATS export",
}
_FEATURE_UNITS: Final = {
    "Multiband_period": "d",
    "GP_DRW_tau_1": "d",
    "SPM_tau_rise_1": "d",
    "SPM_tau_fall_1": "d",
    "gal_b": "°",
    **dict.fromkeys(("Amplitude_1", "Amplitude_2", "Std_1", "Mean_1", "Mean_2", "Harmonics_mag_1_1"), "mag"),
    **dict.fromkeys(("g-r_mean_corr", "g-r_max", "W1-W2", "W2-W3", "g-W2", "r-W2"), "mag"),
}


@dataclass(frozen=True)
class _Term:
    """A number of the equation or of the head, and what it counts."""

    value: str
    text: str
    note: str = ""


def render(data: ReportData, target: Path) -> str:
    """HTML of the page.

    Parameters
    ----------
    data : ReportData
    target : Path
        Where it will be written: links to files of the run are relative to its folder.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "duration": duration, "megabytes": lambda size: f"{size / 1e6:,.0f} MB"}
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context = {
        "data": data,
        "script": Markup(script),
        "script_hash": digest,
        "style": Markup((folder / "page.css").read_text(encoding="utf-8") + _colours(data.classes)),
        "payload": Markup(_json(_payload(data))),
        "facts": _facts(data),
        "equation": _equation(data.summary),
        "provenance": _provenance(data),
        "stage_names": _STAGES,
        "rates": _rate_charts(data.summary),
        "sky": _sky(data),
        "matches": _matches(data),
        "branches": _branches(data),
        "letters": _letters(data, target),
        "shown": len(data.objects.shown) if data.objects else 0,
        "time": _time,
        "last_command": _last_command(data.summary),
    }
    return environment.get_template("page.html").render(context)


def _count(value: int) -> str:
    return f"{value:,}"


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds is not None else "unknown"


def _date(jd: float) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=jd - _JD_OF_UNIX_EPOCH)).strftime("%Y-%m-%d")


def _json(value: Any) -> str:
    """JSON that can stand inside of an element `script`: no text of it ends the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _colours(classes: Sequence[ClassInfo]) -> str:
    """Rules for the colours of the classes and of the levels of the maps."""

    def rules(dark: bool) -> str:
        of_classes = "".join(f".k{k}{{--k:{info.dark if dark else info.light}}}" for k, info in enumerate(classes))
        return of_classes + "".join(f".s{k}{{--s:{shade}}}" for k, shade in enumerate(ramp(dark)))

    return f"{rules(False)}@media screen and (prefers-color-scheme:dark){{{rules(True)}}}"


def _facts(data: ReportData) -> list[_Term]:
    """Numbers at the head of the page."""
    summary, crossmatches, objects = data.summary, data.crossmatches, data.objects
    facts = []
    alerts = summary.balance.alerts_in if summary and summary.balance else None
    if alerts is None and crossmatches and crossmatches.catalogs:
        alerts = max(one.alerts for one in crossmatches.catalogs.values())
    if alerts is not None:
        nights = f"of {_plural(crossmatches.nights, 'night')}" if crossmatches and crossmatches.nights else ""
        facts.append(_Term(_count(alerts), "alerts", nights))
    if crossmatches:
        for name, one in crossmatches.catalogs.items():
            facts.append(_Term(_share(one.matched, one.alerts), f"matched in {name}", f"{one.matched:,} alerts"))
    if objects:
        facts.append(_Term(_count(objects.count), "objects"))
        if data.feature_version is not None:
            facts.append(_Term(_count(objects.featured), "with features", _share(objects.featured, objects.count)))
        if data.model is not None:
            facts.append(_Term(_count(objects.classified), "classified", f"into {len(objects.leaves)} classes"))
    if summary and summary.seconds:
        rate = f"{alerts / summary.seconds:,.0f} alerts/s" if alerts else ""
        facts.append(_Term(duration(summary.seconds), "of work", rate))
    if summary and summary.peak_bytes:
        facts.append(_Term(f"{summary.peak_bytes / 1e6:,.0f} MB", "at most per worker"))
    return facts


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _equation(summary: Summary | None) -> list[_Term]:
    if summary is None or summary.balance is None:
        return []
    balance = summary.balance
    return [
        _Term(_count(balance.alerts_in), "alerts in", "packets met in the input"),
        _Term(_count(balance.written), "written", "enriched alerts"),
        _Term(_count(balance.filtered), "filtered", "of other programmes"),
        _Term(_count(balance.repeated), "repeated", "the same alert again"),
        _Term(_count(balance.dead), "dead letters", "reading, decoding, crossmatch"),
    ]


def _provenance(data: ReportData) -> list[_Term]:
    """What made the results: rows of a value and what it is."""
    summary = data.summary
    settings: Mapping[str, Any] = summary.settings if summary else {}
    rows = []
    if summary and settings:
        rows.append(_Term(f"alertbeam {settings.get('alertbeam', 'of an unknown version')}", "Program"))
        if settings.get("created"):
            rows.append(_Term(str(settings["created"]), "Begun"))
    if summary and summary.started is not None:
        rows.append(_Term(f"{_time(summary.started)} to {_time(summary.ended)}", "Worked"))
    crossmatches = data.crossmatches
    if crossmatches and crossmatches.first_jd is not None and crossmatches.last_jd is not None:
        first, last = _date(crossmatches.first_jd), _date(crossmatches.last_jd)
        nights = _plural(crossmatches.nights, "night")
        rows.append(_Term(first if first == last else f"{first} to {last}", "Alerts observed", nights))
    for catalog in settings.get("catalogs") or ():
        built = " ".join(str(catalog[key]) for key in ("version", "created") if catalog.get(key))
        size = f"{int(catalog['rows']):,} sources" if catalog.get("rows") else ""
        rows.append(_Term(str(catalog.get("name", "")), "Catalogue", ", ".join(filter(None, (built, size)))))
    if settings.get("radius_arcsec"):
        rows.append(_Term(f"{settings['radius_arcsec']:g}″", "Matching radius"))
    if data.feature_version is not None:
        rows.append(_Term(data.feature_version, "Features shown", _also(data.other_versions)))
    if data.model is not None:
        model = settings.get("model") or {}
        same = data.model == (model.get("name"), model.get("version"))
        sha256 = f"sha256 {model['sha256']}" if same and model.get("sha256") else ""
        rows.append(
            _Term(" ".join(data.model), "Model shown", " ".join(filter(None, (sha256, _also(data.other_models)))))
        )
    if settings.get("programs"):
        rows.append(_Term(", ".join(str(one) for one in settings["programs"]), "Survey programmes"))
    if settings.get("database"):
        rows.append(_Term(str(settings["database"]), "Database"))
    return rows


def _also(others: Sequence[str]) -> str:
    return f"(also in the run: {', '.join(others)})" if others else ""


def _last_command(summary: Summary | None) -> str:
    return " ".join(summary.invocations[-1].command) if summary and summary.invocations else ""


def _rate_charts(summary: Summary | None) -> list[Markup]:
    rates = summary.rates if summary else None
    if rates is None:
        return []
    series = (
        ("alerts per second", rates.alerts),
        ("MB per second", rates.megabytes),
        ("objects per second", rates.objects),
    )
    return [rate_chart(rates, values, what) for what, values in series if values.any()]


def _sky(data: ReportData) -> list[dict[str, Any]]:
    """Maps with what they show and the values of their levels."""
    if data.crossmatches is None:
        return []
    maps: list[dict[str, Any]] = []
    for name, one in data.crossmatches.catalogs.items():
        if not one.sky.any():
            continue
        if one.alerts <= MOST_POINTS:
            sample = one.sample
            alt = f"Map of the sky with {one.alerts:,} alerts, {one.matched:,} of them with a match in {name}"
            title = f"Alerts, with and without a match in {name}"
            maps.append(
                {
                    "title": title,
                    "svg": sky_points(sample.ra, sample.dec, sample.matched, alt),
                    "values": [],
                    "unit": "",
                }
            )
            continue
        if not maps:
            svg, values = sky_density(one.sky, f"Map of the sky with the density of {one.alerts:,} alerts")
            maps.append({"title": "Alerts", "svg": svg, "values": values, "unit": "alerts per square degree"})
        svg, values = sky_share(one.sky, one.sky_matched, f"Map of the sky with the share of alerts matched in {name}")
        maps.append({"title": f"Matches in {name}", "svg": svg, "values": values, "unit": "of the alerts have a match"})
    return maps


def _matches(data: ReportData) -> list[dict[str, Any]]:
    if data.crossmatches is None:
        return []
    radius = data.crossmatches.radius_arcsec
    return [
        {
            "name": name,
            "separations": separation_chart(one, data.random[name], radius),
            "rates": match_rate_chart(one),
            "bands": [band for band in (1, 2, 3) if band in one.magnitudes],
            "matched": one.matched,
            "alerts": one.alerts,
            "share": _share(one.matched, one.alerts),
            "random": data.random[name],
            "expected": _expected(one, data.random[name]),
        }
        for name, one in data.crossmatches.catalogs.items()
    ]


def _expected(one: CatalogStatistics, level: RandomLevel) -> str:
    """Matches by chance among all alerts, with the error of the trials."""
    if not level.trials:
        return ""
    scale = one.alerts / level.trials
    if not level.matches:
        return f"fewer than {3 * scale:,.1f}"
    return f"{level.matches * scale:,.1f} ± {np.sqrt(level.matches) * scale:,.1f}"


def _branches(data: ReportData) -> list[dict[str, Any]]:
    """Classes by branch, with bars."""
    if data.objects is None or not data.classes:
        return []
    statistics = data.objects.classes
    largest = max((one.count for one in statistics.values()), default=0) or 1
    branches: dict[str, list[dict[str, Any]]] = {}
    for number, info in enumerate(data.classes):
        one = statistics[info.name]
        alt = f"Probabilities of the {one.count:,} objects of class {info.name}, {one.mean:.2f} on average"
        branches.setdefault(info.branch, []).append(
            {
                "number": number,
                "name": info.name,
                "count": one.count,
                "width": round(100 * one.count / largest, 2),
                "share": _share(one.count, data.objects.classified),
                "mean": f"{one.mean:.2f}" if one.count else "–",
                "spark": probability_chart(one.histogram, number, alt) if one.count else "",
                "in_gallery": bool(data.galleries.get(info.name)) and bool(data.light_curves),
            }
        )
    total = data.objects.classified
    return [
        {
            "name": name,
            "classes": rows,
            "count": sum(row["count"] for row in rows),
            "share": _share(sum(row["count"] for row in rows), total),
        }
        for name, rows in branches.items()
    ]


def _letters(data: ReportData, target: Path) -> dict[str, Any]:
    if data.letters is None:
        return {"total": None, "groups": []}
    counts = data.summary.counts if data.summary else {}
    counted = sum(number for name, number in counts.items() if name.startswith("dead_letters:"))
    folder = os.path.relpath(data.root / "dead_letters", target.absolute().parent)
    return {
        "total": data.letters.read if data.letters.complete else max(counted, data.letters.read),
        "groups": [
            {"group": group, "links": [(name, quote(f"{folder}/{name}")) for name in group.files]}
            for group in data.letters.groups
        ],
    }


def _payload(data: ReportData) -> dict[str, Any]:
    """What the script draws: classes, light curves, objects, features."""
    number = {info.name: k for k, info in enumerate(data.classes)}
    return {
        "classes": [{"name": one.name, "branch": one.branch, "periodic": one.periodic} for one in data.classes],
        "curves": data.light_curves,
        "gallery": [
            [number[name], [oid for oid in oids if oid in data.light_curves]] for name, oids in data.galleries.items()
        ],
        "objects": _object_columns(data, number),
        "features": _feature_columns(data, number),
        "broker": BROKER_PAGE,
        "period_fit": LEAST_PERIOD_FIT,
    }


def _object_columns(data: ReportData, number: Mapping[str, int]) -> dict[str, Any]:
    if data.objects is None:
        return {"oid": []}
    shown = data.objects.shown
    nearest = data.crossmatches.nearest if data.crossmatches else {}
    oids = shown["oid"].to_pylist()
    columns = {
        "oid": oids,
        "class": _class_numbers(shown["class"], number),
        "probability": _rounded(numbers(shown, "probability"), 3),
        "ndet": _rounded(numbers(shown, "ndet"), 0),
        "period": _significant(numbers(shown, "period"), 7),
        "fit": _rounded(numbers(shown, "period_fit"), 3),
        "g": _rounded(numbers(shown, "mag_g"), 2),
        "r": _rounded(numbers(shown, "mag_r"), 2),
        "ra": _rounded(numbers(shown, "meanra"), 5),
        "dec": _rounded(numbers(shown, "meandec"), 5),
        "match": [round(nearest[oid][1], 2) if oid in nearest else None for oid in oids],
    }
    return {**columns, "top": _top_classes(shown, data, number)}


def _top_classes(shown: pa.Table, data: ReportData, number: Mapping[str, int]) -> dict[str, list[list[float]]]:
    """The most probable classes of each object with a light curve: numbers of classes, and probabilities."""
    leaves = data.objects.leaves if data.objects else ()
    if not leaves:
        return {}
    rows = shown.filter(pc.is_in(shown["oid"], value_set=pa.array(list(data.light_curves), pa.string())))
    table = np.column_stack([numbers(rows, f"p:{name}") for name in leaves])
    best = np.argsort(-np.nan_to_num(table), axis=1, kind="stable")[:, :_TOP_CLASSES]
    return {
        oid: [[number[leaves[k]], round(float(table[row, k]), 3)] for k in best[row].tolist() if table[row, k] > 0]
        for row, oid in enumerate(rows["oid"].to_pylist())
    }


def _feature_columns(data: ReportData, number: Mapping[str, int]) -> dict[str, Any]:
    if data.objects is None:
        return {"names": []}
    table = data.objects.features
    names = [
        name for name in table.column_names if name not in ("oid", "class") and np.isfinite(numbers(table, name)).any()
    ]
    return {
        "names": names,
        "units": [_FEATURE_UNITS.get(name, "") for name in names],
        "oid": table["oid"].to_pylist(),
        "class": _class_numbers(table["class"], number),
        "values": [_significant(numbers(table, name), 4) for name in names],
    }


def _class_numbers(column: pa.ChunkedArray, number: Mapping[str, int]) -> list[int]:
    return [number.get(name, -1) for name in column.to_pylist()]


def _rounded(values: np.ndarray, digits: int) -> list[float | int | None]:
    return [
        None if not np.isfinite(value) else int(value) if digits == 0 else round(value, digits)
        for value in values.tolist()
    ]


def _significant(values: np.ndarray, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
