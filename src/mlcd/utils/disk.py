"""What a disk refuses, as one line for the user: which file, how much is free, what to do.

Libraries report a full disk in many ways: an :class:`OSError` with or without a file's name, or an
exception of their own that quotes the system's number. :func:`explained` reads all of them. Whoever
writes a file says so by :func:`writing`, for the system names no file where a write fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlcd.utils.errors import UserError

#: Where Linux keeps what processes share in memory.
SHARED_MEMORY = Path("/dev/shm")
#: Bytes below which a disk counts as full: a log line or a small record may still fit.
_FULL = 1 << 20
_KEPT = "what is done is kept: the same command resumes"
#: What to do about an error of the system; {room} says how much is free.
_FIXES = {
    errno.ENOSPC: f"{{room}}; free some space there, or name a larger disk; {_KEPT}",
    errno.EDQUOT: f"{{room}}; remove files of yours there, or ask for more; {_KEPT}",
    errno.EROFS: "name another place, or mount that disk for writing",
    errno.EACCES: "name another place, or change who may read and write there",
    errno.EPERM: "name another place, or change who may read and write there",
    errno.EFBIG: f"{{room}}; raise the limit (ulimit -f), or name another disk; {_KEPT}",
    errno.EIO: f"the disk or its network failed (see dmesg); {_KEPT}",
    errno.ENAMETOOLONG: "Linux takes names of 255 bytes and paths of 4095; choose a shorter one",
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer --workers",
    errno.ENFILE: "this machine has too many files open; end other programs",
}
_WORDS = {
    errno.ENOSPC: "no space left on its disk",
    errno.EDQUOT: "your quota on its disk is used up",
    errno.EROFS: "its disk may only be read",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "it grew larger than a file may be here",
    errno.EIO: "its disk could not read or write it",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "this process has too many files open",
}
#: How libraries quote the number: Rust's (safetensors), HDF5's, Arrow's, Python's.
_QUOTED = re.compile(r"(?:os error|errno =|\[errno|\[Errno|Os \{ code:) ?(\d+)")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], temporary: str | os.PathLike[str] = "") -> Iterator[None]:
    """Raise :class:`UserError`, naming `path`, for what the disk refuses inside the block.

    `temporary`: what `path` is called until it is whole. An error that names another file, one that
    is read for instance, keeps that name.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, name = _told(error)
        if number not in _FIXES or number in (errno.EMFILE, errno.ENFILE):
            raise
        own = name in ("", os.fspath(temporary))
        raise _line(number, os.fspath(path) if own else name) from None


def explained(error: BaseException, path: str | os.PathLike[str] = "") -> UserError | None:
    """Return the line for an error of the disk; None for any other error.

    `path`: what was being written, for errors that name no file.
    """
    if isinstance(error, UnicodeEncodeError) and _is_name(error):
        return UserError(
            f"{shown(error.object)}: has bytes that are no UTF-8, which not all libraries take; "
            "rename the file or folder"
        )
    number, name = _told(error)
    # Without a name, a broken connection say, only what is known here is the disk's.
    if number is None or (number not in _FIXES and not name):
        return None
    place = name or os.fspath(path)
    if not place and number == errno.ENOSPC:
        place = next(iter(_full_places()), "")
    return _line(number, place)


def _line(number: int, place: str) -> UserError:
    what = _WORDS.get(number, os.strerror(number))
    fix = _FIXES.get(number, "check this path, and rerun").format(room=room(place or os.curdir))
    return UserError(f"{shown(place)}: {what}: {fix}" if place else f"{what}: {fix}")


def room(path: str | os.PathLike[str]) -> str:
    """Return words for the free space of the disk that holds `path`, which may not exist yet."""
    place = existing(path)
    try:
        found = os.statvfs(place)
        total, _, free = shutil.disk_usage(place)
    except OSError:
        return "its free space is unknown"
    if found.f_files and not found.f_favail:
        return f"no more files may be made under {shown(place)} (no inodes are free)"
    # pydantic behind it takes 0.1 s, which what plans a run must not pay.
    from mlcd.utils.units import decimal_size

    return f"{decimal_size(free)} of {decimal_size(total)} are free under {shown(place)}"


def free(path: str | os.PathLike[str]) -> int:
    """Return the bytes that are free on the disk that holds `path`."""
    return shutil.disk_usage(existing(path)).free


def is_full(path: str | os.PathLike[str]) -> bool:
    """True if hardly anything more fits on the disk that holds `path`."""
    try:
        found = os.statvfs(existing(path))
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _FULL or bool(found.f_files and not found.f_favail)


def full(path: str | os.PathLike[str]) -> UserError:
    """Return the line for a disk that :func:`is_full`."""
    return _line(errno.ENOSPC, os.fspath(path))


def check_writable(*paths: str | os.PathLike[str]) -> None:
    """Try a small file where each of `paths` will be written; their folders may not exist yet.

    Raises :class:`UserError` for a disk that is full or may only be read.
    """
    for place, path in {existing(Path(path).parent): path for path in reversed(paths)}.items():
        _try_file(place, path)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Try a small file in a folder that may not exist yet; raises as :func:`check_writable`."""
    _try_file(existing(path), path)


def _try_file(place: Path, path: str | os.PathLike[str]) -> None:
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        # It names a file that nobody has heard of.
        raise _line(error.errno or errno.EIO, os.fspath(path)) from None


def may_write(path: str | os.PathLike[str]) -> UserError | None:
    """Return why `path` may not be written, without writing anything; None if it may."""
    place = existing(path)
    if os.access(place, os.W_OK):
        return None
    read_only = bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    number = errno.EROFS if read_only else errno.EACCES
    return explained(OSError(number, os.strerror(number), os.fspath(path)))


def existing(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or the nearest folder above it that is there."""
    place = Path(path).absolute()
    for found in (place, *place.parents):
        with contextlib.suppress(OSError):  # a name that is too long
            if found.exists():
                return found
    return Path("/")


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message: a very long one is cut, what is no UTF-8 is escaped."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) < 300 else f"{text[:100]}…{text[-100:]}"


def _told(error: BaseException) -> tuple[int | None, str]:
    """Return the system's number of an error and the file that it names, or those of its cause."""
    quoted = _QUOTED.search(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, _name(error.filename2) or _name(error.filename)
    if quoted:
        return int(quoted[1]), ""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    number, name = _told(cause) if cause else (None, "")
    # Any other, such as a file that was looked for in vain, need not be what went wrong.
    return (number, name) if number in _FIXES else (None, "")


def _is_name(error: UnicodeEncodeError) -> bool:
    """True if Python had read the text from bytes that are none: names of files are."""
    return all("\udc80" <= sign <= "\udcff" for sign in error.object[error.start : error.end])


def _name(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else ""


def _full_places() -> list[str]:
    """Return the folders that every program writes into and whose disks are full."""
    places = [SHARED_MEMORY, Path(tempfile.gettempdir()), Path.cwd()]
    return [str(place) for place in places if place.is_dir() and is_full(place)]
