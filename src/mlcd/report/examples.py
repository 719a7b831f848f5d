"""Part `examples`: a picture, and each of its l clusters as a small montage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlcd.config import Report
from mlcd.report.gallery import Gallery, Place
from mlcd.report.page import Drawing

_LARGE, _SMALL = 168, 70
_EACH = 4
#: The paper's l; more clusters a picture would not fit on a screen.
_CLUSTERS = 8


def draw(
    section: Report, images: Sequence[str], embeddings: Sequence[str], labels: Sequence[str]
) -> Drawing:
    """Draw some pictures beside their labels."""
    gallery = Gallery(section, images, embeddings, labels)
    rng = np.random.default_rng(section.seed)
    count = min(section.label_examples, len(gallery.nearest))
    pictures = np.sort(rng.choice(len(gallery.nearest), count, replace=False))
    examples = [(int(i), *gallery.labels_of(gallery.place(int(i)))) for i in pictures]
    l = max((len(label) for _, label, _ in examples), default=0)
    members = gallery.members(int(c) for _, label, _ in examples for c in label[:_CLUSTERS])
    # A picture is no evidence for its own cluster: others are shown.
    shown = {
        (i, int(c)): [j for j in members[int(c)][: _EACH + 1] if j != i][:_EACH]
        for i, label, _ in examples
        for c in label[:_CLUSTERS]
    }
    small = gallery.tiles((gallery.place(j) for of in shown.values() for j in of), _SMALL)
    large = gallery.tiles((gallery.place(i) for i, _, _ in examples), _LARGE)
    body = "\n".join(
        _example(gallery, i, label, similarity, shown, small, large)
        for i, label, similarity in examples
    )
    title = f"{count} pictures and the {l} clusters that are their labels"
    lead = (
        "Left a picture chosen by chance, right its nearest clusters, each as the pictures nearest "
        "to its centre, with the cosine similarity of picture and centre. A picture that shows "
        f"several things gets a label for each. Found among {gallery.scope()}."
    )
    return Drawing(title, lead, body)


def _example(
    gallery: Gallery,
    index: int,
    label: np.ndarray,
    similarity: np.ndarray,
    shown: dict[tuple[int, int], list[int]],
    small: dict[Place, str],
    large: dict[Place, str],
) -> str:
    """Return one picture with its clusters as HTML."""
    columns = []
    for rank, (cluster, value) in enumerate(zip(label[:_CLUSTERS], similarity, strict=False), 1):
        quad = "".join(small[gallery.place(j)] for j in shown[(index, int(cluster))])
        quad = quad or "<small>no other picture among those scanned</small>"
        columns.append(
            f'<figure><div class="quad">{quad}</div><figcaption>{rank}. cluster {int(cluster):,}'
            f"<br><small>similarity {float(value):.3f}</small></figcaption></figure>"
        )
    return (
        f'<section class="example"><div>{large[gallery.place(index)]}</div>'
        f'<div class="labels">{"".join(columns)}</div></section>'
    )
