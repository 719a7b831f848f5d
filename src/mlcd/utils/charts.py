"""The look of all charts: one palette, one type size, equal bytes for equal input.

Colors are Okabe and Ito's, told apart by color-blind readers (Color Universal Design, 2008).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mlcd.utils.ownership import CHART_MARK

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GRAY = "#56B4E9", "#CC79A7", "#F0E442", "#8A8F98"
INK, MUTED, GRID = "#1F2933", "#5B6570", "#E3E7EB"
#: Of evaluate.models; any other is green.
MODELS = {"pixels": "#C3C9D0", "random": GRAY, "trained": BLUE, "frozen": ORANGE}

_RC: dict[RcKeyType, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10,
    "text.color": INK,
    # Chunk names and reasons are strangers' text: a dollar sign is no formula.
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#B8C0C8",
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


def figure(width: float = 9.4, height: float = 3.6) -> Figure:
    """Return an empty figure of `width` × `height` inches that fits a report's page."""
    return Figure(figsize=(width, height), layout="constrained")


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
