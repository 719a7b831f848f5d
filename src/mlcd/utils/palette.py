"""The colors of all charts and pages, by light and by dark.

Okabe and Ito's set (Color Universal Design, 2008), which color-blind readers tell apart, with those
darkened that stand out too little on white: on its page each color of a line or bar has a contrast
of at least 3, and each color of words one of at least 4.5 (WCAG 2.2, 1.4.11 and 1.4.3). A test
computes both, and how far apart color-blind readers see them.
"""

from __future__ import annotations

from typing import NamedTuple


class Color(NamedTuple):
    """A color on a light page and its counterpart on a dark one, as #rrggbb."""

    light: str
    dark: str


#: Name → color. Pages know it as the CSS variable --NAME.
COLORS = {
    "page": Color("#ffffff", "#14181d"),
    "panel": Color("#f5f7f9", "#1e242b"),
    "ink": Color("#1f2933", "#e6eaee"),
    "muted": Color("#5b6570", "#a9b3bd"),
    "link": Color("#00537f", "#7cc4ee"),
    "line": Color("#b8c0c8", "#56616c"),
    "grid": Color("#e3e7eb", "#2a323b"),
    "alarm": Color("#fdf3ec", "#33241b"),
    "blue": Color("#0072b2", "#4fa8dc"),
    "sky": Color("#4c9bd0", "#9ccbef"),
    "orange": Color("#b8770b", "#e5a83b"),
    "red": Color("#c1440e", "#f0805a"),
    "green": Color("#008a64", "#3dbe95"),
    "purple": Color("#cc79a7", "#db9cc3"),
    "olive": Color("#8c8a1f", "#c9c455"),
    "gray": Color("#8a8f98", "#7d868f"),
}
#: Of evaluate.models, the name of a color; any other model is green.
MODELS = {"pixels": "gray", "random": "muted", "trained": "blue", "frozen": "orange"}


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors #rrggbb, 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def linear(color: str) -> tuple[float, float, float]:
    """Return red, green and blue of #rrggbb as linear light, 0 to 1 (sRGB, IEC 61966-2-1)."""
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return _light(red), _light(green), _light(blue)


def _light(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _luminance(color: str) -> float:
    red, green, blue = linear(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
