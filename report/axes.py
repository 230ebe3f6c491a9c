"""Axes of charts as SVG: scales with round ticks, and a frame that texts, lines and bars are put into."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
_UNITS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Number as a label: 12k, 1.5M, 0.05."""
    for size, letter in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Share of the way from low to high."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values within the scale."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / about))
            return [10.0**power for power in range(first, last + 1, every)]
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return power * next(step for step in _STEPS if step * power >= size * 0.999)


@dataclass(frozen=True)
class Frame:
    """Drawing area of a chart, in units of about a pixel.

    Attributes
    ----------
    x, y : Scale
    width, height : int
    left, right, top, bottom : int
        Margins.
    """

    x: Scale
    y: Scale
    width: int = 480
    height: int = 270
    left: int = 52
    right: int = 16
    top: int = 12
    bottom: int = 44

    def px(self, value: float) -> float:
        """Place of a value on the horizontal axis."""
        return round(self.left + self.x.place(value) * (self.width - self.left - self.right), 2)

    def py(self, value: float) -> float:
        """Place of a value on the vertical axis."""
        inner = self.height - self.top - self.bottom
        return round(self.top + (1.0 - min(max(self.y.place(value), 0.0), 1.0)) * inner, 2)

    def axes(self, x_label: str, y_label: str, x_texts: Iterable[tuple[float, str]] | None = None) -> str:
        """Grid, ticks and labels."""
        parts = []
        for value in self.y.ticks(5):
            y = self.py(value)
            parts.append(f'<path class="grid" d="M{self.left} {y}H{self.width - self.right}"/>')
            parts.append(f'<text class="tick end" x="{self.left - 7}" y="{y + 4}">{short(value)}</text>')
        bottom = self.height - self.bottom
        for value, text in x_texts if x_texts is not None else ((value, short(value)) for value in self.x.ticks()):
            x = self.px(value)
            parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
            parts.append(f'<text class="tick mid" x="{x}" y="{bottom + 17}">{escape(text)}</text>')
        middle = (self.left + self.width - self.right) / 2
        parts.append(f'<path class="axis" d="M{self.left} {bottom}H{self.width - self.right}"/>')
        parts.append(f'<text class="label mid" x="{middle}" y="{self.height - 6}">{escape(x_label)}</text>')
        height = (self.top + bottom) / 2
        parts.append(f'<text class="label mid" transform="translate(12 {height}) rotate(-90)">{escape(y_label)}</text>')
        return "".join(parts)

    def steps(self, edges: Sequence[float], values: Sequence[float], closed: bool) -> str:
        """Path of a histogram, with its area if `closed`."""
        base = self.py(self.y.low)
        path = f"M{self.px(edges[0])} {base if closed else self.py(values[0])}"
        for right, value in zip(edges[1:], values, strict=True):
            path += f"V{self.py(value)}H{self.px(right)}"
        return path + (f"V{base}Z" if closed else "")

    def svg(self, content: str, alt: str, kind: str = "") -> Markup:
        """Complete drawing with the text that stands for it."""
        return drawing(self.width, self.height, content, alt, kind)


def drawing(width: int, height: int, content: str, alt: str, kind: str = "") -> Markup:
    """SVG element; `content` is markup, `alt` text."""
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f"chart {kind}".strip(), width, height, alt, Markup(content)
    )
