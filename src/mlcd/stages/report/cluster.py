"""Part `cluster`: how k-means went and how large its clusters are."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from mlcd.config import Report
from mlcd.data.centroids import Centroids
from mlcd.stages.report.page import Drawing, table
from mlcd.utils import charts


def draw(section: Report, centroids: str) -> Drawing:
    """Draw objective and sizes, from `centroids` (centroids.h5)."""
    store = Centroids(centroids)
    sizes, objective, repaired = store.sizes, store.objective, store.empty
    model = store.described
    made = store.settings
    images, k = int(sizes.sum()), len(sizes)
    if not images:
        return _given(store, model)
    median = float(np.median(sizes))
    title = (
        f"{images:,} images in {k:,} clusters of {sizes.min():,} to {sizes.max():,}, "
        f"median {median:g}"
    )
    lead = (
        "Spherical k-means. The objective is the mean cosine similarity of an image's embedding "
        "to its center: it can only rise, save where empty clusters were repaired."
    )
    if made.get("mode") == "two_level":
        lead += (
            " Rows were compared to the centers of their nearest groups only; a jump marks where "
            "rows could first change their group."
        )
    rows = [
        ("clustered features", f"{model.get('name', 'unknown')}, {store.d} dimensions"),
        ("mode", made.get("mode", "exact").replace("_", "-")),
        ("iterations", f"{len(objective):,}"),
        ("objective, first → last", f"{objective[0]:.4f} → {objective[-1]:.4f}")
        if len(objective)
        else ("objective", "not recorded"),
        ("empty clusters repaired", f"{int(repaired.sum()):,}"),
        ("empty clusters left", f"{int((sizes == 0).sum()):,}"),
        ("images per cluster, mean", f"{images / k:,.1f}"),
        ("share of images in the largest 1% of clusters", f"{_largest_share(sizes):.1%}"),
    ]
    warnings = []
    if (empty := int((sizes == 0).sum())) > 0.01 * k:
        warnings.append(f"{empty:,} clusters are empty: K may be too large for these images.")
    with charts.style():
        chart = charts.figure(height=3.7)
        left, right = chart.subplots(1, 2)
        _objective(left, objective, repaired)
        size_histogram(
            right,
            sizes,
            title=f"Sizes: {sizes.min():,} to {sizes.max():,}",
            xlabel="images in the cluster",
            ylabel="clusters",
        )
    return Drawing(title, lead, table(["quantity", "value"], rows), chart, warnings)


def _given(store: Centroids, model: dict[str, str]) -> Drawing:
    """Describe centers of another program, of which no clustering is known."""
    rows = [
        ("clustered features", f"{model.get('name', 'unknown')}, {store.d} dimensions"),
        ("centers", f"{store.K:,}"),
        ("objective and sizes", "not known: the centers were given"),
    ]
    title = f"{store.K:,} given centers"
    lead = "Nothing was clustered: cluster.centers names the file of these centers."
    return Drawing(title, lead, table(["quantity", "value"], rows))


def _largest_share(sizes: np.ndarray) -> float:
    """Return the share of all images that the largest hundredth of the clusters holds."""
    count = max(1, len(sizes) // 100)
    return float(np.sort(sizes)[-count:].sum() / max(1, sizes.sum()))


def _objective(axes: Axes, objective: np.ndarray, repaired: np.ndarray) -> None:
    steps = np.arange(1, len(objective) + 1)
    mark = "o" if len(steps) <= 60 else ""
    axes.plot(steps, objective, color=charts.BLUE, marker=mark, markersize=3.5)
    for step, value, empty in zip(steps, objective, repaired, strict=True):
        said = [f"iteration {step}", f"objective {value:.6f}"]
        said += [f"{empty:,} empty clusters repaired"] if empty else []
        charts.note(axes, (step - 0.5, step + 0.5), None, said, guide=True)
    hit = np.flatnonzero(repaired)
    if len(hit):
        axes.plot(
            steps[hit],
            objective[hit],
            "o",
            color=charts.RED,
            markersize=6,
            fillstyle="none",
            label="empty clusters repaired",
        )
        axes.legend(loc="lower right")
    gain = f": +{objective[-1] - objective[0]:.3f}" if len(objective) > 1 else ""
    axes.set_title(f"Objective by iteration{gain}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("mean cosine similarity to the center")
    charts.whole_numbers(axes.xaxis)


def size_histogram(axes: Axes, counts: np.ndarray, *, title: str, xlabel: str, ylabel: str) -> None:
    """Draw counts (of images or of uses) in bins of equal width on a log scale."""
    positive = counts[counts > 0]
    top = int(positive.max()) if len(positive) else 1
    low = int(positive.min()) if len(positive) else 1
    # Narrower bins than this would hold one whole number or none, by turns.
    bins = int(np.clip(np.log((top + 1) / low) / np.log(1.28), 1, 48))
    edges = np.unique(np.round(np.geomspace(low, top + 1, bins + 1)).astype(np.int64))
    heights, _ = np.histogram(positive, bins=edges)
    # A bar covers the whole numbers from one edge to the next, so it starts half before.
    bounds = edges - 0.5
    axes.bar(bounds[:-1], heights, width=np.diff(bounds), align="edge", color=charts.BLUE,
             edgecolor="white", linewidth=0.6)  # fmt: skip
    for first, last, height in zip(edges[:-1], edges[1:] - 1, heights, strict=True):
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        said = [f"{span} {xlabel}", f"{height:,} {ylabel}"]
        charts.note(axes, (first - 0.5, last + 0.5), None, said)
    axes.margins(y=0.12)
    charts.plain_log(axes, "x")
    # The first bar begins below one, where no count is.
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.15g}" if value >= 1 else "")
    median = float(np.median(counts)) if len(counts) else 0.0
    if median > 0:
        axes.axvline(median, color=charts.RED, linewidth=1.4)
        axes.annotate(
            f"median {median:g}", (median, 1.0), xycoords=("data", "axes fraction"),
            xytext=(5, -4), textcoords="offset points", color=charts.RED, va="top", fontsize=9,
        )  # fmt: skip
    axes.set_title(title)
    axes.set_xlabel(f"{xlabel} (log scale)")
    axes.set_ylabel(ylabel)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.15g}")
    charts.grid_only(axes, "y")
