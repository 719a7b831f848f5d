"""The store of cluster centers: one file, `clusters/centroids.h5` (docs/reference/formats.md)."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data import hdf5
from mlcd.data.own.arrays import NPY, PARQUET, open_array
from mlcd.data.own.base import CENTROID, Array
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file

KIND = "centroids"
#: Centers checked at once, so that the check needs no second copy of them all.
_TILE = 4096


class Centroids:
    """Cluster centers, opened by path. Raises :class:`UserError` if missing, damaged or no centers.

    Those of stage cluster, or of other programs: HDF5 with a dataset `centroid` [K, d], or .npy, of
    which nothing but the centers is known.

    Attributes: `path`, `K` and `d` (shape of the centers), `model` (JSON text of the model that
    made the embeddings, '' if unknown), `embeddings` (JSON list of their fingerprints), `section`
    (JSON), `fingerprint` (hex; of other programs' files the SHA-256).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._other: Array | None = None
        self.model, self.embeddings, self.section = "", "[]", "{}"
        if _is_other(path):
            self._other = open_array(path, CENTROID)
            self.K, self.d = self._other.rows, self._other.width
            if self.K == 0:
                raise UserError(f"{path}: holds no centers; give another file")
            self.fingerprint = sha256_file(path)
            return
        with hdf5.reading(path, KIND) as file:
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
        """Return centers `start … stop − 1`, float32 [stop − start, d], L2-normalized.

        One rank of a sharded classifier reads its own rows only; all rows are compared with their
        hash. Raises :class:`UserError` if a
        checksum fails or a center is not a finite unit vector. Other programs' centers are
        normalized here; a zero one is refused.
        """
        if self._other is not None:
            return unit_rows(self._other, start, stop)
        with hdf5.reading(self.path, KIND) as file:
            if (start, stop) == (0, self.K):
                rows = hdf5.whole(file, "centroid")
            else:
                rows = file["centroid"][start:stop]
        for first in range(0, len(rows), _TILE):
            norms = np.linalg.norm(rows[first : first + _TILE], axis=1)
            # Written so that NaN fails too.
            bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))
            if len(bad):
                raise UserError(
                    f"{self.path}: center {start + first + bad[0]} is not a unit vector; "
                    "rerun cluster"
                )
        return rows

    @cached_property
    def described(self) -> dict[str, Any]:
        """What `model` says of the encoder of the embeddings; {} where nothing is known.

        Raises :class:`UserError` for an attribute that is no JSON object.
        """
        return hdf5.json_object(self.path, "model", self.model, "cluster")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What `section` says of how the centers were made. Raises as :attr:`described` does."""
        return hdf5.json_object(self.path, "section", self.section, "cluster")

    @property
    def array(self) -> np.ndarray:
        """All centers, float32 [K, d]; read from disk at each use. Raises as :meth:`rows`."""
        return self.rows(0, self.K)

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows of each center in the last assignment, int64 [K]; 0 where not known."""
        return self._read("size", np.zeros(self.K, np.int64))

    @property
    def objective(self) -> np.ndarray:
        """Mean cosine similarity of a row to its center, float64 [iterations]."""
        return self._read("objective", np.zeros(0))

    @property
    def empty(self) -> np.ndarray:
        """Number of empty clusters that were repaired, int64 [iterations]."""
        return self._read("empty", np.zeros(0, np.int64))

    def _read(self, name: str, unknown: np.ndarray) -> np.ndarray:
        if self._other is not None:
            return unknown
        with hdf5.reading(self.path, KIND) as file:
            return hdf5.whole(file, name)


def _is_other(path: str | os.PathLike[str]) -> bool:
    """True for a file of another program: no HDF5, or one without our attribute of its kind."""
    if Path(path).suffix.lower() in NPY + PARQUET:
        return True
    with hdf5.reading(path, KIND, foreign=True) as file:
        return "kind" not in file.attrs


def unit_rows(centers: Array, start: int, stop: int) -> np.ndarray:
    """Return rows start … stop − 1 of an array of centers, float32 unit rows.

    Raises :class:`UserError` for one that is zero or not finite.
    """
    rows = centers.read(start, stop).astype(np.float32)
    for first in range(0, len(rows), _TILE):
        tile = rows[first : first + _TILE].astype(np.float64)
        norms = np.sqrt((tile * tile).sum(axis=1))
        # Written so that NaN fails too.
        bad = np.flatnonzero(~((norms > 0) & (norms < np.inf)))
        if len(bad):
            raise UserError(
                f"{centers.path}: center {start + first + bad[0]} is zero or not finite; leave it "
                "out and lower K"
            )
        rows[first : first + _TILE] = tile / norms[:, None]
    return rows


def write(
    path: str | os.PathLike[str],
    *,
    centroid: np.ndarray,
    size: np.ndarray,
    objective: np.ndarray,
    empty: np.ndarray,
    attributes: dict[str, Any],
) -> None:
    """Write centers atomically; shapes, dtypes and attributes as in docs/reference/formats.md."""
    datasets: dict[str, np.ndarray] = {
        "centroid": centroid.astype(np.float32, copy=False),
        "size": size.astype(np.int64, copy=False),
        "objective": np.asarray(objective, np.float64),
        "empty": np.asarray(empty, np.int64),
    }
    hdf5.write(path, KIND, datasets, attributes)
