"""Where the lines of the chain's graph run: each stage's files go down a lane to who read them.

As `git log --graph` draws it: rows from top to bottom, lanes from left to right, the dots of the
rows in the last column. A lane is free again below the last row that it leads to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from markupsafe import Markup

#: Pixels: width of a lane, height of the head of a row, where its dot is, room beside the lanes.
STEP, HEAD, MIDDLE, EDGE = 16, 62, 30, 12
#: Pixels from the top at which lines come to a row's dot, and leave it.
IN, OUT = MIDDLE - 4, MIDDLE + 4
#: Colors of lanes, by their names in the style sheet: people who see few colors tell them apart.
COLORS = tuple(
    f"var(--{name})" for name in ("blue", "red", "green", "purple", "orange", "sky", "muted")
)


@dataclasses.dataclass(frozen=True)
class Lane:
    """A line from the row `start` to the rows `ends`, in a column counted from 0."""

    start: int
    ends: tuple[int, ...]
    column: int

    @property
    def color(self) -> str:
        """That of the row where it starts."""
        return COLORS[self.start % len(COLORS)]

    @property
    def last(self) -> int:
        """The last row that it leads to."""
        return self.ends[-1]


def lay(rows: Sequence[str], made_from: Mapping[str, Mapping[str, int]]) -> list[Lane]:
    """Return the lanes. `rows`: names from top to bottom; `made_from`: row → rows above it."""
    place = {name: number for number, name in enumerate(rows)}
    ends: dict[int, list[int]] = {}
    for number, name in enumerate(rows):
        for source in made_from.get(name, {}):
            if place.get(source, number) < number:
                ends.setdefault(place[source], []).append(number)
    lanes: list[Lane] = []
    for start in sorted(ends):
        # Two lanes share a column if one ends above the row where the other starts.
        taken = {lane.column for lane in lanes if lane.last >= start}
        column = next(one for one in range(len(taken) + 1) if one not in taken)
        lanes.append(Lane(start, tuple(ends[start]), column))
    return lanes


def width(lanes: Sequence[Lane]) -> int:
    """Return the pixels beside which the boxes begin."""
    columns = max((lane.column for lane in lanes), default=-1) + 1
    return 2 * EDGE + columns * STEP


def head(lanes: Sequence[Lane], row: int) -> Markup:
    """Return the lines beside the head of a row as SVG, which no reader of words needs."""
    wide, dot = width(lanes), width(lanes) - EDGE
    parts = []
    for lane in lanes:
        x = _x(lane)
        if lane.start < row <= lane.last:
            parts.append(_line(x, 0, x, HEAD if row < lane.last else IN, lane.color))
        if lane.start == row:
            parts.append(_line(x, OUT, x, HEAD, lane.color))
    # To the row above its middle, from it below, over the lines that they cross.
    for lane in lanes:
        x = _x(lane)
        for at in [IN] * (row in lane.ends) + [OUT] * (lane.start == row):
            parts.append(_line(x, at, dot, at, lane.color))
            parts.append(_circle(x, at, 3, lane.color))
    if any(row in lane.ends for lane in lanes):
        tip = f"M{dot - 5} {IN}l-7 -4v8z"
        parts.append(Markup('<path d="{}" style="fill: var(--ink)"/>').format(tip))
    parts.append(_circle(dot, MIDDLE, 6, "var(--page)", "var(--ink)"))
    return Markup('<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" aria-hidden="true">{2}'
                  "</svg>").format(wide, HEAD, Markup().join(parts))  # fmt: skip


def tail(lanes: Sequence[Lane], row: int) -> str:
    """Return a CSS background: the lanes that continue below a row's head, however tall."""
    place = f"{HEAD}px / 2px 100% no-repeat"
    return ", ".join(
        f"linear-gradient({lane.color}, {lane.color}) {_x(lane) - 1}px {place}"
        for lane in lanes
        if lane.start <= row < lane.last
    )


def _x(lane: Lane) -> int:
    return EDGE + lane.column * STEP


def _line(x1: int, y1: int, x2: int, y2: int, color: str) -> Markup:
    return Markup(
        '<path d="M{} {}L{} {}" style="stroke: {}" stroke-width="2" fill="none"/>'
    ).format(x1, y1, x2, y2, color)


def _circle(x: int, y: int, radius: int, fill: str, stroke: str = "none") -> Markup:
    text = '<circle cx="{}" cy="{}" r="{}" style="fill: {}; stroke: {}" stroke-width="2.5"/>'
    return Markup(text).format(x, y, radius, fill, stroke)
