"""An array of rows in a file of any program: what all kinds of files share.

Opened by its header alone, so that shapes are known when the workflow is read; rows are read in
blocks. Nothing is unpickled, and no size in a header is believed before the file is as long.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import file_identity

#: Rows read at once at most, and rows between two wanted ones that are cheaper read than skipped.
SLAB, _GAP = 4096, 64


class What(NamedTuple):
    """What rows hold: `name` of the dataset or column, numpy's `kinds` of numbers, HDF5 `kind`."""

    name: str
    kinds: str
    kind: str

    @property
    def numbers(self) -> str:
        """The numbers in words."""
        return "whole numbers" if "i" in self.kinds else "float16, float32 or float64"


EMBEDDING = What("embedding", "f", "embeddings")
LABEL = What("label", "iu", "labels")
CENTROID = What("centroid", "f", "centroids")


class Array(ABC):
    """Rows of one file: `path`, `rows`, `width` (numbers per row; a single column has 1)."""

    def __init__(self, path: str | os.PathLike[str], what: What) -> None:
        self.path = Path(path)
        self.what = what
        self.rows, self.width = 0, 0

    def set_shape(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        flat = len(shape) == 1 and self.what is LABEL
        wide = len(shape) == 2 and shape[1] > 0
        if not (flat or wide) or dtype.kind not in self.what.kinds or dtype.itemsize > 8:
            raise UserError(
                f"{self.path}: expected {self.what.name} [rows, "
                f"{'labels' if self.what is LABEL else 'dimensions'}] of {self.what.numbers}, "
                f"found {dtype} {list(shape)}; write it so"
            )
        self.rows, self.width = int(shape[0]), int(shape[1]) if wide else 1

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop − 1, [stop − start, width]. Raises :class:`UserError`."""

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows `ids` (int64 [m], rising), [m, width]; neighbors are read together."""
        parts = [
            self.read(int(run[0]), int(run[-1]) + 1)[run - run[0]]
            for run in _runs(np.asarray(ids, np.int64))
        ]
        return np.concatenate(parts) if parts else self.read(0, 0)

    @abstractmethod
    def names(self, key: str) -> Iterator[Any]:
        """Iterate over the key of each row, pyarrow arrays of strings, in order."""

    @abstractmethod
    def check_key(self, key: str) -> None:
        """Raise :class:`UserError` if the rows have no such key, or not one each."""

    def identity(self, start: int = 0, stop: int | None = None) -> str:
        """Return a hash of the content of these rows, or of a file that holds them: a cheap one."""
        return file_identity(str(self.path))


def _runs(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rising ids into runs that are read at once."""
    first = 0
    for place in range(1, len(ids) + 1):
        ends = place == len(ids) or ids[place] - ids[place - 1] > _GAP
        if ends or ids[place] - ids[first] >= SLAB:
            yield ids[first:place]
            first = place


def require(path: Path) -> None:
    """Raise :class:`UserError` if there is no such file, or it may not be read."""
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(f"{path}: no file that can be read; give one")
