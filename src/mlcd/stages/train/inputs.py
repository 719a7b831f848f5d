"""Join labels, embeddings and images by fingerprint, and lay the join out for all ranks.

The driver does this once, before any rank starts, so that a stale file is found at once. Ranks of
a machine share the result as memory-mapped arrays: at 400 million images of 8 labels it is 22 GB,
which no rank can hold for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore, indexed
from mlcd.data.labels import Labels
from mlcd.stages.train import region_index
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.records import read_record, write_record

_RECORD, _PLACES, _LABELS = "index.json", "place.bin", "label.bin"
_PLACE = np.dtype(
    [("tar", np.int32), ("size", np.int32), ("offset", np.int64), ("digest", np.uint64)]
)


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files that training reads, checked against each other; chunks sorted by name."""

    labels: list[Labels]
    #: What says where images lie: own labels do it themselves.
    places: list[Embeddings | Labels]
    images: list[ImageStore]
    centroids: Centroids | None
    #: Of each chunk, where regions are trained.
    regions: list[region_index.ChunkRegions] = dataclasses.field(default_factory=list)
    #: The words of the same images, where the run has a head for them.
    words: list[Labels] = dataclasses.field(default_factory=list)

    @property
    def identity(self) -> list[str]:
        """Fingerprints of all that the trained weights depend on."""
        centers = [self.centroids.fingerprint] if self.centroids else []
        regions = (chunk.labels.fingerprint for chunk in self.regions)
        labels = (file.fingerprint for file in self.labels)
        return [*labels, *centers, *regions, *self._words]

    @property
    def _words(self) -> list[str]:
        return [file.fingerprint for file in self.words]

    @property
    def num_classes(self) -> int:
        """Return K."""
        return self.labels[0].num_classes

    @property
    def made_from(self) -> dict[str, list[str]]:
        """The same by kind of file, and the images that ranks read, for who asks a year later."""
        found = {
            "images": [store.fingerprint for store in self.images],
            "labels": [labels.fingerprint for labels in self.labels],
            "centroids": [self.centroids.fingerprint] if self.centroids else [],
            **({"ocr_labels": self._words} if self.words else {}),
        }
        if self.regions:
            found["regions"] = [chunk.store.fingerprint for chunk in self.regions]
            found["region_labels"] = [chunk.labels.fingerprint for chunk in self.regions]
        return found


