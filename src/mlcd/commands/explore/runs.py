"""The files of a run that are looked at: labels, centers, embeddings and images of each chunk."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import numpy as np

from mlcd.data import hdf5
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import KIND, Embeddings, Places
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels, of_run
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.records import read_record

#: Chunks whose manifest is kept in memory.
_OPEN = 256


class Run:
    """A run's results, opened by folder; nothing of them is ever written.

    Attributes: `results`; `chunks` (names, sorted), of which a chunk's number is the place;
    `labels` (one :class:`Labels` each); `centroids`, None where labels are the user's own, of no
    centers that their summary names; `K`, `n` (images with embeddings, or with own labels), `l`;
    `starts` int64 [chunks + 1], number of each chunk's first image; `has_similarity`; `fingerprint`
    (hex) of all that an index is built from.
    Raises :class:`UserError` if labels are missing, damaged, or of different runs.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        paths = of_run(results)
        if not paths:
            raise UserError(
                f"{results}: holds no labels/*.h5; run the workflow up to the stage label, or give "
                "the folder of a run's results"
            )
        self.chunks = [path.stem for path in paths]
        self.labels = [Labels(path) for path in paths]
        first = self.labels[0]
        self.centroids = self._centers_of(first)
        self.K, self.l = first.num_classes, first.l
        for file in self.labels:
            self._check(file, first)
        self.starts = np.cumsum([0, *(file.n for file in self.labels)])
        self.n = int(self.starts[-1])
        if not self.n:
            raise UserError(f"{first.path}: no chunk holds a labeled image; check download")
        self.has_similarity = first.has_similarity
        self.fingerprint = sha256_json(
            [self.centroids.fingerprint if self.centroids else ""]
            + [
                [name, file.fingerprint]
                for name, file in zip(self.chunks, self.labels, strict=True)
            ]
        )
        self._lock = threading.Lock()
        self._store = functools.lru_cache(_OPEN)(self._open_store)

    def _centers_of(self, first: Labels) -> Centroids | None:
        path = self.results / "clusters" / "centroids.h5"
        if not first.manifest:
            return Centroids(path)
        # Own labels do not say themselves which centers they are of.
        summary = self.results / "labels" / "summary.json"
        if not (path.is_file() and summary.is_file()):
            return None
        found = Centroids(path)
        named = read_record(summary, "label")["made_from"]["centroids"]
        return found if found.fingerprint in named else None

    def has_images(self) -> bool:
        """True if the images of all chunks are there."""
        return not self.lacking()

    def lacking(self) -> list[str]:
        """Return the names of the chunks whose images are not there."""
        images = self.results / "images"
        return [name for name in self.chunks if not (images / name / "manifest.json").exists()]

    def embeddings(self, chunk: int) -> Embeddings | None:
        """Return the embeddings of a chunk; None where labels are the user's own.

        Raises :class:`UserError` if they are not those that were labeled.
        """
        labels = self.labels[chunk]
        if labels.manifest:
            return None
        found = Embeddings(labels.embeddings_in(self.results))
        if found.fingerprint != labels.embeddings:
            raise _other_embeddings(labels, found.path)
        return found

    def rows(self, chunk: int, rows: np.ndarray) -> np.ndarray:
        """Return single rows of a chunk's embeddings, float32 [m, d], unit rows.

        The file is opened once. Raises :class:`UserError` as :meth:`embeddings`.
        """
        path = self.labels[chunk].embeddings_in(self.results)
        with hdf5.reading(path, KIND) as file:
            if str(file.attrs["fingerprint"]) != self.labels[chunk].embeddings:
                raise _other_embeddings(self.labels[chunk], path)
            found = np.stack([file["embedding"][int(row)] for row in rows]).astype(np.float32)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(norms, 1e-6))

    def store(self, chunk: int) -> ImageStore:
        """Return the images of a chunk. Raises :class:`UserError` if they are not there.

        Also if they are not those that were embedded, or if the manifest names a file elsewhere.
        """
        with self._lock:
            return self._store(chunk)

    def keys(self, chunk: int) -> np.ndarray:
        """Return the keys of all images of a chunk, bytes [n]."""
        embeddings = self.embeddings(chunk)
        return embeddings.keys() if embeddings else self.labels[chunk].keys()

    def places(self, chunk: int) -> Places:
        """Return where the images of a chunk lie. Raises :class:`UserError` if it is not told."""
        return (self.embeddings(chunk) or self.labels[chunk]).places()

    def image(self, chunk: int, tar: int, offset: int, size: int, digest: int) -> bytes:
        """Return an image's bytes. Raises :class:`UserError` if they are gone or have changed."""
        try:
            return self.store(chunk).read(tar, offset, size, digest)
        except (OSError, IndexError):
            raise UserError(f"{self.chunks[chunk]}: the image's file cannot be read") from None

    def place(self, number: int) -> tuple[int, int]:
        """Return chunk and row of image `number` of all."""
        chunk = int(np.searchsorted(self.starts, number, "right")) - 1
        return chunk, number - int(self.starts[chunk])

    def _open_store(self, chunk: int) -> ImageStore:
        labels = self.labels[chunk]
        store = ImageStore(self.results / "images" / self.chunks[chunk])
        if any(path.parent != store.folder for path in store.tars):
            raise UserError(f"{store.folder}: its manifest names files elsewhere; rerun download")
        if labels.manifest:
            said = labels.manifest
        else:
            path = labels.embeddings_in(self.results)
            said = str(Embeddings(path).attributes.get("manifest", ""))
        if said != store.fingerprint:
            raise UserError(
                f"{store.folder}: other images than those that were embedded; rerun embed"
            )
        return store

    def _check(self, file: Labels, first: Labels) -> None:
        if (file.num_classes, file.l, file.has_similarity) != (
            self.K,
            self.l,
            first.has_similarity,
        ):
            raise UserError(f"{file.path}: not as {first.path} was labeled; rerun label")
        if self.centroids is None:
            return
        of_others = not file.manifest and file.centroids != self.centroids.fingerprint
        if of_others or file.num_classes != self.centroids.K:
            raise UserError(
                f"{file.path}: made with other centroids than {self.centroids.path}; rerun label"
            )


def _other_embeddings(labels: Labels, path: Path) -> UserError:
    return UserError(f"{labels.path}: made from other embeddings than {path}; rerun label")
