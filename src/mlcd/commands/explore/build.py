"""Build the index of a run: one pass over labels, embeddings and tables, then sums by cluster.

What is larger than memory is sorted in parts and merged (:mod:`.merging`). The bytes depend on the
run alone. An index is built in a folder of its own and renamed when it is whole, so that a killed
build leaves nothing that is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.commands.explore import centers as center_files
from mlcd.commands.explore import duplicates
from mlcd.commands.explore.layout import layout, morton
from mlcd.commands.explore.merging import SortedParts
from mlcd.commands.explore.places import PlaceWriter
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.store import Files
from mlcd.commands.explore.texts import TextWriter
from mlcd.commands.explore.words import WordWriter
from mlcd.data.embeddings import Embeddings
from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.processes import machine, start_of

#: By what clusters are sorted: name → what it is.
SORTS = {
    "size": "images whose nearest center it is",
    "use": "times that the cluster is a label of an image",
    "cohesion": "mean similarity of its images to the center",
    "gap": "1 − similarity of the center to the next one",
    "duplicates": "share of its images with a near-duplicate in the cluster, estimated",
}
#: What the name of a folder begins with in which an index is built.
_WORK = ".building-"
#: Images whose signatures are computed at once, and rows that are merged at once.
_BLOCK, _MERGED = 8192, 4 << 20


def build(run: Run, target: Path, *, threads: int = 0) -> None:
    """Write the index of `run` as the folder `target`. Raises :class:`UserError`."""
    with disk.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        work = target.parent / f"{_WORK}{_here()}-{os.getpid()}"
        work.mkdir()
    try:
        with disk.writing(target):
            files = Files(work / "index")
            files.folder.mkdir()
            about = _write(run, files, work, threads)
            files.finish({"made_from": run.fingerprint, **about})
            # Another process may have built the same meanwhile: one is as good as the other.
            with contextlib.suppress(OSError):
                files.folder.rename(target)
            if not target.is_dir():
                raise UserError(f"{target}: cannot be written; give another folder by --index")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _here() -> str:
    """Return what tells this machine, since its start, from others."""
    return hashlib.sha256(machine().encode()).hexdigest()[:12]


def _remove_leftovers(folder: Path) -> None:
    """Remove what builds of this machine left that were killed."""
    for path in folder.glob(f"{_WORK}{_here()}-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and (start_of(int(pid)) is None or int(pid) == os.getpid()):
            shutil.rmtree(path, ignore_errors=True)


def _write(run: Run, files: Files, work: Path, threads: int) -> dict[str, Any]:
    LOGGER.info("building the index of %d images in %d clusters", run.n, run.K)
    rows = run.centroids.array if run.centroids else None
    has_images = _has_images(run)
    members = SortedParts(work, "members")
    texts, words = TextWriter(files), WordWriter(files, work)
    places = PlaceWriter(files)
    use = np.zeros(run.K, np.int64)
    planes = duplicates.planes(rows.shape[1]) if rows is not None else None
    for chunk in progress(range(len(run.chunks)), label="index", unit="chunk"):
        label = run.labels[chunk].label()
        use += np.bincount(label[label >= 0], minlength=run.K)
        nearest = label[:, 0]
        columns = _of_images(run, chunk, nearest, rows, planes)
        given = nearest >= 0
        members.add(
            nearest[given].astype(np.uint64),
            number=(run.starts[chunk] + np.flatnonzero(given)).astype(_number_type(run.n)),
            **{name: column[given] for name, column in columns.items()},
        )
        if has_images:
            captions, urls = _texts(run, chunk)
            texts.append(captions, urls)
            words.append(captions, nearest)
            places.append(run.places(chunk))
    for writer in (texts, words, places):
        writer.close()
    columns = {"use": use, **_merge(members, files, run)}
    members.remove()
    if rows is not None:
        neighbors = center_files.write(files, rows, threads=threads)
        if neighbors.shape[1]:
            columns["gap"] = 1 - _first_similarity(rows, neighbors)
        place = layout(rows, neighbors)
        order = np.argsort(morton(place), kind="stable")
        files.write("map_ids", order.astype(np.uint32))
        files.write("map_places", place[order])
    for name in SORTS:
        column = columns.get(name, np.full(run.K, np.nan, np.float32))
        files.write(name, column)
        # Ties by number; what is not known comes last.
        files.write(
            f"by_{name}", np.argsort(-column.astype(np.float64), kind="stable").astype("i4")
        )
    return {
        "k": run.K, "images": run.n, "labels_per_image": run.l, "chunks": run.chunks,
        "has_images": has_images, "known": sorted(columns),
    }  # fmt: skip


def _number_type(n: int) -> Any:
    return np.uint32 if n < 1 << 32 else np.uint64


def _of_images(
    run: Run, chunk: int, nearest: np.ndarray, centers: np.ndarray | None, planes: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return similarity float16 [n] to the nearest center, and the signature uint64 [n]."""
    n = len(nearest)
    signature = np.zeros(n, np.uint64)
    if not run.has_similarity:
        return {"similarity": np.zeros(n, np.float16), "signature": signature}
    embeddings = run.embeddings(chunk)
    if embeddings is not None and centers is not None and planes is not None:
        _check_width(embeddings, centers)
        for start, block in embeddings.blocks(_BLOCK):
            mine = centers[np.maximum(nearest[start : start + len(block)], 0)]
            signature[start : start + len(block)] = duplicates.signatures(block, mine, planes)
    return {"similarity": run.labels[chunk].similarity()[:, 0], "signature": signature}