def check(
    labels: Sequence[str],
    embeddings: Sequence[str],
    images: Sequence[str],
    centroids: str | None,
    regions: Sequence[str] = (),
    region_labels: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Sources:
    """Open all files and check that they belong together.

    Each labels file names the fingerprint of the embeddings and of the centroids that it was made
    from, and each embeddings file that of the images' manifest. Own labels name that themselves:
    they come without embeddings, and may come without `centroids`. `words`: labels of stage ocr for
    the same rows. Raises :class:`UserError` with
    the name of the first file that was made from something else, and with the stage to rerun.
    """
    centers = Centroids(centroids) if centroids else None
    stores = _by_chunk([ImageStore(path) for path in images], "images")
    opened = sorted((Labels(path) for path in labels), key=lambda item: item.chunk)
    own = [item for item in opened if item.manifest]
    if own and (len(own) < len(opened) or embeddings):
        raise UserError(
            f"{own[0].path}: own labels, which need no --embeddings and no other labels beside "
            "them; leave these out"
        )
    if not own and centers is None:
        raise UserError("--centroids: needed to train; give those that the labels were made with")
    _by_chunk(opened, "labels")
    vectors = {} if own else _by_chunk([Embeddings(path) for path in embeddings], "embeddings")
    _require_all(opened, stores, "images", "download")
    if not own:
        _require_all(opened, vectors, "embeddings", "embed")
    width = {item.l for item in opened}
    if len(width) > 1:
        raise UserError(
            f"--labels: files have {sorted(width)} labels per image; rerun label with one label.top"
        )
    for item in opened:
        _check_chunk(item, vectors.get(item.chunk), stores[item.chunk])
        _check_classes(item, opened[0], centers)
    places = [vectors.get(item.chunk, item) for item in opened]
    boxes = (
        region_index.check(regions, region_labels, opened, places)
        if regions or region_labels
        else []
    )
    return Sources(
        opened, places, [stores[item.chunk] for item in opened], centers, boxes,
        _words_of(opened, places, words),
    )  # fmt: skip


def _words_of(
    opened: list[Labels], places: Sequence[Embeddings | Labels], paths: Sequence[str]
) -> list[Labels]:
    """Open the words of the same rows as the labels, in their order."""
    if not paths:
        return []
    words = _by_chunk([Labels(path) for path in paths], "ocr-labels")
    _require_all(opened, words, "ocr-labels", "ocr")
    found: list[Labels] = [words[item.chunk] for item in opened]
    for item, place in zip(found, places, strict=True):
        # Labels of clusters may be of the same rows, and vocabularies as long as ocr.most_words.
        if not item.vocabulary:
            raise UserError(f"{item.path}: holds no words of images; give files of ocr/labels")
        if item.embeddings != place.fingerprint or item.n != place.n:
            raise UserError(
                f"{item.path}: made from other rows than {place.path}; rerun ocr for chunk "
                f"{item.chunk}"
            )
        if item.vocabulary != found[0].vocabulary:
            raise UserError(
                f"{item.path}: of another vocabulary than {found[0].path}; rerun ocr for chunk "
                f"{item.chunk}"
            )
        if (item.num_classes, item.l) != (found[0].num_classes, found[0].l):
            raise UserError(
                f"{item.path}: {item.l} of {item.num_classes} words, but {found[0].path} has "
                f"{found[0].l} of {found[0].num_classes}; rerun ocr for chunk {item.chunk}"
            )
    return found


def _require_all(opened: list[Labels], group: dict[str, Any], name: str, stage: str) -> None:
    for item in opened:
        if item.chunk not in group:
            raise UserError(
                f"{item.path}: no --{name} given for its chunk {item.chunk}; "
                f"name it, or run {stage}"
            )
    if extra := sorted(set(group) - {item.chunk for item in opened}):
        raise UserError(f"--{name}: chunk {extra[0]} has no labels; name them, or run label")


def _check_chunk(labels: Labels, embeddings: Embeddings | None, images: ImageStore) -> None:
    if embeddings is None:
        if labels.manifest != images.fingerprint:
            raise UserError(
                f"{labels.path}: made for other images than {images.folder} now holds "
                f"(it was downloaded again); rerun label for chunk {images.chunk}"
            )
        return
    if embeddings.attributes.get("manifest") != images.fingerprint:
        raise UserError(
            f"{embeddings.path}: made from other images than {images.folder} now holds "
            f"(it was downloaded again); rerun embed and label for chunk {images.chunk}"
        )
    if labels.embeddings != embeddings.fingerprint or labels.n != embeddings.n:
        raise UserError(
            f"{labels.path}: made from other embeddings than {embeddings.path}; "
            f"rerun label for chunk {labels.chunk}"
        )


def _check_classes(labels: Labels, first: Labels, centroids: Centroids | None) -> None:
    if labels.num_classes != first.num_classes:
        raise UserError(
            f"{labels.path}: {labels.num_classes} classes, but {first.path} has "
            f"{first.num_classes}; rerun label for chunk {labels.chunk}"
        )
    if centroids is None:
        return
    if labels.centroids not in ("", centroids.fingerprint):
        raise UserError(
            f"{labels.path}: made from other centers than {centroids.path}; "
            f"rerun label for chunk {labels.chunk}"
        )
    if labels.num_classes != centroids.K:
        raise UserError(
            f"{labels.path}: {labels.num_classes} classes, but {centroids.path} has "
            f"{centroids.K} centers; rerun label for chunk {labels.chunk}"
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
    """Write the join into `folder` for :class:`Index`; return the number of images.

    The first `positives` labels of each image are kept, None for all: the l nearest of the stage
    label are the first l of any larger number. Images without any label are left out. An index
    that is there already is kept if it is whole: the folder's name depends on the inputs. Raises
    :class:`UserError` if no image has a label, or if there are fewer labels per image than
    `positives`.
    """
    width = sources.labels[0].l
    if positives is not None and positives > width:
        raise UserError(
            f"train.positives: {positives} of {width} labels per image; lower it, or raise "
            "label.top and rerun label"
        )
    width = positives or width
    n = sum(_whole_counts(folder) or _write_index(sources, folder, width))
    # Written anew each time: the images may have moved since an earlier attempt.
    paths = [str(path.resolve()) for images in sources.images for path in images.tars]
    write_record(folder / "tars.json", {"tars": paths})
    if n == 0:
        raise UserError(f"{sources.labels[0].path}: no image has a label; rerun label")
    return n


def _whole_counts(folder: Path) -> list[int] | None:
    """Return the images of each tar if the index in `folder` is there and whole, else None."""
    try:
        record = read_record(folder / _RECORD, "train")
        whole = all(sha256_file(folder / name) == sha for name, sha in record["sha256"].items())
    except (UserError, OSError):
        return None
    counts: list[int] = record["counts"]
    return counts if whole else None


def _write_index(sources: Sources, folder: Path, width: int) -> list[int]:
    """Write the join; return the images of each tar."""
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    record: dict[str, Any] = {"l": width, "counts": counts}
    if sources.words:
        record["words"] = sources.words[0].l
    names = [_PLACES, _LABELS]
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(folder / name)) for name in names]
        place_file, label_file = (stack.enter_context(path.open("wb")) for path in paths)
        regions = stack.enter_context(region_index.writing(folder)) if sources.regions else None
        words: Sequence[Labels | None] = sources.words or [None] * len(sources.labels)
        chunks = zip(sources.labels, sources.places, sources.images, words, strict=True)
        for number, (labels, places, images, read) in enumerate(chunks):
            place, label, tars, keep = _kept_rows(labels, places, images, width, read)
            counts += np.bincount(place["tar"], minlength=tars).tolist()
            place["tar"] += len(counts) - tars
            place_file.write(place.tobytes())
            label_file.write(label.tobytes())
            if regions is not None:
                regions.add(sources.regions[number], keep, labels.n, width)
                record["regions"] = regions.total
    names += region_index.FILES if sources.regions else []
    record["sha256"] = {name: sha256_file(folder / name) for name in names}
    write_record(folder / _RECORD, record)
    return counts


