"""audit/bundle/: a sealed run in the forms that others' tools read; bundle.json lists its files.

Each part is a module here with a `NAME` and `write(run, folder)`, which writes files below `folder`
(the bundle's, shared by all parts), returns their paths, and raises :class:`Lacking` if a package
is missing. Equal runs give equal bytes; what differs each time lies in times.json and signatures/.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.bundle import signatures, times
from mlcd.commands.audit.bundle.run import Lacking, Run
from mlcd.commands.audit.nodes import Finding
from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record, write_record

#: Modules, in this order: a later part may list the files of those before it.
PARTS = (
    "croissant",
    "checklist",
    "graph",
    "sbom",
    "statement",
    "crate",
    "times",
)

FOLDER = Path("audit") / "bundle"
RECORD = Path("audit") / "bundle.json"
FORMAT = 1


def write(results: Path, key: Path | None = None) -> dict[str, Any]:
    """Write the bundle of a sealed run, and return its record; `key`: a private key to sign with.

    Raises :class:`UserError` if the run is not sealed, if the key is none that can sign, or if
    files of somebody else lie there.
    """
    if key is not None:
        signatures.check_key(key)
    lock = locks.read(results)
    run = Run(results, lock, read_record(results / locks.SYSTEM, "audit"), key)
    _check_ours(results)
    parts: dict[str, dict[str, Any]] = {}
    place = results / FOLDER.parent
    with (
        disk.writing(results / FOLDER),
        tempfile.TemporaryDirectory(dir=place, prefix=".bundle-") as scratch,
    ):
        folder = Path(scratch) / FOLDER.name
        folder.mkdir()
        for name in PARTS:
            part = importlib.import_module(f"{__name__}.{name}")
            before = set(_files(folder))
            try:
                paths = part.write(run, folder)
            except Lacking as why:
                parts[part.NAME] = {"lacking": why.package}
            except (UserError, OSError):
                raise
            except Exception as error:
                # A run of weeks does not fail at its end because another library has changed.
                LOGGER.exception("the bundle's part %s cannot be written", part.NAME)
                for left in set(_files(folder)) - before:
                    (folder / left).unlink()
                parts[part.NAME] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
            else:
                parts[part.NAME] = {"files": dict(_described(folder, sorted(paths)))}
        # Until its record is written, a bundle is none.
        (results / RECORD).unlink(missing_ok=True)
        shutil.rmtree(results / FOLDER, ignore_errors=True)
        folder.rename(results / FOLDER)
    record = {
        "format": FORMAT,
        "root": lock["root"],
        "lock": sha256_file(results / locks.LOCK),
        "parts": parts,
    }
    write_record(results / RECORD, record)
    return record


def lacking(record: dict[str, Any]) -> str:
    """Return in one line which parts a bundle lacks and why; '' if it is whole."""
    failed = [name for name, part in record["parts"].items() if "failed" in part]
    if failed:
        return f"the bundle lacks {', '.join(failed)}: a defect of mlcd, whose log is above"
    parts = {name: part["lacking"] for name, part in record["parts"].items() if "lacking" in part}
    if not parts:
        return ""
    packages = ", ".join(sorted(set(parts.values())))
    return (
        f"the bundle lacks {', '.join(parts)}: not installed: {packages}; "
        "pip install 'mlcd[audit]', then run mlcd audit bundle"
    )


def check(results: Path) -> Iterator[Finding]:
    """Iterate over what is wrong with the files of a bundle; nothing for a run that has none."""
    folder, where = results / FOLDER, RECORD.as_posix()
    there = set(_files(folder))
    if not (results / RECORD).exists():
        if there:
            yield Finding(where, "missing")
        return
    try:
        record = read_record(results / RECORD, "audit")
        known = {name: about for part in record["parts"].values()
                 for name, about in part.get("files", {}).items()}  # fmt: skip
        digests = {name: about["sha256"] for name, about in known.items()}
        sealed = record["lock"]
    except (UserError, KeyError, TypeError, AttributeError):
        yield Finding(where, "damaged or edited")
        return
    if (results / locks.LOCK).is_file() and sealed != sha256_file(results / locks.LOCK):
        yield Finding(where, "is of another seal; run mlcd audit bundle again")
    for name, digest in digests.items():
        path = (FOLDER / name).as_posix()
        if name not in there:
            yield Finding(path, "missing")
        elif not _holds(folder, name, digest):
            yield Finding(path, "not what was written")
    for name in sorted(there - set(digests)):
        yield Finding((FOLDER / name).as_posix(), "added since the bundle was written")


def _described(folder: Path, paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        name = path.relative_to(folder).as_posix()
        same = not times.varies(name)
        size = path.stat().st_size if same else None
        yield name, {"sha256": sha256_file(path) if same else None, "bytes": size}


def _holds(folder: Path, name: str, digest: str | None) -> bool:
    """Tell whether a file is as it was written; of one that differs each time, times.json knows."""
    if times.varies(name):
        return times.holds(folder, name)
    return digest == sha256_file(folder / name)


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield path.relative_to(folder).as_posix()


def _check_ours(results: Path) -> None:
    """Raise :class:`UserError` if something lies in the folder that no bundle has written."""
    folder = results / FOLDER
    try:
        parts = read_record(results / RECORD, "audit")["parts"].values()
        known = {name for part in parts for name in part.get("files", {})}
    except (UserError, KeyError, AttributeError):
        # Snakemake removes the record before the rule runs again.
        known = times.written(folder)
    if others := sorted(set(_files(folder)) - known):
        raise UserError(f"{folder / others[0]}: of no bundle, so it is not replaced; move it away")
