"""The files of stage curate: what is known of each image, and which images are kept and why.

    facts = Facts("results/curate/facts/a-00000.h5")      # clusters, pixels, refused by a condition
    rows = Curation("results/curate/rows/a-00000.h5")     # kept, reason, stands_for, similarity

Row i of both belongs to row i of the chunk's embeddings (docs/reference/formats.md).
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import numpy as np

from mlcd.data import hdf5
from mlcd.utils.errors import UserError

FACTS, KIND = "curate_facts", "curation"
#: Reasons after those of the conditions, in the order of the steps.
DUPLICATE, BALANCE, CAP = "duplicate", "balance", "cap"


class Facts:
    """What is known of each image of a chunk. Raises :class:`UserError` if damaged.

    Attributes: `path`, `chunk`, `n`, `probes` (clusters per image), `clusters` (how many there
    are), `embeddings`, `centroids` and `manifest` (fingerprints), `reasons` (words of `refused`),
    `fingerprint`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with hdf5.reading(path, FACTS) as file:
            shape: tuple[int, ...] = file["cluster"].shape if "cluster" in file else ()
            if len(shape) != 2 or any(
                name not in file or file[name].shape != shape[:1] for name in ("pixels", "refused")
            ):
                raise UserError(f"{path}: lacks what it should hold; rerun curate")
            self.n, self.probes = map(int, shape)
            about = file.attrs
            self.chunk = str(about["chunk"])
            self.clusters = int(about["clusters"])
            self.embeddings, self.centroids = str(about["embeddings"]), str(about["centroids"])
            self.manifest = str(about["manifest"])
            self.reasons: list[str] = json.loads(about["reasons"])
            self.fingerprint = str(about["fingerprint"])

    def cluster(self) -> np.ndarray:
        """Return the nearest coarse clusters of each row, int32 [n, probes], nearest first."""
        return self._whole("cluster")

    def pixels(self) -> np.ndarray:
        """Return the width times the height of each row's image, int64 [n]."""
        return self._whole("pixels")

    def refused(self) -> np.ndarray:
        """Return the place in `reasons` of why a row is refused, int16 [n]; −1: it is not."""
        found = self._whole("refused")
        if len(found) and not (found.min() >= -1 and found.max() < len(self.reasons)):
            raise UserError(f"{self.path}: names reasons that are not there; rerun curate")
        return found

    def _whole(self, name: str) -> np.ndarray:
        with hdf5.reading(self.path, FACTS) as file:
            return hdf5.whole(file, name)


class Decision(NamedTuple):
    """Why an image was left out, and, of a duplicate, who stands for it and how near they are."""

    reason: str
    chunk: str
    row: int
    similarity: float


class Curation:
    """Which images of a chunk are kept. Raises :class:`UserError` if damaged.

    Attributes: `path`, `chunk`, `n`, `embeddings` and `manifest` (fingerprints), `reasons` (words
    of `reason`), `chunks` (names of all chunks of the run), `fingerprint`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with hdf5.reading(path, KIND) as file:
            names = ("key", "kept", "reason", "stands_for", "similarity", "cluster", "chunk")
            if missing := [name for name in names if name not in file]:
                raise UserError(f"{path}: lacks {missing[0]!r}; rerun curate")
            self.n = int(file["kept"].shape[0])
            about = file.attrs
            self.chunk = str(about["chunk"])
            self.embeddings, self.manifest = str(about["embeddings"]), str(about["manifest"])
            self.reasons: list[str] = json.loads(about["reasons"])
            self.chunks = [name.decode() for name in hdf5.whole(file, "chunk").tolist()]
            self.fingerprint = str(about["fingerprint"])

    def keys(self) -> np.ndarray:
        """Return the keys of the images, bytes S9 [n]."""
        return self._whole("key")

    def kept(self) -> np.ndarray:
        """Return which rows are kept, bool [n]."""
        return self._whole("kept").astype(bool)

    def reason(self) -> np.ndarray:
        """Return the place in `reasons` of why a row was left out, int16 [n]; −1: it is kept."""
        return self._whole("reason")

    def stands_for(self) -> np.ndarray:
        """Return chunk (place in `chunks`) and row of what stands for a duplicate, int64 [n, 2].

        −1 where nothing does.
        """
        return self._whole("stands_for")

    def similarity(self) -> np.ndarray:
        """Return the cosine of a duplicate and what stands for it, float32 [n]; else 0."""
        return self._whole("similarity")

    def cluster(self) -> np.ndarray:
        """Return the coarse cluster of each row, int32 [n]."""
        return self._whole("cluster")

    def decision(self, row: int) -> Decision | None:
        """Return why a row was left out, None if it is kept."""
        reason = int(self.reason()[row])
        if reason < 0:
            return None
        chunk, other = map(int, self.stands_for()[row])
        name = self.chunks[chunk] if chunk >= 0 else ""
        return Decision(self.reasons[reason], name, other, float(self.similarity()[row]))

    def _whole(self, name: str) -> np.ndarray:
        with hdf5.reading(self.path, KIND) as file:
            return hdf5.whole(file, name)
