"""Regions beside images in training: which files belong together, and the index of all of them.

The regions of image i of the index are rows `start[i]` … `start[i + 1]` − 1 of `box` and `label`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from mlcd.data.embeddings import Embeddings
from mlcd.data.labels import Labels
from mlcd.data.region_store import RegionStore
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path

Item = TypeVar("Item")

#: Files of the index → type and shape of a row.
FILES = {
    "region_start.bin": (np.int64, ()),
    "region_size.bin": (np.int32, (2,)),
    "region_box.bin": (np.float32, (4,)),
    "region_label.bin": (np.int32, None),
}


class ChunkRegions(NamedTuple):
    """The regions of a chunk, and their labels."""

    store: RegionStore
    labels: Labels


def check(
    regions: Sequence[str],
    region_labels: Sequence[str],
    labels: Sequence[Labels],
    embeddings: Sequence[Embeddings | Labels],
) -> list[ChunkRegions]:
    """Open the regions of the chunks of `labels`, in their order.

    Raises :class:`UserError` with the name of the first file that is missing or was made from
    something else.
    """
    stores = _by_chunk(
        map(RegionStore, regions),
        "region-embeddings",
        lambda item: str(item.attributes.get("chunk", "")),
    )
    found = _by_chunk(map(Labels, region_labels), "region-labels", lambda item: item.chunk)
    chunks = []
    for of_images, vectors in zip(labels, embeddings, strict=True):
        chunk = of_images.chunk
        for option, names in (("region-embeddings", set(stores)), ("region-labels", set(found))):
            if chunk not in names:
                raise UserError(
                    f"{of_images.path}: no --{option} given for its chunk {chunk}; name it, or "
                    "run regions"
                )
        store, own = stores.pop(chunk), found[chunk]
        if store.source != vectors.fingerprint:
            raise UserError(
                f"{store.path}: made from other embeddings than {vectors.path}; rerun regions for "
                f"chunk {chunk}"
            )
        if own.embeddings != store.fingerprint or own.n != store.n:
            raise UserError(
                f"{own.path}: made from other regions than {store.path}; rerun label for them"
            )
        if (own.centroids, own.l) != (of_images.centroids, of_images.l):
            raise UserError(
                f"{own.path}: made with other centers or another label.top than {of_images.path}; "
                "rerun label for both"
            )
        chunks.append(ChunkRegions(store, own))
    for option, left in (("region-embeddings", set(stores)), ("region-labels", set(found))):
        if extra := sorted(left - {item.chunk for item in labels}):
            raise UserError(f"--{option}: chunk {extra[0]} has no labels; name them, or run label")
    return chunks


def _by_chunk(items: Iterable[Item], option: str, name: Callable[[Item], str]) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for item in items:
        if (chunk := name(item)) in found:
            raise UserError(f"--{option}: chunk {chunk!r} is given twice; name each file once")
        found[chunk] = item
    return found


def rows(
    chunk: ChunkRegions, keep: np.ndarray, n: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what the index has of a chunk of `n` images, of which rows `keep` [m] are in it.

    Numbers of regions int64 [m] and sizes of the images int32 [m, 2] (0 without any region), then
    boxes float32 [r, 4] and `width` labels int32 [r, width] of their regions, image by image.
    Regions without a label are left out. Raises :class:`UserError`.
    """
    image, box, size = chunk.store.images(), chunk.store.boxes(), chunk.store.image_sizes()
    label = chunk.labels.label()[:, :width]
    if len(image) and image[-1] >= n:
        raise UserError(f"{chunk.store.path}: of images that are not there; rerun regions")
    labeled = np.flatnonzero((label >= 0).any(axis=1))
    image, box, size, label = image[labeled], box[labeled], size[labeled], label[labeled]
    counts = np.bincount(image, minlength=n)
    starts = np.cumsum(counts) - counts
    sizes = np.zeros((n, 2), np.int32)
    sizes[image] = size
    counts, starts = counts[keep], starts[keep]
    # Rows of the images in the order of the index.
    offset = np.cumsum(counts) - counts
    order = np.repeat(starts - offset, counts) + np.arange(int(counts.sum()))
    return counts.astype(np.int64), sizes[keep], box[order], label[order]


class RegionIndex:
    """The regions as ranks see them, mapped.

    `start` int64 [N + 1], `size` int32 [N, 2] (width, height of the image, 0 without any region),
    `box` float32 [R, 4] (shares of the image), `label` int32 [R, l].
    """

    def __init__(self, folder: Path, images: int, regions: int, width: int) -> None:
        counts = {"region_start.bin": images + 1, "region_size.bin": images}
        found = []
        for name, (kind, shape) in FILES.items():
            whole = (counts.get(name, regions), *((width,) if shape is None else shape))
            # An empty file cannot be mapped.
            found.append(
                np.memmap(folder / name, kind, "r", shape=whole)
                if whole[0]
                else np.zeros(whole, kind)
            )
        self.start, self.size, self.box, self.label = found


class Writer:
    """Writes the regions of one chunk after another; made by :func:`writing`. `total`: regions."""

    def __init__(self, files: list[BinaryIO]) -> None:
        self._files = files
        self.total = 0
        files[0].write(np.zeros(1, np.int64).tobytes())

    def add(self, chunk: ChunkRegions, keep: np.ndarray, n: int, width: int) -> None:
        """Append the regions of a chunk, as :func:`rows` returns them."""
        counts, size, box, label = rows(chunk, keep, n, width)
        start = self.total + np.cumsum(counts)
        for file, part in zip(self._files, (start, size, box, label), strict=True):
            file.write(part.tobytes())
        self.total += len(box)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Write :data:`FILES` into `folder`, atomically."""
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(folder / name)) for name in FILES]
        yield Writer([stack.enter_context(path.open("wb")) for path in paths])
