"""The store of downloaded pictures: `images/{chunk}/` with tars, a table of rows and a manifest.

The manifest is written last: it names every tar with its SHA-256, so a chunk with a manifest is
whole. Rows, keys, tars and their order are a function of the chunk and of which rows arrived.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mlcd.errors import UserError
from mlcd.files import read_json
from mlcd.progress import LOGGER

MANIFEST = "manifest.json"
TABLE = "rows.parquet"
FORMAT = 1
#: Endings of pictures in webdataset tars, in lower case: those of :data:`mlcd.images.FORMATS`.
PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
#: Endings of what is known about a picture.
TEXTS = frozenset({"json", "txt"})


def key_of_row(row: int) -> str:
    """Return the key of a row of the chunk, the stem of its members in the tar."""
    return f"{row:09d}"


def tar_name(index: int) -> str:
    """Return the file name of the tar with this index."""
    return f"{index:05d}.tar"


class ImageStore:
    """A downloaded chunk, opened by its folder or manifest. Raises :class:`UserError` if damaged.

    Attributes: `folder`, `manifest` (dict), `chunk` (name), `fingerprint` (hex), `tars` (paths).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = Path(path)
        self.folder = given.parent if given.name == MANIFEST else given
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{self.folder / MANIFEST}: of another version; remove it and rerun download"
            )
        self.chunk: str = self.manifest["chunk"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.tars = [self.folder / tar["name"] for tar in self.manifest["tars"]]
        for path, tar in zip(self.tars, self.manifest["tars"], strict=True):
            if not path.exists() or path.stat().st_size != tar["bytes"]:
                raise UserError(
                    f"{path}: missing or of another size than in {MANIFEST}; "
                    f"remove {self.folder / MANIFEST} and rerun download"
                )

    def table(self) -> pd.DataFrame:
        """Return all rows of the chunk, arrived or not; columns as in docs/formats.md."""
        return pd.read_parquet(self.folder / TABLE)

    def captions(self, keys: list[str]) -> dict[str, str]:
        """Return key → caption of these rows; the table is filtered as it is read."""
        frame = pd.read_parquet(
            self.folder / TABLE, columns=["key", "caption"], filters=[("key", "in", keys)]
        )
        return dict(zip(frame["key"], frame["caption"], strict=True))

    def read(self, tar: int, offset: int, size: int) -> bytes:
        """Return one member's bytes from tar number `tar`."""
        return read_at(self.tars[tar], offset, size)


def read_at(path: str | os.PathLike[str], offset: int, size: int) -> bytes:
    """Return `size` bytes at `offset` of a file. Raises :class:`UserError` if it is shorter."""
    with Path(path).open("rb") as handle:
        data = os.pread(handle.fileno(), size, offset)
    if len(data) != size:
        raise UserError(f"{path}: shorter than its manifest says; rerun download for this chunk")
    return data


def member_name(name: str) -> tuple[str, str]:
    """Return a member's stem, which is the picture's key, and its ending in lower case, or ''."""
    stem, dot, ending = name.rpartition(".")
    return (stem, ending.lower()) if dot else (name, "")


def report_ignored(path: str | os.PathLike[str], endings: Counter[str]) -> None:
    """Log how many members of a tar were neither pictures nor texts, by ending."""
    if endings:
        # Quoted and few: names in a tar are a stranger's.
        table = ", ".join(f"{ending!r} {count}" for ending, count in endings.most_common(5))
        known = ", ".join(sorted(PICTURES))
        LOGGER.warning(
            "%s: %d members ignored for their ending (%s); pictures end in %s",
            path, endings.total(), table, known,
        )  # fmt: skip


def labelled_members(
    path: str | os.PathLike[str], known: str = "json"
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Iterate over a webdataset tar of KEY.jpg (or another of :data:`PICTURES`) beside KEY.json.

    Yields key, the picture's bytes, and the JSON's fields; with `known` "cls", {"cls": the text of
    KEY.cls}. Members of other endings and JSON without a picture are counted and logged.

    Raises :class:`UserError` with the tar's name if it is damaged, a picture has no JSON, or two
    have the same key.
    """
    import tarfile

    pictures: dict[str, bytes] = {}
    fields: dict[str, dict[str, Any]] = {}
    ignored: Counter[str] = Counter()
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, ending = member_name(member.name)
                if ending == known:
                    text = tar.extractfile(member).read()  # type: ignore[union-attr]
                    fields[stem] = (
                        json.loads(text) if known == "json" else {known: text.decode().strip()}
                    )
                elif ending in PICTURES:
                    if stem in pictures:
                        raise UserError(f"{path}: two pictures are called {stem}; rename one")
                    pictures[stem] = tar.extractfile(member).read()  # type: ignore[union-attr]
                elif ending not in TEXTS:
                    ignored[ending] += 1
                if stem in pictures and stem in fields:
                    yield stem, pictures.pop(stem), fields.pop(stem)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: not a whole webdataset tar ({error})") from None
    if pictures:
        raise UserError(f"{path}: picture {next(iter(pictures))} has no .{known} beside it")
    report_ignored(path, ignored)
    if fields:
        LOGGER.warning(
            "%s: %d .%s without a picture, %r first", path, len(fields), known, min(fields)
        )
