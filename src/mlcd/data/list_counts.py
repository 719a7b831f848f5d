"""Counts of text lists, kept between processes: each that reads the Snakefile would count again.

A count belongs to a file's path, size, times and inode. The time of its last change (ctime) cannot
be set by programs, so a list that was changed is counted anew, also where its size and its time of
modification are as before. A file that has just been written is not kept: a further change within
the same tick of the clock would not show. The kept file may be removed at any time.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, write_json

#: Seconds for which a file must have been as it is, for its count to be kept.
_SETTLED = 2.0


class _Identity(NamedTuple):
    size: int
    modified_ns: int
    changed_ns: int
    inode: int


#: (absolute path, what was counted) → the file's identity then, and the count.
_KNOWN: dict[tuple[str, str], tuple[_Identity, int | None]] = {}


def counted(path: str | Path, what: str, count: Callable[[], int | None]) -> int | None:
    """Return `count()` of a file, or what it gave earlier for the file as it is.

    `what` names what is counted. Raises OSError if the file is not there.
    """
    key = (str(Path(path).absolute()), what)
    identity = _identity(path)
    found = _KNOWN.get(key)
    if found is None or found[0] != identity:
        found = (identity, count())
        if _identity(path) != identity:  # it was written to meanwhile
            return found[1]
        _KNOWN[key] = found
    return found[1]


def recall(file: Path) -> None:
    """Read what :func:`keep` has written; nothing for a file that is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["sha256"] != sha256_json(kept["counts"]):
            return
        for path, what, identity, count in kept["counts"]:
            _KNOWN.setdefault((path, what), (_Identity(*identity), count))


def keep(file: Path) -> None:
    """Write all counts of files that have been as they are for a while."""
    now = time.time()
    counts = [
        [path, what, list(identity), count]
        for (path, what), (identity, count) in sorted(_KNOWN.items())
        if now - max(identity.modified_ns, identity.changed_ns) / 1e9 > _SETTLED
    ]
    with contextlib.suppress(OSError, UserError):  # nothing is lost but time
        write_json(file, {"counts": counts, "sha256": sha256_json(counts)})


def _identity(path: str | Path) -> _Identity:
    found = Path(path).stat()
    return _Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
