"""The store of cluster centres: one file, `clusters/centroids.h5` (docs/formats.md)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mlcd.errors import UserError
from mlcd.stores import h5

KIND = "centroids"
#: Centres checked at once, so that the check needs no second copy of them all.
_TILE = 4096


class Centroids:
    """K-means centres, opened by path. Raises :class:`UserError` if missing, damaged or foreign.

    Attributes: `path`, `K` and `d` (shape of the centres), `model` (JSON text of the model that
    made the embeddings, '' if unknown), `embeddings` (JSON list of their fingerprints), `section`
    (JSON), `fingerprint` (hex).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with h5.reading(path, KIND) as file:
            shape = file["centroid"].shape if "centroid" in file else ()
            if len(shape) != 2 or 0 in shape or file["centroid"].dtype != np.float32:
                raise UserError(
                    f"{path}: expected a float32 dataset 'centroid' [K, d]; rerun cluster"
                )
            if "size" not in file or file["size"].shape != shape[:1]:
                raise UserError(f"{path}: expected a dataset 'size' [K]; rerun cluster")
            self.K, self.d = map(int, shape)
            self.model = str(file.attrs.get("model", ""))
            self.embeddings = str(file.attrs.get("embeddings", "[]"))
            self.section = str(file.attrs.get("section", "{}"))
            self.fingerprint = str(file.attrs.get("fingerprint", ""))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return centres `start … stop − 1`, float32 [stop − start, d], L2-normalised.

        One rank of a sharded classifier reads its own rows only. Raises :class:`UserError` if a
        checksum fails or a centre is not a finite unit vector.
        """
        with h5.reading(self.path, KIND) as file:
            rows = file["centroid"][start:stop]
        for first in range(0, len(rows), _TILE):
            norms = np.linalg.norm(rows[first : first + _TILE], axis=1)
            # Written so that NaN fails too.
            bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))
            if len(bad):
                raise UserError(
                    f"{self.path}: centre {start + first + bad[0]} is not a unit vector; "
                    "rerun cluster"
                )
        return rows

    @property
    def array(self) -> np.ndarray:
        """All centres, float32 [K, d]; read from disk at each use. Raises as :meth:`rows`."""
        return self.rows(0, self.K)

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows of each centre in the last assignment, int64 [K]."""
        return self._read("size")

    @property
    def objective(self) -> np.ndarray:
        """Mean cosine similarity of a row to its centre, float64 [iterations]."""
        return self._read("objective")

    @property
    def empty(self) -> np.ndarray:
        """Number of empty clusters that were repaired, int64 [iterations]."""
        return self._read("empty")

    def _read(self, name: str) -> np.ndarray:
        with h5.reading(self.path, KIND) as file:
            return file[name][:]


def write(
    path: str | os.PathLike[str],
    *,
    centroid: np.ndarray,
    size: np.ndarray,
    objective: np.ndarray,
    empty: np.ndarray,
    attributes: dict[str, Any],
) -> None:
    """Write centres atomically; shapes, dtypes and attributes as in docs/formats.md."""
    datasets = {
        "centroid": centroid.astype(np.float32, copy=False),
        "size": size.astype(np.int64, copy=False),
        "objective": np.asarray(objective, np.float64),
        "empty": np.asarray(empty, np.int64),
    }
    h5.write(path, KIND, datasets, attributes)
