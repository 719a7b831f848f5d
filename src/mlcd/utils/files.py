"""Atomic writes and content hashes: a file under its final name is whole, or is not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.utils import disk, fencing
from mlcd.utils.errors import UserError
from mlcd.utils.processes import machine, start_of

_BLOCK = 1 << 20
#: Bytes of the longest name that Linux takes, and of what a temporary name adds to a file's.
_NAME_BYTES, _TAG_BYTES = 255, 32


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    On any exception the temporary file is removed and `path` is untouched, as when this process has
    lost its right to write (:mod:`mlcd.utils.fencing`). The temporary name carries machine and
    process id, so that two writers never share one, and keeps the suffix, so that writers that look
    at it behave the same. What writers of this very target left when they were killed is removed.
    The file's mode follows the umask, whoever wrote it. Of a link the file that it names is
    written. Raises :class:`UserError` where `path` is a folder, a device or the like, or lies below
    a file, and for a disk that is full or may only be read.
    """
    target = checked_target(path)
    with disk.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(_temporary_name(target, _machine_tag(), str(os.getpid())))
    try:
        with disk.writing(target, temporary):
            yield temporary
            follow_umask(temporary)
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            fencing.check()
            temporary.replace(target)
            fsync_directory(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Return where a file called `path` is written: links followed.

    Raises :class:`UserError` for what a file cannot, or must not, replace.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    if target.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: is a device or the like, which is never replaced; name a file")
    for parent in target.parents:
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"{path}: {parent} is a file, not a folder; name another place")
            break
    return target


def checked_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder to be written into, there or not. Raises :class:`UserError` for a file."""
    target = Path(path)
    for place in (target, *target.parents):
        if place.exists() or place.is_symlink():
            if not place.is_dir():
                raise UserError(f"{path}: {place} is a file; name a folder")
            break
    return target


def follow_umask(path: Path) -> None:
    """Give a file the mode that `open` would have: some libraries write for the owner alone."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # To ask the system sets it, for all threads; Linux also tells.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _temporary_name(target: Path, tag: str, pid: str) -> str:
    end = f"{tag}-{pid}.tmp{target.suffix}"
    return f".{_stem(target)}.{end}"


def _stem(target: Path) -> str:
    """Return the stem of a target's temporary names, which are longer than its own by some 30."""
    room = _NAME_BYTES - _TAG_BYTES - len(os.fsencode(target.suffix))
    if len(stem := os.fsencode(target.stem)) <= room:
        return target.stem
    return hashlib.sha256(stem).hexdigest()[:16]


def _machine_tag() -> str:
    """Return 12 hex digits: of the host's name, of this boot, and of the space of process ids."""
    host, system = socket.gethostname(), machine()
    boot, _, space = system.partition(" ")
    return "".join(hashlib.sha256(part.encode()).hexdigest()[:4] for part in (host, boot, space))


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of this target whose writers are dead, as far as this host knows."""
    pattern = re.compile(
        re.escape(f".{_stem(target)}.")
        + r"(?P<tag>[0-9a-f]{12})-(?P<pid>\d+)"
        + re.escape(f".tmp{target.suffix}")
    )
    mine = _machine_tag()
    if start_of(os.getpid()) is None:  # a system that does not tell who lives
        return
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if not (found := pattern.fullmatch(entry.name)):
                continue
            tag, pid = found["tag"], int(found["pid"])
            # After another boot of this host its process is gone; in another container of this
            # boot, or on another host, it may live.
            rebooted = tag[:4] == mine[:4] and tag[4:8] != mine[4:8]
            if rebooted or (tag == mine and start_of(pid) is None):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def fsync_directory(directory: Path) -> None:
    """Make a rename inside `directory` durable. Some network disks refuse; the rename stands."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 atomically; what is no text (bytes of a file's name) is escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON atomically, keys in the order given, no NaN.

    Bytes of a file's name that are no UTF-8 come back as they were.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class _MissingKey(UserError, KeyError):
    """A key that a JSON file lacks; a KeyError too, for those who know better what to say."""

    __str__ = Exception.__str__


class _Object(dict[str, Any]):
    """An object of a JSON file: a key that is asked for and missing is the file's fault."""

    def __init__(self, pairs: list[tuple[str, Any]], path: str | os.PathLike[str]) -> None:
        super().__init__(pairs)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise _MissingKey(
            f"{self._path}: lacks {key!r}, so it is damaged or of another version; remove it and "
            "rerun the stage that writes it"
        )

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """Read a JSON file that holds a `kind`.

    Raises :class:`UserError` with its name if it is missing or damaged, or later, when a key is
    asked for that it lacks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=lambda pairs: _Object(pairs, path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; run the stage that writes it first") from None
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it and rerun") from None
    if not isinstance(value, kind):
        words: dict[type, str] = {dict: "an object", list: "a list"}
        raise UserError(
            f"{path}: expected {words.get(kind, kind.__name__)}, so it is damaged; remove it and "
            "rerun the stage that writes it"
        )
    return value


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with Path(path).open("rb", buffering=0) as handle:
        while count := handle.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def state_dir(output: str | os.PathLike[str], *identity: Any) -> Path:
    """Return (and create) the resume folder of the stage that writes `output`.

    It lies beside the output, undeclared to Snakemake (which deletes declared outputs before each
    attempt), and its name holds a hash of `identity` (the section and the inputs'
    fingerprints), so that none of them, once changed, meets an old state. Cheap stages name it
    after the code too; for the others :mod:`mlcd.launch.resume` records whose code works in it.
    """
    target = Path(output)
    folder = target.parent / "state" / f"{target.stem}-{sha256_json(identity)[:16]}"
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
