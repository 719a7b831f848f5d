"""clusters.parquet and images.parquet: a run for embedding-atlas, and for any reader of parquet.

    embedding-atlas clusters.parquet --x x --y y --text caption --neighbors neighbors
    embedding-atlas images.parquet --x x --y y --text caption

A cluster lies on the map of the centers (:mod:`.layout`), an image among the centers of its labels.
One chunk is in memory at a time, and a few numbers per cluster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.commands.explore.centers import neighbors
from mlcd.commands.explore.layout import SIDE, layout
from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels, of_run
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import PARQUET_KEY, claim

if TYPE_CHECKING:
    import pyarrow as pa

CLUSTERS, IMAGES = "clusters.parquet", "images.parquet"
_BLOCK = 1 << 16
#: Rows up to which numpy draws from a hypergeometric distribution.
_NUMPYS_LIMIT = 10**9
#: How far an image may lie from the middle of its centers, in mean distances between clusters.
_SCATTER = 0.3


def write(results: Path, folder: Path, *, images: int | None = None, seed: int = 0) -> None:
    """Write both tables of the run in `results` into `folder`.

    `images`: that many of all images, by chance; None for all. `seed`: of this.
    Equal runs, numbers and seeds give equal bytes. Raises :class:`UserError` if the run has no
    labels or no centers, or if a file of somebody else lies there.
    """
    claim(folder / CLUSTERS, folder / IMAGES)
    paths = of_run(results)
    centers_path = results / "clusters" / "centroids.h5"
    if not paths or not centers_path.is_file():
        raise UserError(
            f"{results}: has no labels and centers; run the workflow up to the stage label"
        )
    files = [Labels(path) for path in paths]
    centers = Centroids(centers_path).array
    for file in files:
        if file.num_classes != len(centers):
            raise UserError(f"{file.path}: labels of other centers than {centers_path}")
    seen = _count(files, len(centers))
    near, cosines = neighbors(centers)
    # The map of the page, on which the middle is 0.
    place = (layout(centers, near) / (SIDE - 1) * 2 - 1).astype(np.float32)
    _write(folder / CLUSTERS, _clusters(results, files, seen, near, cosines, place))
    total = sum(file.n for file in files)
    chosen = total if images is None else min(images, total)
    _write(folder / IMAGES, _images(results, files, chosen, place, seed))
    LOGGER.info("%s: %d clusters and %d images", folder, len(centers), chosen)


@dataclasses.dataclass
class _Seen:
    """What the labels say of each cluster, all [K].

    `size`: images with it as first label, `use`: as any; `total`: sum of their similarities;
    `best` similarity, and `first`, the number of that image among all; −1 where there is none.
    """

    size: np.ndarray
    use: np.ndarray
    total: np.ndarray
    best: np.ndarray
    first: np.ndarray


def _count(files: list[Labels], k: int) -> _Seen:
    seen = _Seen(
        np.zeros(k, np.int64), np.zeros(k, np.int64), np.zeros(k), np.full(k, -np.inf),
        np.full(k, -1, np.int64),
    )  # fmt: skip
    start = 0
    for file in progress(files, label="clusters", unit="chunk"):
        label = file.label()
        seen.use += np.bincount(label[label >= 0], minlength=k)
        rows = np.flatnonzero(label[:, 0] >= 0)
        cluster = label[rows, 0]
        seen.size += np.bincount(cluster, minlength=k)
        # Own labels do not say how near an image is: its first stands for a cluster then.
        near = np.zeros(len(rows))
        if file.has_similarity:
            near = file.similarity()[rows, 0].astype(np.float64)
            seen.total += np.bincount(cluster, near, minlength=k)
        # Of each cluster the nearest, of equal ones the first.
        order = np.lexsort((rows, -near, cluster))
        found, places = np.unique(cluster[order], return_index=True)
        best = order[places]
        better = near[best] > seen.best[found]
        seen.best[found[better]] = near[best[better]]
        seen.first[found[better]] = start + rows[best[better]]
        start += file.n
    return seen


def _clusters(
    results: Path,
    files: list[Labels],
    seen: _Seen,
    near: np.ndarray,
    cosines: np.ndarray,
    place: np.ndarray,
) -> Iterator[pa.Table]:
    """Iterate over the rows of all clusters, by rising number."""
    import pyarrow as pa

    with_similarity = all(file.has_similarity for file in files)
    names = _representatives(results, files, seen.first)
    k = len(seen.size)
    for start in range(0, k, _BLOCK):
        part = slice(start, min(start + _BLOCK, k))
        size = seen.size[part]
        known = with_similarity & (size > 0)
        cohesion = np.divide(seen.total[part], size, out=np.zeros(len(size)), where=size > 0)
        gap = 1 - cosines[part, 0] if cosines.shape[1] else np.zeros(len(size))
        ids = pa.array(near[part].ravel(), pa.int64())
        distances = pa.array((1 - cosines[part]).astype(np.float32).ravel())
        ends = np.arange(len(size) + 1, dtype=np.int32) * near.shape[1]
        lists = [pa.ListArray.from_arrays(ends, values) for values in (ids, distances)]
        yield pa.table(
            {
                "cluster": pa.array(np.arange(part.start, part.stop, dtype=np.int32)),
                "size": pa.array(size),
                "use": pa.array(seen.use[part]),
                "cohesion": pa.array(cohesion.astype(np.float32), mask=~known),
                "gap": pa.array(gap.astype(np.float32), mask=np.full(len(gap), k < 2)),
                **{
                    name: pa.array([values.get(cluster) for cluster in range(start, part.stop)],
                                   pa.string())
                    for name, values in names.items()
                },
                "x": pa.array(place[part, 0]),
                "y": pa.array(place[part, 1]),
                "neighbors": pa.StructArray.from_arrays(lists, ["ids", "distances"]),
            }
        )  # fmt: skip


def _representatives(
    results: Path, files: list[Labels], first: np.ndarray
) -> dict[str, dict[int, str]]:
    """Return image, url and caption → cluster → that of its image `first` [K], −1 for none."""
    found: dict[str, dict[int, str]] = {"image": {}, "url": {}, "caption": {}}
    start = 0
    for file in progress(files, label="nearest images", unit="chunk"):
        clusters = np.flatnonzero((first >= start) & (first < start + file.n))
        if len(clusters):
            about = file.images_in(results, ["url", "caption"])
            about = about.iloc[first[clusters] - start]
            places = [f"{Path(file.path).stem}/{key}" for key in about["key"]]
            for name, values in (("image", places), ("url", about["url"]),
                                 ("caption", about["caption"])):  # fmt: skip
                found[name].update(zip(clusters.tolist(), values, strict=True))
        start += file.n
    return found


def _images(
    results: Path, files: list[Labels], chosen: int, place: np.ndarray, seed: int
) -> Iterator[pa.Table]:
    """Iterate over the rows of `chosen` images of all, in their order."""
    rng = np.random.default_rng(seed)
    counts = np.array([file.n for file in files])
    shares = _shares(counts, chosen, rng)
    scatter = _SCATTER * 2 / np.sqrt(len(place))
    for number, file in enumerate(progress(files, label="images", unit="chunk")):
        if not shares[number] and number:
            continue
        # Of a chunk's own, so that an image lies where it lies however many are chosen.
        own = np.random.default_rng([seed, number])
        around = own.uniform(-scatter, scatter, (file.n, 2))
        rows = np.sort(own.permutation(file.n)[: shares[number]])
        label = file.label()[rows]
        weight = (label >= 0).astype(np.float64)
        similarity = None
        if file.has_similarity:
            similarity = file.similarity()[rows].astype(np.float64)
            # The nearest center counts most, however small the differences are.
            weight *= np.exp(20 * (similarity - similarity[:, :1]))
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
        point = (place[np.maximum(label, 0)] * weight[:, :, None]).sum(axis=1) + around[rows]
        yield _image_rows(results, file, rows, label, similarity, point)


def _shares(counts: np.ndarray, chosen: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many of `chosen` rows by chance are of each chunk, int64 [chunks]."""
    total = int(counts.sum())
    if chosen == total:
        return counts
    if total < _NUMPYS_LIMIT:
        return rng.multivariate_hypergeometric(counts, chosen, method="marginals")
    rows = rng.choice(total, chosen, replace=False, shuffle=False)
    chunk = np.searchsorted(np.cumsum(counts), rows, "right")
    return np.bincount(chunk, minlength=len(counts))


