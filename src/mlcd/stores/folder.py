"""Loose pictures in folders: listed in one order on every machine, a folder at a time in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcd.errors import UserError
from mlcd.progress import LOGGER
from mlcd.stores.images import PICTURES, member_name


@dataclass(frozen=True)
class Loose:
    """A picture's file: `path`; `key`, its path below the root as bytes; `size` in bytes."""

    path: str
    key: bytes
    size: int


def pictures(places: Sequence[str | os.PathLike[str]]) -> Iterator[Loose]:
    """Iterate over pictures: files named in `places`, and those in folders named, at any depth.

    Keys are relative to the one folder named, else to the folder that all places share. In folders
    a file counts by its ending, links to folders are not followed, and what cannot be listed is
    logged. Raises :class:`UserError` if a place does not exist.
    """
    given = sorted({_absolute(Path(place)) for place in places})
    folders = [place for place in given if place.is_dir()]
    # What lies in a folder named as well is found there.
    given = [place for place in given if not any(folder in place.parents for folder in folders)]
    tops = [place if place.is_dir() else place.parent for place in given]
    root = os.path.commonpath(tops)
    for place in given:
        for path, size in _walk(place) if place.is_dir() else _single(place):
            yield Loose(path, os.fsencode(os.path.relpath(path, root)), size)


def _absolute(place: Path) -> Path:
    """Return a folder's real path; a file that is a link keeps its own name."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    return place.resolve() if place.is_dir() else place.parent.resolve() / place.name


def _single(path: Path) -> Iterator[tuple[str, int]]:
    if not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder; name pictures or folders")
    yield str(path), path.stat().st_size


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Iterate over (path, size), entries of each folder by the bytes of their names."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        LOGGER.warning("%r: cannot be listed (%s)", str(folder), error.strerror)
        return
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            elif member_name(entry.name)[1] in PICTURES and entry.is_file():
                yield entry.path, entry.stat().st_size
        except OSError as error:  # a link into nothing, or gone meanwhile
            LOGGER.warning("%r: cannot be read (%s)", entry.path, error.strerror)
