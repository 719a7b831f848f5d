"""The kept listing of a source of local images: `results/listings/{name}.parquet`.

It is made once, when the Snakefile is first read, since the number of chunks follows from it. A
row is a file with images: a loose one, a webdataset tar, a zip, or a parquet with a column of
images. All images stand in one line, in the order of files; a chunk is a run of that line.

Later starts look at the times of the folders, and at size and time of tars, zips and parquets, not
at every image; where one of these differs, the source is listed anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlcd.config.prepare import Prepare
from mlcd.data import containers
from mlcd.data.listing_table import LISTING, Row, rows, write
from mlcd.data.url_lists import chunk_count, open_parquet
from mlcd.data.walk import LINKS, File, Walk
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, sha256_file, write_json
from mlcd.utils.fingerprint import file_identity
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim
from mlcd.utils.records import read_record, write_record

_WIDTH = 16
#: A folder changed so short a time before it was listed may change again without a new time.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class LocalSource:
    """Images on disk: `name` of its chunks, `root` (absolute), and `places`: files and folders."""

    name: str
    root: str
    places: tuple[str, ...]


class Kept(NamedTuple):
    """A listing: its file, the number of images, and an identity of the content of each chunk."""

    path: Path
    images: int
    identities: list[str]


class Summary(NamedTuple):
    """What a listing says of itself: the number of images, the root of their paths, and identities
    of the content of its chunks of so many rows.
    """

    images: int
    root: str
    chunk_rows: int
    identities: list[str]

    def identity(self, part: int, chunk_rows: int) -> str:
        """Return the identity of a chunk of `chunk_rows`; "" where it is not known."""
        return self.identities[part] if chunk_rows == self.chunk_rows else ""


def summary(path: Path) -> Summary:
    """Return what stands beside a listing. Raises :class:`UserError` if it is not whole."""
    about = _about(path)
    if about is None or about["table"] != sha256_file(path):
        raise UserError(f"{path}: not a whole listing; remove it and start the run again")
    return Summary(
        about["images"], about["asked"]["root"], about["chunk_rows"], about["identities"]
    )


def kept(source: LocalSource, section: Prepare, folder: Path, *, look: bool) -> Kept:
    """Return the listing of `source` in `folder`, made anew where it must be.

    With `look` what is on disk is compared, as `section.check` says; without, as in jobs, a listing
    that is there is taken. Raises :class:`UserError` if there is no image, or a tar, zip or parquet
    is damaged.
    """
    path = folder / f"{source.name}.parquet"
    about = _about(path)
    asked = {
        "root": source.root, "places": list(source.places), "links": section.links,
        "image_column": section.image_column,
    }  # fmt: skip
    # Old results may be looked at where they may only be read.
    look = look and (about is None or os.access(folder, os.W_OK))
    if about is None or about["asked"] != asked or (look and _changed(path, section.check)):
        about = _list(source, section, path, asked)
    elif about["chunk_rows"] != section.chunk_rows:
        identities = _Identities(section.chunk_rows)
        for row in rows(path):
            identities.add(row)
        about |= {"chunk_rows": section.chunk_rows, "identities": identities.all()}
        write_record(path.with_suffix(".json"), about)
    return Kept(path, about["images"], about["identities"])


def _about(path: Path) -> dict[str, Any] | None:
    """Return what stands beside a whole listing, None if there is none."""
    if not path.exists():
        return None
    try:
        about: dict[str, Any] = read_record(path.with_suffix(".json"), "prepare")
        return (
            about
            if {"asked", "chunk_rows", "identities", "images", "table"} <= set(about)
            else None
        )
    except (UserError, TypeError):
        return None


def _signature(path: Path) -> Path:
    return path.with_suffix(".times.json")


def _changed(path: Path, check: str) -> bool:
    """True if a folder, or a file that holds many images, differs from when it was listed."""
    if check == "never":
        return False
    try:
        known: dict[str, list[int]] = read_json(_signature(path))["times"]
    except (UserError, KeyError, TypeError):
        return True
    if check == "files":
        return True
    with ThreadPoolExecutor(_WIDTH) as pool:
        for found, listed in zip(pool.map(_times, known), known.values(), strict=True):
            if found != listed:
                return True
    return False


def _times(path: str) -> list[int]:
    """Return the time of change of a folder, size and time of a file, [] of nothing."""
    try:
        about = Path(path).stat()
    except OSError:
        return []
    return [about.st_mtime_ns] if Path(path).is_dir() else [about.st_size, about.st_mtime_ns]


def _list(
    source: LocalSource, section: Prepare, path: Path, asked: dict[str, Any]
) -> dict[str, Any]:
    """List a source; write the listing, its times, and last what stands beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no name that the system takes"
        raise UserError(f"results: {path.parent}: {reason}; name another folder") from None
    claim(path, path.with_suffix(".json"), _signature(path))
    LOGGER.info("%s: listing its images, once", source.root)
    began = time.time_ns()
    results = os.path.abspath(path.parent.parent)  # noqa: PTH100
    walk = Walk(source.root, source.places, section.links == "follow", without=results)
    identities = _Identities(section.chunk_rows)
    times: dict[str, list[int]] = {}
    images = 0

    def noted() -> Iterator[Row]:
        nonlocal images
        for row, changed in _rows(source, section, walk):
            if row.kind != "image":
                times[os.path.join(source.root, os.fsdecode(row.path))] = [row.size, changed]  # noqa: PTH118
            identities.add(row)
            images = row.first + row.images
            yield row

    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        write(temporary, progress(noted(), label=f"list {source.name}", unit="file"))
        if images == 0:
            raise UserError(_nothing(source, walk.left_out[LINKS]))
    # Times that could be those of a later change too are not trusted.
    settled = began - _SETTLED_NS
    for folder, changed in walk.folders.items():
        times[folder] = [changed if changed < settled else -1]
    write_json(_signature(path), {"mlcd": "times of a listing", "times": times})
    about = {
        "mlcd": LISTING, "asked": asked, "images": images, "chunk_rows": section.chunk_rows,
        "identities": identities.all(), "table": sha256_file(path),
    }  # fmt: skip
    write_record(path.with_suffix(".json"), about)
    LOGGER.info("%s: %d images", source.root, images)
    return about