def _image_rows(
    results: Path,
    file: Labels,
    rows: np.ndarray,
    label: np.ndarray,
    similarity: np.ndarray | None,
    point: np.ndarray,
) -> pa.Table:
    import pyarrow as pa

    about = file.images_in(results, ["url", "caption"]).iloc[rows]
    chunk = Path(file.path).stem
    others = [[int(one) for one in row if one >= 0] for row in label[:, 1:].tolist()]
    near: Any = pa.nulls(len(rows), pa.float32())
    if similarity is not None:
        near = pa.array(similarity[:, 0].astype(np.float32))
    return pa.table(
        {
            "image": pa.array([f"{chunk}/{key}" for key in about["key"]], pa.string()),
            "url": pa.array(about["url"].tolist(), pa.string()),
            "caption": pa.array(about["caption"].tolist(), pa.string()),
            "label": pa.array(label[:, 0], mask=label[:, 0] < 0),
            "similarity": near,
            "other_labels": pa.array(others, pa.list_(pa.int32())),
            "x": pa.array(point[:, 0].astype(np.float32)),
            "y": pa.array(point[:, 1].astype(np.float32)),
        }
    )


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables as one parquet, a row group for each."""
    import pyarrow.parquet as pq

    first = next(tables)
    schema = first.schema.with_metadata({PARQUET_KEY: "explored"})
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        writer.write_table(first.cast(schema), row_group_size=_BLOCK)
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=_BLOCK)
