"""Where the pictures are: a chunk of stage download, or any folder of webdataset tars."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mlcd.errors import UserError
from mlcd.files import sha256_file, sha256_json
from mlcd.stores.images import (
    MANIFEST,
    PICTURES,
    TABLE,
    TEXTS,
    ImageStore,
    member_name,
    report_ignored,
)


@dataclass(frozen=True)
class Members:
    """The pictures of one tar, in order.

    `key` bytes [n], `offset` and `size` int64 [n] (of the picture's bytes in the tar), `caption`
    list of n strings, or empty where captions are not wanted.
    """

    key: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    caption: list[str]

    def __len__(self) -> int:
        return len(self.key)


class Source(Protocol):
    """Pictures in tars: `chunk` (name), `fingerprint` (of the content), `tars` (paths).

    `total` is the number of pictures, None where only reading all tars would tell.
    """

    chunk: str
    fingerprint: str
    tars: list[Path]
    total: int | None

    def members(self, tar: int) -> Members:
        """Return the pictures of tar number `tar`."""


class ChunkSource:
    """A chunk of stage download."""

    def __init__(self, path: str | os.PathLike[str], *, captions: bool) -> None:
        import pyarrow.parquet

        store = ImageStore(path)
        self.chunk = store.chunk
        self.fingerprint = store.fingerprint
        self.tars = store.tars
        columns = ["key", "status", "tar", "offset", "size", *(["caption"] if captions else [])]
        try:
            table = pyarrow.parquet.read_table(store.folder / TABLE, columns=columns).to_pandas()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{store.folder / TABLE}: not readable ({reason}); rerun download for this chunk"
            ) from None
        self._table = table[table["status"] == "success"]
        self.total: int | None = len(self._table)
        self._captions = captions

    def members(self, tar: int) -> Members:
        """Return the pictures of tar number `tar`, in the order of rows."""
        rows = self._table[self._table["tar"] == tar]
        return Members(
            key=rows["key"].to_numpy().astype("S9"),
            offset=rows["offset"].to_numpy(np.int64),
            size=rows["size"].to_numpy(np.int64),
            caption=rows["caption"].fillna("").tolist() if self._captions else [],
        )


class TarSource:
    """A folder of webdataset tars without our manifest, as img2dataset writes them.

    Tars are taken in the order of names and pictures in the order of the tar; the key is the
    member's name without its extension. Captions come from KEY.txt, else from KEY.json's `caption`.
    """

    def __init__(self, folder: Path, *, captions: bool) -> None:
        self.chunk = folder.resolve().name
        self.tars = sorted(folder.glob("*.tar"))
        if not self.tars:
            raise UserError(
                f"{folder}: neither a {MANIFEST} of stage download nor a .tar in it; loose "
                "pictures can be packed with tar --format=ustar -cf 00000.tar *.jpg"
            )
        self.fingerprint = sha256_json([[path.name, sha256_file(path)] for path in self.tars])
        self.total: int | None = None
        self._captions = captions

    def members(self, tar: int) -> Members:
        """Return the pictures of tar number `tar`. Raises :class:`UserError` if it is damaged."""
        path = self.tars[tar]
        places: dict[str, tuple[int, int]] = {}
        texts: dict[str, str] = {}
        ignored: Counter[str] = Counter()
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    stem, ending = member_name(member.name)
                    if ending in PICTURES:
                        if stem in places:
                            raise UserError(f"{path}: two pictures are called {stem}; rename one")
                        places[stem] = (member.offset_data, member.size)
                    elif ending not in TEXTS:
                        ignored[ending] += 1
                    elif self._captions:
                        data = archive.extractfile(member).read()  # type: ignore[union-attr]
                        _add_text(texts, stem, ending, data.decode("utf-8", "replace"))
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{path}: not a whole tar ({error}); fetch it again") from None
        if places and sum(max(places.values())) > path.stat().st_size:
            raise UserError(f"{path}: not a whole tar (cut off at its end); fetch it again")
        report_ignored(path, ignored)
        keys = [stem.encode() for stem in places]
        return Members(
            key=np.array(keys, dtype=f"S{max(9, *map(len, keys))}" if keys else "S9"),
            offset=np.array([offset for offset, _ in places.values()], np.int64),
            size=np.array([size for _, size in places.values()], np.int64),
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
    """Keep a picture's caption; a .txt beside it wins over its .json."""
    if ending == "txt":
        texts[stem] = text.strip()
        return
    try:
        caption = json.loads(text).get("caption")
    except (ValueError, AttributeError):
        return
    if isinstance(caption, str):
        texts.setdefault(stem, caption.strip())
