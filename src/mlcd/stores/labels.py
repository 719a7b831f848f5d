"""The store of labels: one file a chunk, `labels/{chunk}.h5` (docs/formats.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlcd.errors import UserError
from mlcd.stores import h5

KIND = "labels"


class Labels:
    """The labels of one chunk, opened by path. Raises :class:`UserError` if damaged or foreign.

    Row i belongs to row i of the chunk's embeddings. Attributes: `path`, `chunk` (name), `n`
    (rows), `l` (labels a row), `num_classes` (K), `embeddings` and `centroids` (fingerprints of
    the files they came from), `section` (JSON), `fingerprint` (hex); `agreement` (share of exact
    labels found) on `agreement_rows` rows, 1 on 0 rows where the search was exact.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with h5.reading(path, KIND) as file:
            shape = file["label"].shape if "label" in file else ()
            if len(shape) != 2 or shape[1] == 0 or file["label"].dtype != np.int32:
                raise UserError(f"{path}: expected an int32 dataset 'label' [n, l]; rerun label")
            if "similarity" not in file or file["similarity"].shape != shape:
                raise UserError(f"{path}: expected a dataset 'similarity' [n, l]; rerun label")
            if "num_classes" not in file.attrs:
                raise UserError(f"{path}: has no attribute num_classes; rerun label")
            self.n, self.l = map(int, shape)
            self.num_classes = int(file.attrs["num_classes"])
            self.chunk = str(file.attrs.get("chunk", ""))
            self.embeddings = str(file.attrs.get("embeddings", ""))
            self.centroids = str(file.attrs.get("centroids", ""))
            self.section = str(file.attrs.get("section", "{}"))
            self.agreement = float(file.attrs.get("agreement", 1.0))
            self.agreement_rows = int(file.attrs.get("agreement_rows", 0))
            self.fingerprint = str(file.attrs.get("fingerprint", ""))

    def __len__(self) -> int:
        return self.n

    def label(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return class ids of rows `start … stop − 1`, int32 [rows, l], nearest first.

        −1 pads rows with fewer labels (threshold variant). Raises :class:`UserError` if a checksum
        fails or an id is no class.
        """
        with h5.reading(self.path, KIND) as file:
            rows = file["label"][start:stop]
        if rows.size and not (rows.min() >= -1 and rows.max() < self.num_classes):
            raise UserError(
                f"{self.path}: a label lies outside 0 … {self.num_classes - 1}; rerun label"
            )
        return rows

    def similarity(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return cosine similarities of rows `start … stop − 1`, float16 [rows, l]; 0 pads."""
        with h5.reading(self.path, KIND) as file:
            return file["similarity"][start:stop]

    def gap(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return how much nearer the last centre is than the next, float16 [rows]; −1: no next.

        In cosine similarity, of the l nearest centres whatever the threshold. Raises
        :class:`UserError` if the file has none.
        """
        with h5.reading(self.path, KIND) as file:
            if "gap" not in file or file["gap"].shape != (self.n,):
                raise UserError(f"{self.path}: expected a dataset 'gap' [n]; rerun label")
            return file["gap"][start:stop]


class Writer:
    """Append labels block by block; made by :func:`writing`."""

    def __init__(self, writer: h5.Writer) -> None:
        self._writer = writer

    def append(self, label: np.ndarray, similarity: np.ndarray, gap: np.ndarray) -> None:
        """Append `label` [rows, l], `similarity` [rows, l] and `gap` [rows] of the next rows."""
        self._writer.append("label", label.astype(np.int32, copy=False))
        self._writer.append("similarity", similarity.astype(np.float16, copy=False))
        self._writer.append("gap", gap.astype(np.float16, copy=False))


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], attributes: dict[str, Any]) -> Iterator[Writer]:
    """Write labels atomically; attributes as in docs/formats.md. At least one append is needed."""
    with h5.writing(path, KIND, attributes) as writer:
        yield Writer(writer)
