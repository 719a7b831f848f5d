"""Images that lie in files of others: where their bytes are, and how they are read and checked.

An *index* stands in an image store in the place of a tar. Its first line is JSON with `root`, the
folder (an absolute path) that all paths in it are relative to. Then follows a line of JSON per
image, see :class:`Pointer`, with the SHA-256 of its bytes. A reader is given the byte at which the
line begins, as it is given the byte of an image in a tar.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import stat
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from mlcd.utils.errors import UserError

ENDING = ".index"
#: Bytes of a line of an index that are read at once, and that a line may have.
_LINE, _LONGEST_LINE = 1024, 1 << 17
#: Reads closer to each other than this are announced to the system as one.
_GAP = 1 << 20


class Pointer(NamedTuple):
    """`size` bytes of an image at `offset` of a file; deflated they take `packed` bytes there."""

    path: str
    offset: int
    size: int
    packed: int = 0  #: 0 where they are stored as they are


def is_index(path: str | os.PathLike[str]) -> bool:
    """True if a file of an image store is an index and no tar."""
    return os.fspath(path).endswith(ENDING)


def read(pointer: Pointer) -> bytes:
    """Return an image's bytes.

    Raises OSError where the file cannot be read or is shorter, ValueError where what is deflated
    does not give `size` bytes. Memory and work are bounded by the two sizes.
    """
    # What was a file may by now be a pipe, which nobody writes to.
    handle = os.open(pointer.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file", pointer.path)
        data = _pread(handle, pointer.packed or pointer.size, pointer.offset)
    finally:
        os.close(handle)
    if len(data) != (pointer.packed or pointer.size):
        raise OSError(errno.EINVAL, "shorter than expected", pointer.path)
    return _inflated(data, pointer.size) if pointer.packed else data


def _pread(handle: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes; one call of the system gives at most 2 GiB."""
    parts: list[bytes] = []
    while size and (part := os.pread(handle, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _inflated(data: bytes, size: int) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) != size:
        raise ValueError(f"not the {size} bytes that its archive says")
    return found


def header(root: str) -> bytes:
    """Return the first line of an index."""
    return _line({"mlcd": "index", "root": root})


def record(pointer: Pointer, sha256: str) -> bytes:
    """Return the line of an image; its path is relative to the root."""
    return _line({**pointer._asdict(), "sha256": sha256})


def _line(values: dict[str, Any]) -> bytes:
    # ASCII alone: names that are no UTF-8 are escaped, and come back as they were.
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


@functools.lru_cache(maxsize=4096)
def _root(index: str, _identity: tuple[int, int]) -> str:
    return str(_read_line(index, 0)["root"])


def _read_line(index: str, offset: int) -> dict[str, Any]:
    """Return the record at a byte of an index. Raises :class:`UserError` if there is none."""
    size = _LINE
    with Path(index).open("rb", buffering=0) as handle:
        while True:
            line, end, _ = os.pread(handle.fileno(), size, offset).partition(b"\n")
            if end or size > _LONGEST_LINE:
                break
            size *= 16
    try:
        found = json.loads(line)
        if end and isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise _damaged(index, offset)


def _damaged(index: str, offset: int) -> UserError:
    return UserError(f"{index}: damaged at byte {offset}; rerun download for this chunk")


def located(index: str | os.PathLike[str], offset: int) -> tuple[Pointer, str]:
    """Return the pointer of the image whose line begins at `offset`, and its SHA-256."""
    path = os.fspath(index)
    found = _read_line(path, offset)
    about = Path(path).stat()
    root = _root(path, (about.st_ino, about.st_mtime_ns))
    try:
        sha256 = str(found.pop("sha256"))
        pointer = Pointer(**found)
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: damaged at byte {offset}; rerun download for this chunk"
        ) from None
    return pointer._replace(path=os.path.join(root, pointer.path)), sha256  # noqa: PTH118


def read_indexed(index: str | os.PathLike[str], offset: int, digest: int | None = None) -> bytes:
    """Return the bytes of the image whose line begins at `offset` of an index.

    `digest` (:func:`.tars.digest_of`), where it is known, must be that of the line. Raises
    :class:`UserError`, which names the image's file, if it is not there any more, cannot be read,
    or holds other bytes than when it was indexed.
    """
    pointer, sha256 = located(index, offset)
    if digest is not None and sha256[:16] != f"{digest:016x}":
        raise _damaged(os.fspath(index), offset)
    try:
        data = read(pointer)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        problem = "changed since it was indexed"
    except OSError as error:
        problem = f"cannot be read any more ({error.strerror})"
    except ValueError as error:
        problem = f"changed since it was indexed ({error})"
    raise UserError(
        f"{_shown(pointer.path)}: {problem}; put it back as it was, or remove "
        f"{Path(index).parent / 'manifest.json'} and rerun, which indexes this chunk again"
    )


def _shown(path: str) -> str:
    """Return a path for a message: names are a stranger's."""
    return path if path.isprintable() else repr(path)


def advise(index: str | os.PathLike[str], start: int, stop: int) -> None:
    """Ask the system to read ahead the images whose lines lie in bytes [start, stop) of an index.

    Only of files that hold many: to open each loose image twice would cost what it gains.
    """
    path = os.fspath(index)
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    with contextlib.suppress(OSError, ValueError, KeyError, UserError):
        with Path(path).open("rb", buffering=0) as handle:
            lines = _pread(handle.fileno(), stop - start, start).splitlines()
        for line in lines:
            found = json.loads(line)
            length = found["packed"] or found["size"]
            spans[found["path"]].append((found["offset"], found["offset"] + length))
        about = Path(path).stat()
        root = _root(path, (about.st_ino, about.st_mtime_ns))
        for name, found_spans in spans.items():
            if len(found_spans) > 1:
                _advise_file(Path(root, name), sorted(found_spans))


def _advise_file(path: Path, spans: list[tuple[int, int]]) -> None:
    with path.open("rb") as handle:
        begin, end = spans[0]
        for start, stop in [*spans[1:], (1 << 62, 0)]:
            if start > end + _GAP:
                os.posix_fadvise(handle.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
                begin = start
            end = max(end, stop)
