"""The files of an index: raw arrays in little-endian order, and a record that tells what they are.

An array is read by slices, not mapped: pages of a map would count as this process' memory, and a
slice of an array costs one call of the system.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record, write_record

#: The record, written last: a folder with it is a whole index.
RECORD = "index.json"
#: What `mlcd` in the record says.
KIND = "index of mlcd explore"
#: Counts changes of the files or of their meaning: an index of another version is built again.
VERSION = 1


class Column:
    """An array on disk, of shape [rows, …]. Any thread may read it."""

    def __init__(self, path: Path, dtype: str, shape: list[int]) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape)
        self._path = path
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _gone(path, error.strerror or "unreadable") from None
        if os.fstat(self._handle).st_size != self._row_bytes * self.shape[0]:
            os.close(self._handle)
            raise _gone(path, "of another size than written")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows start … stop − 1. Raises :class:`UserError` if they cannot be read."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        start = min(start, stop)
        rest = self._row_bytes * (stop - start)
        out = bytearray(rest)
        view, place = memoryview(out), self._row_bytes * start
        while rest:
            try:
                count = os.preadv(self._handle, [view[len(out) - rest :]], place)
            except OSError as error:
                raise _gone(self._path, error.strerror or "unreadable") from None
            if not count:
                raise _gone(self._path, "shorter than written")
            rest, place = rest - count, place + count
        return np.frombuffer(out, self.dtype).reshape(stop - start, *self.shape[1:])

    def advise(self, start: int, stop: int) -> None:
        """Tell the system that rows start … stop − 1 will be read: a disk reads several at once."""
        os.posix_fadvise(
            self._handle, self._row_bytes * start, self._row_bytes * (stop - start),
            os.POSIX_FADV_WILLNEED,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


class Files:
    """The files of an index that is being written, in a folder that is renamed when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, dict[str, Any]] = {}

    def write(self, name: str, rows: np.ndarray) -> None:
        """Write a whole array."""
        sink = self.sink(name, rows.dtype, rows.shape[1:])
        sink.append(rows)
        sink.close()

    def sink(self, name: str, dtype: Any, shape: tuple[int, ...] = ()) -> Sink:
        """Begin an array that is written by parts: rows of `shape`."""
        return Sink(self, name, np.dtype(dtype).newbyteorder("<"), shape)

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Note a finished array."""
        self._entries[name] = entry

    def finish(self, about: dict[str, Any]) -> None:
        """Write the record: the folder is then a whole index."""
        files = dict(sorted(self._entries.items()))
        write_record(
            self.folder / RECORD, {"mlcd": KIND, "version": VERSION, **about, "files": files}
        )


class Sink:
    """An array of an index as it grows."""

    def __init__(self, files: Files, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]):
        self._files, self._name, self._dtype, self._shape = files, name, dtype, shape
        self._file = (files.folder / f"{name}.bin").open("wb")
        self._digest = hashlib.sha256()
        self.rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Append rows, converted to the array's type."""
        data = np.ascontiguousarray(rows, self._dtype)
        assert data.shape[1:] == self._shape, "rows of one shape"
        self._file.write(data.data)
        self._digest.update(data.data if data.size else b"")
        self.rows += len(data)

    def close(self) -> None:
        """Make the array durable and note it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._files.add(
            self._name,
            {
                "dtype": self._dtype.str,
                "shape": [self.rows, *self._shape],
                "sha256": self._digest.hexdigest(),
            },
        )


def open_columns(folder: Path) -> tuple[dict[str, Any], dict[str, Column]]:
    """Return the record of an index and its arrays. Raises :class:`UserError` if not whole."""
    record = read_record(folder / RECORD, "explore")
    if record.get("mlcd") != KIND or record.get("version") != VERSION:
        raise _gone(folder / RECORD, "of another version")
    columns: dict[str, Column] = {}
    for name, entry in record["files"].items():
        if Path(name).name != name:
            raise _gone(folder / RECORD, "names a file elsewhere")
        columns[name] = Column(folder / f"{name}.bin", entry["dtype"], entry["shape"])
    return record, columns


def _gone(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; remove its folder, which mlcd explore builds again")
