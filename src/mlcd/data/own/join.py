"""Which own row is an image's: by a key, or by order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlcd.data.image_store import ImageStore
from mlcd.data.local_table import LocalTable, is_local
from mlcd.data.own.options import Join
from mlcd.data.own.rows import OwnRows
from mlcd.utils.errors import UserError

#: Columns of rows.parquet that a join needs.
COLUMNS = ("row", "url")
#: The last way in which an image may be called: unique in one set of tars only.
_TAR_KEY = "tar key"
#: The first: its URL, or its place below its folder of `metadata`.
_PLACE = "url"


def joined(how: Join, own: OwnRows, store: ImageStore, images: pd.DataFrame) -> np.ndarray:
    """Return the own row, int64 [n], of each of `images`, −1 where none is.

    `images`: row, url and sha256 of images of the chunk `store`. Raises :class:`UserError`.
    """
    if how.key is None:
        return by_order(own, store, images["row"].to_numpy(np.int64), how.span)
    own.check_key(how.key)
    return by_key(own, how.key, images, how.urls, tar_keys=how.tar_keys)


def by_order(own: OwnRows, store: ImageStore, rows: np.ndarray, span: str | None) -> np.ndarray:
    """Return the own row, int64 [n], of the images at `rows` (int64 [n]) of the chunk.

    `span` is START:STOP, the own rows of this chunk; None for all. Raises :class:`UserError` if
    they are not as many as the chunk has rows.
    """
    start, stop = span_of(span, "--own-rows") if span else (0, own.rows)
    if stop > own.rows:
        raise UserError(f"--own-rows: {span}: there are {own.rows} rows; give a part of them")
    total = store.manifest["rows"]
    if stop - start != total:
        raise UserError(
            f"{store.folder}: {total} rows, but {stop - start} own rows are for it: prepare has "
            f"left rows of the list out (urls/{store.chunk}.json), or they are of other images; "
            "join them by a key, such as the URL"
        )
    return start + rows


def span_of(text: str, option: str) -> tuple[int, int]:
    """Return START and STOP of the rows that an option names. Raises :class:`UserError`."""
    found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    if found is None or int(found[1]) > int(found[2]):
        raise UserError(f"{option}: expected START:STOP, got {text[:80]!r}")
    return int(found[1]), int(found[2])


def by_key(
    own: OwnRows, key: str, images: pd.DataFrame, urls: str | None, *, tar_keys: bool
) -> np.ndarray:
    """Return the own row, int64 [n], of each of `images` (url, sha256), −1 where none is.

    An image is known by its URL; on disk by its path, below the folder of `metadata`, with that
    folder, or absolute (`urls`, the chunk's table, tells its folder); by its SHA-256; and with
    `tar_keys` by its key in a webdataset tar. The first of these that is found counts. Raises
    :class:`UserError` for a tar's key that two rows, or two images, have, and for a place below a
    folder of which two rows differ: another folder of metadata may have it too.
    """
    return rows_by_key(own, key, images, urls, tar_keys=tar_keys, alone=True)[0]


def rows_by_key(
    own: OwnRows,
    key: str,
    images: pd.DataFrame,
    urls: str | None,
    *,
    tar_keys: bool,
    alone: bool = False,
    twice_at_most: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same, and the last row of those that have the name too, −1 where none has.

    Raises :class:`UserError` as :func:`by_key`; of places only if `alone`. With
    `twice_at_most` also for a name that three rows have.
    """
    local = urls is not None and is_local(urls)
    names, owner, way = _names(images, urls, tar_keys)
    unique = pc.unique(names)
    place = pc.index_in(names, unique).to_numpy(zero_copy_only=False).astype(np.int64)
    row_of = np.full(len(unique), -1, np.int64)
    again = np.full(len(unique), -1, np.int64)
    for first, keys in own.names(key):
        found = pc.index_in(keys, unique)
        hits = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        if not len(hits):
            continue
        at = found.take(pa.array(hits)).to_numpy(zero_copy_only=False).astype(np.int64)
        rows = first + hits
        # The first row of a name counts: numpy keeps the last of several, so they are turned.
        new = row_of[at] < 0
        row_of[at[new][::-1]] = rows[new][::-1]
        more = rows != row_of[at]
        if twice_at_most:
            _refuse_thrice(key, at[more], again, unique)
        again[at[more]] = rows[more]
    ids, others = np.full((2, len(images)), -1, np.int64)
    for name in dict.fromkeys(way):
        mine = np.flatnonzero(np.array([word == name for word in way]))
        part = place[mine[0] * len(images) : (mine[-1] + 1) * len(images)]
        who = owner[mine[0] * len(images) : (mine[-1] + 1) * len(images)]
        fresh = (ids[who] < 0) & (row_of[part] >= 0)
        if name == _TAR_KEY:
            _refuse_doubles(key, part[fresh], who[fresh], row_of, again, unique)
        elif alone and local and name == _PLACE:
            differ = _different(own, part[fresh], row_of, again)
            _refuse_twice(key, differ, row_of, again, unique)
        ids[who[fresh]], others[who[fresh]] = row_of[part[fresh]], again[part[fresh]]
    return ids, others


def _names(
    images: pd.DataFrame, urls: str | None, tar_keys: bool
) -> tuple[pa.Array, np.ndarray, list[str]]:
    """Return all names, whose they are, and per run of names (one per image) the way of naming."""
    texts = images["url"].tolist()
    ways: list[tuple[str, list[str | None]]] = [(_PLACE, texts)]
    if urls is not None and is_local(urls):
        root = LocalTable(urls).root
        ways.append(("path", [f"{root}/{text}" for text in texts]))
        ways.append(("path", [f"{Path(root).name}/{text}" for text in texts]))
    ways.append(("sha256", images["sha256"].tolist()))
    if tar_keys:
        ways.append((_TAR_KEY, [_tar_key(text) for text in texts]))
    arrays = [pa.array([_bytes(name) for name in column], pa.large_binary()) for _, column in ways]
    names = pa.chunked_array(arrays).combine_chunks()
    if isinstance(names, pa.ChunkedArray):
        names = names.chunk(0) if names.num_chunks else pa.array([], pa.large_binary())
    owner = np.tile(np.arange(len(images), dtype=np.int64), len(ways))
    return names, owner, [way for way, _ in ways]


def _bytes(name: str | None) -> bytes:
    # A name that no image has, in the place of none: null would match null.
    return b"\0" if not name else name.encode("utf-8", "surrogateescape")


def _tar_key(place: str) -> str | None:
    """Return the webdataset key of PATH.tar#MEMBER: up to the first dot of the member's name."""
    archive, _, member = place.rpartition("#")
    if not archive.lower().endswith(".tar"):
        return None
    folder, slash, name = member.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _different(own: OwnRows, part: np.ndarray, row_of: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Return those of `part` whose two own rows say different things; copies may have one each."""
    twice = part[again[part] >= 0]
    first, other = own.take(row_of[twice]), own.take(again[twice])
    found: np.ndarray = twice[(first != other).any(1)]
    return found


def _refuse_thrice(key: str, at: np.ndarray, again: np.ndarray, unique: pa.Array) -> None:
    """Raise :class:`UserError` if further rows (`at`: their names) are not the only ones."""
    counts = np.bincount(at, minlength=len(unique)) + (again >= 0)
    if len(at) and (over := np.flatnonzero(counts[at] > 1)).size:
        name = unique[int(at[over[0]])].as_py().decode("utf-8", "replace")
        raise UserError(f"{key}: more than two rows are called {name!r}; give one row per image")


def _refuse_twice(
    key: str, part: np.ndarray, row_of: np.ndarray, again: np.ndarray, unique: pa.Array
) -> None:
    """Raise :class:`UserError` if an image's name is that of two own rows."""
    doubled = np.flatnonzero(again[part] >= 0)
    if len(doubled):
        at = part[doubled[0]]
        raise UserError(
            f"{key}: rows {row_of[at]} and {again[at]} of own files are both called "
            f"{unique[at].as_py().decode('utf-8', 'replace')!r}; use a key that each has alone, "
            "such as the whole path or the SHA-256"
        )


def _refuse_doubles(
    key: str,
    part: np.ndarray,
    who: np.ndarray,
    row_of: np.ndarray,
    again: np.ndarray,
    unique: pa.Array,
) -> None:
    """Raise :class:`UserError` if a tar's key is that of two own rows, or of two images."""
    _refuse_twice(key, part, row_of, again, unique)
    counts = np.bincount(part) if len(part) else np.zeros(0, np.int64)
    if (counts > 1).any():
        name = unique[int(np.argmax(counts > 1))].as_py().decode("utf-8", "replace")
        raise UserError(
            f"{key}: two images of the chunk are called {name!r} in their tars; use a key that "
            "each has alone, such as the URL or the SHA-256"
        )
