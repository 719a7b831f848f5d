"""Labelling one chunk: its rows' nearest centres, exact, in blocks."""

from __future__ import annotations

import json
import os

import numpy as np

from mlcd.config import Label
from mlcd.errors import UserError
from mlcd.neighbours import memory
from mlcd.neighbours.exact import ExactSearch, search_bytes
from mlcd.neighbours.rows import Rows
from mlcd.progress import progress
from mlcd.stores import labels
from mlcd.stores.centroids import Centroids
from mlcd.stores.embeddings import Embeddings


def label_file(
    path: str | os.PathLike[str],
    centroids: Centroids,
    section: Label,
    output: str | os.PathLike[str],
    limit: int,
    *,
    device: str = "cpu",
    threads: int = 0,
) -> None:
    """Write the labels of the embeddings at `path` to `output`, within `limit` bytes of memory.

    Raises :class:`UserError` if the two files do not fit together or rows are unusable.
    """
    embeddings = Embeddings(path)
    _check(embeddings, centroids)
    search = ExactSearch(centroids.array, device=device, threads=threads)
    # The centres are in memory already and do not count.
    fixed = search_bytes(centroids.K, centroids.d)
    plan = memory.plan_blocks(
        limit + search.centres.nbytes, embeddings.n, embeddings.d, section.top, fixed
    )
    rows = Rows([embeddings], plan.rows)
    attributes = {
        "chunk": str(embeddings.attributes.get("chunk", embeddings.path.stem)),
        "num_classes": centroids.K,
        "embeddings": embeddings.fingerprint,
        "centroids": centroids.fingerprint,
        "section": section.to_json(),
    }
    with labels.writing(output, attributes) as writer:
        # A chunk whose pictures all failed still has labels: none.
        writer.append(*_labels(search, np.zeros((0, rows.d), np.float32), section))
        for _, block in progress(rows.blocks(), total=len(rows), label="label", unit="block"):
            writer.append(*_labels(search, block, section))


def _labels(search: ExactSearch, rows: np.ndarray, section: Label) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int32 [n, top], −1 padded, and similarities float16 [n, top], 0 padded."""
    if not len(rows):
        return np.zeros((0, section.top), np.int32), np.zeros((0, section.top), np.float16)
    ids = search.nearest(rows, section.top)
    similarity = search.similarities(rows, ids)
    if section.threshold is not None:
        far = similarity < section.threshold
        far[:, 0] = False
        ids[far], similarity[far] = -1, 0
    return ids.astype(np.int32), similarity.astype(np.float16)


def _check(embeddings: Embeddings, centroids: Centroids) -> None:
    if embeddings.d != centroids.d:
        raise UserError(
            f"{embeddings.path}: {embeddings.d} dimensions, but {centroids.path} has "
            f"{centroids.d}; label with centroids of the same embedding model"
        )
    try:
        model = json.loads(centroids.model or "{}")
    except ValueError:
        raise UserError(f"{centroids.path}: attribute model is no JSON; rerun cluster") from None
    # A foreign file names no model; its dimension is all that can be checked.
    if embeddings.model and model and embeddings.model != model:
        raise UserError(
            f"{embeddings.path}: made by another model or preprocessing than {centroids.path}; "
            "embed with the same section embed, or rerun cluster"
        )
