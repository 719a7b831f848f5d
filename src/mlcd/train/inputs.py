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

_PLACES, _LABELS = "place.bin", "label.bin"
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


def build_index(sources: Sources, folder: Path, positives: int | None = None) -> int:
    """Write the join into `folder` for :class:`Index`; return the number of pictures.

    The first `positives` labels of each picture are kept, None for all: the l nearest of the stage
    label are the first l of any larger number. Pictures without any label are left out. An index
    that is there already is kept: the folder's name depends on the inputs. Raises
    :class:`UserError` if no picture has a label, or if there are fewer labels a picture than
    `positives`.
    """
    width = sources.labels[0].l
    if positives is not None and positives > width:
        raise UserError(
            f"train.positives: {positives} of {width} labels a picture; lower it, or raise "
            "label.top and rerun label"
        )
    width = positives or width
    record = folder / "index.json"
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counts: list[int] = []
        with (
            atomic_path(folder / _PLACES) as place_path,
            atomic_path(folder / _LABELS) as label_path,
            place_path.open("wb") as place_file,
            label_path.open("wb") as label_file,
        ):
            for chunk in zip(sources.labels, sources.embeddings, sources.images, strict=True):
                place, label, tars = _rows(*chunk, width)
                counts += np.bincount(place["tar"], minlength=tars).tolist()
                place["tar"] += len(counts) - tars
                place_file.write(place.tobytes())
                label_file.write(label.tobytes())
        write_json(record, {"l": width, "counts": counts})
    n = sum(read_json(record)["counts"])
    # Written anew each time: the pictures may have moved since an earlier attempt.
    paths = [str(path.resolve()) for images in sources.images for path in images.tars]
    write_json(folder / "tars.json", paths)
    if n == 0:
        raise UserError(f"{sources.labels[0].path}: no picture has a label; rerun label")
    return n


def _rows(
    labels: Labels, embeddings: Embeddings, images: ImageStore, width: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return place [n] and label int32 [n, width] of a chunk's labelled pictures, and its tars."""
    label, found = labels.label()[:, :width], embeddings.places()
    tars = len(images.tars)
    if len(found.tar) and not 0 <= found.tar.min() <= found.tar.max() < tars:
        raise UserError(f"{embeddings.path}: names a tar that {images.folder} lacks; rerun embed")
    place = np.empty(len(label), _PLACE)
    place["tar"], place["offset"], place["size"] = found.tar, found.offset, found.size
    keep = np.flatnonzero((label >= 0).any(axis=1))
    # Neighbours in the index are neighbours on disk.
    keep = keep[np.lexsort((place["offset"][keep], place["tar"][keep]))]
    return place[keep], label[keep], tars


class Index:
    """The join as ranks see it, mapped: `place` (tar, size, offset) [N], `label` int32 [N, l].

    `tars`: paths; `place["tar"]` counts over the tars of all chunks and never decreases. `counts`:
    pictures of each tar, int64.
    """

    def __init__(self, folder: Path) -> None:
        self.tars = [Path(path) for path in read_json(folder / "tars.json")]
        record = read_json(folder / "index.json")
        self.counts = np.array(record["counts"], np.int64)
        n = int(self.counts.sum())
        # An empty file cannot be mapped; build_index has refused it.
        self.place = np.memmap(folder / _PLACES, _PLACE, "r", shape=(n,))
        self.label = np.memmap(folder / _LABELS, np.int32, "r", shape=(n, record["l"]))
