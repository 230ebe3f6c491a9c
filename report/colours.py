"""Colours that are evenly spaced to the eye."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

LEVELS: Final = 10


def colour(lightness: float, chroma: float, hue_degrees: float) -> str:
    """Colour of sRGB as text from OKLCH (Ottosson 2020); what lies outside is cut."""
    hue = math.radians(hue_degrees)
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _encoded(value)):02x}" for value in linear)


def _encoded(value: float) -> float:
    value = min(max(value, 0.0), 1.0)
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def ramp(dark: bool) -> list[str]:
    """Colours of :data:`LEVELS` levels, from the page's own to the strongest, on a light or a dark page."""
    share = np.linspace(0.0, 1.0, LEVELS)
    if dark:
        return [colour(0.34 + 0.58 * s, 0.09 + 0.05 * math.sin(math.pi * s), 285 - 175 * s) for s in share]
    return [colour(0.90 - 0.58 * s, 0.07 + 0.06 * math.sin(math.pi * s), 190 + 95 * s) for s in share]
