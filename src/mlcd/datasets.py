"""Labelled data sets on disk: of which kind a path is, whether it is there, what identifies it.

Light enough for the workflow, which asks this before any work; the pictures are read by
:mod:`mlcd.evaluate.datasets`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlcd.config import registry
from mlcd.config.evaluate import IMAGE_TEXT, Dataset
from mlcd.errors import UserError
from mlcd.files import sha256_json
from mlcd.sources import file_identity

#: The data set that comes with scikit-learn.
DIGITS = "sklearn:digits"
#: Sides of a split, and what their folders, files and fields may be called.
SPLITS = ("train", "validation", "test", "query", "gallery")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
#: Files of a folder of which the first and last MiB count, evenly spread over all.
_LOOKED_INTO = 200


def split_of(word: object) -> str | None:
    """Return which of :data:`SPLITS` a field's value, or a folder's or file's name, means."""
    if not isinstance(word, str):
        return None
    word = ALIASES.get(word.lower(), word.lower())
    return word if word in SPLITS else None


def split_of_file(path: Path) -> str | None:
    """Return the split that a file's name begins with (train-00000-of-00008.parquet)."""
    found = re.match(r"[a-z]+", path.name.lower())
    return split_of(found.group()) if found else None


def split_folders(path: str | os.PathLike[str]) -> dict[str, Path]:
    """Return split → folder, in the order of :data:`SPLITS`."""
    found = {}
    for entry in sorted(Path(path).iterdir()):
        if entry.is_dir() and (split := split_of(entry.name)):
            if split in found:
                raise UserError(f"{entry}: {found[split].name} is there too; keep one of the two")
            found[split] = entry
    return {split: found[split] for split in SPLITS if split in found}


def kind(dataset: Dataset) -> str:
    """Return digits, tar, parquet, idx, split_tars or folders.

    Raises :class:`UserError`, one line that names data set and path, if nothing is there, or
    nothing of these kinds.
    """
    path = Path(dataset.path)
    where = f"evaluate.datasets: {dataset.name}: {dataset.path}"
    if dataset.path.startswith("sklearn:"):
        if dataset.path != DIGITS:
            raise UserError(f"{where}: scikit-learn's only set here is {DIGITS}")
        return "digits"
    if not path.exists():
        source = registry.registry().get(dataset.name, {}).get("source")
        mend = f"get it from {source}" if source else "give a path that exists"
        raise UserError(f"{where}: no such file or folder; {mend}, or remove the data set")
    if path.is_file():
        if path.suffix in (".tar", ".parquet"):
            return path.suffix[1:]
        raise UserError(
            f"{where}: expected a webdataset .tar, a .parquet or a folder, got "
            f"{path.suffix or 'no'} suffix; see docs/evaluation.md"
        )
    names = sorted(entry.name for entry in path.iterdir())
    if any("idx3-ubyte" in name for name in names):
        return "idx"
    for ending in ("tar", "parquet"):
        if any(name.endswith(f".{ending}") for name in names):
            return ending
    folders = split_folders(path)
    if not folders:
        raise UserError(
            f"{where}: holds neither split folders (train, test) nor .tar, .parquet or idx files; "
            "see docs/evaluation.md"
        )
    tars = [split for split, folder in folders.items() if any(folder.glob("*.tar"))]
    if tars and len(tars) < len(folders):
        raise UserError(f"{where}: some split folders hold tars and some do not; give one kind")
    return "split_tars" if tars else "folders"


def check(dataset: Dataset) -> None:
    """Raise :class:`UserError` as :func:`kind`, or if a task asks for what the kind cannot hold."""
    found = kind(dataset)
    if IMAGE_TEXT in dataset.tasks and found in ("digits", "idx", "folders"):
        raise UserError(
            f"evaluate.datasets: {dataset.name}: {dataset.path}: no place for captions, which "
            f"{IMAGE_TEXT} needs; pack it as a tar or a parquet, or take the task out"
        )


def files(path: str | os.PathLike[str], ending: str) -> list[Path]:
    """Return the file itself, or a folder's files of this ending in the order of their names."""
    target = Path(path)
    return [target] if target.is_file() else sorted(target.glob(f"*.{ending}"))


def identity(dataset: Dataset) -> str:
    """Return a hash of a data set's files, cheap for any size; copies have the same.

    A file counts with its size and its first and last MiB. Of a folder count all names and sizes,
    and so much of at most 200 files, evenly spread over it: a picture changed in a larger folder
    to another of just as many bytes may stay unseen. Pictures that a parquet names by their paths
    are not looked at; the parquet is. Raises :class:`UserError` as :func:`kind`.
    """
    if kind(dataset) == "digits":
        return DIGITS
    path = Path(dataset.path)
    if path.is_file():
        return file_identity(str(path))
    entries = []
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        entries += [Path(folder, name) for name in sorted(names)]
    # Names that are no UTF-8 have none of their own in JSON.
    names = [os.fsencode(entry.relative_to(path)).decode(errors="backslashreplace") for entry in
             entries]  # fmt: skip
    sizes = [[name, entry.stat().st_size] for name, entry in zip(names, entries, strict=True)]
    step = max(1, -(-len(entries) // _LOOKED_INTO))
    return sha256_json([sizes, [file_identity(str(entry)) for entry in entries[::step]]])[:16]
