"""Part `examples`: an image, and each of its l clusters as a small montage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlcd.config import Report
from mlcd.stages.report.gallery import Gallery
from mlcd.stages.report.page import Drawing, render

_LARGE, _SMALL = 168, 70
_EACH = 4
#: The paper's l; more clusters per image would not fit on a screen.
_CLUSTERS = 8


def draw(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str] | None,
    labels: Sequence[str],
) -> Drawing:
    """Draw some images beside their labels."""
    gallery = Gallery(section, images, embeddings, labels)
    rng = np.random.default_rng(section.seed)
    count = min(section.label_examples, len(gallery.nearest))
    chosen = np.sort(rng.choice(len(gallery.nearest), count, replace=False))
    examples = [(int(i), *gallery.labels_of(gallery.place(int(i)))) for i in chosen]
    l = max((len(label) for _, label, _ in examples), default=0)
    members = gallery.members(int(c) for _, label, _ in examples for c in label[:_CLUSTERS])
    # An image is no evidence for its own cluster: others are shown.
    shown = {
        (i, int(c)): [j for j in members[int(c)][: _EACH + 1] if j != i][:_EACH]
        for i, label, _ in examples
        for c in label[:_CLUSTERS]
    }
    small = gallery.tiles((gallery.place(j) for of in shown.values() for j in of), _SMALL)
    large = gallery.tiles((gallery.place(i) for i, _, _ in examples), _LARGE)
    body = render(
        "examples.html",
        examples=[
            {
                "tile": large[gallery.place(i)],
                "labels": [
                    {
                        "cluster": int(cluster),
                        "similarity": float(value) if gallery.has_similarity else None,
                        "tiles": [small[gallery.place(j)] for j in shown[i, int(cluster)]],
                    }
                    for cluster, value in zip(label[:_CLUSTERS], similarity, strict=False)
                ],
            }
            for i, label, similarity in examples
        ],
    )
    title = f"{count} images and the {l} clusters that are their labels"
    lead = (
        "An image chosen by chance, and its nearest clusters, each as the images nearest to its "
        "center, with the cosine similarity of image and center. An image that shows "
        f"several things gets a label for each. Found among {gallery.scope()}."
    )
    if not gallery.has_similarity:
        lead = (
            "An image chosen by chance, and other images of its classes, by your own "
            f"labels. Found among {gallery.scope()}."
        )
    return Drawing(title, lead, body)
