"""Find the images that montages and examples show, and turn them into small tiles.

At scale this stays bounded: labels of a few chunks are read (`report.scan_chunks`), one column of
them held, and only the shown images' bytes are fetched from the tars.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from mlcd.config import Report
from mlcd.data.decode import BadImage, decode
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.stages.report.page import data_uri, render
from mlcd.utils.errors import UserError

#: Bytes that a tile of 104 × 104 pixels may have: the largest page then keeps to page.LIMIT.
_TILE_BYTES = 3000
_CAPTION = 120


@dataclass(frozen=True, order=True)
class ChunkRow:
    """An image: which of the scanned chunks, and its row in that chunk's embeddings."""

    chunk: int
    row: int


class Gallery:
    """Nearest labels of all images of the scanned chunks, and access to the images.

    Attributes: `chunks` (names), `nearest` int32 [n] and `similarity` float32 [n] (first label of
    every scanned image), `chunk_of` int32 [n], `row_of` int64 [n], `num_classes`. Own labels come
    without `embeddings`, and without similarities (`has_similarity`), which are then 0.
    """

    def __init__(
        self,
        section: Report,
        images: Sequence[str],
        embeddings: Sequence[str] | None,
        labels: Sequence[str],
    ) -> None:
        self._section = section
        self._images = {Path(path).parent.name: path for path in images}
        self._embeddings = {Path(path).stem: path for path in embeddings or []}
        paths = {Path(path).stem: path for path in labels}
        self.chunks = _spread(sorted(paths), section.scan_chunks)
        self.of_chunks = len(paths)
        self._labels = [Labels(paths[chunk]) for chunk in self.chunks]
        for chunk, file in zip(self.chunks, self._labels, strict=True):
            self._check(chunk, file)
        self.num_classes = self._labels[0].num_classes
        rows = [file.n for file in self._labels]
        if not sum(rows):
            raise UserError(f"{labels[0]}: no chunk holds a labeled image; check download")
        self.nearest = np.concatenate([file.label()[:, 0] for file in self._labels])
        self.has_similarity = all(file.has_similarity for file in self._labels)
        self.similarity = np.zeros(len(self.nearest), np.float32)
        if self.has_similarity:
            self.similarity = np.concatenate(
                [file.similarity()[:, 0].astype(np.float32) for file in self._labels]
            )
        self.chunk_of = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self.row_of = np.concatenate([np.arange(n, dtype=np.int64) for n in rows])

    def scope(self) -> str:
        """Say in words how much was looked at."""
        scanned = f"{len(self.nearest):,} images"
        if len(self.chunks) == self.of_chunks:
            return f"all {scanned}"
        return f"{scanned} of {len(self.chunks)} of {self.of_chunks} chunks"

    def place(self, index: int) -> ChunkRow:
        """Return the place of scanned image number `index`."""
        return ChunkRow(int(self.chunk_of[index]), int(self.row_of[index]))

    def members(self, clusters: Iterable[int]) -> dict[int, np.ndarray]:
        """Return cluster → indices of its scanned images, nearest to the center first."""
        wanted = np.unique(np.fromiter(clusters, dtype=np.int64))
        found = np.flatnonzero(np.isin(self.nearest, wanted))
        # Ties keep the order of chunks and rows, so that equal stores give equal pages.
        order = found[np.lexsort((found, -self.similarity[found], self.nearest[found]))]
        starts = np.searchsorted(self.nearest[order], wanted)
        ends = np.searchsorted(self.nearest[order], wanted, side="right")
        return {int(c): order[a:b] for c, a, b in zip(wanted, starts, ends, strict=True)}

    def labels_of(self, place: ChunkRow) -> tuple[np.ndarray, np.ndarray]:
        """Return labels int32 [l] and similarities float32 [l] of one image, without padding."""
        file = self._labels[place.chunk]
        label = file.label(place.row, place.row + 1)[0]
        similarity = np.zeros(len(label), np.float32)
        if self.has_similarity:
            similarity = file.similarity(place.row, place.row + 1)[0].astype(np.float32)
        return label[label >= 0], similarity[label >= 0]

    def tiles(self, places: Iterable[ChunkRow], side: int) -> dict[ChunkRow, Markup]:
        """Return place → HTML of a tile of `side` pixels, its caption as the tooltip."""
        made = {}
        by_chunk: dict[int, list[ChunkRow]] = {}
        for place in sorted(set(places)):
            by_chunk.setdefault(place.chunk, []).append(place)
        for index, group in by_chunk.items():
            chunk = self.chunks[index]
            store = ImageStore(self._images[chunk])
            source = self._labels[index]
            said = source if source.manifest else Embeddings(self._embeddings[chunk])
            where, keys = said.places(), said.keys()
            captions = store.captions([keys[place.row].decode() for place in group])
            for place in group:
                data = store.read(*(int(column[place.row]) for column in where))
                caption = captions.get(keys[place.row].decode(), "")
                made[place] = tile(data, caption, side, max_pixels=self._section.max_pixels)
        return made

    def _check(self, chunk: str, labels: Labels) -> None:
        """Refuse a chunk whose files do not belong together."""
        needed = {"images": self._images}
        if not labels.manifest:
            needed["embeddings"] = self._embeddings
        for option, paths in needed.items():
            if chunk not in paths:
                raise UserError(f"--{option}: chunk {chunk} has labels but is not among them")
        if labels.manifest:
            if labels.manifest != ImageStore(self._images[chunk]).fingerprint:
                raise UserError(
                    f"{labels.path}: made for other images than {self._images[chunk]}; rerun label"
                )
            return
        embeddings = Embeddings(self._embeddings[chunk])
        if labels.embeddings != embeddings.fingerprint:
            raise UserError(
                f"{labels.path}: made from other embeddings than {embeddings.path}; rerun label"
            )
        if embeddings.attributes.get("manifest") != ImageStore(self._images[chunk]).fingerprint:
            raise UserError(
                f"{embeddings.path}: made from other images than {self._images[chunk]}; rerun embed"
            )


def _spread(chunks: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of `chunks`, evenly spread from the first to the last."""
    if count >= len(chunks):
        return list(chunks)
    places = np.linspace(0, len(chunks) - 1, count).round().astype(int)
    return [chunks[place] for place in places]


def tile(data: bytes, caption: str, side: int, *, max_pixels: int) -> Markup:
    """Return HTML of an image `side` pixels wide and high; a gray tile if it cannot be decoded."""
    try:
        decoded = decode(data, max_pixels=max_pixels)
    except BadImage as error:
        return render("tile.html", side=side, image=None, reason=error.reason)
    decoded.thumbnail((side, side), Image.Resampling.LANCZOS)
    said = " ".join(caption.split()) or "no caption"
    about = said if len(said) <= _CAPTION else said[: _CAPTION - 1] + "…"
    budget = max(0.6 * _TILE_BYTES, _TILE_BYTES * (side / 104) ** 2)
    image = data_uri("image/webp", _webp(decoded, budget))
    return render("tile.html", side=side, image=image, caption=about)


def _webp(image: Image.Image, budget: float) -> bytes:
    """Return the image as WebP, at the best of four qualities that keeps to `budget` bytes."""
    for quality in (82, 65, 45, 20):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= budget:
            break
    return buffer.getvalue()
