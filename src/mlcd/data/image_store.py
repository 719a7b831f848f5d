"""The store of downloaded images: `images/{chunk}/` with tars, a table of rows and a manifest.

The manifest is written last: it names every tar with its SHA-256, so a chunk with a manifest is
whole. Rows, keys, tars and their order are a function of the chunk and of which rows arrived.
Images that were on disk already may stay there: an index (:mod:`.pointers`) then stands in a tar's
place, and tells where the bytes of each are.

The manifest carries a checksum of itself and the SHA-256 of the table, and the table that of each
image. So whoever reads an image can tell whether it is the one that was downloaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.data import pointers
from mlcd.data.tars import read_at
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file, sha256_json
from mlcd.utils.records import read_record

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
TABLE = "rows.parquet"
FORMAT = 1


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
        self.manifest = read_manifest(self.folder / MANIFEST)
        self.chunk: str = self.manifest["chunk"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self._path: Path = self.folder / TABLE
        self.tars: list[Path] = [self.folder / tar["name"] for tar in self.manifest["tars"]]
        for file, tar in zip(self.tars, self.manifest["tars"], strict=True):
            if not file.exists() or file.stat().st_size != tar["bytes"]:
                raise UserError(
                    f"{file}: missing or of another size than in {MANIFEST}; "
                    f"remove {self.folder / MANIFEST} and rerun download"
                )

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all rows of the chunk, arrived or not; columns as in docs/reference/formats.md.

        Raises :class:`UserError` if the table is not the one that the manifest names.
        """
        return self._table(columns).to_pandas()

    def arrived(self, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Return key, tar, offset, size, sha256 and `columns` of the images that arrived, in order.

        Raises :class:`UserError` if the table is not the one that the manifest names, if its rows
        are not as many as the manifest counts, in all and in each tar, or if a row names a place
        that no tar has.
        """
        wanted = ["key", "status", "tar", "offset", "size", "sha256", *columns]
        frame = self._table(wanted).to_pandas()
        rows = len(frame)
        frame = frame[frame["status"] == "success"]
        self._check_counts(rows, frame)
        return frame.drop(columns="status")

    def rows_of(self, keys: np.ndarray, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Return what :meth:`arrived` does of the images with these keys, bytes [n], in order.

        Raises :class:`UserError` as it does, and for a key of no image that arrived.
        """
        table = self.arrived(columns)
        names = [key.decode("utf-8", "replace") for key in keys.tolist()]
        place = table.set_index("key").index.get_indexer(names)
        if (missing := np.flatnonzero(place < 0)).size:
            raise UserError(
                f"{self._path}: has no image {names[missing[0]]}; rerun download for this chunk, "
                "and the stages after it"
            )
        return table.iloc[place]

    def captions(self, keys: list[str]) -> dict[str, str]:
        """Return key → caption of these rows. Raises :class:`UserError` for a key without a row."""
        frame = self._table(["key", "caption"], [("key", "in", keys)]).to_pandas()
        found = dict(zip(frame["key"], frame["caption"], strict=True))
        if missing := sorted(set(keys) - set(found)):
            raise UserError(f"{self._path}: has no row {missing[0]}; rerun download for this chunk")
        return found

    def read(self, tar: int, offset: int, size: int, digest: int) -> bytes:
        """Return one image's bytes. Raises :class:`UserError` if they are not those of `digest`."""
        return read_at(self.tars[tar], offset, size, digest)

    def changed(self) -> Path | None:
        """Return the first tar, or the table, whose bytes are not those that were written, or None.

        It reads all of them.
        """
        path: Path
        for path, tar in zip(self.tars, self.manifest["tars"], strict=True):
            if sha256_file(path) != str(tar["sha256"]):
                return path
        return None if self._is_whole else self._path

    @cached_property
    def _is_whole(self) -> bool:
        try:
            return sha256_file(self._path) == str(self.manifest["table"])
        except OSError:
            return False

    def _table(self, columns: Sequence[str] | None, filters: Any = None) -> pa.Table:
        if not self._is_whole:
            raise UserError(
                f"{self._path}: missing, or not the table that {MANIFEST} names (damaged, or "
                f"edited); remove {MANIFEST} beside it and rerun download"
            )
        names = None if columns is None else list(dict.fromkeys(columns))
        return pq.read_table(self._path, columns=names, filters=filters)

    def _check_counts(self, rows: int, arrived: pd.DataFrame) -> None:
        tars = self.manifest["tars"]
        tar = arrived["tar"].to_numpy()
        inside = (tar >= 0) & (tar < len(tars))
        if inside.all() and len(tars):
            ends = np.array([entry["bytes"] for entry in tars], np.int64)[tar]
            offset, size = arrived["offset"].to_numpy(), arrived["size"].to_numpy()
            # Of an index, the line alone lies in it.
            size = np.where(indexed(tars)[tar], np.minimum(size, 1), size)
            inside = (offset >= 0) & (size >= 0) & (offset + size <= ends)
        if not inside.all():
            key = arrived["key"].iloc[int(np.argmin(inside))]
            raise UserError(
                f"{self._path}: row {key} names a place that no tar of the chunk has; "
                "rerun download for this chunk"
            )
        counts = np.bincount(tar, minlength=len(tars))
        for number, entry in enumerate(tars):
            if counts[number] != entry["images"]:
                raise UserError(
                    f"{self._path}: {counts[number]} images of {entry['name']}, and {MANIFEST} "
                    f"counts {entry['images']}; rerun download for this chunk"
                )
        if rows != self.manifest["rows"]:
            raise UserError(
                f"{self._path}: {rows} rows, and {MANIFEST} counts {self.manifest['rows']}; "
                "rerun download for this chunk"
            )


def indexed(tars: list[dict[str, Any]]) -> np.ndarray:
    """Return bool [tars]: which entries of a manifest are indexes."""
    return np.array([pointers.is_index(tar["name"]) for tar in tars], bool)


def index_name(number: int) -> str:
    """Return the file name of the index that stands in the place of this tar."""
    return f"{number:05d}{pointers.ENDING}"


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a manifest. Raises :class:`UserError` if it is missing, damaged or does not add up."""
    manifest = read_record(path, "download")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: of another version; remove it and rerun download")
    if fingerprint(manifest) != manifest["fingerprint"]:
        raise UserError(f"{path}: its fingerprint is of another content; rerun download")
    counts = Counter(manifest["counts"])
    images = sum(tar["images"] for tar in manifest["tars"])
    if counts.total() != manifest["rows"] or counts["success"] != images:
        raise UserError(f"{path}: its counts do not add up to its rows; rerun download")
    return manifest


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return the fingerprint of a manifest's content.

    What was asked for is no part of it: it says when nothing is to be done, and of which rows.
    """
    left_out = ("fingerprint", "request", "urls", "asked")
    return sha256_json({key: manifest[key] for key in manifest if key not in left_out})
