"""Read an image on disk and look at it: what a worker process of :mod:`.index` does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlcd.config import Download
from mlcd.data import containers, pointers
from mlcd.data.decode import BadImage
from mlcd.data.local_table import LocalImage
from mlcd.data.pointers import Pointer
from mlcd.data.url_lists import open_parquet
from mlcd.stages.download.reasons import OWN
from mlcd.stages.download.resizer import Resizer
from mlcd.utils.errors import UserError


class Task(NamedTuple):
    """One image for a worker: its pointer, or its bytes, or why it is not to be read."""

    pointer: Pointer | None = None
    data: bytes = b""
    reason: str = ""
    whole: bool = False  #: the pointer is to all of a file


class Seen(NamedTuple):
    """What is known of a good image; `data` only where it is to be stored."""

    sha256: str
    size: int
    width: int
    height: int
    data: bytes | None


def read(task: Task) -> bytes:
    """Return the bytes of an image. Raises :class:`BadImage`; OSError where the disk fails."""
    if task.reason:
        raise BadImage(task.reason, "as listed")
    if task.pointer is None:
        return task.data
    try:
        if task.whole and Path(task.pointer.path).stat().st_size != task.pointer.size:
            raise BadImage("changed", "another size than listed")
        return pointers.read(task.pointer)
    except ValueError as error:
        raise BadImage("damaged", str(error)) from None
    except OSError as error:
        # Another error may be the disk's, and pass: it must not cost an image.
        reasons = {errno.ENOENT: "missing", errno.ENOTDIR: "missing"}
        reasons |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EINVAL), "unreadable")
        if error.errno in reasons:
            raise BadImage(reasons[error.errno], str(error)) from None
        raise


class Look:
    """Decodes an image whole before it counts, as download does; bytes in, :class:`Seen` out."""

    def __init__(self, section: Download, *, store: bool) -> None:
        self._resizer = Resizer(section)
        self._max_bytes = section.max_bytes
        self._store = store

    def __call__(self, data: bytes) -> Seen:
        if len(data) > self._max_bytes:
            raise BadImage("too_large", f"{len(data)} bytes")
        stored, width, height, _, _, problem = self._resizer(io.BytesIO(data))
        if problem:
            raise BadImage(problem.removeprefix(OWN), "")
        sha256 = hashlib.sha256(stored).hexdigest()
        return Seen(sha256, len(stored), width, height, stored if self._store else None)


class Tasks:
    """Makes the task of each image of a table whose paths are below `root`, in order.

    Rows of a parquet are read here, one after the other: a row cannot be read by its place.
    """

    def __init__(self, root: str, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._rows: Iterator[Any] = iter(())
        self._next: tuple[bytes, int] = (b"", -1)

    def pointer(self, image: LocalImage) -> Pointer:
        """Return where an image lies; the path is relative to the root."""
        return Pointer(os.fsdecode(image.path), image.offset, image.size, image.packed)

    def __call__(self, image: LocalImage) -> Task:
        if image.reason:
            return Task(reason=image.reason)
        if image.kind == "parquet":
            value = self._row(image)
            return self._of_value(Path(self.root, os.fsdecode(image.path)).parent, value)
        if image.size > self._max_bytes:
            return Task(reason="too_large")
        pointer = self.pointer(image)
        path = os.path.join(self.root, pointer.path)  # noqa: PTH118
        return Task(pointer._replace(path=path), whole=image.kind == "image")

    def _row(self, image: LocalImage) -> Any:
        if self._next != (image.path, image.offset):
            path = Path(self.root, os.fsdecode(image.path))
            rows = open_parquet(path).metadata.num_rows
            self._rows = containers.column_values(path, image.member, image.offset, rows)
        self._next = (image.path, image.offset + 1)
        try:
            return next(self._rows)
        except StopIteration:
            raise UserError(
                f"{image.place}: this parquet has fewer rows than listed; start the run again"
            ) from None

    def _of_value(self, base: Path, value: Any) -> Task:
        """Return the task of a parquet's value: bytes, or a struct of bytes and path.

        A path must lie below the parquet's folder: data must not make the program read other files.
        """
        path = value.get("path") if isinstance(value, dict) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is not None:
            return Task(data=data)
        if not isinstance(path, str) or not path or "\0" in path:
            return Task(reason="empty")
        target = os.path.realpath(base / path)
        if not target.startswith(os.path.realpath(base).rstrip("/") + "/"):
            return Task(reason="link_outside")
        try:
            size = Path(target).stat().st_size
        except OSError:
            return Task(reason="missing")
        if size > self._max_bytes:
            return Task(reason="too_large")
        return Task(Pointer(target, 0, size))
