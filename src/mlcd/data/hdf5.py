"""HDF5 files that are whole or refused: atomic, checksummed, with a fingerprint of their content.

Raw chunks with fletcher32: embeddings in float16 compress by 8 % at best, and gzip writes thirty
times slower. HDF5 keeps no times here, so equal content gives equal bytes.

What is checked, and when:

- at each opening: the attributes, whose texts HDF5 itself keeps without a checksum. The fingerprint
  is a hash of them and of one hash per dataset, which stand in the attribute `content`
- whenever rows are read: the checksums of their blocks
- where a dataset is read whole (:func:`whole`, :func:`verified_fingerprint`): its hash, which also
  finds rows that were edited
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file, sha256_json

#: Bytes of one HDF5 chunk, about: large enough to stream, small enough to check quickly.
_CHUNK_BYTES = 1 << 20
#: Attributes that vouch for the others and for the data.
_FINGERPRINT, _CONTENT = "fingerprint", "content"
#: What h5py raises on damage: anywhere in its library or in the texts that it decodes.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError)


class _Disk(io.FileIO):
    """A file whose first write error is kept, and HDF5 not told of.

    HDF5 cannot close a file that it failed to write to: it crashes the process, some time later.
    What comes after the error goes nowhere.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or remember why not."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._remembering():
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember why not."""
        with self._remembering():
            if self.error is None:
                super().truncate(size)
        return size or 0

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self.error is not None:
            raise self.error


class Writer:
    """Append rows to named datasets; made by :func:`writing`."""

    def __init__(self, file: h5py.File, sink: _Disk) -> None:
        self._file = file
        self._sink = sink
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
            self._digests[name] = _digest_of(rows.dtype, rows.shape)
        dataset = self._file[name]
        start = dataset.shape[0]
        dataset.resize(start + len(rows), axis=0)
        dataset[start:] = rows
        self._sink.check()
        self._digests[name].update(rows.data if rows.size else b"")

    def finish(self, attributes: dict[str, Any]) -> str:
        """Write `attributes` (str, int, float) and the fingerprint; return the fingerprint."""
        content = {name: digest.hexdigest() for name, digest in self._digests.items()}
        fingerprint = sha256_json([content, attributes])
        about = {_CONTENT: json.dumps(content, sort_keys=True), _FINGERPRINT: fingerprint}
        for name, value in {**attributes, **about}.items():
            self._file.attrs[name] = value
        return fingerprint


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str], kind: str, attributes: dict[str, Any]
) -> Iterator[Writer]:
    """Write an HDF5 file of `kind` atomically: append inside the block, finished at its end.

    Raises :class:`UserError` for a disk that is full.
    """
    with atomic_path(path) as temporary, _Disk(temporary, "w+") as sink:
        with h5py.File(sink, "w", libver="v110") as file:
            writer = Writer(file, sink)
            yield writer
            writer.finish({"kind": kind, **attributes})
        sink.check()


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
    :class:`UserError` with the file's name if it is missing, truncated, of another kind, if it
    refers to other files for its data, if its attributes are not those that were written, or if a
    block read inside fails its checksum.
    """
    with _told(path), _opened(path) as file:
        found = file.attrs.get("kind")
        if found != kind and not (foreign and found is None):
            raise UserError(
                f"{path}: expected a file of {kind}, found {found or 'an unknown kind'}"
            )
        yield file


@contextlib.contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise :class:`UserError` for what HDF5 cannot read of the file `path`.

    It reports damage by exceptions of many types, which are told by where they come from. Others
    are of what is done with the data, such as a full disk that they are written to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_of_hdf5(error):
            raise
        raise _damaged(path, error) from None


def _is_of_hdf5(error: BaseException) -> bool:
    """True if h5py raised the error."""
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return "h5py" in frames[-1].parts


def whole(file: h5py.File, name: str) -> np.ndarray:
    """Return all rows of a dataset of an open file, compared with the hash that was written.

    Raises :class:`UserError` if they were changed, OSError if a block fails its checksum.
    """
    rows: np.ndarray = file[name][:]
    digest = _digest_of(rows.dtype, rows.shape)
    digest.update(np.ascontiguousarray(rows).data if rows.size else b"")
    _compare(file, name, digest.hexdigest())
    return rows


