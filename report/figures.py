"""Charts of the page, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from report.axes import Frame, Scale, drawing, short
from report.colours import LEVELS
from report.crossmatches import MAGNITUDE_EDGES, SEPARATION_BINS, CatalogStatistics
from report.random_matches import RandomLevel
from report.sky import coarser, galactic_plane, mollweide
from report.summary import Rates

BANDS: Final = {1: "g", 2: "r", 3: "i"}
SQUARE_DEGREES: Final = 129600.0 / math.pi
#: Alerts up to which each is a point of its own on the map.
MOST_POINTS: Final = 1_000
_MOST_CELLS: Final = 14_000
_CELL_ALERTS: Final = 4
# Fewer cells than that would be specks: they are drawn as dots.
_FEW_CELLS: Final = 1_200
_MAP_WIDTH, _MAP_HEIGHT, _MAP_EDGE = 720, 380, 10


def rate_chart(rates: Rates, values: NDArray[np.float64], what: str) -> Markup:
    """Work per second over the time of the run."""
    top = float(values.max(initial=0.0)) or 1.0
    length = float(rates.edges_s[-1])
    size, unit = next(
        ((s, u) for s, u in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")) if length >= 3 * s), (1.0, "s")
    )
    frame = Frame(Scale(0.0, length / size), Scale(0.0, top * 1.08), width=380, height=210, left=54)
    edges = (rates.edges_s / size).tolist()
    content = frame.axes(f"time of work ({unit})", what)
    content += f'<path class="area" d="{frame.steps(edges, values.tolist(), True)}"/>'
    content += f'<path class="line" d="{frame.steps(edges, values.tolist(), False)}"/>'
    for at, seconds in rates.pauses:
        content += (
            f'<path class="pause" d="M{frame.px(at / size)} {frame.top}V{frame.height - frame.bottom}">'
            f"<title>{escape(f'the run stood still for {duration(seconds)}')}</title></path>"
        )
    mean = float((values * np.diff(rates.edges_s)).sum() / length)
    return frame.svg(content, f"{what} over the time of the run: {short(mean)} on average, {short(top)} at most")


def duration(seconds: float) -> str:
    """Length of time as text: 12.3 s, 4 min 05 s, 3 h 12 min, 2 d 04 h."""
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}\u00a0min\u00a0{whole % 60:02d}\u00a0s"
    if whole < 86400:
        return f"{whole // 3600}\u00a0h\u00a0{whole % 3600 // 60:02d}\u00a0min"
    return f"{whole // 86400}\u00a0d\u00a0{whole % 86400 // 3600:02d}\u00a0h"


def separation_chart(statistics: CatalogStatistics, level: RandomLevel, radius_arcsec: float) -> Markup:
    """Matches by separation, with those that chance would give."""
    edges = np.linspace(0.0, radius_arcsec, SEPARATION_BINS + 1)
    counts = statistics.separations
    top = max(float(counts.max(initial=0)), 1.0)
    # Chance alone grows with the area of the ring.
    rings = np.diff(edges**2) / radius_arcsec**2
    expected = level.per_alert * statistics.alerts * rings if level.trials else np.zeros(len(rings))
    log = top > 50
    frame = Frame(Scale(0.0, radius_arcsec), Scale(0.5, top * 2.0, True) if log else Scale(0.0, top * 1.1))
    content = frame.axes("separation (arcsec)", "matches per bin")
    for k, count in enumerate(counts.tolist()):
        if count:
            x, y = frame.px(edges[k]), frame.py(count)
            width = max(frame.px(edges[k + 1]) - x - 1, 0.5)
            content += (
                f'<rect class="bar" x="{x + 0.5}" y="{y}" width="{width:.2f}" '
                f'height="{frame.height - frame.bottom - y:.2f}">'
                f"<title>{edges[k]:.3g}″ to {edges[k + 1]:.3g}″: {count:,}</title></rect>"
            )
    if level.matches:
        content += f'<path class="expected" d="{frame.steps(edges.tolist(), expected.tolist(), False)}"/>'
    alt = f"Histogram of {statistics.matched:,} matches by separation up to {radius_arcsec:g} arcsec"
    if level.trials:
        alt += f"; by chance {short(level.per_alert * statistics.alerts)} would be expected"
    return frame.svg(content, alt)


def match_rate_chart(statistics: CatalogStatistics) -> Markup | None:
    """Share of the alerts that have a match, by magnitude and filter, with binomial errors."""
    totals = sum(statistics.magnitudes.values(), np.zeros(len(MAGNITUDE_EDGES) - 1, np.int64))
    filled = np.flatnonzero(totals)
    if not len(filled):
        return None
    low, high = MAGNITUDE_EDGES[filled[0]], MAGNITUDE_EDGES[filled[-1] + 1]
    frame = Frame(Scale(float(low), float(high)), Scale(0.0, 100.0))
    content = frame.axes("magpsf (mag)", "alerts with a match (%)")
    shown = [band for band in sorted(statistics.magnitudes) if band in BANDS]
    for number, band in enumerate(shown):
        total, matched = statistics.magnitudes[band], statistics.magnitudes_matched[band]
        points = []
        for k in np.flatnonzero(total):
            low_share, high_share = wilson(int(matched[k]), int(total[k]))
            centre = (MAGNITUDE_EDGES[k] + MAGNITUDE_EDGES[k + 1]) / 2 + 0.06 * (number - (len(shown) - 1) / 2)
            x, y = frame.px(centre), frame.py(100 * matched[k] / total[k])
            points.append(f"{x} {y}")
            content += (
                f'<g class="band-{BANDS[band]}"><title>{BANDS[band]} {MAGNITUDE_EDGES[k]:g} to '
                f"{MAGNITUDE_EDGES[k + 1]:g}: {matched[k]:,} of {total[k]:,}</title>"
                f'<path class="error" d="M{x} {frame.py(100 * low_share)}V{frame.py(100 * high_share)}"/>'
                f'<circle cx="{x}" cy="{y}" r="3.2"/></g>'
            )
        content += f'<path class="thin band-{BANDS[band]}" d="M{"L".join(points)}"/>'
    return frame.svg(content, "Share of the alerts with a match by magnitude, for each filter")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Interval of a share that holds the truth in 68 % of cases (Wilson 1927)."""
    share, half = successes / trials, 0.5 / trials
    spread = math.sqrt(share * (1 - share) / trials + half * half / 1.0)
    centre, norm = share + half, 1 + 1 / trials
    return max((centre - spread) / norm, 0.0), min((centre + spread) / norm, 1.0)


