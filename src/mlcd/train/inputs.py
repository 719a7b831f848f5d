"""Join labels, embeddings and pictures by fingerprint, and lay the join out for all ranks.

The driver does this once, before any rank starts, so that a stale file is found at once. Ranks of
a machine share the result as memory-mapped arrays: at 400 million pictures of 8 labels it is 20 GB,
which no rank can hold for itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.errors import UserError
from mlcd.files import atomic_path, read_json, write_json
from mlcd.stores.centroids import Centroids
from mlcd.stores.embeddings import Embeddings
from mlcd.stores.images import ImageStore
from mlcd.stores.labels import Labels

_PLACE = np.dtype([("tar", np.int32), ("size", np.int32), ("offset", np.int64)])


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files that training reads, checked against each other; chunks sorted by name."""

    labels: list[Labels]
    embeddings: list[Embeddings]
    images: list[ImageStore]
    centroids: Centroids

    @property
    def identity(self) -> list[str]:
        """Fingerprints of all that the trained weights depend on."""
        return [*(labels.fingerprint for labels in self.labels), self.centroids.fingerprint]


def check(
    labels: Sequence[str], embeddings: Sequence[str], images: Sequence[str], centroids: str
) -> Sources:
    """Open all files and check that they belong together.

    Each labels file names the fingerprint of the embeddings and of the centroids that it was made
    from, and each embeddings file that of the pictures' manifest. Raises :class:`UserError` with
    the name of the first file that was made from something else, and with the stage to rerun.
    """
    centres = Centroids(centroids)
    by_chunk_images = _by_chunk([ImageStore(path) for path in images], "images")
    by_chunk_embeddings = _by_chunk([Embeddings(path) for path in embeddings], "embeddings")
    opened = sorted((Labels(path) for path in labels), key=lambda item: item.chunk)
    _by_chunk(opened, "labels")
    for name, group, stage in (
        ("embeddings", by_chunk_embeddings, "embed"),
        ("images", by_chunk_images, "download"),
    ):
        for item in opened:
            if item.chunk not in group:
                raise UserError(
                    f"{item.path}: no --{name} given for its chunk {item.chunk}; "
                    f"name it, or run {stage}"
                )
        if extra := sorted(set(group) - {item.chunk for item in opened}):
            raise UserError(f"--{name}: chunk {extra[0]} has no labels; name them, or run label")
    width = {item.l for item in opened}
    if len(width) > 1:
        raise UserError(
            f"--labels: files have {sorted(width)} labels a picture; rerun label with one label.top"
        )
    for item in opened:
        vectors, pictures = by_chunk_embeddings[item.chunk], by_chunk_images[item.chunk]
        _check_chunk(item, vectors, pictures, centres)
    return Sources(
        opened,
        [by_chunk_embeddings[item.chunk] for item in opened],
        [by_chunk_images[item.chunk] for item in opened],
        centres,
    )


def _check_chunk(
    labels: Labels, embeddings: Embeddings, images: ImageStore, centroids: Centroids
) -> None:
    if embeddings.attributes.get("manifest") != images.fingerprint:
        raise UserError(
            f"{embeddings.path}: made from other pictures than {images.folder} now holds "
            f"(it was downloaded again); rerun embed and label for chunk {images.chunk}"
        )
    if labels.embeddings != embeddings.fingerprint or labels.n != embeddings.n:
        raise UserError(
            f"{labels.path}: made from other embeddings than {embeddings.path}; "
            f"rerun label for chunk {labels.chunk}"
        )
    if labels.centroids not in ("", centroids.fingerprint):
        raise UserError(
            f"{labels.path}: made from other centres than {centroids.path}; "
            f"rerun label for chunk {labels.chunk}"
        )
    if labels.num_classes != centroids.K:
        raise UserError(
            f"{labels.path}: {labels.num_classes} classes, but {centroids.path} has "
            f"{centroids.K} centres; rerun label for chunk {labels.chunk}"
        )


def _by_chunk(items: Sequence[Any], option: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        chunk = item.attributes.get("chunk", "") if option == "embeddings" else item.chunk
        if chunk in found:
            raise UserError(f"--{option}: chunk {chunk!r} is given twice; name each file once")
        found[chunk] = item
    return found


def build_index(sources: Sources, folder: Path) -> int:
    """Write the join into `folder` for :class:`Index`; return the number of pictures.

    Pictures without any label are left out. An index that is there already is kept: the folder's
    name depends on the inputs. Raises :class:`UserError` if no picture has a label.
    """
    record = folder / "index.json"
    if not record.exists():
        places, labels, tars = [], [], 0
        for label_file, vectors, images in zip(
            sources.labels, sources.embeddings, sources.images, strict=True
        ):
            label, found = label_file.label(), vectors.places()
            place = np.empty(len(label), _PLACE)
            place["tar"] = found.tar + tars
            place["offset"], place["size"] = found.offset, found.size
            if len(found.tar) and not (0 <= found.tar.min() <= found.tar.max() < len(images.tars)):
                raise UserError(
                    f"{vectors.path}: names a tar that {images.folder} lacks; rerun embed"
                )
            keep = np.flatnonzero((label >= 0).any(axis=1))
            # Neighbours in the index are neighbours on disk.
            keep = keep[np.lexsort((place["offset"][keep], place["tar"][keep]))]
            places.append(place[keep])
            labels.append(label[keep])
            tars += len(images.tars)
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in (("place", places), ("label", labels)):
            with atomic_path(folder / f"{name}.npy") as temporary:
                _write_npy(temporary, parts)
        write_json(record, {"n": sum(map(len, labels))})
    n = read_json(record)["n"]
    # Written anew each time: the pictures may have moved since an earlier attempt.
    paths = [str(path.resolve()) for images in sources.images for path in images.tars]
    write_json(folder / "tars.json", paths)
    if n == 0:
        raise UserError(f"{sources.labels[0].path}: no picture has a label; rerun label")
    return n


def _write_npy(path: Path, parts: list[np.ndarray]) -> None:
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    array = np.lib.format.open_memmap(path, "w+", parts[0].dtype, shape)
    start = 0
    for part in parts:
        array[start : start + len(part)] = part
        start += len(part)
    array.flush()


class Index:
    """The join as ranks see it, mapped: `place` (tar, size, offset) [N], `label` int32 [N, l].

    `tars`: paths; `place["tar"]` counts over the tars of all chunks and never decreases.
    """

    def __init__(self, folder: Path) -> None:
        self.tars = [Path(path) for path in read_json(folder / "tars.json")]
        # An empty array cannot be mapped; build_index has refused it.
        self.place = np.load(folder / "place.npy", mmap_mode="r", allow_pickle=False)
        self.label = np.load(folder / "label.npy", mmap_mode="r", allow_pickle=False)
