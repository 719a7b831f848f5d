"""Small stores to curate, runs of the stage in this process, and its plain version."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from helpers import builders
from mlcd import cli
from mlcd.data.curation import Curation


def run(part: str, *words: object) -> int:
    return cli.main(["curate", "--part", part, *map(str, words)])


class Run:
    """Chunks of `rows` float32 [n, d] below `folder`, curated part by part with one section."""

    def __init__(
        self, folder: Path, rows: np.ndarray, chunks: int = 3, clusters: int = 4, **keys: object
    ) -> None:
        self.folder, self.out = folder, folder / "curate"
        self.options: list[object] = ["--threads", 1]
        for name, value in keys.items():
            self.options += [f"--{name.replace('_', '-')}", value]
        self.embeddings, self.images = [], []
        for index, part in enumerate(np.array_split(rows, chunks)):
            name = f"a-{index:05d}"
            manifest = builders.image_store(folder / "images" / name, len(part), seed=index)
            path = folder / "embeddings" / f"{name}.h5"
            self.images.append(manifest)
            self.embeddings.append(builders.embeddings_file(path, part, manifest=manifest))
        centers = rows[np.linspace(0, len(rows) - 1, clusters).astype(int)]
        self.centroids = builders.centroids_file(folder / "c.h5", centers)

    def facts(self, *more: object) -> list[Path]:
        """Write the facts of all chunks."""
        found = []
        for path, manifest in zip(self.embeddings, self.images, strict=True):
            output = self.out / "facts" / path.name
            assert not run(
                "facts", "--embeddings", path, "--images", manifest, "--centroids", self.centroids,
                "--output", output, *self.options, *more,
            )  # fmt: skip
            found.append(output)
        return found

    def choose(self, *more: object, output: Path | None = None) -> list[Curation]:
        """Make all decisions; the facts are there."""
        out = output or self.out
        facts = [self.out / "facts" / path.name for path in self.embeddings]
        assert not run(
            "choice", "--embeddings", *self.embeddings, "--facts", *facts, "--output", out,
            *self.options, *more,
        )  # fmt: skip
        return [Curation(out / "rows" / path.name) for path in self.embeddings]


def whole(rows: list[Curation], what: str) -> np.ndarray:
    """Return one column of all chunks, one after another."""
    return np.concatenate([getattr(one, what)() for one in rows])


def stands_for(rows: list[Curation]) -> np.ndarray:
    """Return what stands for each row, numbered over all chunks; −1: nothing."""
    starts = np.cumsum([0, *(one.n for one in rows)])
    chunk, row = whole(rows, "stands_for").T
    return np.where(chunk < 0, -1, starts[chunk] + row)


def unit_rows(paths: list[Path]) -> np.ndarray:
    """Return what files hold as float64 unit rows."""
    rows = np.concatenate([h5py.File(path)["embedding"][:] for path in paths]).astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32).astype(float)


def plain_groups(rows: np.ndarray, clusters: np.ndarray, threshold: float) -> list[list[int]]:
    """Return the groups of near-duplicates, each rising, by comparing all rows with all others.

    Union-find as a textbook has it. `clusters` [n, probes]; rows with −1 take no part.
    """
    parent = list(range(len(rows)))

    def find(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for left in range(len(rows)):
        for right in range(left):
            if clusters[left, 0] < 0 or clusters[right, 0] < 0:
                continue
            meet = clusters[left, 0] in clusters[right] or clusters[right, 0] in clusters[left]
            if meet and float((rows[left] * rows[right]).sum()) >= threshold:
                parent[max(find(left), find(right))] = min(find(left), find(right))
    groups: dict[int, list[int]] = {}
    for row in range(len(rows)):
        groups.setdefault(find(row), []).append(row)
    return [group for group in groups.values() if len(group) > 1]
