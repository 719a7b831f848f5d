"""Names of images in webdataset tars and in folders: which are images of the set, which are not.

In a webdataset tar a sample's key is the name up to the first dot of its last part, and what
follows is a field: of `a/1.jpg`, `a/1.seg.png` and `a/1.json` the first is the image of sample
`a/1`, the second a mask. Loose images packed by tar may have dots in their names all the same
(`cat.0.jpg`); :class:`TarNames` tells the two apart where it can, and asks where it cannot.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from mlcd.data.tars import content
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Endings of images, in lower case: those of :data:`mlcd.data.decode.FORMATS`.
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
#: Endings of what is known about an image.
TEXTS = frozenset({"json", "txt"})
#: What systems and programs put beside files without a dot before its name: macOS's archives,
#: thumbnails of Windows and of network disks, recycle bins.
_CLUTTER = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
)


def is_hidden(name: str) -> bool:
    """True if a part of a path begins with a dot (`._a.jpg`, `.thumbnails`), or is clutter."""
    return any(
        (part[0] == "." and part not in (".", "..")) or part.lower() in _CLUTTER
        for part in name.split("/")
        if part
    )


def ending_of(name: str) -> str:
    """Return what follows the last dot, in lower case, or ''."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def sample_name(name: str) -> tuple[str, str]:
    """Return webdataset's key and field (in lower case) of a member; no field is ''."""
    base = name.rpartition("/")[2]
    field = base.partition(".")[2]
    return name[: len(name) - len(field) - 1] if "." in base else name, field.lower()


class TarNames:
    """Sorts the names of a tar's members; all of them are given at once.

    Attributes: `images` (dict name → key, in the order of the tar). Raises :class:`UserError`,
    with counts, if samples have several images and nothing says which is the one.
    """

    def __init__(self, path: str | os.PathLike[str], names: Iterable[str], known: str = "") -> None:
        self._path = path
        self._texts = TEXTS | ({known} if known else set())
        names = list(names)
        seen = [name for name in names if not is_hidden(name)]
        self._hidden = len(names) - len(seen)
        fields: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in seen:
            key, field = sample_name(name)
            if ending_of(name) in IMAGES:
                fields[key].append((name, field))
        self._other_fields: Counter[str] = Counter()
        keys: dict[str, str] = {}
        loose: dict[str, list[tuple[str, str]]] = {}
        for key, found in fields.items():
            plain = [name for name, field in found if field in IMAGES]
            if len(plain) > 1 or len({name for name, _ in found}) < len(found):
                self._refuse_twins(fields)
            if plain:
                keys[plain[0]] = key
                self._other_fields.update(field for _, field in found if field not in IMAGES)
            else:
                loose[key] = found
        keys |= self._with_dots(loose)
        self.images = {name: keys[name] for name in seen if name in keys}
        self._keys = set(self.images.values())
        self._ignored = Counter(
            ending_of(name)
            for name in seen
            if ending_of(name) not in IMAGES and self.text(name) is None
        )

    def text(self, name: str) -> tuple[str, str] | None:
        """Return key and ending of a text member, which may have no image; None for others."""
        if is_hidden(name):
            return None
        key, field = sample_name(name)
        if field in self._texts:
            return key, field
        key, ending = name.rpartition(".")[0], ending_of(name)
        return (key, ending) if ending in self._texts and key in self._keys else None

    def report(self) -> None:
        """Log what was left out, with counts."""
        # Quoted and few: names in a tar are a stranger's.
        if self._hidden:
            LOGGER.warning(
                "%s: %d hidden members (.name, __MACOSX) are left out", self._path, self._hidden
            )
        if self._other_fields:
            LOGGER.warning(
                "%s: %d images are left out as further fields of a sample that has its own (%s); "
                "if they are images of their own, pack them without a second dot in their names",
                self._path, self._other_fields.total(), _table(self._other_fields),
            )  # fmt: skip
        if self._ignored:
            LOGGER.warning(
                "%s: %d members ignored for their ending (%s); images end in %s",
                self._path, self._ignored.total(), _table(self._ignored), ", ".join(sorted(IMAGES)),
            )  # fmt: skip

    def _with_dots(self, loose: dict[str, list[tuple[str, str]]]) -> dict[str, str]:
        """Return name → key of images with several dots whose sample has no plain KEY.jpg."""
        kinds = Counter(field for found in loose.values() for _, field in found)
        if all(len(found) == 1 for found in loose.values()):
            return {found[0][0]: key for key, found in loose.items()}
        # Few fields that many samples have are webdataset's; few stems with many numbers, as in
        # cat.0.jpg, cat.1.jpg, are names.
        if len(kinds) <= len(loose):
            raise UserError(
                f"{self._path}: its samples have several images ({_table(kinds)}) and none is "
                "called KEY.jpg or the like: which one is meant? Pack the tar again with that one "
                "as KEY.jpg, or each as a key of its own, without a second dot"
            )
        return {name: name.rpartition(".")[0] for found in loose.values() for name, _ in found}

    def _refuse_twins(self, fields: dict[str, list[tuple[str, str]]]) -> None:
        twins: Counter[str] = Counter()
        first = ""
        for key, found in fields.items():
            plain = [field for _, field in found if field in IMAGES]
            if len(plain) > 1 or len({name for name, _ in found}) < len(found):
                twins[" and ".join(sorted(set(plain or [field for _, field in found])))] += 1
                first = first or key
        raise UserError(
            f"{self._path}: two images are called {first}, so of {twins.total()} keys in all "
            f"({_table(twins)}); rename one, a mask to KEY.seg.png"
        )


def _table(counts: Counter[str]) -> str:
    return ", ".join(f"{name!r} {count}" for name, count in counts.most_common(5))


def labeled_members(
    path: str | os.PathLike[str], known: str = "json"
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Iterate over a webdataset tar of KEY.jpg (or another of :data:`IMAGES`) beside KEY.json.

    Yields key, the image's bytes, and the JSON's fields; with `known` "cls", {"cls": the text of
    KEY.cls}. What is no image of the set (:class:`TarNames`), members of other endings and JSON
    without an image are counted and logged.

    Raises :class:`UserError` with the tar's name if it is damaged, an image has no JSON, two
    have the same key, or it is not clear which of several images belongs to a sample.
    """
    images: dict[str, bytes] = {}
    fields: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.isfile()]
            names = TarNames(path, (member.name for member in members), known)
            for member in members:
                if (key := names.images.get(member.name)) is not None:
                    images[key] = content(tar, member)
                elif (said := names.text(member.name)) is not None and said[1] == known:
                    key, text = said[0], content(tar, member)
                    fields[key] = (
                        json.loads(text) if known == "json" else {known: text.decode().strip()}
                    )
                if key in images and key in fields:
                    yield key, images.pop(key), fields.pop(key)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: not a whole webdataset tar ({error})") from None
    if images:
        raise UserError(f"{path}: image {next(iter(images))} has no .{known} beside it")
    names.report()
    if fields:
        LOGGER.warning(
            "%s: %d .%s without an image, %r first", path, len(fields), known, min(fields)
        )
