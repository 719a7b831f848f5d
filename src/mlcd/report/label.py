"""Part `label`: how often classes are used and how similar labels are, from summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mlcd.config import Report
from mlcd.errors import UserError
from mlcd.files import read_json
from mlcd.report import style
from mlcd.report.page import Drawing, table

#: Pairs of quantiles drawn as ever thicker bars around the median.
_SPREADS = (("0.01", "0.99", 2), ("0.05", "0.95", 6), ("0.25", "0.75", 14))


def draw(section: Report, summary: str) -> Drawing:
    """Draw label use and similarities, from `summary` (labels/summary.json)."""
    values = read_json(summary)
    try:
        return _draw(values)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{summary}: lacks {error}; rerun label --summarise") from None


def _draw(values: dict[str, Any]) -> Drawing:
    k, l = values["num_classes"], values["labels_a_picture"]
    use, first = values["use_as_any_label"], values["use_as_first_label"]
    title = (
        f"A class is a label of {use['mean']:,.1f} pictures on average; "
        f"{use['unused']:,} of {k:,} are never used"
    )
    near = [values["similarity_of_first_label"], values["similarity_of_last_label"]]
    if all(near):
        lead = (
            f"{values['pictures']:,} pictures with {l} labels each at most. Mean cosine similarity "
            f"{near[0]['mean']:.3f} to the first label's centre, {near[1]['mean']:.3f} to the last."
        )
    else:
        lead = "No picture has a label."
    numbers = values["pictures_by_number_of_labels"]
    duplicates = values["near_duplicate_centres"]
    rows = [
        ("pictures", f"{values['pictures']:,}"),
        *((f"pictures with {n} labels", f"{count:,}") for n, count in numbers.items()),
        ("classes never a first label", f"{first['unused']:,}"),
        ("classes never any label", f"{use['unused']:,}"),
        (
            f"classes used over {use['huge']['over']:,.0f} times (ten times the mean)",
            f"{use['huge']['classes']:,}",
        ),
        ("imbalance of use (1: all alike)", f"{use['imbalance']:.2f}"),
        (
            f"centres with another within cosine {duplicates['over']}",
            f"{duplicates['centres']:,} of {duplicates['looked_at']:,}",
        ),
    ]
    if len(numbers) > 12:  # a threshold with a large l: the chart of use says enough
        del rows[1 : 1 + len(numbers)]
    with style.style():
        chart = style.figure(height=3.9)
        left, right = chart.subplots(1, 2, width_ratios=(3, 2))
        _use(left, first["histogram"], use["histogram"], l)
        if all(near):
            _similarity(right, near, l)
        else:
            right.remove()
    return Drawing(title, lead, table(["quantity", "value"], rows, numbers=(1,)), chart)


def _use(axes: Axes, first: list[dict[str, int]], every: list[dict[str, int]], l: int) -> None:
    """Draw how many classes are used how often, in bins that double."""
    spans = sorted({(b["from"], b["to"]) for b in [*first, *every] if b["classes"]})
    # Bins without a class are left out before the first, but not between two.
    spans = [s for s in {(b["from"], b["to"]): 0 for b in every} if s >= spans[0]]
    places = np.arange(len(spans))
    names = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in spans]
    for shift, bins, label, colour in (
        (-0.2, first, "as first label", style.SKY),
        (0.2, every, f"as any of {l} labels", style.BLUE),
    ):
        counts = {(b["from"], b["to"]): b["classes"] for b in bins}
        heights = [counts.get(span, 0) for span in spans]
        axes.bar(places + shift, heights, width=0.38, color=colour, label=label)
    turn = len(names) > 7
    axes.set_xticks(places, names, rotation=35 if turn else 0, ha="right" if turn else "center")
    axes.set_title("Label use by class")
    axes.set_xlabel("pictures that carry the class (bins double)")
    axes.set_ylabel("classes")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: style.thousands(value))
    style.grid_only(axes, "y")
    style.legend_above(axes)


def _similarity(axes: Axes, near: list[dict[str, Any]], l: int) -> None:
    """Draw the spread of similarities of the first and of the last label."""
    for place, values in enumerate(near):
        quantiles = values["quantiles"]
        colour = (style.BLUE, style.ORANGE)[place]
        for low, high, width in _SPREADS:
            axes.plot(
                [quantiles[low], quantiles[high]], [place, place],
                color=colour, linewidth=width, solid_capstyle="butt",
            )  # fmt: skip
        axes.plot(quantiles["0.5"], place, "o", color="white", markersize=5)
        axes.annotate(
            f"median {quantiles['0.5']:.3f}", (quantiles["0.5"], place), xytext=(0, -12),
            textcoords="offset points", ha="center", va="top", fontsize=9,
        )  # fmt: skip
    axes.set_yticks([0, 1], ["first label", "last label" if l > 1 else "last (the same)"])
    axes.set_ylim(1.6, -0.6)
    axes.set_title("Similarity to the centre", pad=26)
    axes.set_xlabel("cosine; bars hold 50 %, 90 %, 98 % of pictures")
    style.grid_only(axes, "x")
