"""Part `montage`: for some clusters, the pictures nearest to the centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlcd.config import Report
from mlcd.errors import UserError
from mlcd.report.gallery import Gallery
from mlcd.report.page import Drawing
from mlcd.stores.centroids import Centroids

_SIDE = 104
#: Of the clusters shown, one in this many is among the largest, and as many among the smallest.
_EXTREME = 6


def draw(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str],
    labels: Sequence[str],
    centroids: str,
) -> Drawing:
    """Draw montages of the largest, the smallest and some clusters by chance."""
    sizes = Centroids(centroids).sizes
    gallery = Gallery(section, images, embeddings, labels)
    if gallery.num_classes != len(sizes):
        raise UserError(
            f"{centroids}: {len(sizes):,} clusters, but the labels know "
            f"{gallery.num_classes:,}; rerun label"
        )
    chosen = choose(sizes, gallery.nearest, section.montage_clusters, section.seed)
    members = gallery.members(cluster for cluster, _ in chosen)
    shown = {c: members[c][: section.montage_pictures] for c, _ in chosen}
    tiles = gallery.tiles((gallery.place(i) for of in shown.values() for i in of), _SIDE)
    parts = []
    for cluster, why in chosen:
        strip = "".join(tiles[gallery.place(i)] for i in shown[cluster])
        mean = float(gallery.similarity[members[cluster]].mean())
        parts.append(
            f"<section>\n<h2>Cluster {cluster:,} <small>· {why} · {sizes[cluster]:,} pictures · "
            f"mean similarity to the centre {mean:.3f}</small></h2>\n"
            f'<div class="strip">{strip}</div>\n</section>'
        )
    title = f"{len(chosen)} of {len(sizes):,} clusters, nearest pictures first"
    lead = (
        f"The pictures nearest to the centre, found among {gallery.scope()}. A good cluster shows "
        "one thing; point at a picture for its caption."
    )
    return Drawing(title, lead, "\n".join(parts))


def choose(sizes: np.ndarray, nearest: np.ndarray, count: int, seed: int) -> list[tuple[int, str]]:
    """Return at most `count` pairs (cluster, why it was chosen), largest clusters first.

    `sizes` int64 [K] counts all pictures, `nearest` int32 [n] holds the first label of the scanned
    ones: only clusters with a scanned picture can be shown.
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
