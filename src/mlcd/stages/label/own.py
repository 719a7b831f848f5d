"""Own labels in place of the nearest centers: joined to the images of a chunk, and checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.config import Label
from mlcd.data import hdf5, labels
from mlcd.data.image_store import ImageStore
from mlcd.data.own import rows
from mlcd.data.own.base import LABEL
from mlcd.data.own.join import joined
from mlcd.data.own.options import Join
from mlcd.launch import lease
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER, progress

_BLOCK = 1 << 18


def take_own(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Label,
    classes: int,
    how: Join,
) -> None:
    """Write the own labels, of 0 … `classes` − 1, of a chunk's images (formats.md, labels).

    Images without a row, or with no label in it, are left out. Raises :class:`UserError` if all
    are, if a number is no class, or if files do not fit.
    """
    assert section.labels is not None, "own labels are asked for"
    store = ImageStore(images)
    paths = rows.expand(section.labels, "label.labels", section.key)
    own = rows.OwnRows(paths, LABEL)
    if own.width < section.top:
        raise UserError(
            f"label.top: {section.top} labels per image, but {paths[0]} has {own.width}; lower it"
        )
    found = store.arrived(["row", "url"])
    ids = joined(how, own, store, found)
    if len(ids) and (ids < 0).all():
        raise UserError(
            f"{paths[0]}: no row is of any of the {len(ids)} images of chunk {store.chunk}; check "
            f"that {section.key!r} holds URLs, paths, tar keys or SHA-256 of these images"
        )
    said = rows.identities(paths, LABEL)
    identity = [code_hash("label"), section.for_labels(), classes, store.fingerprint, said]
    with lease.writing(output, *identity, list(how)) as wanted:
        if wanted:
            _write(Path(output), store, own, found[ids >= 0], ids[ids >= 0], section, classes)
    LOGGER.info(
        "label: %s: own labels of %d of %d images", store.chunk, int((ids >= 0).sum()), len(ids)
    )


def _write(
    output: Path,
    store: ImageStore,
    own: rows.OwnRows,
    found: Any,
    ids: np.ndarray,
    section: Label,
    classes: int,
) -> None:
    attributes = {
        "chunk": store.chunk,
        "num_classes": classes,
        "manifest": store.fingerprint,
        "section": section.for_labels(),
        "own": json.dumps([[file.path.name, file.rows, file.identity()] for file in own.files]),
    }
    with hdf5.writing(output, labels.KIND, attributes) as writer:
        # A chunk without images has its datasets too.
        for start in progress(range(0, max(1, len(ids)), _BLOCK), label="own labels", unit="block"):
            part = slice(start, start + _BLOCK)
            writer.append("label", _checked(own, ids[part], section.top, classes))
        writer.append("key", found["key"].to_numpy().astype("S9"))
        writer.append("tar", found["tar"].to_numpy(np.int32))
        writer.append("offset", found["offset"].to_numpy(np.int64))
        writer.append("size", found["size"].to_numpy(np.int64))
        digests = [int(word[:16], 16) for word in found["sha256"]]
        writer.append("digest", np.array(digests, np.uint64))


def _checked(own: rows.OwnRows, ids: np.ndarray, top: int, classes: int) -> np.ndarray:
    """Return the first `top` labels of the rows `ids`, int32 [n, top]; −1 pads at the end only."""
    found = own.take(ids)[:, :top]
    bad = (found >= classes) | (found < -1) if found.dtype.kind == "i" else found >= classes
    if bad.any():
        row, place = np.argwhere(bad)[0]
        raise UserError(
            f"{own.files[0].path}: row {ids[row]} of own labels holds {found[row, place]}, and "
            f"classes are 0 to {classes - 1}; −1 is none; correct it, or raise cluster.k"
        )
    label = found.astype(np.int32)
    # The first is the nearest: what is none stands after it.
    order = np.argsort(label < 0, axis=1, kind="stable")
    return np.take_along_axis(label, order, axis=1)
