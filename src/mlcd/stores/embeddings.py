"""The store of embeddings: `embeddings/{chunk}.h5`, or anybody's HDF5 with a dataset `embedding`.

    embeddings = Embeddings("results/embeddings/a-00000.h5")
    block = embeddings.read(0, 4096)        # float32 [4096, d]
    tar, offset, size = embeddings.places() # where each picture's bytes lie

Each call opens the file anew: an object holds no handle, so it may cross a fork or be pickled to
worker processes, and hundreds of chunks cost no descriptors. Read blocks of thousands of rows, in
order; HDF5 reads whole chunks of about 1 MB, so single rows at random are ten times dearer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mlcd.errors import UserError
from mlcd.stores import h5

KIND = "embeddings"


class Places(NamedTuple):
    """Where pictures' bytes lie in the tars of their chunk, one item a row of the embeddings."""

    tar: np.ndarray  #: int32 [n], index into :attr:`mlcd.stores.images.ImageStore.tars`
    offset: np.ndarray  #: int64 [n], bytes
    size: np.ndarray  #: int64 [n], bytes


class Embeddings:
    """The embeddings of one chunk, opened by path.

    Attributes: `path`, `n` (rows), `d` (dimension), `attributes` (dict of the file's attributes,
    empty in a foreign file), `model` (dict; empty in a foreign file). Our rows have unit length to
    float16's precision; a foreign file's rows come as they are. Raises :class:`UserError` if the
    file is missing, damaged, of another kind, or without a dataset `embedding` [n, d] of float16
    or float32.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._open() as file:
            rows = file.get("embedding")
            if (
                not isinstance(rows, h5py.Dataset)
                or rows.ndim != 2
                or rows.dtype not in (np.float16, np.float32)
            ):
                raise UserError(
                    f"{path}: expected a dataset 'embedding' [n, d] of float16 or float32; "
                    "write one under that name"
                )
            self.n, self.d = map(int, rows.shape)
            if self.d == 0:
                raise UserError(f"{path}: embeddings of 0 dimensions; write them again")
            for name in ("key", *Places._fields):
                if name in file and file[name].shape != (self.n,):
                    raise UserError(
                        f"{path}: {name} has {file[name].shape[0]} rows but embedding has {self.n};"
                        " write the file again"
                    )
            self.attributes: dict[str, Any] = {
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in file.attrs.items()
            }
        self.model = _model(self.attributes.get("model"))

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"Embeddings({str(self.path)!r}, n={self.n}, d={self.d})"

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows start … stop − 1 as float32 [stop − start, d].

        Raises :class:`UserError` if the block fails its checksum or holds NaN or infinity.
        """
        with self._open() as file:
            rows = file["embedding"][start:stop].astype(np.float32, copy=False)
        # One sum shows any NaN or infinity and needs no second array of the block's size.
        if not np.isfinite(rows.sum(dtype=np.float64)):
            row = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
            raise UserError(f"{self.path}: row {row} of embedding is not finite; embed it again")
        return rows

    def blocks(
        self, rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over rows start … stop − 1 as (first row, float32 [≤ rows, d]), in order."""
        end = self.n if stop is None else min(stop, self.n)
        for first in range(start, end, rows):
            yield first, self.read(first, min(first + rows, end))

    def keys(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the keys, bytes S9 [stop − start]; row numbers for a foreign file."""
        with self._open() as file:
            if "key" in file:
                return file["key"][start:stop]
        return np.array([b"%09d" % row for row in range(*slice(start, stop).indices(self.n))], "S9")

    def places(self, start: int = 0, stop: int | None = None) -> Places:
        """Return where the pictures of rows start … stop − 1 lie. Raises :class:`UserError`."""
        with self._open() as file:
            if not all(name in file for name in Places._fields):
                raise UserError(
                    f"{self.path}: does not say where its pictures lie (tar, offset, size); "
                    "make it with the stage embed"
                )
            return Places(*(file[name][start:stop] for name in Places._fields))

    def failed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return keys S9 [f] and one-word reasons S32 [f] of the pictures left out."""
        with self._open() as file:
            if "failed_key" not in file:
                return np.zeros(0, "S9"), np.zeros(0, "S32")
            return file["failed_key"][:], file["failed_reason"][:]

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the content; for a foreign file it is computed over all its bytes."""
        return h5.fingerprint(self.path)

    def _open(self) -> Any:
        return h5.reading(self.path, KIND, foreign=True)


def _model(text: Any) -> dict[str, Any]:
    """Return what the attribute `model` says; a foreign file's may be a mere name."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"name": str(text)}


def open_all(paths: Sequence[str | os.PathLike[str]]) -> list[Embeddings]:
    """Open the embeddings of several chunks, which one model must have made.

    Raises :class:`UserError`, naming the first file whose dimension or model differs.
    """
    files = [Embeddings(path) for path in paths]
    for file in files[1:]:
        first = files[0]
        if file.d != first.d:
            raise UserError(
                f"{file.path}: {file.d} dimensions, but {first.path} has {first.d}; "
                "embed both with the same model"
            )
        if file.model != first.model:
            raise UserError(
                f"{file.path}: made by another model or preprocessing than {first.path}; "
                "embed both with the same section embed"
            )
    return files
