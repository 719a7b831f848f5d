"""Rows of several files, one after another, and which of them are a chunk's."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlcd.config.files import quoted
from mlcd.data.own.arrays import ENDINGS, opened
from mlcd.data.own.base import Array, What
from mlcd.data.own.npy import beside
from mlcd.data.url_lists import Chunk
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.fingerprint import file_identity


class Share(NamedTuple):
    """What a chunk needs of own rows: `files`, and rows `start` … `stop` − 1 of theirs.

    By a key the rows are not known before: then all files are there, `keys` are the parquets
    beside them, and `stop` is 0.
    """

    files: tuple[str, ...]
    keys: tuple[str, ...]
    start: int
    stop: int


class OwnRows:
    """Rows of `files` numbered 0 … `rows` − 1, each of `width` numbers. Raises UserError."""

    def __init__(self, files: Sequence[str], what: What) -> None:
        # Opening is waiting where the files lie on a network disk, so several are opened at a time.
        with ThreadPoolExecutor(max_workers=16) as pool:
            self.files: list[Array] = list(pool.map(lambda path: opened(path, what), files))
        self.starts = np.cumsum([0, *(file.rows for file in self.files)])
        self.rows = int(self.starts[-1])
        # A part without rows may not tell how wide they were.
        some = [file for file in self.files if file.rows] or self.files
        self.width = some[0].width
        for file in some:
            if file.width != self.width:
                raise UserError(
                    f"{file.path}: rows of {file.width} numbers, but {some[0].path} has "
                    f"{self.width}; give files of one kind"
                )

    def check_key(self, key: str) -> None:
        """Raise :class:`UserError` if a file has no such key for each row."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            list(pool.map(lambda file: file.check_key(key), self.files))

    def names(self, key: str) -> Iterator[tuple[int, Any]]:
        """Iterate over first row and keys (a pyarrow array of binaries), in order."""
        for file, start in zip(self.files, self.starts, strict=False):
            first = int(start)
            for names in file.names(key):
                yield first, names
                first += len(names)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows `ids` (int64 [m], any order), [m, width], read in the order of files."""
        order = np.argsort(ids, kind="stable")
        wanted = ids[order]
        found: np.ndarray | None = None
        for index, file in enumerate(self.files):
            first, last = np.searchsorted(wanted, self.starts[index : index + 2])
            if first < last:
                rows = file.take(wanted[first:last] - self.starts[index])
                if found is None:
                    found = np.empty((len(ids), self.width), rows.dtype)
                if found.dtype != rows.dtype:
                    found = found.astype(np.result_type(found, rows))
                found[order[first:last]] = rows
        return np.zeros((0, self.width), np.float32) if found is None else found


def expand(entries: Sequence[str], config_key: str, key: str | None) -> list[str]:
    """Return the files that `entries` name: files, patterns and folders, numbers in their order.

    A folder stands for its arrays, or for those in its img_emb, as clip-retrieval writes them.
    Raises :class:`UserError`, which begins with the key of the config.
    """
    found: list[str] = []
    for entry in entries:
        try:
            paths = _named(entry, config_key, key)
        except (OSError, ValueError):  # a name that is too long, or holds a zero byte
            paths = []
        if not paths:
            raise UserError(
                f"{config_key}: {quoted(entry)}: no such files; give some ending in "
                f"{', '.join(ENDINGS)}"
            )
        found += sorted(paths, key=_natural)
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise UserError(f"{config_key}: {twice} is named twice; name it once")
    return found


def _named(entry: str, config_key: str, key: str | None) -> list[str]:
    if Path(entry).is_dir():
        return _in_folder(Path(entry), config_key, key)
    # A folder may be called "emb [v2]".
    is_pattern = glob.has_magic(entry) and not Path(entry).exists()
    paths = glob.glob(entry) if is_pattern else [entry]  # noqa: PTH207
    return [path for path in paths if Path(path).suffix.lower() in ENDINGS and Path(path).is_file()]


def _in_folder(folder: Path, config_key: str, key: str | None) -> list[str]:
    inner = folder / "img_emb"
    entries = (inner if inner.is_dir() else folder).iterdir()
    names = sorted((str(p) for p in entries if not p.name.startswith(".")), key=_natural)
    for ending in ENDINGS:
        paths = [name for name in names if name.lower().endswith(ending)]
        if not paths:
            continue
        metadata = beside(Path(paths[0])) if ending == ENDINGS[0] else None
        if key is None and metadata is not None and metadata.is_file():
            from mlcd.data.url_lists import open_parquet

            columns = ", ".join(open_parquet(metadata).schema_arrow.names[:30])
            raise UserError(
                f"{config_key.rpartition('.')[0]}.key: {folder} says in {metadata} what its rows "
                f"are of; set it to one of its columns ({columns}), or name the files "
                f"({Path(paths[0]).parent}/*.npy) to join them by order"
            )
        return paths
    return []


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort img_emb_10 after img_emb_9."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def shares(
    entries: Sequence[str],
    what: What,
    key: str | None,
    chunks: Mapping[str, Chunk],
    config_key: str,
) -> dict[str, Share]:
    """Return chunk → :class:`Share`. Raises :class:`UserError` if rows and images do not fit."""
    files = expand(entries, config_key, key)
    own = OwnRows(files, what)
    if key is not None:
        own.check_key(key)
        names = [str(beside(file.path)) for file in own.files if file.path.suffix == ".npy"]
        return dict.fromkeys(chunks, Share(tuple(files), tuple(names), 0, 0))
    _require_an_order(entries, config_key, chunks)
    total = sum(chunk.rows for chunk in chunks.values())
    if own.rows != total:
        raise UserError(
            f"{config_key}: {own.rows} rows in {len(files)} files ({files[0]} …), but metadata has "
            f"{total}; by order each row of metadata needs one; give all of them, or set "
            f"{config_key.rpartition('.')[0]}.key"
        )
    found, at = {}, 0
    for name, chunk in chunks.items():
        first = int(np.searchsorted(own.starts, at, "right")) - 1
        last = int(np.searchsorted(own.starts, at + chunk.rows, "left"))
        start = at - int(own.starts[first])
        found[name] = Share(tuple(files[first:last]), (), start, start + chunk.rows)
        at += chunk.rows
    return found


def _require_an_order(entries: Sequence[str], config_key: str, chunks: Mapping[str, Chunk]) -> None:
    """Raise :class:`UserError` where rows might be joined by order in another one than was meant.

    Lists of a pattern come by the bytes of their names (p10 before p2), files of one by numbers.
    """
    key = f"{config_key.rpartition('.')[0]}.key"
    local = {bool(chunk.identity) for chunk in chunks.values()}
    if len(local) > 1:
        raise UserError(
            f"{config_key}: metadata has URL lists and images on disk, and there is no order of "
            f"both; set {key}"
        )
    lists = list(dict.fromkeys(chunk.list for chunk in chunks.values()))
    if local == {True} or lists == sorted(lists, key=_natural):
        return
    for entry in entries:
        if len(_named(entry, config_key, None)) > 1:
            raise UserError(
                f"{config_key}: {quoted(entry)}: its files come in the order of the numbers in "
                f"their names, and the lists of metadata in another ({lists[0]} before {lists[1]} "
                f"…); name the files one by one in the order of metadata, or set {key}"
            )


def files_of(parts: Iterable[Share]) -> list[str]:
    """Return all files of some shares, each once."""
    return sorted({path for share in parts for path in (*share.files, *share.keys)})


@functools.cache
def identity(share: Share, what: What) -> str:
    """Return a hash of the content of a chunk's own rows; of a large .npy only they count."""
    if not share.stop:
        return sha256_json([*map(file_identity, (*share.files, *share.keys))])[:16]
    own = OwnRows(share.files, what)
    parts = [
        file.identity(max(0, share.start - begin), min(share.stop - begin, file.rows))
        for file, begin in zip(own.files, own.starts.tolist(), strict=False)
    ]
    return sha256_json(parts)[:16]


def identities(files: Sequence[str], what: What) -> list[str]:
    """Return a cheap hash of the content of each file."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(lambda path: opened(path, what).identity(), files))
