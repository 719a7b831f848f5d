"""What the page asks for, as plain values that become JSON. Every number is checked here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from mlcd.commands.explore import duplicates
from mlcd.commands.explore.build import SORTS
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.commands.explore.index import LEVELS, Index
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.words import words_of
from mlcd.utils.errors import UserError

#: Clusters or images of one answer at most.
MOST = 200
#: Images that stand for a cluster in a list.
_COVER = 4
#: Clusters that a search shows; those whose images are looked at, and how many of each.
_FOUND, _COMPARED_CLUSTERS, _COMPARED = 48, 8, 4096
#: Images of a cluster whose captions are looked through for words.
_READ = 1000
#: Images near to a query that are compared with it exactly, and that are shown.
_EXACT, _NEAREST = 32, 24


class Missing(Exception):
    """What was asked for is not there: no such cluster, image or column."""


class Answers:
    """Answers of one run; for any thread."""

    def __init__(self, run: Run, index: Index, encoder: QueryEncoder) -> None:
        self._run, self._index, self._encoder = run, index, encoder

    def about(self) -> dict[str, Any]:
        """Return what the page must know at its start."""
        index = self._index
        return {
            "name": self._run.results.resolve().parent.name,
            "clusters": index.K,
            "empty": int((index.columns["size"] == 0).sum()),
            "images": index.n,
            "labels_per_image": self._run.l,
            "chunks": len(index.chunks),
            "encoder": self._encoder.name,
            "sorts": [
                {"name": name, "what": SORTS[name], **_range(index.columns[name])}
                for name in index.known
            ],
            "map": index.where(0) is not None,
            "levels": LEVELS,
            "captions": index.words is not None,
            "by_image": self._encoder.images and index.centers is not None,
            "by_text": self._encoder.texts and index.centers is not None,
        }

    def clusters(self, by: str, *, rising: bool, start: int, count: int) -> dict[str, Any]:
        """Return clusters in an order, from a place on."""
        index = self._index
        if by not in index.known:
            raise Missing(f"no order {by}")
        order = index.orders[by]
        # What is not known, of empty clusters, comes last either way.
        known = index.K - int(np.isnan(index.columns[by].astype(np.float64)).sum())
        if rising:
            order = np.concatenate([order[:known][::-1], order[known:]])
        count = min(count, MOST)
        return {
            "total": index.K,
            "start": start,
            "clusters": [self._card(int(c)) for c in order[start : start + count]],
        }

    def cluster(
        self, cluster: int, start: int, count: int, words: str = "", *, most: int = MOST
    ) -> dict[str, Any]:
        """Return a cluster, its neighbors, a page of its images, and those with the words."""
        self._check(cluster)
        ids, cosines = self._index.neighbors(cluster)
        numbers, similarity = self._index.members(cluster, start, min(count, most))
        return {
            **self._card(cluster),
            "start": start,
            "images": self._images(numbers, similarity),
            "words": words,
            "matches": self._matches(cluster, words),
            "ranks": {name: self._rank(name, cluster) for name in self._index.known},
            "neighbors": [
                {**self._card(int(c), cover=1), "similarity": _number(s)}
                for c, s in zip(ids, cosines, strict=True)
            ],
        }

    def image(self, chunk: int, row: int) -> dict[str, Any]:
        """Return an image's texts and labels."""
        self.check_image(chunk, row)
        labels = self._run.labels[chunk]
        label = labels.label(row, row + 1)[0]
        similarity: list[float | None] = [None] * len(label)
        if labels.has_similarity:
            similarity = [_number(value) for value in labels.similarity(row, row + 1)[0]]
        caption, url = self._index.texts([(chunk, row)])[0]
        return {
            "chunk": chunk, "row": row, "chunk_name": self._index.chunks[chunk],
            "caption": caption, "url": url,
            "labels": [
                {**self._card(int(c), cover=1), "similarity": s}
                for c, s in zip(label, similarity, strict=True)
                if c >= 0
            ],
        }  # fmt: skip

    def cover(self, cluster: int) -> tuple[int, int]:
        """Return chunk and row of the image nearest to a center. Raises :class:`Missing`."""
        self._check(cluster)
        numbers, _ = self._index.members(cluster, 0, 1)
        if not len(numbers):
            raise Missing(f"cluster {cluster} has no image")
        return self._run.place(int(numbers[0]))

    def by_words(self, query: str) -> dict[str, Any]:
        """Return the clusters whose captions have the words, and those nearest to the text."""
        found: dict[str, Any] = {"query": query, "captions": None, "text": None, "problem": ""}
        if self._index.words is not None:
            clusters, counts = self._index.words.find(query, self._index.columns["size"], _FOUND)
            found["captions"] = [
                {**self._card(int(c)), "count": int(n)}
                for c, n in zip(clusters, counts, strict=True)
            ]
        if self._encoder.texts and self._index.centers and query.strip():
            try:
                found["text"] = self.nearest(self._encoder.of_text(query))
            except UserError as error:
                found["problem"] = str(error)
        return found

    def by_image(self, data: bytes) -> dict[str, Any]:
        """Return the clusters and images nearest to an image file's bytes.

        Raises :class:`~mlcd.data.decode.BadImage` and :class:`UserError`.
        """
        return self.nearest(self._encoder.of_image(data))

    def tile(self, z: int, x: int, y: int, by: str) -> bytes:
        """Return a tile of the map."""
        if not (0 <= z < LEVELS and 0 <= x < 1 << z and 0 <= y < 1 << z) or by not in SORTS:
            raise Missing("no such tile")
        return self._index.tile(z, x, y, by)

    def check_image(self, chunk: int, row: int) -> None:
        """Raise :class:`Missing` unless there is such an image."""
        if not (0 <= chunk < len(self._run.labels) and 0 <= row < self._run.labels[chunk].n):
            raise Missing(f"no image {chunk}/{row}")

    def nearest(self, vector: np.ndarray) -> dict[str, Any]:
        """Return the clusters and images nearest to an embedding, a unit row float32 [d].

        Raises :class:`UserError` if there are no centers of its length.
        """
        search = self._index.centers
        if search is None or len(vector) != search.d:
            raise UserError("the centers are of another encoder; search by words")
        ids, cosines = search.nearest(vector, _FOUND)
        return {
            "clusters": [
                {**self._card(int(c)), "similarity": _number(s)}
                for c, s in zip(ids, cosines, strict=True)
            ],
            "images": self._nearest_images(vector, ids[:_COMPARED_CLUSTERS]),
        }

    def _nearest_images(self, vector: np.ndarray, clusters: np.ndarray) -> list[dict[str, Any]]:
        """Return the images nearest to a vector, of those of `clusters`.

        Which may be nearest is estimated from their signatures; only these are read and compared.
        Own labels have neither signatures nor embeddings.
        """
        if not self._run.has_similarity:
            return []
        numbers, estimates = self._estimated(vector, clusters)
        candidates = np.sort(numbers[np.lexsort((numbers, -estimates))[:_EXACT]])
        scores = np.zeros(len(candidates), np.float32)
        chunk_of = np.searchsorted(self._run.starts, candidates, "right") - 1
        for chunk in np.unique(chunk_of):
            mine = chunk_of == chunk
            rows = self._run.rows(int(chunk), candidates[mine] - self._run.starts[chunk])
            scores[mine] = rows @ vector
        best = np.lexsort((candidates, -scores))[:_NEAREST]
        return self._images(candidates[best], scores[best])

    def _estimated(self, vector: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images of `clusters`, int64 [m], and estimates of their cosines, float32 [m]."""
        search = self._index.centers
        assert search is not None, "there are centers to be near to"
        planes = duplicates.planes(search.d)
        numbers, estimates = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for cluster in map(int, clusters):
            center = search.row(cluster)
            mine = duplicates.signatures(vector[None], center[None], planes)
            found, similarity = self._index.members(cluster, 0, _COMPARED)
            bits = self._index.signatures(cluster, _COMPARED)
            numbers.append(found)
            estimates.append(duplicates.cosines(bits, mine, similarity, vector @ center))
        return np.concatenate(numbers), np.concatenate(estimates)

    def _matches(self, cluster: int, words: str) -> list[dict[str, Any]]:
        """Return the images with all of the words in their captions, of the nearest ones."""
        wanted = set(words_of(words))
        if not wanted:
            return []
        numbers, similarity = self._index.members(cluster, 0, _READ)
        texts = self._index.texts([self._run.place(int(number)) for number in numbers])
        with_all = (place for place, (caption, _) in enumerate(texts)
                    if wanted <= set(words_of(caption)))  # fmt: skip
        chosen = list(itertools.islice(with_all, _FOUND))
        return self._images(numbers[chosen], similarity[chosen])

    def _images(self, numbers: np.ndarray, similarity: np.ndarray) -> list[dict[str, Any]]:
        places = [self._run.place(int(number)) for number in numbers]
        texts = self._index.texts(places)
        known = self._run.has_similarity
        return [
            {"chunk": chunk, "row": row, "similarity": _number(value) if known else None,
             "caption": caption, "url": url}
            for (chunk, row), value, (caption, url) in zip(places, similarity, texts, strict=True)
        ]  # fmt: skip

    def _card(self, cluster: int, cover: int = _COVER) -> dict[str, Any]:
        """Return what a list shows of a cluster."""
        numbers, _ = self._index.members(cluster, 0, cover)
        places = [self._run.place(int(number)) for number in numbers]
        values = {name: _number(self._index.columns[name][cluster]) for name in self._index.known}
        return {
            "id": cluster, **values, "cover": [list(place) for place in places],
            "where": self._index.where(cluster),
        }  # fmt: skip

    def _rank(self, name: str, cluster: int) -> float | None:
        """Return the share of clusters with a smaller value, 0 to 1."""
        column = self._index.columns[name]
        value = column[cluster]
        if math.isnan(float(value)):
            return None
        return round(float((column < value).mean()), 4)

    def _check(self, cluster: int) -> None:
        if not 0 <= cluster < self._index.K:
            raise Missing(f"no cluster {cluster}: they are 0 … {self._index.K - 1}")


def _range(column: np.ndarray) -> dict[str, Any]:
    known = column[~np.isnan(column.astype(np.float64))]
    if not len(known):
        return {"least": None, "most": None}
    return {"least": _number(known.min()), "most": _number(known.max())}


def _number(value: Any) -> float | int | None:
    """Return a value of a column as JSON knows it: none for what is not known."""
    if isinstance(value, np.integer):
        return int(value)
    return None if math.isnan(float(value)) else round(float(value), 5)
