"""Folders of images of any size: which files count, in one order on every machine."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mlcd.data.containers import ENDINGS
from mlcd.data.members import IMAGES, TEXTS, ending_of, is_hidden
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Questions to a disk at a time: on a network disk each is a wait.
_WIDTH = 16
#: Files that a thread asks about in turn; a folder may have millions.
_SLICE = 256
_WANTED = IMAGES | ENDINGS
_TEXTS = sorted(TEXTS)
LINKS = "links to folders (prepare.links)"


@dataclass(frozen=True)
class File:
    """A file that holds images: `path` as bytes, below the root; `size` in bytes.

    `kind` is image, tar, zip or parquet. `texts`: endings of files of the same name beside an
    image, as "json,txt", and `text_size` their bytes. `reason`: why it is not to be read, or "".
    """

    path: bytes
    kind: str
    size: int
    mtime_ns: int
    texts: str = ""
    text_size: int = 0
    reason: str = ""


def _kind(name: str) -> str:
    ending = ending_of(name)
    return ending if ending in ENDINGS else "image"


@dataclass
class Walk:
    """Lists `places`, folders and files, below `root` (absolute).

    Links to files count where they lead to a file below the root, with `follow` wherever; others
    are listed with a reason. Links to folders are left out, with `follow` they are folders. Hidden
    files, files of other endings and the folder `without` are left out. After the walk `folders`
    tells each folder's path and time of change in ns, and `left_out` what was left out, counted.
    """

    root: str
    places: Sequence[str]
    follow: bool
    without: str = ""
    folders: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[File]:
        self._real = os.path.realpath(self.root)
        self._seen: set[str] = set()
        with ThreadPoolExecutor(_WIDTH) as pool:
            for place in self.places:
                if Path(place).is_dir():
                    yield from self._folder(place, pool)
                else:
                    yield self._named(place)
        if self.left_out:
            parts = ", ".join(f"{count} {what}" for what, count in self.left_out.most_common())
            LOGGER.warning("%s: left out: %s", self.root, parts)

    def _folder(self, top: str, pool: ThreadPoolExecutor) -> Iterator[File]:
        """Iterate over files of a folder, then of each folder in it, by the bytes of names."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder) if self.follow else folder
            if real in self._seen:  # links may lead in a ring
                continue
            self._seen.add(real)
            try:
                self.folders[folder] = Path(folder).stat().st_mtime_ns
                with os.scandir(folder) as entries:
                    found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                raise UserError(
                    f"{folder!r}: cannot be listed ({error.strerror}); make it readable, or name "
                    "other folders under metadata"
                ) from None
            folders, files, texts = self._sorted(found)
            below = os.path.relpath(folder, self.root)
            look = functools.partial(self._files, "" if below == "." else f"{below}/", texts)
            slices = [files[start : start + _SLICE] for start in range(0, len(files), _SLICE)]
            # Some at a time: a slice takes its thread much longer than its place in a list.
            for start in range(0, len(slices), 2 * _WIDTH):
                for found_files in pool.map(look, slices[start : start + 2 * _WIDTH]):
                    yield from found_files
            waiting += reversed(folders)

    def _sorted(
        self, entries: list[os.DirEntry[str]]
    ) -> tuple[list[str], list[os.DirEntry[str]], dict[str, os.DirEntry[str]]]:
        """Return folders, files with images, and name → file of a text."""
        folders, files, texts = [], [], {}
        for entry in entries:
            if is_hidden(entry.name):
                self.left_out["hidden files and folders"] += 1
            elif entry.is_dir(follow_symlinks=False):
                if entry.path != self.without:
                    folders.append(entry.path)
            elif entry.is_symlink() and _leads_to_a_folder(entry):
                if self.follow:
                    folders.append(entry.path)
                else:
                    self.left_out[LINKS] += 1
            elif ending_of(entry.name) in _WANTED:
                if entry.is_symlink() or entry.is_file():
                    files.append(entry)
                else:
                    self.left_out["pipes, devices and the like"] += 1
            elif ending_of(entry.name) in TEXTS:
                texts[entry.name] = entry
            else:
                self.left_out["files of other endings"] += 1
        return folders, files, texts

    def _files(
        self,
        below: str,
        texts: dict[str, os.DirEntry[str]],
        entries: list[os.DirEntry[str]],
    ) -> list[File]:
        """Return some files of the folder `below` the root (ending in /, or '')."""
        found = []
        for entry in entries:
            kind = _kind(entry.name)
            size, changed, reason = self._look(entry.path, self.follow)
            beside = {}
            if texts and kind == "image":
                stem = entry.name.rpartition(".")[0]
                for other in _TEXTS:
                    if (text := texts.get(f"{stem}.{other}")) is not None:
                        length, _, problem = self._look(text.path, self.follow)
                        if not problem:
                            beside[other] = length
            path = os.fsencode(below + entry.name)
            total = sum(beside.values())
            found.append(File(path, kind, size, changed, ",".join(beside), total, reason))
        return found

    def _named(self, place: str) -> File:
        """Return a file that is named itself: if it is a link, that is meant."""
        path = os.fsencode(os.path.relpath(place, self.root))
        size, changed, reason = self._look(place, follow=True)
        return File(path, _kind(place), size, changed, reason=reason)

    def _look(self, path: str, follow: bool) -> tuple[int, int, str]:
        """Return size and time of change of a file, and why it is not to be read, or ''."""
        try:
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                real = os.path.realpath(path)
                if not follow and not real.startswith(self._real.rstrip("/") + "/"):
                    return 0, 0, "link_outside"
                about = Path(path).stat()
        except OSError:
            return 0, 0, "missing"
        if not stat.S_ISREG(about.st_mode):
            return 0, 0, "unreadable"
        return about.st_size, about.st_mtime_ns, ""


def _leads_to_a_folder(link: os.DirEntry[str]) -> bool:
    """Return whether a link leads to a folder; False for a ring of links, or one without access."""
    try:
        return link.is_dir()
    except OSError:
        return False