def probability_chart(histogram: NDArray[np.int64], number: int, alt: str) -> Markup:
    """Small histogram of probabilities from 0 to 1, in the colour of class `number`."""
    width, height = 140, 26
    top = max(int(histogram.max()), 1)
    bars = ""
    for k, count in enumerate(histogram.tolist()):
        if count:
            tall = max(1.5, (height - 3) * count / top)
            bars += (
                f'<rect x="{k * width / len(histogram) + 0.5:g}" y="{height - 1 - tall:.2f}" '
                f'width="{width / len(histogram) - 1:g}" height="{tall:.2f}"/>'
            )
    return drawing(width, height, f'<path class="axis" d="M0 {height - 0.5}H{width}"/>{bars}', alt, f"spark k{number}")


def sky_points(ra: NDArray[np.float64], dec: NDArray[np.float64], matched: NDArray[np.bool_], alt: str) -> Markup:
    """Map with a point for each alert."""
    x, y = _on_map(ra, dec)
    content = ""
    for kind, chosen in (("unmatched", ~matched), ("matched", matched)):
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[chosen], y[chosen], strict=True))
        content += f'<path class="point {kind}" d="{path}"/>' if path else ""
    return _map(content, alt)


def sky_factor(sky: NDArray[np.int64]) -> int:
    """How many of the finest cells make the side of one that holds some alerts."""
    for factor in (2, 3, 4, 6):
        cells = coarser(sky, factor)
        filled = cells[cells > 0]
        if len(filled) <= _MOST_CELLS and np.median(filled) >= _CELL_ALERTS:
            return factor
    return 6


