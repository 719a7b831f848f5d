"""Members of tars, and images read from them by place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable

from mlcd.data.pointers import is_index, read_indexed
from mlcd.utils.errors import UserError

#: Tars that a reader keeps open: a process may have 1,024 files, and several readers run in one.
_OPEN = 64
#: Bytes between two images that are rather read than left out: that much is one read of a disk.
_GAP = 1 << 16


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a regular file in a tar."""
    handle = tar.extractfile(member)
    assert handle is not None, f"{member.name}: no regular file"
    return handle.read()


def digest_of(data: bytes) -> int:
    """Return the first eight bytes of the SHA-256 of an image's bytes, as a number (uint64).

    It goes with an image's place wherever that is kept, and costs a fiftieth of decoding it.
    """
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def not_the_image(path: str | os.PathLike[str], offset: int) -> str:
    """Return the line for an image that has another digest than when it was written."""
    return (
        f"{path}: the image at byte {offset} is not the one that was downloaded (damaged, or "
        "edited); remove the manifest.json beside it and rerun download"
    )


def read_at(path: str | os.PathLike[str], offset: int, size: int, digest: int) -> bytes:
    """Return the image of `size` bytes at `offset` of a tar, or whose line in an index is there.

    Raises :class:`UserError` if the tar is shorter, or if these are not the bytes of `digest`
    (:func:`digest_of`); FileNotFoundError if it is not there. Of an index as
    :func:`.pointers.read_indexed`.
    """
    with contextlib.closing(OpenTars()) as tars:
        return tars.read(path, offset, size, digest)


class OpenTars:
    """Reads images from tars, of which those read last stay open. For one thread."""

    def __init__(self, most: int = _OPEN) -> None:
        self._most = most
        self._opened: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str | os.PathLike[str], offset: int, size: int, digest: int) -> bytes:
        """Return an image as :func:`read_at` does."""
        if is_index(path):
            return read_indexed(path, offset, digest)
        data = os.pread(self._open(os.fspath(path)), size, offset)
        if len(data) != size:
            raise UserError(
                f"{path}: shorter than its manifest says; rerun download for this chunk"
            )
        if digest_of(data) != digest:
            raise UserError(not_the_image(path, offset))
        return data

    def advise(self, path: str | os.PathLike[str], spans: Iterable[tuple[int, int]]) -> None:
        """Ask the system to read bytes [start, stop) of a tar ahead, for `spans` in their order.

        A file that is missing is found when it is read.
        """
        with contextlib.suppress(OSError):
            handle = self._open(os.fspath(path))
            for start, stop in joined(spans):
                os.posix_fadvise(handle, start, stop - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all tars; the next read opens its own again."""
        while self._opened:
            os.close(self._opened.popitem()[1])

    def _open(self, path: str) -> int:
        if path not in self._opened:
            if len(self._opened) >= self._most:
                os.close(self._opened.popitem(last=False)[1])
            self._opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened.move_to_end(path)
        return self._opened[path]


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted spans [start, stop) with those joined that are close to each other."""
    found: list[tuple[int, int]] = []
    for start, stop in spans:
        if found and start <= found[-1][1] + _GAP:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return found