def _nothing(source: LocalSource, links: int) -> str:
    where = source.places[0] if len(source.places) == 1 else source.root
    if links:
        return (
            f"{where}: no images in it, but {links} links to folders, which are not followed; if "
            "they are your own, set prepare.links to follow"
        )
    return (
        f"{where}: no images in it (files ending in jpg, png, webp, gif, bmp, tif; tars, zips, and "
        "parquets with a column of images); URL lists are named themselves, as lists/*.parquet: "
        "check the config key metadata"
    )


def _rows(source: LocalSource, section: Prepare, walk: Walk) -> Iterator[tuple[Row, int]]:
    """Iterate over rows and times of change; files of many images are looked into by threads."""
    first = 0
    with ThreadPoolExecutor(_WIDTH) as pool:
        look = functools.partial(_look_into, source.root, section.image_column)
        for file, (images, identity) in _ahead(walk, look, pool):
            if images:
                yield Row(
                    file.path, file.kind, file.size, file.texts, file.text_size, file.reason,
                    identity, first, images,
                ), file.mtime_ns  # fmt: skip
                first += images


def _ahead(files: Iterable[File], look: Any, pool: ThreadPoolExecutor) -> Iterator[Any]:
    """Iterate over files in order, each with what `look` says; some are looked at ahead."""
    from collections import deque

    waiting: deque[tuple[File, Any]] = deque()
    for file in files:
        waiting.append((file, None if file.kind == "image" else pool.submit(look, file)))
        while waiting and (len(waiting) > 2 * _WIDTH or waiting[0][1] is None):
            done, future = waiting.popleft()
            yield done, (1, "") if future is None else future.result()
    for done, future in waiting:
        yield done, (1, "") if future is None else future.result()


def _look_into(root: str, column: str, file: File) -> tuple[int, str]:
    """Return the number of images in a tar, zip or parquet, and the identity of its content."""
    path = Path(root, os.fsdecode(file.path))
    if file.reason:
        LOGGER.warning("%s: left out (%s)", path, file.reason)
        return 0, ""
    try:
        identity = file_identity(str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if file.kind == "tar":
        told = told_by_img2dataset(path)
        count = len(containers.tar_entries(path, None, captions=False)) if told is None else told
    elif file.kind == "zip":
        count = len(containers.zip_entries(path, None, captions=False))
    else:
        count = _parquet_images(path, column)
    return count, identity


def told_by_img2dataset(tar: Path) -> int | None:
    """Return the images of a tar as img2dataset has counted them beside it, None if it has not.

    At 40,000 tars it saves to read through them all before there is a graph. Stage prepare
    compares.
    """
    path = tar.with_name(f"{tar.stem}_stats.json")
    try:
        count = json.loads(path.read_text())["successes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) and count >= 0 else None


def _parquet_images(path: Path, column: str) -> int:
    file = open_parquet(path)
    if containers.image_column(file.schema_arrow, column) is None:
        return 0
    rows: int = file.metadata.num_rows
    return rows


class _Identities:
    """A hash per chunk of what is in it: names and sizes of files, content of those of many."""

    def __init__(self, chunk_rows: int) -> None:
        self._size = chunk_rows
        self._done: list[str] = []
        self._digest = hashlib.sha256()
        self._stop = chunk_rows
        self._any = False

    def add(self, row: Row) -> None:
        at, end = row.first, row.first + row.images
        while at < end:
            upto = min(end, self._stop)
            said = (*row[1:7], at - row.first, upto - row.first)
            self._digest.update(row.path + b"\0" + "\0".join(map(str, said)).encode() + b"\n")
            self._any = True
            at = upto
            if at == self._stop:
                self._close()

    def _close(self) -> None:
        self._done.append(self._digest.hexdigest()[:16])
        self._digest = hashlib.sha256()
        self._stop += self._size
        self._any = False

    def all(self) -> list[str]:
        if self._any:
            self._close()
        return self._done


def chunks_of(images: int, chunk_rows: int) -> list[range]:
    """Return the run of the line that each chunk is."""
    return [
        range(index * chunk_rows, min((index + 1) * chunk_rows, images))
        for index in range(chunk_count(images, chunk_rows))
    ]
