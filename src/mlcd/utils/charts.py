"""The look of all charts: one palette, one type size, equal bytes for equal input.

A chart that is shown in a page (:func:`inline`) takes the page's colors, light or dark, and tells
the values noted by :func:`note` to who points at them or comes by the Tab key.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mlcd.utils import inline_svg, palette
from mlcd.utils.ownership import CHART_MARK
from mlcd.utils.palette import COLORS

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

BLUE, ORANGE, GREEN, RED = (COLORS[name].light for name in ("blue", "orange", "green", "red"))
SKY, PURPLE, OLIVE, GRAY = (COLORS[name].light for name in ("sky", "purple", "olive", "gray"))
INK, MUTED, GRID, LINE = (COLORS[name].light for name in ("ink", "muted", "grid", "line"))
#: Of evaluate.models; any other is green.
MODELS = {model: COLORS[name].light for model, name in palette.MODELS.items()}

_RC: dict[RcKeyType, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10,
    "text.color": INK,
    # Chunk names and reasons are strangers' text: a dollar sign is no formula.
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "mlcd",
    "svg.fonttype": "path",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw inside this block, so that a user's matplotlibrc changes nothing."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


class Chart(Figure):
    """A figure whose marks can tell their values: see :func:`note`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.notes: list[inline_svg.Note] = []


def figure(width: float = 9.4, height: float = 3.6) -> Chart:
    """Return an empty figure of `width` × `height` inches that fits a report's page."""
    return Chart(figsize=(width, height), layout="constrained")


def note(
    axes: Axes,
    across: tuple[float, float] | None,
    down: tuple[float, float] | None,
    words: Sequence[str] | str,
    *,
    guide: bool = False,
) -> None:
    """Tell `words` (lines) where the reader points at a part of `axes`, in a page alone.

    `across` and `down` bound it in the data's units; None reaches from end to end. `guide`: a line
    through its middle is shown too, which leads from a point of a curve to the axis.
    """
    chart = axes.figure
    if isinstance(chart, Chart):
        lines = (words,) if isinstance(words, str) else tuple(words)
        chart.notes.append(inline_svg.Note(axes, across, down, lines, guide))


def note_bars(axes: Axes, bars: Iterable[Any], words: Iterable[Sequence[str] | str]) -> None:
    """Note words for each of a container's bars."""
    for bar, said in zip(bars, words, strict=True):
        x, y = (
            sorted((bar.get_x(), bar.get_x() + bar.get_width())),
            sorted((bar.get_y(), bar.get_y() + bar.get_height())),
        )
        note(axes, (x[0], x[1]), (y[0], y[1]), said)


def pad(chart: Figure, *, w_pad: float | None = None, h_pad: float | None = None) -> None:
    """Set the space between the panels of :func:`figure`, in inches; None leaves it as it is."""
    engine = chart.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=w_pad, h_pad=h_pad)


def rendered(chart: Figure, kind: str) -> bytes:
    """Return the chart as svg, png or pdf, without times or versions in it, its maker named."""
    buffer = io.BytesIO()
    silent = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None, "Producer": None}}
    with style():
        chart.savefig(buffer, format=kind, dpi=144, metadata=silent[kind] | CHART_MARK[kind])
    return buffer.getvalue()


def inline(chart: Figure, label: str) -> str:
    """Return the chart as an <svg> element for a page with the variables of its style sheet."""
    drawn = rendered(chart, "svg").decode()
    return inline_svg.inline(drawn, chart, label, getattr(chart, "notes", ()))


def legend_above(axes: Axes) -> None:
    """Put the legend between title and axes, where it hides no line."""
    axes.set_title(axes.get_title(loc="left"), pad=26)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3, borderpad=0,
        handlelength=1.4, columnspacing=1.3,
    )  # fmt: skip


def plain_log(axes: Axes, axis: str) -> None:
    """Make axis `x` or `y` logarithmic, its ticks plain numbers: 1, 2, 5, or 1 on a long axis.

    Call it after drawing: the axis' limits say how long it is.
    """
    line = axes.xaxis if axis == "x" else axes.yaxis
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    low, high = line.get_view_interval()
    line.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    line.set_major_formatter(lambda value, _: f"{value:,.15g}")
    line.set_minor_locator(NullLocator())


def whole_numbers(axis: Axis) -> None:
    """Put the ticks of a linear axis at whole numbers only."""
    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)


def grid_only(axes: Axes, axis: str) -> None:
    """Keep grid lines of one axis: `x` or `y`."""
    axes.grid(False, axis="x" if axis == "y" else "y")


def thousands(value: float) -> str:
    """Return a count with thin separators: 12,345."""
    return f"{value:,.0f}"