def labeled_rows(
    labels: Labels,
    places: Embeddings | Labels,
    images: ImageStore,
    width: int,
    words: Labels | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return place [n] and label int32 [n, width] of a chunk's labeled images, and its tars.

    With `words` their columns follow those of the labels.

    Raises :class:`UserError` if an image does not lie inside of a tar of the chunk.
    """
    return _kept_rows(labels, places, images, width, words)[:3]


def _kept_rows(
    labels: Labels,
    places: Embeddings | Labels,
    images: ImageStore,
    width: int,
    words: Labels | None,
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Return the same, and the rows of the chunk's labels, int64 [n], that these are."""
    label, found = labels.label()[:, :width], places.places()
    tars = len(images.tars)
    ends = np.array([tar["bytes"] for tar in images.manifest["tars"]], np.int64)
    inside = (found.tar >= 0) & (found.tar < tars)
    if inside.all() and tars:
        inside = (found.offset >= 0) & (found.size >= 0)
        # Of an index, the line alone lies in it.
        size = np.where(indexed(images.manifest["tars"])[found.tar], 1, found.size)
        inside &= found.offset + size <= ends[found.tar]
    if not inside.all():
        row = int(np.argmin(inside))
        raise UserError(
            f"{places.path}: row {row} lies in no tar of {images.folder}; rerun its stage"
        )
    place = np.empty(len(label), _PLACE)
    for name in found._fields:
        place[name] = getattr(found, name)
    keep = np.flatnonzero((label >= 0).any(axis=1))
    # Neighbors in the index are neighbors on disk.
    keep = keep[np.lexsort((place["offset"][keep], place["tar"][keep]))]
    if words is not None:
        label = np.hstack([label, words.label()])
    return place[keep], label[keep], tars, keep


class Index:
    """The join as ranks see it, mapped.

    `place` (tar, size, offset, digest) [N], `label` int32 [N, l + M], of which the last `words` (M)
    columns are of the second head; 0 in a run without it. `tars`: paths; `place["tar"]`
    counts over the tars of all chunks and never decreases. `counts`: images of each tar, int64.
    `regions`: those of the images, None where none are trained.
    """

    def __init__(self, folder: Path) -> None:
        self.tars = [Path(path) for path in read_record(folder / "tars.json", "train")["tars"]]
        record = read_record(folder / _RECORD, "train")
        self.counts = np.array(record["counts"], np.int64)
        n = int(self.counts.sum())
        # An empty file cannot be mapped; build_index has refused it.
        self.place = np.memmap(folder / _PLACES, _PLACE, "r", shape=(n,))
        self.words = int(record.get("words", 0))
        shape = (n, record["l"] + self.words)
        self.label = np.memmap(folder / _LABELS, np.int32, "r", shape=shape)
        self.regions = (
            region_index.RegionIndex(folder, n, record["regions"], record["l"])
            if "regions" in record
            else None
        )
