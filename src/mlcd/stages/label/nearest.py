"""Labeling one chunk: its rows' nearest centers, in blocks."""

from __future__ import annotations

import os

import numpy as np

from mlcd.config import Label
from mlcd.data import hdf5, labels
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.neighbors import memory
from mlcd.neighbors.exact import SPARE, ExactSearch, search_bytes
from mlcd.neighbors.rows import Rows
from mlcd.neighbors.two_level import TwoLevelSearch, group_count
from mlcd.neighbors.two_level import search_bytes as two_level_bytes
from mlcd.stages.label.searcher import check_agreement, make_search
from mlcd.utils.errors import UserError
from mlcd.utils.logging import progress


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

    Raises :class:`UserError` if the two files do not fit together, rows are unusable, or too few
    of the exact labels are found.
    """
    embeddings = Embeddings(path)
    _check(embeddings, centroids)
    if "fingerprint" in embeddings.attributes:
        # Blocks have checksums, which an edit renews; the hash of all rows it does not.
        hdf5.verified_fingerprint(path)
    fixed, candidates = search_bytes(centroids.K, centroids.d, threads), section.top + 1
    if section.mode == "two_level":
        fixed = two_level_bytes(centroids.K, centroids.d)
        groups = min(section.groups or group_count(centroids.K), centroids.K)
        candidates = min(section.probes, groups) * (candidates + SPARE)
    # Before centers are read and copied: the limit does not count the former, `fixed` the latter.
    plan, integers = memory.plan_with_integers(limit, embeddings.n, embeddings.d, candidates, fixed)
    search = make_search(
        centroids.array, section, device=device, threads=threads, rows=embeddings.n,
        allow_integers=integers,
    )  # fmt: skip
    rows = Rows([embeddings], plan.rows)
    agreement, looked_at = check_agreement(search, rows, section, device=device, threads=threads)
    attributes = {
        "chunk": str(embeddings.attributes.get("chunk", embeddings.path.stem)),
        "num_classes": centroids.K,
        "embeddings": embeddings.fingerprint,
        "centroids": centroids.fingerprint,
        "section": section.for_labels(),
        "agreement": agreement,
        "agreement_rows": looked_at,
    }
    with labels.writing(output, attributes) as writer:
        # A chunk whose images all failed still has labels: none.
        writer.append(*_labels(search, np.zeros((0, rows.d), np.float32), section))
        for _, block in progress(rows.blocks(), total=len(rows), label="label", unit="block"):
            writer.append(*_labels(search, block, section))


def _labels(
    search: ExactSearch | TwoLevelSearch, rows: np.ndarray, section: Label
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels int32 [n, top], similarities float16 [n, top] and gaps float16 [n].

    Labels are −1 and similarities 0 where the threshold leaves one out. The gap is the similarity
    of the last of `top` centers minus that of the next one, −1 where there is no next one.
    """
    n, top = len(rows), section.top
    if not n:
        empty = np.zeros((0, top))
        return empty.astype(np.int32), empty.astype(np.float16), np.zeros(0, np.float16)
    ids = search.nearest(rows, min(top + 1, search.K))
    similarity = search.similarities(rows, ids)
    gap = similarity[:, top - 1] - similarity[:, top] if top < search.K else np.full(n, -1.0)
    ids, similarity = ids[:, :top].copy(), similarity[:, :top].copy()
    if section.threshold is not None:
        far = similarity < section.threshold
        far[:, 0] = False
        ids[far], similarity[far] = -1, 0
    return ids.astype(np.int32), similarity.astype(np.float16), gap.astype(np.float16)


def _check(embeddings: Embeddings, centroids: Centroids) -> None:
    if embeddings.d != centroids.d:
        raise UserError(
            f"{embeddings.path}: {embeddings.d} dimensions, but {centroids.path} has "
            f"{centroids.d}; label with centroids of the same embedding model"
        )
    model = centroids.described
    # A foreign file names no model; its dimension is all that can be checked.
    if embeddings.model and model and embeddings.model != model:
        raise UserError(
            f"{embeddings.path}: made by another model or preprocessing than {centroids.path}; "
            "embed with the same section embed, or rerun cluster"
        )
