"""The store of embeddings: `embeddings/{chunk}.h5`, or anybody's HDF5 with a dataset `embedding`.

    embeddings = Embeddings("results/embeddings/a-00000.h5")
    block = embeddings.read(0, 4096)        # float32 [4096, d]
    tar, offset, size = embeddings.places() # where each image's bytes lie

Each call opens the file anew: an object holds no handle, so it may cross a fork or be pickled to
worker processes, and hundreds of chunks cost no descriptors. Read blocks of thousands of rows, in
order; HDF5 reads whole chunks of about 1 MB, so single rows at random are ten times more expensive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mlcd.data import hdf5
from mlcd.utils.errors import UserError

KIND = "embeddings"


#: Why an encoder's output is no embedding. A row of zeros has no direction: no cluster is nearest.
ZERO, NOT_FINITE = "zero_embedding", "not_finite"


def unusable(rows: np.ndarray) -> list[str]:
    """Return for each of the rows [n, d], which should have unit length, '' or why it is none."""
    norms = np.linalg.norm(rows.astype(np.float32, copy=False), axis=1)
    # Written so that NaN is not near 1; normalizing leaves a tiny row short of it.
    if (np.abs(norms - 1) < 0.1).all():
        return [""] * len(rows)
    return [
        "" if abs(norm - 1) < 0.1 else ZERO if np.isfinite(norm) else NOT_FINITE for norm in norms
    ]


class Places(NamedTuple):
    """Where images' bytes lie in the tars of their chunk, one item per row of the embeddings."""

    tar: np.ndarray  #: int32 [n], index into :attr:`mlcd.data.image_store.ImageStore.tars`
    offset: np.ndarray  #: int64 [n], bytes
    size: np.ndarray  #: int64 [n], bytes
    digest: np.ndarray  #: uint64 [n], of the bytes (:func:`mlcd.data.tars.digest_of`)


class Embeddings:
    """The embeddings of one chunk, opened by path.

    Attributes: `path`, `n` (rows), `d` (dimension), `dtype` (float16 or float32), `attributes`
    (dict of the file's attributes, empty in a foreign file), `model` (dict; empty in a foreign
    file). Our rows have unit length to float16's precision; a foreign file's rows come as they
    are. Raises :class:`UserError` if the file is missing, damaged, of another kind, or without a
    dataset `embedding` [n, d] of float16 or float32.
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
            self.dtype: np.dtype[Any] = np.dtype(rows.dtype.type)
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
        rows = self._stored(start, stop).astype(np.float32, copy=False)
        # One sum shows any NaN or infinity and needs no second array of the block's size.
        if not np.isfinite(rows.sum(dtype=np.float64)):
            raise self._not_finite(start, rows)
        return rows

    def read_stored(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the same rows in the file's own `dtype`, at a third of the work."""
        rows = self._stored(start, stop)
        if rows.dtype == np.float16:
            # All bits of the exponent are set: as integers, which are compared faster.
            bits = rows.view(np.uint16)
            finite = not len(bits) or int((bits & 0x7FFF).max()) < 0x7C00
        else:
            finite = bool(np.isfinite(rows.sum(dtype=np.float64)))
        if not finite:
            raise self._not_finite(start, rows)
        return rows

    def _stored(self, start: int, stop: int | None) -> np.ndarray:
        with self._open() as file:
            rows: np.ndarray = file["embedding"][start:stop].astype(self.dtype, copy=False)
        return rows

    def _not_finite(self, start: int, rows: np.ndarray) -> UserError:
        row = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
        return UserError(f"{self.path}: row {row} of embedding is not finite; embed it again")

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
                if (start, stop) == (0, None):
                    return hdf5.whole(file, "key")
                keys: np.ndarray = file["key"][start:stop]
                return keys
        return np.array([b"%09d" % row for row in range(*slice(start, stop).indices(self.n))], "S9")

    def places(self, start: int = 0, stop: int | None = None) -> Places:
        """Return where the images of rows start … stop − 1 lie. Raises :class:`UserError`."""
        with self._open() as file:
            if not all(name in file for name in Places._fields):
                raise UserError(
                    f"{self.path}: does not say where its images lie (tar, offset, size, digest); "
                    "make it with the stage embed"
                )
            if (start, stop) == (0, None):
                return Places(*(hdf5.whole(file, name) for name in Places._fields))
            return Places(*(file[name][start:stop] for name in Places._fields))

    def failed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return keys S9 [f] and one-word reasons S32 [f] of the images left out."""
        with self._open() as file:
            if "failed_key" not in file:
                return np.zeros(0, "S9"), np.zeros(0, "S32")
            return hdf5.whole(file, "failed_key"), hdf5.whole(file, "failed_reason")

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the content; for a foreign file it is computed over all its bytes."""
        return hdf5.fingerprint(self.path)

    def _open(self) -> AbstractContextManager[h5py.File]:
        return hdf5.reading(self.path, KIND, foreign=True)


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
