"""A chart of matplotlib as part of a page: the page's colors, and values where one points.

No script is needed: CSS shows a note while its mark is pointed at or has the keyboard's focus
(templates/style.css of the report). A printed page shows none; charts are complete without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlcd.utils.palette import COLORS

#: Points per inch of matplotlib's SVG.
_POINTS = 72
#: Of a note's words, in points: size, width of a character, distance of lines.
_SIZE, _WIDE, _LINE = 9.5, 5.9, 13.0
#: Marks of a chart that the Tab key stops at, at most: beyond, a page's table tells them.
_STOPS = 48
_NAMES = {color.light: name for name, color in COLORS.items()}


class Note(NamedTuple):
    """Words for a part of an axes, bounded in the data's units; None reaches from end to end."""

    axes: Axes
    across: tuple[float, float] | None
    down: tuple[float, float] | None
    words: tuple[str, ...]
    guide: bool


def inline(drawn: str, chart: Figure, label: str, notes: Sequence[Note]) -> str:
    """Return `drawn`, the SVG of `chart` (after its layout), as an element of a page."""
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _variable, body)
    # Its size is the page's matter; the sheet of all charts says how lines join.
    body = re.sub(r'<svg([^>]*?) width="[^"]*" height="[^"]*"', r"<svg\1", body, count=1)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.DOTALL)
    body = body.replace("<svg", f'<svg role="group" aria-label="{escape(label)}"', 1)
    over = _overlay(chart, notes)
    return body.rstrip().removesuffix("</svg>") + over + "</svg>"


def _variable(found: re.Match[str]) -> str:
    what, color = found.groups()
    name = _NAMES.get(color)
    return f"{what}: var(--{name}, {color})" if name else f"{what}: {color}"


def _overlay(chart: Figure, notes: Sequence[Note]) -> str:
    width, height = (float(inches) * _POINTS for inches in chart.get_size_inches())
    scale = _POINTS / chart.dpi
    stops = len(notes) <= _STOPS
    parts = []
    for mark in notes:
        box = mark.axes.get_window_extent()
        transform = mark.axes.transData.transform
        left, right = (box.x0, box.x1)
        bottom, top = (box.y0, box.y1)
        if mark.across is not None:
            left, right = (
                _between(float(transform((x, mark.axes.get_ylim()[0]))[0]), box.x0, box.x1)
                for x in mark.across
            )
        if mark.down is not None:
            bottom, top = sorted(
                _between(float(transform((mark.axes.get_xlim()[0], y))[1]), box.y0, box.y1)
                for y in mark.down
            )
        place = (left * scale, height - top * scale, (right - left) * scale, (top - bottom) * scale)
        parts.append(_mark(mark, place, width, stops=stops))
    return "".join(parts)


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _mark(mark: Note, place: tuple[float, float, float, float], most: float, *, stops: bool) -> str:
    x, y, width, height = place
    wide = _WIDE * max(map(len, mark.words)) + 14
    high = _LINE * len(mark.words) + 9
    left = _between(x + width / 2 - wide / 2, 2.0, max(2.0, most - wide - 2))
    # Above a bar; beside the top of what reaches from end to end.
    top = y + 4 if mark.down is None else max(2.0, y - high - 4)
    lines = "".join(
        f'<text x="{left + 7:.1f}" y="{top + 13.5 + _LINE * number:.1f}">{escape(line)}</text>'
        for number, line in enumerate(mark.words)
    )
    guide = f'<path d="M{x + width / 2:.1f} {y:.1f}v{height:.1f}"/>' if mark.guide else ""
    focus = f' tabindex="0" role="img" aria-label="{escape("; ".join(mark.words))}"'
    return (
        f'<g class="mark"{focus if stops else ""}>'
        f'<rect class="spot" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
        f'height="{max(height, 1):.1f}"/><g class="tip" aria-hidden="true">{guide}'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="4"/>'
        f"{lines}</g></g>"
    )
