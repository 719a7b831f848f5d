"""How labels are used over all chunks: what tells whether K, l and a threshold are sensible."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.two_level import TwoLevelSearch, group_count, group_directions
from mlcd.utils.errors import UserError
from mlcd.utils.logging import progress

#: A class is called huge when it is used this many times as often as the mean.
HUGE = 10
#: Two centers more similar than this are called near-duplicates.
NEAR_DUPLICATE = 0.999
#: Above this many centers, near-duplicates are looked for in each center's nearest groups: all
#: pairs of K = 1M would take hours, those take minutes, and centers so close share their groups.
EXACT_UP_TO = 50_000
_PROBES = 4
#: Places among an image's labels whose similarities are described: the first ones.
_PLACES = 32
#: Items of a list that is cut short, so that the summary of a million classes stays small.
_LISTED = 100
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BLOCK = 1 << 16


def summarize(
    paths: Sequence[str | os.PathLike[str]],
    centroids: Centroids | None,
    *,
    device: str = "cpu",
    threads: int = 0,
) -> dict[str, Any]:
    """Return the summary (docs/reference/formats.md) of the labels of all chunks.

    Own labels need no `centroids`, and without them nothing is said of centers. Raises
    :class:`UserError` if files do not belong to `centroids` or differ in labels per row.
    """
    files = [Labels(path) for path in paths]
    _check(files, centroids)
    k, l = files[0].num_classes, files[0].l
    use = np.zeros((2, k), np.int64)
    # Similarities are float16: counting their 65,536 values gives exact quantiles in one pass.
    places = min(l, _PLACES)
    # The last label's similarity, the gap after it, and the similarity of each place.
    values = np.zeros((2 + places, 1 << 16), np.int64)
    number = np.zeros(l + 1, np.int64)
    for file in progress(files, label="summarize", unit="file"):
        for start in range(0, file.n, _BLOCK):
            label = file.label(start, start + _BLOCK)
            given = label >= 0
            count = given.sum(axis=1)
            use[0] += np.bincount(label[:, 0][given[:, 0]], minlength=k)
            use[1] += np.bincount(label[given], minlength=k)
            number += np.bincount(count, minlength=l + 1)
            if not file.has_similarity:
                continue
            similarity = file.similarity(start, start + _BLOCK)
            gap = file.gap(start, start + _BLOCK)
            last = np.take_along_axis(similarity, np.maximum(count - 1, 0)[:, None], axis=1)
            columns = [last[count > 0, 0], gap[gap >= 0]]
            columns += [similarity[count > place, place] for place in range(places)]
            for row, column in enumerate(columns):
                values[row] += np.bincount(column.view(np.uint16), minlength=1 << 16)
    return {
        "images": int(number.sum()),
        "num_classes": k,
        "labels_per_image": l,
        "search": _search(files),
        "images_by_number_of_labels": {str(i): int(n) for i, n in enumerate(number) if n},
        "use_as_first_label": _use(use[0]),
        "use_as_any_label": _use(use[1]),
        "similarity_of_label": [_similarity(counts) for counts in values[2:]],
        "similarity_of_last_label": _similarity(values[0]),
        "gap_after_last_label": _similarity(values[1]),
        "cluster_sizes": _use(centroids.sizes) if centroids else None,
        "near_duplicate_centers": (
            _near_duplicates(centroids.array, device, threads) if centroids else None
        ),
        "made_from": {
            "labels": [file.fingerprint for file in files],
            "centroids": [centroids.fingerprint] if centroids else [],
        },
    }


def _search(files: list[Labels]) -> dict[str, Any]:
    """Describe how labels were found: mode, and agreement with exact ones on `rows` images."""
    rows = np.array([file.agreement_rows for file in files])
    share = np.array([file.agreement for file in files])
    section = files[0].settings
    return {
        "mode": "own" if files[0].manifest else section.get("mode", "exact"),
        "probes": section.get("probes") if rows.any() else None,
        "rows": int(rows.sum()),
        "agreement": float((rows * share).sum() / rows.sum()) if rows.any() else 1.0,
        "least_agreement_of_a_chunk": float(share.min()),
    }


def _use(use: np.ndarray) -> dict[str, Any]:
    """Describe how often each class is used (int64 [K])."""
    mean = float(use.sum() / len(use))
    huge = np.flatnonzero(use > HUGE * mean)
    largest = huge[np.lexsort((huge, -use[huge]))][:_LISTED]
    # Bin 0 holds unused classes, bin b ≥ 1 those used 2^(b − 1) … 2^b − 1 times.
    bins = np.bincount(np.where(use > 0, np.frexp(use)[1], 0))
    return {
        "mean": mean,
        "unused": int((use == 0).sum()),
        "quantiles": _quantiles(np.sort(use), np.ones(len(use), np.int64)),
        "imbalance": float(len(use) * np.square(use / max(1, use.sum())).sum()),
        "histogram": [
            {"from": 1 << (b - 1) if b else 0, "to": (1 << b) - 1, "classes": int(count)}
            for b, count in enumerate(bins)
        ],
        "huge": {
            "over": HUGE * mean,
            "classes": len(huge),
            "largest": [[int(j), int(use[j])] for j in largest],
        },
    }


def _similarity(counts: np.ndarray) -> dict[str, Any] | None:
    """Return mean and quantiles of similarities, from the counts of each float16 bit pattern."""
    bits = np.flatnonzero(counts)
    if not len(bits):
        return None
    values = bits.astype(np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    values, times = values[order], counts[bits][order]
    mean = float((values * times).sum() / times.sum())
    return {"mean": mean, "quantiles": _quantiles(values, times)}


def _quantiles(values: np.ndarray, times: np.ndarray) -> dict[str, float | int]:
    """Return quantiles of sorted `values`, each there `times` often: the lower of two between."""
    ends = np.cumsum(times)
    ranks = [int(q * (int(ends[-1]) - 1)) for q in _QUANTILES]
    found = values[np.searchsorted(ends, ranks, "right")]
    return {str(q): value.item() for q, value in zip(_QUANTILES, found, strict=True)}


def _near_duplicates(centers: np.ndarray, device: str, threads: int) -> dict[str, Any]:
    """Find centers float32 [K, d] whose most similar other center is a near-duplicate."""
    k = len(centers)
    mode = "exact" if k <= EXACT_UP_TO else "two_level"
    search: ExactSearch | TwoLevelSearch
    if mode == "exact":
        search = ExactSearch(centers, device=device, threads=threads)
    else:
        groups = group_directions(centers, group_count(k), device=device, threads=threads)
        search = TwoLevelSearch(centers, groups, _PROBES, device=device, threads=threads)
    center, other, cosine = [], [], []
    blocks = range(0, k if k > 1 else 0, 16384)
    for start in progress(blocks, label="near-duplicate centers", unit="block"):
        rows = centers[start : start + 16384]
        own = np.arange(start, start + len(rows))
        # Of the two nearest at most one is the center itself (none if it has many copies).
        ids = search.nearest(rows, 2)
        nearest = np.where(ids[:, 0] == own, ids[:, 1], ids[:, 0])
        value = search.similarities(rows, nearest[:, None])[:, 0]
        close = np.flatnonzero(value > NEAR_DUPLICATE)
        center += own[close].tolist()
        other += nearest[close].tolist()
        cosine += value[close].tolist()
    return {
        "over": NEAR_DUPLICATE,
        "search": mode,
        "centers": len(center),
        "nearest": [list(item) for item in zip(center, other, cosine, strict=True)][:_LISTED],
    }


def _check(files: list[Labels], centroids: Centroids | None) -> None:
    for file in files:
        if centroids is None:
            if not file.manifest or file.num_classes != files[0].num_classes:
                raise UserError(f"{file.path}: needs --centroids; give those that it was made with")
        elif file.num_classes != centroids.K:
            raise UserError(
                f"{file.path}: labels of {file.num_classes} classes, but {centroids.path} has "
                f"{centroids.K}; rerun label"
            )
        elif file.centroids and file.centroids != centroids.fingerprint:
            raise UserError(f"{file.path}: made with other centroids than {centroids.path}; "
                            "rerun label")  # fmt: skip
        if file.l != files[0].l:
            raise UserError(
                f"{file.path}: {file.l} labels per image, but {files[0].path} has {files[0].l}; "
                "rerun label"
            )
        if file.section != files[0].section:
            raise UserError(
                f"{file.path}: made with another section label than {files[0].path}; rerun label"
            )