def _check_width(embeddings: Embeddings, centers: np.ndarray) -> None:
    if embeddings.d != centers.shape[1]:
        raise UserError(
            f"{embeddings.path}: {embeddings.d} dimensions, but the centers have "
            f"{centers.shape[1]}; rerun label"
        )


def _has_images(run: Run) -> bool:
    """True if all images are there; else clusters are shown without images and texts."""
    if lacking := run.lacking():
        LOGGER.warning(
            "%s: no images of %d chunks, such as %s: no captions and no images are shown",
            run.results, len(lacking), lacking[0],
        )  # fmt: skip
    return not lacking


def _texts(run: Run, chunk: int) -> tuple[list[str], list[str]]:
    """Return captions and URLs of all rows of a chunk's embeddings."""
    table = run.store(chunk).rows_of(run.keys(chunk), ["caption", "url"])
    return table["caption"].fillna("").tolist(), table["url"].tolist()


def _merge(members: SortedParts, files: Files, run: Run) -> dict[str, np.ndarray]:
    """Write the images of each cluster, nearest first; return size, cohesion and duplicates."""
    size = np.zeros(run.K, np.int64)
    total = np.zeros(run.K, np.float64)
    share = np.full(run.K, np.nan, np.float32)
    numbers = files.sink("members", _number_type(run.n))
    similarities = files.sink("member_similarity", "f2")
    signatures = files.sink("member_signature", "u8")
    for block in members.merged(_MERGED):
        cluster = block["key"].astype(np.int64)
        value = block["similarity"].astype(np.float32)
        order = np.lexsort((block["number"], -value, cluster))
        cluster, value, signature = cluster[order], value[order], block["signature"][order]
        numbers.append(block["number"][order])
        similarities.append(value)
        if run.has_similarity:
            signatures.append(signature)
        found, first, count = np.unique(cluster, return_index=True, return_counts=True)
        size[found] = count
        total[found] = np.bincount(np.searchsorted(found, cluster), value.astype(np.float64))
        if run.has_similarity:
            for number, start, many in zip(found, first, count, strict=True):
                part = slice(start, start + many)
                share[number] = duplicates.share(signature[part], value[part])
    for sink in (numbers, similarities, signatures):
        sink.close()
    files.write("member_ends", np.concatenate([[0], np.cumsum(size)]))
    columns: dict[str, np.ndarray] = {"size": size}
    if run.has_similarity:
        with np.errstate(invalid="ignore"):
            columns["cohesion"] = (total / size).astype(np.float32)
        columns["duplicates"] = share
    return columns


def _first_similarity(centers: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Return the cosine of each center to its nearest other, float32 [K]."""
    found = np.zeros(len(centers), np.float32)
    for start in range(0, len(centers), _BLOCK):
        mine = centers[start : start + _BLOCK]
        found[start : start + len(mine)] = (
            mine * centers[neighbors[start : start + len(mine), 0]]
        ).sum(axis=1)
    return found
