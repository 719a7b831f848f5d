"""The pipeline as a graph: a box for each stage that ran, with what went in and came out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

#: Of a box in pixels: width, height, space around it.
_WIDE, _HIGH, _GAP = 232, 104, 36
#: Characters of a line that a box has room for.
_LINE = 32


@dataclass(frozen=True)
class Box:
    """A stage: its name, at most two `lines` of what went in and out, its state, what it took.

    `failed`: how many tries failed, in words; `page`: the page that shows it. All may be ''.
    """

    name: str
    lines: tuple[str, ...]
    state: str
    time: str
    failed: str
    page: str


def drawn(boxes: Sequence[Box]) -> Markup:
    """Return the boxes in their order as two drawings, of which a page shows one by its width."""
    wide = _svg(boxes, 4, "wide")
    return Markup(f'<div class="pipeline">{wide}{_svg(boxes, 2, "narrow")}</div>')


def _svg(boxes: Sequence[Box], across: int, kind: str) -> str:
    rows = -(-len(boxes) // across)
    width = across * (_WIDE + _GAP) - _GAP + 4
    height = rows * (_HIGH + _GAP) - _GAP + 4
    places = [
        (2 + number % across * (_WIDE + _GAP), 2 + number // across * (_HIGH + _GAP))
        for number in range(len(boxes))
    ]
    parts = [_arrow(*pair) for pair in itertools.pairwise(places)]
    for box, place in zip(boxes, places, strict=True):
        parts += _box(box, *place)
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="group" '
        f'aria-label="The stages of the run, in their order">{"".join(parts)}</svg>'
    )


def _box(box: Box, x: int, y: int) -> Iterator[str]:
    if box.page:
        yield f'<a href="{escape(box.page)}.html">'
    yield f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="8"/>'
    yield _text(x + 14, y + 25, box.name, "name")
    yield _text(x + _WIDE - 14, y + 25, box.state, "small end")
    for number, line in enumerate(box.lines[:2]):
        yield _text(x + 14, y + 48 + 18 * number, line)
    words = ", ".join(filter(None, (box.time, box.failed)))
    yield _text(x + 14, y + 90, words, "failed" if box.failed else "small")
    if box.page:
        yield "</a>"


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    shown = words if len(words) <= _LINE else words[: _LINE - 1] + "…"
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{name}>{escape(shown)}</text>'


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """Return an arrow to the next box: to the right, or down to the beginning of the next row."""
    (x1, y1), (x2, y2) = start, end
    if y1 == y2:
        left, middle, right = x1 + _WIDE, y1 + _HIGH / 2, x2
        return (
            f'<path d="M{left} {middle}H{right - 7}"/>'
            f'<path class="tip-of" d="M{right} {middle}l-9 -5v10z"/>'
        )
    bottom, down, between = y1 + _HIGH, x2 + _WIDE / 2, y1 + _HIGH + _GAP / 2
    return (
        f'<path d="M{x1 + _WIDE / 2} {bottom}V{between}H{down}V{y2 - 7}"/>'
        f'<path class="tip-of" d="M{down} {y2}l-5 -9h10z"/>'
    )