def sky_density(sky: NDArray[np.int64], alt: str) -> tuple[Markup, list[str]]:
    """Map of alerts per square degree, and the values between its levels."""
    factor = sky_factor(sky)
    cells = coarser(sky, factor)
    area = SQUARE_DEGREES / (math.pi / 4 * sky.size) * factor**2
    density = cells / area
    filled = density[cells > 0]
    # A few crowded fields would leave one colour for all others.
    low, high = np.quantile(filled, [0.01, 0.99])
    bounds = np.geomspace(low, max(high, low * 1.001), LEVELS + 1)
    first, middle, last = (short(float(f"{bound:.2g}")) for bound in bounds[[0, LEVELS // 2, LEVELS]])
    values = ["≤ " * bool(filled.min() < low) + first, middle, "≥ " * bool(filled.max() > high) + last]
    return _map(_levels(density, cells > 0, bounds), alt), values


def sky_share(sky: NDArray[np.int64], matched: NDArray[np.int64], alt: str) -> tuple[Markup, list[str]]:
    """Map of the share of alerts with a match, and the values between its levels."""
    factor = sky_factor(sky)
    cells, found = coarser(sky, factor), coarser(matched, factor)
    share = found / np.maximum(cells, 1)
    return _map(_levels(share, cells > 0, np.linspace(0.0, 1.0, LEVELS + 1)), alt), ["0 %", "50 %", "100 %"]


def _levels(values: NDArray[np.float64], filled: NDArray[np.bool_], bounds: NDArray[np.float64]) -> str:
    """Cells as a path for each level: neighbours in a row are one stroke, and few cells are dots."""
    rows, columns = values.shape
    levels = np.where(filled, np.clip(np.searchsorted(bounds, values, side="right") - 1, 0, LEVELS - 1), -1)
    paths = [""] * LEVELS
    dots = filled.sum() < _FEW_CELLS
    for row in range(rows):
        line = levels[rows - 1 - row]
        starts = np.flatnonzero(np.append(True, line[1:] != line[:-1]))
        for start, end in zip(starts, np.append(starts[1:], columns), strict=True):
            if line[start] >= 0:
                if dots:
                    paths[line[start]] += "".join(f"M{column}.5 {row}h0" for column in range(start, end))
                else:
                    paths[line[start]] += f"M{start} {row}h{end - start}"
    scale = (_MAP_WIDTH - 2 * _MAP_EDGE) / columns
    strokes = "".join(f'<path class="s{k}" d="{path}"/>' for k, path in enumerate(paths) if path)
    top = (_MAP_HEIGHT - scale * rows) / 2 + scale / 2
    kind = f'class="cells specks" stroke-width="{5 / scale:.2f}"' if dots else 'class="cells" stroke-width="1.03"'
    return f'<g {kind} transform="translate({_MAP_EDGE} {top:g}) scale({scale:g})">{strokes}</g>'


def _on_map(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = mollweide(ra, dec)
    half = _MAP_WIDTH / 2 - _MAP_EDGE
    return _MAP_WIDTH / 2 + x / 2 * half, _MAP_HEIGHT / 2 - y * half / 2


def _map(content: str, alt: str) -> Markup:
    half = _MAP_WIDTH / 2 - _MAP_EDGE
    outline = f'cx="{_MAP_WIDTH / 2:g}" cy="{_MAP_HEIGHT / 2:g}" rx="{half:g}" ry="{half / 2:g}"'
    lines = "".join(_curve(np.full(91, ra), np.linspace(-90, 90, 91)) for ra in range(30, 360, 30))
    lines += "".join(_curve(np.linspace(0.0, 359.999, 13), np.full(13, dec)) for dec in (-60.0, -30.0, 0.0, 30.0, 60.0))
    plane = _curve(*galactic_plane())
    centre_x, centre_y = _on_map(*(values[:1] for values in galactic_plane(2)))
    texts = ""
    for ra in (60, 120, 180, 240, 300):
        x, y = _on_map(np.array([float(ra)]), np.array([0.0]))
        texts += f'<text class="tick mid halo" x="{x[0]:.1f}" y="{y[0] - 4:.1f}">{ra}°</text>'
    for dec in (-60, -30, 30, 60):
        x, y = _on_map(np.array([359.999]), np.array([float(dec)]))
        texts += (
            f'<text class="tick end" x="{x[0] - 6:.1f}" y="{y[0] + 4:.1f}">{"+" if dec > 0 else "−"}{abs(dec)}°</text>'
        )
    return drawing(
        _MAP_WIDTH,
        _MAP_HEIGHT,
        f'<ellipse class="sky" {outline}/>{content}<path class="graticule" d="{lines}"/>'
        f'<path class="under-plane" d="{plane}"/><path class="plane" d="{plane}"/>'
        f'<circle class="centre" cx="{centre_x[0]:.1f}" cy="{centre_y[0]:.1f}" r="4.5"/>'
        f'<ellipse class="outline" {outline}/>{texts}',
        alt,
        "map",
    )


def _curve(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> str:
    """Path through positions, broken where it leaves the map at one side and comes back at the other."""
    x, y = _on_map(ra, dec)
    broken = np.append(True, np.abs(np.diff(x)) > _MAP_WIDTH / 4)
    return "".join(f"{'M' if new else 'L'}{a:.1f} {b:.1f}" for new, a, b in zip(broken, x, y, strict=True))
