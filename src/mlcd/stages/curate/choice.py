"""Part `choice`: which images are kept, over all chunks.

In this order: what a condition refuses is left out; of near-duplicates among the rest one is kept;
balance and cap thin out clusters of what is left. Each image that is left out has one reason, and
each duplicate the image that stands for it.

About 100 bytes per image of the run stay in memory, beside the rows of a pass.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from mlcd.config import Curate
from mlcd.data import hdf5
from mlcd.data.curation import BALANCE, CAP, DUPLICATE, KIND, Facts
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.launch import lease
from mlcd.neighbors.rows import SLAB, Rows
from mlcd.stages.curate import duplicates, groups, thin
from mlcd.utils.errors import UserError
from mlcd.utils.files import state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claim
from mlcd.utils.records import write_record

SUMMARY = "summary.json"


class Decisions:
    """What is decided of the `n` images of all chunks, one after another.

    `reason` int16 [n] (−1: kept, else a place in `reasons`), `stands_for` int64 [n] (−1: none),
    `similarity` float32 [n] to it, `cluster` int32 [n].
    """

    def __init__(self, refused: np.ndarray, reasons: Sequence[str], cluster: np.ndarray) -> None:
        self.reasons = [*reasons, DUPLICATE, BALANCE, CAP]
        self.reason = refused
        self.cluster = cluster
        self.stands_for = np.full(len(refused), -1, np.int64)
        self.similarity = np.zeros(len(refused), np.float32)

    @property
    def kept(self) -> np.ndarray:
        """Return bool [n]."""
        return self.reason < 0

    def leave_out(self, rows: np.ndarray, reason: str) -> None:
        """Leave out `rows`, int64 [m] or bool [n]."""
        self.reason[rows] = self.reasons.index(reason)

    def counts(self) -> dict[str, int]:
        """Return reason → images."""
        found = np.bincount(self.reason[~self.kept], minlength=len(self.reasons))
        return {word: int(count) for word, count in zip(self.reasons, found, strict=True)}


def choose(
    embeddings: Sequence[str],
    facts: Sequence[str],
    output: str | os.PathLike[str],
    section: Curate,
    limit: int,
    *,
    threads: int = 0,
) -> None:
    """Write rows/{chunk}.h5 and summary.json below `output`, within `limit` bytes of memory.

    `embeddings` and `facts` are of the same chunks in the same order. Raises :class:`UserError`.
    Cut off at any moment, the same call resumes and ends with the same bytes.
    """
    files, known = open_all(embeddings), [Facts(path) for path in facts]
    _check(files, known)
    folder = Path(output)
    summary = folder / SUMMARY
    outputs = [folder / "rows" / f"{one.chunk}.h5" for one in known]
    claim(summary, *outputs)
    identity = [
        code_hash("curate"), section.for_choice(), [one.fingerprint for one in known],
    ]  # fmt: skip
    if threads:
        threadpoolctl.threadpool_limits(threads)
    with lease.writing(summary, *identity, files=[*outputs, summary]) as wanted:
        if wanted:
            state = state_dir(summary, *identity)
            decided, found = _decide(files, known, section, limit, state)
            _require_some(decided)
            _write(decided, files, known, outputs)
            write_record(summary, _summary(decided, found, known, section))
            shutil.rmtree(state)
            LOGGER.info(
                "curate: %d of %d images are kept; left out: %s",
                int(decided.kept.sum()), len(decided.reason),
                ", ".join(f"{word} {n}" for word, n in decided.counts().items() if n) or "none",
            )  # fmt: skip


def _check(files: list[Embeddings], known: list[Facts]) -> None:
    if len(files) != len(known):
        raise UserError(f"--facts: {len(known)} files, but {len(files)} --embeddings; give as many")
    seen: set[str] = set()
    for file, one in zip(files, known, strict=True):
        if one.embeddings != file.fingerprint or one.n != file.n:
            raise UserError(
                f"{one.path}: made from other embeddings than {file.path}; rerun curate for chunk "
                f"{one.chunk}, or give both in the same order"
            )
        first = known[0]
        if (one.centroids, one.probes, one.reasons) != (
            first.centroids, first.probes, first.reasons,
        ):  # fmt: skip
            raise UserError(
                f"{one.path}: made with other coarse centers or another section than {first.path}; "
                "rerun curate for both"
            )
        if one.chunk in seen:
            raise UserError(f"{one.path}: chunk {one.chunk!r} is given twice; name each once")
        seen.add(one.chunk)


def _decide(
    files: list[Embeddings], known: list[Facts], section: Curate, limit: int, state: Path
) -> tuple[Decisions, dict[str, int]]:
    """Return the decisions, and numbers for the summary."""
    refused = np.concatenate([one.refused() for one in known])
    clusters = np.concatenate([one.cluster() for one in known])
    decided = Decisions(refused, known[0].reasons, clusters[:, 0].copy())
    found = {"groups": 0, "largest": 0}
    if section.duplicate_similarity is not None and len(refused):
        clusters[~decided.kept] = -1
        rows = Rows(files, SLAB)
        center, other = duplicates.find(
            rows, clusters, known[0].clusters, section.duplicate_similarity, limit, state
        )
        pixels = np.concatenate([one.pixels() for one in known])
        out, best = groups.keepers(center, other, pixels)
        decided.leave_out(out, DUPLICATE)
        decided.stands_for[out] = best
        decided.similarity[out] = duplicates.similarities(rows, out, best, limit, state)
        sizes = np.unique(center, return_counts=True)[1] + 1
        found = {"groups": len(sizes), "largest": int(sizes.max(initial=0))}
    if section.balance != "none" or section.cluster_cap is not None:
        _thin(decided, files, known[0].clusters, section)
    return decided, found


def _require_some(decided: Decisions) -> None:
    """Refuse to leave out all images: no later stage could do anything. Raises UserError."""
    if len(decided.reason) and not decided.kept.any():
        counts = decided.counts()
        told = ", ".join(f"{word}: {counts[word]}" for word in counts if counts[word])
        raise UserError(
            f"curate.where: leaves out all {len(decided.reason)} images ({told}); where all lack "
            "a value, check curate.key, else loosen the conditions"
        )


def _thin(decided: Decisions, files: list[Embeddings], count: int, section: Curate) -> None:
    """Leave out what clusters have too much."""
    left = np.flatnonzero(decided.kept)
    cluster = decided.cluster[left]
    digest = np.concatenate([file.places().digest for file in files])[left]
    sizes = np.bincount(cluster, minlength=count)
    place = thin.ranks(cluster, digest, section.seed)
    if section.cluster_cap is not None:
        decided.leave_out(left[place >= section.cluster_cap], CAP)
    # What both leave out is the balance's.
    decided.leave_out(left[place >= thin.limits(sizes, section.balance)[cluster]], BALANCE)


def _write(
    decided: Decisions, files: list[Embeddings], known: list[Facts], outputs: list[Path]
) -> None:
    """Write the decisions chunk by chunk."""
    starts = np.cumsum([0, *(one.n for one in known)])
    names = np.array([one.chunk.encode() for one in known])
    for index, (file, one, path) in enumerate(zip(files, known, outputs, strict=True)):
        part = slice(int(starts[index]), int(starts[index + 1]))
        stands_for = np.full((one.n, 2), -1, np.int64)
        rows = np.flatnonzero(decided.stands_for[part] >= 0)
        other = decided.stands_for[part][rows]
        chunk = np.searchsorted(starts, other, "right") - 1
        stands_for[rows] = np.stack([chunk, other - starts[chunk]], axis=1)
        attributes = {
            "chunk": one.chunk,
            "manifest": one.manifest,
            "embeddings": one.embeddings,
            "facts": one.fingerprint,
            "reasons": json.dumps(decided.reasons),
        }
        datasets = {
            "key": file.keys(),
            "kept": decided.kept[part].astype(np.uint8),
            "reason": decided.reason[part],
            "stands_for": stands_for,
            "similarity": decided.similarity[part],
            "cluster": decided.cluster[part],
            "chunk": names,
        }
        hdf5.write(path, KIND, datasets, attributes)


def _summary(
    decided: Decisions, found: dict[str, int], known: list[Facts], section: Curate
) -> dict[str, Any]:
    """Return summary.json (docs/reference/formats.md)."""
    kept, n = decided.kept, len(decided.reason)
    before = np.bincount(decided.cluster, minlength=known[0].clusters)
    after = np.bincount(decided.cluster[kept], minlength=known[0].clusters)
    ends = np.cumsum([one.n for one in known])
    parts = zip(known, np.split(kept, ends[:-1]), strict=True)
    return {
        "images": n,
        "kept": int(kept.sum()),
        "left_out": decided.counts(),
        "duplicates": {"similarity": section.duplicate_similarity, **found},
        "clusters": {
            "number": known[0].clusters,
            "probes": known[0].probes,
            "largest": int(before.max(initial=0)),
            "largest_kept": int(after.max(initial=0)),
        },
        "chunks": {one.chunk: [one.n, int(part.sum())] for one, part in parts},
        "section": json.loads(section.for_choice()),
        "made_from": {"facts": [one.fingerprint for one in known]},
    }
