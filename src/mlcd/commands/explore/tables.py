"""clusters.parquet and images.parquet: a run for embedding-atlas, and for any reader of parquet.

    embedding-atlas clusters.parquet --x x --y y --text caption --neighbors neighbors
    embedding-atlas images.parquet --x x --y y --text caption

A cluster lies on the map of the page, an image among the centers of its labels. Rows come from the
index by blocks; of the labels one chunk is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.commands.explore.index import Index
from mlcd.commands.explore.layout import SIDE
from mlcd.commands.explore.runs import Run
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import PARQUET_KEY, claim

if TYPE_CHECKING:
    import pyarrow as pa

CLUSTERS, IMAGES = "clusters.parquet", "images.parquet"
_BLOCK = 1 << 16
#: Images whose texts are looked up at once: each may lie in a block of 64 of its own.
_TEXTS = 1 << 10
#: Rows up to which numpy draws from a hypergeometric distribution.
_NUMPYS_LIMIT = 10**9
#: How far an image may lie from the middle of its centers, in mean distances between clusters.
_SCATTER = 0.3


def check(run: Run, folder: Path) -> None:
    """Raise :class:`UserError` where there can be no tables, or where others' files lie there."""
    claim(folder / CLUSTERS, folder / IMAGES)
    if run.centroids is None:
        raise UserError(
            f"{run.results}: its labels are the user's own and of no centers, so clusters have no "
            "map; --tables needs cluster.centers"
        )
    if lacking := run.lacking():
        raise UserError(
            f"{run.results}: no images of chunk {lacking[0]}, and --tables names them; run "
            "download, or give all results"
        )


def write(
    run: Run, index: Index, folder: Path, *, images: int | None = None, seed: int = 0
) -> None:
    """Write both tables of `run` into `folder`, from its index.

    `images`: that many of all images, by chance; None for all. `seed`: of this.
    Equal runs, numbers and seeds give equal bytes. Raises :class:`UserError` as :func:`check`.
    """
    check(run, folder)
    where = index.map()
    assert where is not None, "there are centers"
    # The middle of the map is 0.
    place = (where / (SIDE - 1) * 2 - 1).astype(np.float32)
    _write(folder / CLUSTERS, _clusters(run, index, place))
    chosen = run.n if images is None else min(images, run.n)
    _write(folder / IMAGES, _images(run, index, chosen, place, seed))
    LOGGER.info("%s: %d clusters and %d images", folder, run.K, chosen)


def _clusters(run: Run, index: Index, place: np.ndarray) -> Iterator[pa.Table]:
    """Iterate over the rows of all clusters, by rising number."""
    import pyarrow as pa

    blocks = range(0, run.K, _BLOCK)
    for start in progress(blocks, label="clusters", unit="block"):
        part = slice(start, min(start + _BLOCK, run.K))
        clusters = range(part.start, part.stop)
        near, cosines = index.all_neighbors(part.start, part.stop)
        first = [index.members(cluster, 0, 1)[0] for cluster in clusters]
        nearest = np.array([int(one[0]) if len(one) else -1 for one in first])
        ids = pa.array(near.ravel(), pa.int64())
        distances = pa.array((1 - cosines).astype(np.float32).ravel())
        ends = np.arange(len(clusters) + 1, dtype=np.int32) * near.shape[1]
        lists = [pa.ListArray.from_arrays(ends, values) for values in (ids, distances)]
        yield pa.table(
            {
                "cluster": pa.array(np.arange(part.start, part.stop, dtype=np.int32)),
                "size": pa.array(index.columns["size"][part]),
                "use": pa.array(index.columns["use"][part]),
                "cohesion": _known(index.columns["cohesion"][part]),
                "gap": _known(index.columns["gap"][part]),
                **_named(run, index, nearest),
                "x": pa.array(place[part, 0]),
                "y": pa.array(place[part, 1]),
                "neighbors": pa.StructArray.from_arrays(lists, ["ids", "distances"]),
            }
        )


def _known(values: np.ndarray) -> pa.Array:
    """Return numbers float32, null where they are not known."""
    import pyarrow as pa

    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def _named(run: Run, index: Index, numbers: np.ndarray) -> dict[str, pa.Array]:
    """Return image, url and caption of images by number of all, int64 [m]; null for −1."""
    import pyarrow as pa

    chunk = np.searchsorted(run.starts, numbers, "right") - 1
    row = numbers - run.starts[chunk]
    given = np.flatnonzero(numbers >= 0)
    names = np.full(len(numbers), None, object)
    for one in np.unique(chunk[given]).tolist():
        mine = given[chunk[given] == one]
        keys = run.keys(one)[row[mine]].tolist()
        names[mine] = [f"{run.chunks[one]}/{key.decode()}" for key in keys]
    texts = np.full((len(numbers), 2), None, object)
    for start in range(0, len(given), _TEXTS):
        mine = given[start : start + _TEXTS]
        places = list(zip(chunk[mine].tolist(), row[mine].tolist(), strict=True))
        texts[mine] = index.texts(places)
    found = {"image": names, "url": texts[:, 1], "caption": texts[:, 0]}
    return {name: pa.array(values.tolist(), pa.string()) for name, values in found.items()}


def _images(
    run: Run, index: Index, chosen: int, place: np.ndarray, seed: int
) -> Iterator[pa.Table]:
    """Iterate over the rows of `chosen` images of all, in their order."""
    rng = np.random.default_rng(seed)
    shares = _shares(np.diff(run.starts), chosen, rng)
    scatter = _SCATTER * 2 / np.sqrt(len(place))
    for number, file in enumerate(progress(run.labels, label="images", unit="chunk")):
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
        yield _image_rows(_named(run, index, run.starts[number] + rows), label, similarity, point)


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
    names: dict[str, pa.Array],
    label: np.ndarray,
    similarity: np.ndarray | None,
    point: np.ndarray,
) -> pa.Table:
    import pyarrow as pa

    others = [[int(one) for one in row if one >= 0] for row in label[:, 1:].tolist()]
    near: Any = pa.nulls(len(label), pa.float32())
    if similarity is not None:
        near = pa.array(similarity[:, 0].astype(np.float32))
    return pa.table(
        {
            **names,
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
