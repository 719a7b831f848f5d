"""Part `label`: how often classes are used and how similar labels are, from summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mlcd.config import Report
from mlcd.stages.report.page import Drawing, table
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record

#: Pairs of quantiles drawn as ever thicker bars around the median.
_SPREADS = (("0.01", "0.99", 2), ("0.05", "0.95", 5), ("0.25", "0.75", 10))
#: Places of labels drawn at most.
_SHOWN = 8
#: Below this agreement of a chunk with exact labels the page warns.
_LOW_AGREEMENT = 0.99


def draw(section: Report, summary: str) -> Drawing:
    """Draw label use and similarities, from `summary` (labels/summary.json)."""
    values = read_record(summary, "label")
    try:
        return _draw(values)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{summary}: lacks {error}; rerun label --summarize") from None


def _draw(values: dict[str, Any]) -> Drawing:
    k, l = values["num_classes"], values["labels_per_image"]
    use, first = values["use_as_any_label"], values["use_as_first_label"]
    title = f"A class is a label of {use['mean']:,.1f} images on average; " + (
        f"{use['unused']:,} of {k:,} are never used" if use["unused"] else "each is used"
    )
    near = [place for place in values["similarity_of_label"] if place]
    last, gap = values["similarity_of_last_label"], values["gap_after_last_label"]
    if values["search"]["mode"] == "own":
        lead = f"{values['images']:,} images with your own labels, {l} each at most."
    elif near:
        lead = (
            f"{values['images']:,} images with {l} labels each at most. Mean cosine similarity "
            f"{near[0]['mean']:.3f} to the first label's center, {last['mean']:.3f} to the last."
        )
    else:
        lead = "No image has a label."
    numbers = values["images_by_number_of_labels"]
    duplicates = values["near_duplicate_centers"]
    search = values["search"]
    rows = [
        ("search", _search(search)),
        ("images", f"{values['images']:,}"),
        *((f"images with {n} labels", f"{count:,}") for n, count in numbers.items()),
        ("classes never a first label", f"{first['unused']:,}"),
        ("classes never any label", f"{use['unused']:,}"),
        (
            f"classes used over {use['huge']['over']:,.0f} times (ten times the mean)",
            f"{use['huge']['classes']:,}",
        ),
        ("imbalance of use (1: all alike)", f"{use['imbalance']:.2f}"),
    ]
    if duplicates:
        rows.append(
            (
                f"centers with another within cosine {duplicates['over']}",
                f"{duplicates['centers']:,} of {k:,}",
            )
        )
    if gap:
        rows.append(
            (
                "gap from the last label to the next center, median",
                f"{gap['quantiles']['0.5']:.4f}",
            )
        )
    if len(numbers) > 12:  # a threshold with a large l: the chart of use says enough
        del rows[2 : 2 + len(numbers)]
    with charts.style():
        chart = charts.figure(height=4.3)
        grid = chart.add_gridspec(2, 2, width_ratios=(3, 2), height_ratios=(5, 2))
        _use(chart.add_subplot(grid[:, 0]), first["histogram"], use["histogram"], l)
        if near:
            _similarity(chart.add_subplot(grid[0, 1] if gap else grid[:, 1]), near)
        if gap:
            _gap(chart.add_subplot(grid[1, 1]), gap)
    warnings = []
    if search["least_agreement_of_a_chunk"] < _LOW_AGREEMENT:
        warnings.append(
            f"In one chunk only {search['least_agreement_of_a_chunk']:.1%} of the exact labels "
            "were found: raise label.probes, or set label.mode to exact."
        )
    return Drawing(title, lead, table(["quantity", "value"], rows, numbers=(1,)), chart, warnings)


def _search(search: dict[str, Any]) -> str:
    """Say in words how labels were found."""
    if not search["rows"]:
        return "exact" if search["mode"] == "exact" else search["mode"]
    return (
        f"two-level, {search['probes']:,} groups per image: {search['agreement']:.2%} of the exact "
        f"labels on {search['rows']:,} images"
    )


def _use(axes: Axes, first: list[dict[str, int]], every: list[dict[str, int]], l: int) -> None:
    """Draw how many classes are used how often, in bins that double."""
    spans = sorted({(b["from"], b["to"]) for b in [*first, *every] if b["classes"]})
    # Bins without a class are left out before the first, but not between two.
    spans = [s for s in {(b["from"], b["to"]): 0 for b in every} if s >= spans[0]]
    places = np.arange(len(spans))
    names = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in spans]
    for shift, bins, label, color in (
        (-0.2, first, "as first label", charts.SKY),
        (0.2, every, f"as any of {l} labels", charts.BLUE),
    ):
        counts = {(b["from"], b["to"]): b["classes"] for b in bins}
        heights = [counts.get(span, 0) for span in spans]
        bars = axes.bar(places + shift, heights, width=0.38, color=color, label=label)
        words = [(f"{name} images", f"{count:,} classes {label}")
                 for name, count in zip(names, heights, strict=True)]  # fmt: skip
        charts.note_bars(axes, bars, words)
    turn = len(names) > 7
    axes.set_xticks(places, names, rotation=35 if turn else 0, ha="right" if turn else "center")
    axes.set_title("Label use by class")
    axes.set_xlabel("images that carry the class (bins double)")
    axes.set_ylabel("classes")
    charts.whole_numbers(axes.yaxis)
    axes.yaxis.set_major_formatter(lambda value, _: charts.thousands(value))
    charts.grid_only(axes, "y")
    charts.legend_above(axes)


def _similarity(axes: Axes, near: list[dict[str, Any]]) -> None:
    """Draw the spread of similarities of the first to the last label, of eight places at most."""
    shown = np.unique(np.linspace(0, len(near) - 1, min(len(near), _SHOWN)).round().astype(int))
    for row, place in enumerate(shown):
        _spread(axes, row, near[place]["quantiles"], charts.BLUE if place == 0 else charts.ORANGE)
    axes.set_yticks(range(len(shown)), [f"label {place + 1}" for place in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_title("Similarity to the center of each label")
    axes.set_xlabel("cosine; dot: median; bars: 50%, 90%, 98%")
    charts.grid_only(axes, "x")


def _gap(axes: Axes, gap: dict[str, Any]) -> None:
    """Draw the spread of the gap between the last label and the next center."""
    _spread(axes, 0, gap["quantiles"], charts.GREEN)
    axes.set_yticks([0], ["gap"])
    axes.set_title("Gap after the last label")
    axes.set_ylim(0.6, -0.6)
    axes.set_xlabel("cosine, last label less next center")
    charts.grid_only(axes, "x")


def _spread(axes: Axes, place: int, quantiles: dict[str, float], color: str) -> None:
    """Draw quantiles as ever thicker bars around the median."""
    for low, high, width in _SPREADS:
        axes.plot(
            [quantiles[low], quantiles[high]], [place, place],
            color=color, linewidth=width, solid_capstyle="butt",
        )  # fmt: skip
    axes.plot(quantiles["0.5"], place, "o", color="white", markersize=4)
    said = [f"median {quantiles['0.5']:.3f}"]
    said += [
        f"{share} of images: {quantiles[low]:.3f} to {quantiles[high]:.3f}"
        for (low, high, _), share in zip(reversed(_SPREADS), ("50%", "90%", "98%"), strict=True)
    ]
    charts.note(axes, None, (place - 0.45, place + 0.45), said)
