"""Outputs that Snakemake does not know by name: are they still as their stage left them?

The tars of a chunk and the files of an export are named by a record that is written last
(manifest.json, check.json), and only that record is a declared output. So that a removed or edited
file is made again, rules ask here whenever the workflow is planned. It is one look at size and time
per file. A file of the right size that is newer than its record may be a copy: then its hash
decides, and the answer is kept, so that a copied folder is read once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file, write_json
from mlcd.utils.records import read_record

#: Name of a file beside its record, bytes (None: not recorded), SHA-256.
Named = tuple[str, int | None, str]


class Seen:
    """Hashes that were compared before, by path, size and time, kept in a file of JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[int | str]] = {}
        self._is_kept = True
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            self._known = found if isinstance(found, dict) else {}

    def sha256(self, path: Path, stat: os.stat_result) -> str:
        """Return the SHA-256 of a file, computed only if it changed since the last question."""
        stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns]
        name = str(path.resolve())
        known = self._known.get(name)
        if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
            return str(known[2])
        digest = sha256_file(path)
        self._known[name] = [*stamp, digest]
        self._is_kept = False
        return digest

    def keep(self) -> None:
        """Write the file, if a hash is new; not once per hash, for there may be 40,000."""
        if not self._is_kept:
            with contextlib.suppress(OSError, UserError):
                write_json(self._path, self._known)
            self._is_kept = True


def changed(record: str, seen: Seen) -> str:
    """Return the first file that `record` names and that is not as it was written, with a reason.

    '' where all are, and where there is no record: its stage then runs anyway. A damaged record is
    such a file itself.
    """
    try:
        return _first_changed(record, seen)
    finally:
        seen.keep()


def _first_changed(record: str, seen: Seen) -> str:
    path = Path(record)
    try:
        written = path.stat().st_mtime_ns
    except OSError:
        return ""
    try:
        named = list(_named(path))
    except (UserError, KeyError, TypeError, ValueError):
        return f"{record}: damaged"
    for name, size, sha256 in named:
        file = path.parent / name
        try:
            stat = file.stat()
        except OSError:
            return f"{file}: missing"
        if size is not None and stat.st_size != size:
            return f"{file}: {stat.st_size} bytes, not the {size} that were written"
        if stat.st_mtime_ns > written and seen.sha256(file, stat) != sha256:
            return f"{file}: edited"
    return ""


def _named(path: Path) -> Iterable[Named]:
    if path.name == "check.json":
        about = read_record(path, "export")
        sizes = about["bytes"]
        yield from ((name, sizes[name], sha256) for name, sha256 in about["files"].items())
        return
    about = read_record(path, "download")
    yield from ((tar["name"], tar["bytes"], tar["sha256"]) for tar in about["tars"])
    yield "rows.parquet", None, about["table"]
