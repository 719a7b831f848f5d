"""Where the images are: a chunk of stage download, or any folder of webdataset tars."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mlcd.data.image_store import MANIFEST, ImageStore
from mlcd.data.members import TarNames, is_hidden
from mlcd.data.tars import content, digest_of
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file, sha256_json


@dataclass(frozen=True)
class Members:
    """The images of one tar, in order.

    `key` bytes [n], `offset` and `size` int64 [n] (of the image's bytes in the tar), `digest`
    uint64 [n] (of these bytes, :func:`mlcd.data.tars.digest_of`), `caption` list of n strings, or
    empty where captions are not wanted.
    """

    key: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    digest: np.ndarray
    caption: list[str]

    def __len__(self) -> int:
        return len(self.key)


class Source(Protocol):
    """Images in tars: `chunk` (name), `fingerprint` (of the content), `tars` (paths).

    `total` is the number of images, None where only reading all tars would tell.
    """

    chunk: str
    fingerprint: str
    tars: list[Path]
    total: int | None

    def members(self, tar: int) -> Members:
        """Return the images of tar number `tar`."""


class ChunkSource:
    """A chunk of stage download."""

    def __init__(self, path: str | os.PathLike[str], *, captions: bool) -> None:
        store = ImageStore(path)
        self.chunk = store.chunk
        self.fingerprint = store.fingerprint
        self.tars = store.tars
        self._table = store.arrived(["caption"] if captions else [])
        self.total: int | None = len(self._table)
        self._captions = captions

    def members(self, tar: int) -> Members:
        """Return the images of tar number `tar`, in the order of rows."""
        rows = self._table[self._table["tar"] == tar]
        return Members(
            key=rows["key"].to_numpy().astype("S9"),
            offset=rows["offset"].to_numpy(np.int64),
            size=rows["size"].to_numpy(np.int64),
            # The digest is the beginning of the SHA-256.
            digest=np.array([int(word[:16], 16) for word in rows["sha256"]], np.uint64),
            caption=rows["caption"].fillna("").tolist() if self._captions else [],
        )


class TarSource:
    """A folder of webdataset tars without our manifest, as img2dataset writes them.

    Tars are taken in the order of names and images in the order of the tar; which members are
    images, and their keys, says :class:`mlcd.data.members.TarNames`. Captions come from KEY.txt,
    else from KEY.json's `caption`.
    """

    def __init__(self, folder: Path, *, captions: bool) -> None:
        self.chunk = folder.resolve().name
        self.tars = sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name))
        if not self.tars:
            raise UserError(
                f"{folder}: neither a {MANIFEST} of stage download nor a .tar in it; loose "
                "images can be packed with tar --format=ustar -cf 00000.tar *.jpg"
            )
        self.fingerprint = sha256_json([[path.name, sha256_file(path)] for path in self.tars])
        self.total: int | None = None
        self._captions = captions

    def members(self, tar: int) -> Members:
        """Return the images of tar number `tar`. Raises :class:`UserError` if it is damaged."""
        path = self.tars[tar]
        places: dict[str, tuple[int, int, int]] = {}
        texts: dict[str, str] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                found = [member for member in archive if member.isfile()]
                names = TarNames(path, (member.name for member in found))
                for member in found:
                    if (key := names.images.get(member.name)) is not None:
                        digest = digest_of(content(archive, member))
                        places[key] = (member.offset_data, member.size, digest)
                    elif self._captions and (said := names.text(member.name)) is not None:
                        data = content(archive, member)
                        _add_text(texts, *said, data.decode("utf-8", "replace"))
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path}: not a whole tar ({error}); fetch it again") from None
        if places and sum(max(places.values())[:2]) > path.stat().st_size:
            raise UserError(f"{path}: not a whole tar (cut off at its end); fetch it again")
        names.report()
        keys = [stem.encode() for stem in places]
        return Members(
            key=np.array(keys, dtype=f"S{max(9, *map(len, keys))}" if keys else "S9"),
            offset=np.array([offset for offset, _, _ in places.values()], np.int64),
            size=np.array([size for _, size, _ in places.values()], np.int64),
            digest=np.array([digest for _, _, digest in places.values()], np.uint64),
            caption=[texts.get(stem, "") for stem in places] if self._captions else [],
        )


def open_source(path: str | os.PathLike[str], *, captions: bool) -> Source:
    """Open a chunk by folder or manifest, or a folder of tars. Raises :class:`UserError`."""
    given = Path(path)
    if given.name == MANIFEST or (given / MANIFEST).exists():
        return ChunkSource(given, captions=captions)
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; run download first, or give a folder of tars")
    return TarSource(given, captions=captions)


def _add_text(texts: dict[str, str], stem: str, ending: str, text: str) -> None:
    """Keep an image's caption; a .txt beside it wins over its .json."""
    if ending == "txt":
        texts[stem] = text.strip()
        return
    try:
        caption = json.loads(text).get("caption")
    except (ValueError, AttributeError, RecursionError):
        return
    if isinstance(caption, str):
        texts.setdefault(stem, caption.strip())
