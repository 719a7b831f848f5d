"""Own embeddings in place of the encoder's: joined to a chunk's images, normalized, checked."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.config import Embed
from mlcd.data import hdf5
from mlcd.data.embeddings import KIND, NOT_FINITE, ZERO
from mlcd.data.image_store import ImageStore
from mlcd.data.own import rows
from mlcd.data.own.base import EMBEDDING
from mlcd.data.own.join import joined
from mlcd.data.own.options import Join
from mlcd.launch import lease
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

#: Why an image has no embedding: no own row is its.
MISSING = "no_embedding"
#: Bytes of float64 rows that are worked on at once.
_BLOCK_BYTES = 256 << 20


def take_own(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Embed,
    how: Join,
) -> None:
    """Write the own embeddings of a chunk's images to `output` (formats.md, embeddings).

    Rows that are zero or not finite, and images without a row, are listed with a reason. Raises
    :class:`UserError` if more than `section.max_failed` of the images are, or if files do not fit.
    """
    assert section.embeddings is not None, "own embeddings are asked for"
    claim(output)
    store = ImageStore(images)
    paths = rows.expand(section.embeddings, "embed.embeddings", section.key)
    own = rows.OwnRows(paths, EMBEDDING)
    found = store.arrived(["row", "url"])
    ids = joined(how, own, store, found)
    said = rows.identities(paths, EMBEDDING)
    identity = [code_hash("embed"), section.for_features(), store.fingerprint, said, list(how)]
    with lease.writing(output, *identity) as wanted:
        if wanted:
            _write(Path(output), store, own, found, ids, section)


def _write(
    output: Path, store: ImageStore, own: rows.OwnRows, found: Any, ids: np.ndarray, section: Embed
) -> None:
    columns = {
        "key": found["key"].to_numpy().astype("S9"),
        "tar": found["tar"].to_numpy(np.int32),
        "offset": found["offset"].to_numpy(np.int64),
        "size": found["size"].to_numpy(np.int64),
        "digest": np.array([int(word[:16], 16) for word in found["sha256"]], np.uint64),
    }
    files = [[file.path.name, file.rows, file.identity()] for file in own.files]
    attributes = {
        "chunk": store.chunk,
        "manifest": store.fingerprint,
        "own": json.dumps({"key": section.key, "files": files}),
    }
    if model := _model(own.files[0].path):
        attributes["model"] = model
    reasons: Counter[str] = Counter()
    step = max(1, _BLOCK_BYTES // (8 * own.width))
    with hdf5.writing(output, KIND, attributes) as writer:
        # A chunk without images has its datasets too.
        starts = range(0, max(1, len(ids)), step)
        for start in progress(starts, label="own embeddings", unit="block"):
            part = slice(start, start + step)
            unit, words = normalized(own, ids[part])
            bad = np.array([bool(word) for word in words], bool)
            writer.append("embedding", unit[~bad])
            for name, values in columns.items():
                writer.append(name, values[part][~bad])
            writer.append("failed_key", columns["key"][part][bad])
            writer.append("failed_reason", np.array([word for word in words if word], "S32"))
            reasons.update(word for word in words if word)
            _refuse(store, own, reasons, len(ids), section)
    table = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    LOGGER.info(
        "embed: %s: %d own embeddings, %d failed%s",
        store.chunk, len(ids) - reasons.total(), reasons.total(), f" ({table})" if table else "",
    )  # fmt: skip


def normalized(own: rows.OwnRows, ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the rows `ids` as unit rows, float16 [n, d], and '' or why each is none.

    Divided by their norm in float64, then rounded, as rows of ours are. −1 is no row.
    """
    unit = np.zeros((len(ids), own.width), np.float16)
    words = np.full(len(ids), MISSING, object)
    there = np.flatnonzero(ids >= 0)
    with np.errstate(over="ignore", invalid="ignore"):
        values = own.take(ids[there]).astype(np.float64)
        # By the largest number first: the square of a tiny one is zero.
        largest = np.abs(values).max(axis=1, initial=0)
        finite = np.isfinite(largest)
        good = finite & (largest > 0)
        values = values[good] / largest[good, None]
        unit[there[good]] = values / np.linalg.norm(values, axis=1, keepdims=True)
    words[there] = np.where(finite, np.where(good, "", ZERO), NOT_FINITE)
    return unit, words.tolist()


def _model(path: Path) -> str:
    """Return what a file of ours says of the model; other programs' say nothing."""
    if path.suffix.lower() != ".h5":
        return ""
    with hdf5.reading(path, KIND, foreign=True) as file:
        return str(file.attrs.get("model", ""))


def _refuse(
    store: ImageStore, own: rows.OwnRows, reasons: Counter[str], total: int, section: Embed
) -> None:
    """Raise :class:`UserError` once more rows are unusable than is allowed."""
    if reasons.total() <= section.max_failed * total:
        return
    fix = "check these files"
    if reasons[MISSING]:
        fix = f"check that {section.key!r} holds URLs, paths, tar keys or SHA-256 of these images"
    counts = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    raise UserError(
        f"{own.files[0].path}: {reasons.total()} of {total} images of chunk {store.chunk} have no "
        f"usable row ({counts}), more than embed.max_failed = {section.max_failed:g} of them; "
        f"{fix}, or raise it"
    )
