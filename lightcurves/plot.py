"""Pictures of light curves, drawn as astronomers draw them: bright above, time to the right, limits as triangles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg", ".pdf")
_BANDS: Final = {1: ("g", "#2a9d4e"), 2: ("r", "#d1495b"), 3: ("i", "#b8860b")}
# Errors and limits of hopeless images would squeeze the light curve into a line.
_MAX_ERROR_MAG: Final = 1.0
_DETERMINISTIC: Final[dict[Any, Any]] = {"svg.hashsalt": "alertbeam"}


def draw_light_curve(
    path: str | Path,
    title: str,
    detections: pd.DataFrame,
    non_detections: pd.DataFrame,
    *,
    apparent: bool = False,
    period_days: float | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Draw a light curve by time and, if the period is known, folded; write a picture file.

    Parameters
    ----------
    path : path
        File to write, of one of the formats :data:`FORMATS`. The same light curve gives the same file.
    title : str
        Name of the object.
    detections : DataFrame
        Columns ``mjd`` (days), ``fid``, ``isdiffpos`` (1 or -1), ``magpsf``, ``sigmapsf`` (mag), and if `apparent`
        ``magpsf_corr``, ``sigmapsf_corr_ext``; with a column ``forced``, forced photometry is drawn small.
    non_detections : DataFrame
        Columns ``mjd``, ``fid``, ``diffmaglim`` (mag).
    apparent : bool
        Draw apparent magnitudes instead of those of the difference image.
    period_days : float, optional
        Period to fold at.
    notes : sequence of str
        Lines below the title, for instance the crossmatch and the class.

    Raises
    ------
    ValueError
        If the file's ending is of no known format, or there is nothing to draw.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name}: the picture's name must end in {', '.join(FORMATS)}")
    if not len(detections) and not len(non_detections):
        raise ValueError(f"{title} has no detections and no limits to draw")
    with rc_context(_DETERMINISTIC):
        figure = light_curve_figure(title, detections, non_detections, apparent, period_days, notes)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def light_curve_figure(
    title: str,
    detections: pd.DataFrame,
    non_detections: pd.DataFrame,
    apparent: bool = False,
    period_days: float | None = None,
    notes: Sequence[str] = (),
) -> Figure:
    """Figure of a light curve, for a notebook; the parameters are those of :func:`draw_light_curve`."""
    folded = period_days is not None and np.isfinite(period_days) and period_days > 0
    figure = Figure(figsize=(9, 8 if folded else 5), dpi=120, layout="constrained")
    panels = figure.subplots(2 if folded else 1, 1, squeeze=False)[:, 0]
    draw_on(panels[0], detections, non_detections, apparent=apparent)
    if folded:
        draw_on(panels[1], detections, non_detections, apparent=apparent, period_days=period_days)
    figure.suptitle("\n".join([title, *notes]), fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    if handles:
        panels[0].legend(handles, names, loc="best", fontsize=8, framealpha=0.85)
    return figure


def draw_on(
    axes: Axes,
    detections: pd.DataFrame,
    non_detections: pd.DataFrame,
    *,
    apparent: bool = False,
    period_days: float | None = None,
) -> None:
    """Draw on axes: by time with the limits, or folded if a period is given; parameters of :func:`draw_light_curve`."""
    points = _points(detections, apparent)
    if period_days is None:
        _draw_by_time(axes, points, non_detections, apparent)
        _label(axes, "MJD (days)", apparent)
    else:
        _draw_folded(axes, points, period_days)
        _label(axes, f"phase, period {period_days:.7g} d", apparent)


def _points(detections: pd.DataFrame, apparent: bool) -> pd.DataFrame:
    magnitude, error = ("magpsf_corr", "sigmapsf_corr_ext") if apparent else ("magpsf", "sigmapsf")
    points = pd.DataFrame(
        {
            "mjd": detections["mjd"].astype(float),
            "fid": detections["fid"].astype(int),
            "magnitude": detections[magnitude].astype(float),
            "error": detections[error].astype(float),
            "negative": detections["isdiffpos"].astype(float) < 0,
            "forced": detections["forced"].astype(bool) if "forced" in detections else False,
        }
    )
    # 100 stands for "fainter than nothing" in corrected magnitudes.
    usable = np.isfinite(points["magnitude"]) & (points["magnitude"] < 90) & (points["error"] < _MAX_ERROR_MAG)
    return points[usable]


def _draw_by_time(axes: Axes, points: pd.DataFrame, limits: pd.DataFrame, apparent: bool) -> None:
    for fid, (band, colour) in _BANDS.items():
        below = limits[(limits["fid"] == fid) & np.isfinite(limits["diffmaglim"].astype(float))]
        style: dict[str, Any] = {"marker": "v", "s": 12, "color": colour, "alpha": 0.3}
        if len(below) and apparent:
            # A limit is of the difference image: among apparent magnitudes it has a time but no place.
            edge = axes.get_xaxis_transform()
            axes.scatter(below["mjd"], [0.015] * len(below), transform=edge, label=f"{band} not detected", **style)
        elif len(below):
            axes.scatter(below["mjd"], below["diffmaglim"], label=f"{band} limit", **style)
        _draw_band(axes, points[points["fid"] == fid], band, colour, 0.0)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")


def _draw_folded(axes: Axes, points: pd.DataFrame, period_days: float) -> None:
    first = points["mjd"].min() if len(points) else 0.0
    folded = points.assign(mjd=np.mod((points["mjd"] - first) / period_days, 1.0))
    for fid, (band, colour) in _BANDS.items():
        for cycle in (0.0, 1.0):
            _draw_band(axes, folded[folded["fid"] == fid], band, colour, cycle)
    axes.set_xlim(0.0, 2.0)


def _draw_band(axes: Axes, points: pd.DataFrame, band: str, colour: str, shift: float) -> None:
    kinds: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("", ~points["negative"] & ~points["forced"], {"markersize": 4.5}),
        (" fainter than the reference", points["negative"] & ~points["forced"], {"markersize": 4.5, "mfc": "none"}),
        (" forced", points["forced"], {"markersize": 2.0, "alpha": 0.5}),
    )
    for name, chosen, style in kinds:
        part = points[chosen]
        if len(part):
            axes.errorbar(
                part["mjd"] + shift,
                part["magnitude"],
                part["error"],
                fmt="o",
                color=colour,
                elinewidth=0.8,
                label=f"{band}{name}",
                **style,
            )


def _label(axes: Axes, x: str, apparent: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel("apparent magnitude" if apparent else "magnitude of the difference")
    axes.invert_yaxis()
    axes.grid(alpha=0.2)
