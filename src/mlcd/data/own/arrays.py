"""Open an array of rows by its file's ending: .npy, .parquet, or HDF5."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data.own.base import Array, What, require
from mlcd.data.own.npy import Npy
from mlcd.utils.errors import UserError

NPY, PARQUET, HDF5 = (".npy",), (".parquet",), (".h5", ".hdf5", ".hdf")
ENDINGS = NPY + PARQUET + HDF5


class Hdf5(Array):
    """A dataset of HDF5, by name or the only one that fits; keys are another dataset."""

    def __init__(self, path: str | os.PathLike[str], what: What) -> None:
        import h5py

        super().__init__(path, what)
        require(self.path)
        with self._open() as file:
            found = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            fitting = [n for n, item in found.items() if item.ndim == 2
                       and item.dtype.kind in what.kinds]  # fmt: skip
            name = what.name if what.name in found else fitting[0] if len(fitting) == 1 else None
            if name is None:
                raise UserError(
                    f"{path}: expected a dataset {what.name!r}, found "
                    f"{', '.join(map(repr, list(found)[:30])) or 'none'}; rename or write it"
                )
            self._name = name
            self.set_shape(found[name].shape, found[name].dtype)

    def _open(self) -> Any:
        from mlcd.data import hdf5

        return hdf5.reading(self.path, self.what.kind, foreign=True)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop − 1."""
        with self._open() as file:
            rows: np.ndarray = file[self._name][start:stop]
        return rows.reshape(stop - start, self.width)

    def names(self, key: str) -> Iterator[Any]:
        """Iterate over the dataset `key`."""
        import pyarrow as pa

        with self._open() as file:
            for start in range(0, self.rows, 1 << 16):
                words = file[key][start : start + (1 << 16)]
                texts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
                yield pa.array(texts, pa.large_binary())

    def check_key(self, key: str) -> None:
        """Look for the dataset."""
        with self._open() as file:
            found = file.get(key)
            # A group may be called so.
            is_texts = hasattr(found, "dtype") and found.dtype.kind not in "fiu"
            if not is_texts or found.shape != (self.rows,):
                raise UserError(
                    f"{self.path}: expected a dataset {key!r} of {self.rows} texts, as the key "
                    f"says, found {', '.join(map(repr, list(file)[:30]))}; set key to another"
                )


def open_array(path: str | os.PathLike[str], what: What) -> Array:
    """Open a file by its ending. Raises :class:`UserError` for what is missing or unfit."""
    ending = Path(path).suffix.lower()
    if ending in NPY:
        return Npy(path, what)
    if ending in PARQUET:
        from mlcd.data.own.parquet import Parquet

        return Parquet(path, what)
    if ending in HDF5:
        return Hdf5(path, what)
    raise UserError(f"{path}: expected a file ending in {', '.join(ENDINGS)}; convert it")


@functools.lru_cache(maxsize=1 << 16)
def opened(path: str, what: What) -> Array:
    """Open a file once per process: rules ask for each chunk."""
    return open_array(path, what)
