"""Loose images in folders: listed in one order on every machine, a folder at a time in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcd.data.members import IMAGES, ending_of, is_hidden
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER


@dataclass(frozen=True)
class Loose:
    """An image's file: `path`; `key`, its path below the root as bytes; `size` in bytes."""

    path: str
    key: bytes
    size: int


def images(places: Sequence[str | os.PathLike[str]], *, report: bool = False) -> Iterator[Loose]:
    """Iterate over images: files named in `places`, and those in folders named, at any depth.

    Keys are relative to the one folder named, else to the folder that all places share. In folders
    a file counts by its ending, links to folders are not followed, and what cannot be listed is
    logged. Hidden files and folders in them (`._a.jpg`, `.thumbnails`, `__MACOSX`) are left out,
    with `report` counted in the log. Raises :class:`UserError` if a place does not exist.
    """
    given = sorted({_absolute(Path(place)) for place in places})
    folders = [place for place in given if place.is_dir()]
    # What lies in a folder named as well is found there.
    given = [place for place in given if not any(folder in place.parents for folder in folders)]
    tops = [place if place.is_dir() else place.parent for place in given]
    root = os.path.commonpath(tops)
    hidden: list[str] = []
    for place in given:
        for path, size in _walk(place, hidden) if place.is_dir() else _single(place):
            yield Loose(path, os.fsencode(os.path.relpath(path, root)), size)
    if hidden and report:
        LOGGER.warning(
            "%d hidden folders and images left out, %r first; name one to have it all the same",
            len(hidden), hidden[0],
        )  # fmt: skip


def _absolute(place: Path) -> Path:
    """Return a folder's real path; a file that is a link keeps its own name."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    return place.resolve() if place.is_dir() else place.parent.resolve() / place.name


def _single(path: Path) -> Iterator[tuple[str, int]]:
    if not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder; name images or folders")
    yield str(path), path.stat().st_size


def _walk(folder: Path, hidden: list[str]) -> Iterator[tuple[str, int]]:
    """Iterate over (path, size), entries of each folder by the bytes of their names."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        LOGGER.warning("%r: cannot be listed (%s)", str(folder), error.strerror)
        return
    for entry in found:
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and not (ending_of(entry.name) in IMAGES and entry.is_file()):
                continue
            if is_hidden(entry.name):
                hidden.append(entry.path)
            elif is_folder:
                yield from _walk(Path(entry.path), hidden)
            else:
                yield entry.path, entry.stat().st_size
        except OSError as error:  # a link into nothing, or gone meanwhile
            LOGGER.warning("%r: cannot be read (%s)", entry.path, error.strerror)
