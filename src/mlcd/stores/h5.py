"""HDF5 files that are whole or refused: atomic, checksummed, with a fingerprint of their content.

Raw chunks with fletcher32: embeddings in float16 compress by 8 % at best, and gzip writes thirty
times slower. HDF5 keeps no times here, so equal content gives equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlcd.errors import UserError
from mlcd.files import atomic_path, sha256_file, sha256_json

#: Bytes of one HDF5 chunk, about: large enough to stream, small enough to check quickly.
_CHUNK_BYTES = 1 << 20


class Writer:
    """Append rows to named datasets; made by :func:`writing`."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._digests: dict[str, Any] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append `rows` [n, …] to dataset `name`, created at the first call with its dtype."""
        rows = np.ascontiguousarray(rows)
        if name not in self._file:
            row_bytes = max(1, rows.dtype.itemsize * int(np.prod(rows.shape[1:])))
            self._file.create_dataset(
                name,
                shape=(0, *rows.shape[1:]),
                maxshape=(None, *rows.shape[1:]),
                dtype=rows.dtype,
                chunks=(max(1, _CHUNK_BYTES // row_bytes), *rows.shape[1:]),
                fletcher32=True,
            )
            self._digests[name] = hashlib.sha256(f"{rows.dtype.str}{rows.shape[1:]}".encode())
        dataset = self._file[name]
        start = dataset.shape[0]
        dataset.resize(start + len(rows), axis=0)
        dataset[start:] = rows
        self._digests[name].update(rows.data if rows.size else b"")

    def finish(self, attributes: dict[str, Any]) -> str:
        """Write `attributes` (str, int, float) and the fingerprint; return the fingerprint."""
        content = {name: digest.hexdigest() for name, digest in self._digests.items()}
        fingerprint = sha256_json([content, attributes])
        for name, value in {**attributes, "fingerprint": fingerprint}.items():
            self._file.attrs[name] = value
        return fingerprint


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str], kind: str, attributes: dict[str, Any]
) -> Iterator[Writer]:
    """Write an HDF5 file of `kind` atomically: append inside the block, finished at its end."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver="v110") as file:
        writer = Writer(file)
        yield writer
        writer.finish({"kind": kind, **attributes})


def write(
    path: str | os.PathLike[str],
    kind: str,
    datasets: dict[str, np.ndarray],
    attributes: dict[str, Any],
) -> None:
    """Write whole arrays at once; see :func:`writing`."""
    with writing(path, kind, attributes) as writer:
        for name, rows in datasets.items():
            writer.append(name, rows)


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str], kind: str, *, foreign: bool = False
) -> Iterator[h5py.File]:
    """Open an HDF5 file of `kind` for reading.

    `foreign` also takes files that this program did not write (no `kind` attribute). Raises
    :class:`UserError` with the file's name if it is missing, truncated, of another kind, or if a
    block read inside fails its checksum.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from None
    except OSError as error:
        raise UserError(
            f"{path}: not a whole HDF5 file ({_first_line(error)}); remove it and rerun"
        ) from None
    with file:
        found = file.attrs.get("kind")
        if found != kind and not (foreign and found is None):
            raise UserError(
                f"{path}: expected a file of {kind}, found {found or 'an unknown kind'}"
            )
        try:
            yield file
        except OSError as error:
            raise UserError(
                f"{path}: damaged data ({_first_line(error)}); remove it and rerun"
            ) from None


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the content fingerprint of a file: its attribute if HDF5 of ours, else its SHA-256."""
    if Path(path).suffix == ".h5":
        try:
            with h5py.File(path, "r") as file:
                if (value := file.attrs.get("fingerprint")) is not None:
                    return str(value)
        except OSError as error:
            raise UserError(f"{path}: not a whole HDF5 file ({_first_line(error)})") from None
    return sha256_file(path)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
