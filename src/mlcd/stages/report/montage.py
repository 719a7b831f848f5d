"""Part `montage`: for some clusters, the images nearest to the center."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlcd.config import Report
from mlcd.data.centroids import Centroids
from mlcd.stages.report.gallery import Gallery
from mlcd.stages.report.page import Drawing, render
from mlcd.utils.errors import UserError

_SIDE = 104
#: Of the clusters shown, one in this many is among the largest, and as many among the smallest.
_EXTREME = 6


def draw(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str] | None,
    labels: Sequence[str],
    centroids: str | None,
) -> Drawing:
    """Draw montages of the largest, the smallest and some clusters by chance."""
    gallery = Gallery(section, images, embeddings, labels)
    counted = np.bincount(gallery.nearest[gallery.nearest >= 0], minlength=gallery.num_classes)
    sizes = Centroids(centroids).sizes if centroids else counted
    if gallery.num_classes != len(sizes):
        raise UserError(
            f"{centroids}: {len(sizes):,} clusters, but the labels know "
            f"{gallery.num_classes:,}; rerun label"
        )
    if not sizes.any():
        # Given centers: how many images each has is known of the scanned chunks only.
        sizes = counted
    chosen = choose(sizes, gallery.nearest, section.montage_clusters, section.seed)
    members = gallery.members(cluster for cluster, _ in chosen)
    shown = {c: members[c][: section.montage_images] for c, _ in chosen}
    tiles = gallery.tiles((gallery.place(i) for of in shown.values() for i in of), _SIDE)
    clusters = [
        {
            "number": cluster,
            "why": why,
            "size": int(sizes[cluster]),
            "mean": (
                float(gallery.similarity[members[cluster]].mean())
                if gallery.has_similarity
                else None
            ),
            "tiles": [tiles[gallery.place(i)] for i in shown[cluster]],
        }
        for cluster, why in chosen
    ]
    title = f"{len(chosen)} of {len(sizes):,} clusters, nearest images first"
    lead = (
        f"The images nearest to the center, found among {gallery.scope()}. A good cluster shows "
        "one thing; point at an image for its caption."
    )
    if not gallery.has_similarity:
        title = f"{len(chosen)} of {len(sizes):,} classes"
        lead = (
            f"Images of some classes of your own labels, found among {gallery.scope()}; point at "
            "an image for its caption."
        )
    return Drawing(title, lead, render("montage.html", clusters=clusters))


def choose(sizes: np.ndarray, nearest: np.ndarray, count: int, seed: int) -> list[tuple[int, str]]:
    """Return at most `count` pairs (cluster, why it was chosen), largest clusters first.

    `sizes` int64 [K] counts all images, `nearest` int32 [n] holds the first label of the scanned
    ones: only clusters with a scanned image can be shown.
    """
    present = np.flatnonzero(np.bincount(nearest[nearest >= 0], minlength=len(sizes)))
    # Ties by number, so that the choice does not hang on the sorting algorithm.
    by_size = present[np.lexsort((present, -sizes[present]))]
    extremes = max(1, count // _EXTREME)
    if len(by_size) <= count:
        largest, smallest = by_size[:extremes], by_size[max(extremes, len(by_size) - extremes) :]
    elif count == 1:
        largest, smallest = by_size[:1], by_size[:0]
    else:
        largest, smallest = by_size[:extremes], by_size[-extremes:]
    rest = by_size[len(largest) : len(by_size) - len(smallest)]
    wanted = min(len(rest), count - len(largest) - len(smallest))
    chance = np.sort(np.random.default_rng(seed).choice(len(rest), wanted, replace=False))
    return (
        [(int(c), "among the largest") for c in largest]
        + [(int(c), "by chance") for c in rest[chance]]
        + [(int(c), "among the smallest") for c in smallest]
    )
