"""Rows in an .npy of numpy's, read by their place."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data.own.base import Array, What
from mlcd.data.own.parquet import check_column, column_of
from mlcd.utils.errors import UserError

_SAMPLE = 1 << 20


class Npy(Array):
    """An .npy of numpy's; its keys are in the parquet beside it (:func:`beside`)."""

    def __init__(self, path: str | os.PathLike[str], what: What) -> None:
        super().__init__(path, what)
        formats = np.lib.format
        try:
            with self.path.open("rb") as file:
                version = formats.read_magic(file)
                read = {
                    (1, 0): formats.read_array_header_1_0,
                    (2, 0): formats.read_array_header_2_0,
                }
                shape, in_columns, self._dtype = read[version](file)
                self._data = file.tell()
        except (OSError, ValueError, KeyError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not readable as .npy ({reason}); write it again") from None
        self.set_shape(shape, self._dtype)
        if in_columns and len(shape) > 1 and self.rows > 1:
            raise UserError(
                f"{path}: is in Fortran order, of which no row can be read; save "
                "numpy.ascontiguousarray of it"
            )
        needs = self._data + math.prod(shape) * self._dtype.itemsize
        if self.path.stat().st_size < needs:
            raise UserError(f"{path}: shorter than its header says (cut off); copy it again")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop − 1."""
        count = (stop - start) * self.width
        with self.path.open("rb") as file:
            file.seek(self._data + start * self.width * self._dtype.itemsize)
            found = np.fromfile(file, self._dtype, count)
        if len(found) < count:
            raise UserError(f"{self.path}: shorter than its header says (cut off); copy it again")
        return found.reshape(stop - start, self.width)

    def names(self, key: str) -> Iterator[Any]:
        """Iterate over the keys in the parquet beside it."""
        path = beside(self.path)
        assert path is not None, "the key was checked"
        return column_of(path, key)

    def check_key(self, key: str) -> None:
        """Compare the parquet beside it with the rows."""
        path = beside(self.path)
        if path is None or not path.is_file():
            raise UserError(
                f"{self.path}: no parquet with {key!r} beside it ({path or 'NAME.parquet'}), by "
                "which its rows belong to images; write one, or set key to null to join by order"
            )
        check_column(path, key, self.rows, self.path)

    def identity(self, start: int = 0, stop: int | None = None) -> str:
        """Return a hash of the first and last MiB of these rows."""
        stop = self.rows if stop is None else stop
        width = self.width * self._dtype.itemsize
        first, last = self._data + start * width, self._data + stop * width
        digest = hashlib.sha256(f"{self._dtype.str}{self.width},{stop - start}".encode())
        with self.path.open("rb") as file:
            file.seek(first)
            digest.update(file.read(min(_SAMPLE, last - first)))
            if last - first > _SAMPLE:
                file.seek(max(first + _SAMPLE, last - _SAMPLE))
                digest.update(file.read(last - file.tell()))
        return digest.hexdigest()[:16]


def beside(path: Path) -> Path | None:
    """Return where the keys of an .npy are: metadata/metadata_0.parquet of img_emb/img_emb_0.npy,
    as clip-retrieval writes them, else the parquet of the same name.
    """
    number = path.stem.rpartition("_")[2]
    here = path.parent
    folder = here.with_name("metadata") if here.name else here / ".." / "metadata"
    if number.isdecimal() and (found := folder / f"metadata_{number}.parquet").is_file():
        return found
    return path.with_suffix(".parquet")