def verified_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the fingerprint of a file of ours after all of its bytes were compared with it.

    Of other files it is the SHA-256. It reads the whole file, one block of about 16 MiB at a time.
    Raises :class:`UserError` if the file is missing, damaged or edited.
    """
    if Path(path).suffix != ".h5":
        return sha256_file(path)
    with _told(path), _opened(path) as file:
        if _FINGERPRINT not in file.attrs:
            return sha256_file(path)
        try:
            for name in json.loads(file.attrs[_CONTENT]):
                rows = file[name]
                digest = _digest_of(rows.dtype, rows.shape)
                step = 16 * rows.chunks[0]
                for start in range(0, len(rows), step):
                    digest.update(np.ascontiguousarray(rows[start : start + step]).data)
                _compare(file, name, digest.hexdigest())
        except _DAMAGE as error:
            raise _damaged(path, error) from None
        return str(file.attrs[_FINGERPRINT])


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the content fingerprint of a file: its attribute if HDF5 of ours, else its SHA-256.

    The attribute is compared with the other attributes, not with the data, which it costs nothing
    to trust where they are read with their own checksums; else :func:`verified_fingerprint`.
    """
    if Path(path).suffix == ".h5":
        with _told(path), _opened(path) as file:
            if (value := file.attrs.get(_FINGERPRINT)) is not None:
                return str(value)
    return sha256_file(path)


def json_object(path: str | os.PathLike[str], name: str, text: str, stage: str) -> dict[str, Any]:
    """Return what the attribute `name` of a file says, a JSON object; {} where `text` is empty.

    Raises :class:`UserError`, which names file, attribute and the `stage` to rerun, for all else.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: attribute {name} is no JSON object; rerun {stage}")
    return found


def attributes(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Return the attributes of a file of ours, compared with its fingerprint, and the latter.

    Raises :class:`UserError` for a file that is damaged, or not of ours.
    """
    with _told(path), _opened(path) as file:
        if _FINGERPRINT not in file.attrs:
            raise UserError(f"{path}: has no fingerprint (another program's, or damaged)")
        return dict(file.attrs), str(file.attrs[_FINGERPRINT])


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open a file whose links and attributes are in order. Raises :class:`UserError`."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from None
    except ValueError:  # UTF-8 that is none, a zero byte
        raise UserError(f"{path}: no name that the system takes; give another") from None
    except OSError as error:
        if error.errno is not None and (told := disk.explained(error, path)):
            raise told from None
        raise UserError(
            f"{path}: not a whole HDF5 file ({_first_line(error)}); remove it and rerun"
        ) from None
    with file:
        try:
            _refuse_links(path, file)
            _check_attributes(path, file)
        except _DAMAGE as error:
            raise _damaged(path, error) from None
        yield file


def _check_attributes(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise :class:`UserError` if our attributes are not those that the fingerprint is of."""
    found = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in file.attrs.items()
    }
    if _FINGERPRINT not in found:
        return  # another program's
    if _CONTENT not in found:
        raise UserError(f"{path}: of another version of mlcd; remove it and rerun")
    said, content = found.pop(_FINGERPRINT), json.loads(found.pop(_CONTENT))
    # Attributes come sorted by name, and the hash does not depend on their order.
    if sha256_json([content, found]) != said or not set(content) <= set(file):
        raise UserError(
            f"{path}: its attributes are not those that were written (damaged, or edited); "
            "remove it and rerun"
        )


def _compare(file: h5py.File, name: str, digest: str) -> None:
    content = json.loads(file.attrs.get(_CONTENT, "{}"))
    if content.get(name, digest) != digest:
        raise UserError(
            f"{file.filename}: {name!r} is not what was written (damaged, or edited); "
            "remove it and rerun"
        )


def _digest_of(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """Return the hash of a dataset before its first row."""
    return hashlib.sha256(f"{dtype.str}{shape[1:]}".encode())


def _refuse_links(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise :class:`UserError` for data that lie in another file, which HDF5 would open unasked.

    That is external links, external storage, and virtual datasets; none of them is ever opened.
    """
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: {name!r} is a link to other data; copy them in")
        found = file.get(name, getclass=True)
        if found is not h5py.Dataset:
            continue
        storage = file[name].id.get_create_plist()
        if storage.get_external_count() or storage.get_layout() == h5py.h5d.VIRTUAL:
            raise UserError(f"{path}: the data of {name!r} lie in another file; copy them in")


def _damaged(path: str | os.PathLike[str], error: Exception) -> UserError:
    return UserError(f"{path}: damaged data ({_first_line(error)}); remove it and rerun")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
