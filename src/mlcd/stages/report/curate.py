"""Part `curate`: how many images were left out, why, and some beside what stands for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mlcd.config import Report
from mlcd.data.curation import DUPLICATE, Curation
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.stages.report.gallery import tile
from mlcd.stages.report.page import Drawing, render, sections, table
from mlcd.utils.records import read_record

_SIDE = 104
#: Pairs that are shown of duplicates, and images of every other reason.
_PAIRS, _IMAGES = 24, 8


def draw(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str],
    rows: Sequence[str],
    curation: str,
) -> Drawing:
    """Draw counts, pairs and images that were left out."""
    about = read_record(curation, "curate")
    found = _Files(section, images, embeddings, rows)
    pairs, others = _chosen(found, section)
    tiles = found.tiles({place for pair in pairs for place in pair[:2]}
                        | {place for places in others.values() for place in places})  # fmt: skip
    shown = [
        {"left_out": tiles[left], "kept": tiles[kept], "similarity": similarity}
        for left, kept, similarity in pairs
    ]
    images_of = [
        {"reason": reason, "tiles": [tiles[place] for place in places]}
        for reason, places in others.items()
    ]
    total, kept = about["images"], about["kept"]
    parts = [("Images by reason", _counts(about))]
    if shown or images_of:
        parts.append(("Examples", render("curate.html", pairs=shown, others=images_of)))
    lead = (
        f"{total - kept:,} of {total:,} images were left out before clustering, each for the first "
        "reason that applied. They are still on the disk, and their rows say why."
    )
    if about["duplicates"]["similarity"] is not None:
        lead += (
            f" Near-duplicates have a cosine of at least {about['duplicates']['similarity']:g}: "
            f"{about['duplicates']['groups']:,} groups, the largest of "
            f"{about['duplicates']['largest']:,} images. Of each the image with the most pixels "
            "is kept. Pairs are chosen by chance, the least alike first."
        )
    title = f"{kept:,} of {total:,} images kept"
    return Drawing(title, lead, sections(*parts), numbers={"mlcd": "curation", **about})


def _counts(about: dict[str, Any]) -> Markup:
    total = about["images"]
    reasons = [(word, n) for word, n in about["left_out"].items() if n]
    lines = [("kept", about["kept"]), *reasons, ("all", total)]
    rows = [[word, f"{n:,}", f"{n / max(1, total):.1%}"] for word, n in lines]
    return table(["reason", "images", "share"], rows, numbers=(1, 2), total=True)


#: An image: its chunk, and its row in that chunk's embeddings.
_Place = tuple[str, int]


class _Files:
    """Decisions of some chunks, and the images of all."""

    def __init__(
        self, section: Report, images: Sequence[str], embeddings: Sequence[str],
        rows: Sequence[str],
    ) -> None:  # fmt: skip
        self._images = {Path(path).parent.name: path for path in images}
        self._embeddings = {Path(path).stem: path for path in embeddings}
        self._pixels = section.max_pixels
        places = np.linspace(0, len(rows) - 1, min(len(rows), section.scan_chunks)).round()
        names = sorted(rows)
        self.chosen = [Curation(names[int(place)]) for place in places]

    def tiles(self, places: set[_Place]) -> dict[_Place, Markup]:
        """Return place → HTML of a tile, its caption as the tooltip."""
        made = {}
        for chunk in sorted({chunk for chunk, _ in places}):
            store, source = ImageStore(self._images[chunk]), Embeddings(self._embeddings[chunk])
            where, keys = source.places(), source.keys()
            mine = sorted(row for name, row in places if name == chunk)
            captions = store.captions([keys[row].decode() for row in mine])
            for row in mine:
                data = store.read(*(int(column[row]) for column in where))
                caption = captions.get(keys[row].decode(), "")
                made[chunk, row] = tile(data, caption, _SIDE, max_pixels=self._pixels)
        return made


def _chosen(
    files: _Files, section: Report
) -> tuple[list[tuple[_Place, _Place, float]], dict[str, list[_Place]]]:
    """Return pairs (left out, kept, cosine), and reason → images left out, by chance."""
    rng = np.random.default_rng(section.seed)
    pairs: list[tuple[float, _Place, _Place]] = []
    others: dict[str, list[_Place]] = {}
    each = -(-_PAIRS // max(1, len(files.chosen)))
    for one in files.chosen:
        reason = one.reason()
        for code, word in enumerate(one.reasons):
            rows = np.flatnonzero(reason == code)
            count = min(len(rows), each if word == DUPLICATE else _IMAGES)
            rows = np.sort(rng.choice(rows, count, replace=False))
            if word != DUPLICATE:
                places = others.setdefault(word, [])
                places += [(one.chunk, int(row)) for row in rows[: _IMAGES - len(places)]]
                continue
            stands_for, similarity = one.stands_for(), one.similarity()
            for row in rows.tolist():
                chunk, other = map(int, stands_for[row])
                kept = one.chunks[chunk], other
                pairs.append((float(similarity[row]), (one.chunk, row), kept))
    shown = [(left, kept, similarity) for similarity, left, kept in sorted(pairs)[:_PAIRS]]
    return shown, {word: places for word, places in others.items() if places}
