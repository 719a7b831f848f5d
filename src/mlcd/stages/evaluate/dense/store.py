"""Patch tokens of all images of a data set, on disk while the dense tasks look at them.

Parts of :data:`PART` images: `N.npy` has the tokens float16 [b, h, w, C], to be read in any order,
`N.h5` all else and is written last. A job that is cut off loses at most one part. Both are in the
folder of the job's saved state, and go with it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data import hdf5
from mlcd.data.decode import BadImage, decode
from mlcd.data.labeled.sample import judged
from mlcd.data.labeled.samples import samples
from mlcd.data.labeled.scenes import IGNORED, Scene, resized, scenes
from mlcd.stages.evaluate.dense.encode import DenseModel
from mlcd.stages.evaluate.table import SPLITS, words_of
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import progress

#: Images of a part.
PART = 256
#: Pixels of the masks that a fit sees for each place of the map, per side.
FINER = 4
_KIND = "tokens of a part"


def write(
    section: Evaluate,
    dataset: Dataset,
    model: DenseModel,
    folder: Path,
    *,
    regions: bool,
    batch_size: int,
    workers: int,
) -> None:
    """Write all parts into `folder`; those that are there are kept. `regions`: with crops.

    Raises :class:`UserError` if more than `max_failed` of the images do not decode.
    """
    plain = samples(dataset)
    found = iter(progress(scenes(dataset, plain, section.max_pixels), label=f"tokens of "
                          f"{dataset.name}", unit="image"))  # fmt: skip
    for number in itertools.count():
        if not (block := list(itertools.islice(found, PART))):
            break
        if not (folder / f"{number:05d}.h5").exists():
            columns, tokens = _encoded(section, block, model, regions, batch_size, workers)
            with atomic_path(folder / f"{number:05d}.npy") as temporary:
                np.save(temporary, tokens)
            hdf5.write(folder / f"{number:05d}.h5", _KIND, columns, {"number": number})


def _encoded(
    section: Evaluate,
    block: list[Scene],
    model: DenseModel,
    regions: bool,
    batch_size: int,
    workers: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the columns of a part, and its tokens."""

    def prepare(scene: Scene) -> tuple[Scene, np.ndarray, list[np.ndarray], tuple[int, int]] | str:
        try:
            image = decode(scene.data, max_pixels=section.max_pixels)
        except BadImage as error:
            return error.reason
        if scene.mask is not None and scene.mask.shape != (image.height, image.width):
            raise UserError(
                f"evaluate.datasets: {scene.key}: its mask has {scene.mask.shape[::-1]} pixels, "
                f"its image {image.size}; fetch both again"
            )
        crops = [model.crop(image, one.box) for one in scene.objects] if regions else []
        return scene, model.whole(image), crops, (image.height, image.width)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        done = list(pool.map(prepare, block))
    kept = [item for item in done if not isinstance(item, str)]
    reasons = [item for item in done if isinstance(item, str)]
    maps, pooled = model.encoded([pixels for _, pixels, _, _ in kept], batch_size)
    crops = [crop for _, _, found, _ in kept for crop in found]
    of_crops = model.pooled(crops, batch_size) if crops else np.zeros((0, pooled.shape[1]), "f4")
    side = FINER * maps.shape[1], FINER * maps.shape[2]
    objects = [
        (row, one) for row, (scene, *_) in enumerate(kept) for one in scene.objects if regions
    ]
    empty = np.full(side, IGNORED, np.uint8)
    targets = [empty if s.mask is None else resized(s.mask, *side) for s, *_ in kept]
    # Of train images the small masks are enough.
    full = [s.mask if s.mask is not None and s.split != "train" else empty[:0] for s, *_ in kept]
    return {
        "key": words_of([scene.key for scene, *_ in kept]),
        "split": np.array([SPLITS.index(scene.split) for scene, *_ in kept], np.int8),
        "size": np.array([size for *_, size in kept], np.int32).reshape(-1, 2),
        "pooled": pooled,
        "target": np.stack(targets) if targets else np.zeros((0, *side), np.uint8),
        "mask": np.concatenate([mask.ravel() for mask in full]) if full else empty[:0].ravel(),
        "mask_size": np.array([mask.size for mask in full], np.int64),
        "object_row": np.array([row for row, _ in objects], np.int64),
        "object_class": words_of([one.name for _, one in objects]),
        "object_box": np.array([one.box for _, one in objects], np.float64).reshape(-1, 4),
        "object_number": np.array([one.number for _, one in objects], np.int64),
        "object_visible": np.array([one.visible for _, one in objects], np.float64),
        "object_crop": of_crops,
        "failed": words_of(reasons),
    }, maps  # fmt: skip


class Store:
    """What :func:`write` wrote: n images, m objects.

    `split` words [n], validation being test where there is no other; `size` int [n, 2], height and
    width; `pooled` float32 [n, w]; `target` uint8 [n, 4h, 4w]. `row` int [m], the object's image;
    `name` bytes [m], its class; `number` int [m], its value in masks, −1 for none; `box` float
    [m, 4], as shares of width and height; `visible` float [m]; `crop` float32 [m, w]. `failed`:
    reason → images.
    """

    def __init__(self, section: Evaluate, dataset: Dataset, folder: Path) -> None:
        parts = sorted(folder.glob("*.h5"))
        columns: dict[str, list[np.ndarray]] = {}
        starts = [0]
        for path in parts:
            with hdf5.reading(path, _KIND) as file:
                for name in file:
                    columns.setdefault(name, []).append(hdf5.whole(file, name))
            columns["object_row"][-1] = columns["object_row"][-1] + starts[-1]
            starts.append(starts[-1] + len(columns["key"][-1]))
        found: dict[str, np.ndarray] = {
            name: np.concatenate(pieces) for name, pieces in columns.items() if name != "mask"
        }
        self._check(section, dataset, found)
        self.dataset = dataset.name
        self.key: list[bytes] = found["key"].tolist()
        # As VOC's test.txt has images without masks and annotations, which can judge nothing.
        known = found["mask_size"] > 0
        known[found["object_row"]] = True
        self.split = judged(np.array(SPLITS)[found["split"]], known)
        self.size, self.pooled, self.target = found["size"], found["pooled"], found["target"]
        self.row, self.name = found["object_row"], found["object_class"]
        self.number = found["object_number"]
        self.visible, self.crop = found["object_visible"], found["object_crop"]
        scale = self.size[self.row][:, [1, 0, 1, 0]]
        self.box: np.ndarray = found["object_box"] / scale
        self.failed = dict(sorted(Counter(word.decode() for word in found["failed"]).items()))
        self._starts = np.array(starts)
        self._masks = np.concatenate(columns["mask"])
        self._ends = np.cumsum(found["mask_size"])
        # Mapped into memory, not read.
        self._tokens = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in parts]

    def _check(self, section: Evaluate, dataset: Dataset, found: dict[str, np.ndarray]) -> None:
        failed = len(found.get("failed", ()))
        total = len(found.get("key", ())) + failed
        if not total:
            raise UserError(f"{dataset.path}: no images; docs/how-to/evaluate.md says what is read")
        if failed > section.max_failed * total:
            raise UserError(
                f"{dataset.path}: {failed} of {total} images failed; fix them or raise "
                "evaluate.max_failed"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of the map, and channels."""
        height, width, channels = self._tokens[0].shape[1:]
        return height, width, channels

    def on(self, split: str) -> np.ndarray:
        """Return the images int64 [k] to learn from (train, validation) or to judge by (test)."""
        wanted = ["train", "validation"] if split == "train" else ["test", "query", "gallery"]
        return np.flatnonzero(np.isin(self.split, wanted))

    def tokens(self, rows: np.ndarray) -> torch.Tensor:
        """Return float32 [k, C, h, w] of some images."""
        part = np.searchsorted(self._starts, rows, side="right") - 1
        found = [self._tokens[p][row - self._starts[p]] for p, row in zip(part, rows, strict=True)]
        return torch.from_numpy(np.stack(found).astype(np.float32)).permute(0, 3, 1, 2)

    def mask(self, row: int) -> np.ndarray | None:
        """Return the mask uint8 [height, width] of an image to judge by, None without one."""
        end = int(self._ends[row])
        height, width = self.size[row].tolist()
        start = int(self._ends[row - 1]) if row else 0
        return self._masks[start:end].reshape(height, width) if end > start else None

    def mask_classes(self) -> int:
        """Return one more than the largest class of all masks."""
        found = np.concatenate([np.unique(self.target), np.unique(self._masks)])
        return int(found[found != IGNORED].max(initial=0)) + 1

    def counts(self) -> dict[str, Any]:
        """Return the images of each side, as the JSON of a model has them."""
        sides = {side: int((self.split == side).sum()) for side in ("train", "validation")}
        return {**sides, "test": len(self.on("test")), "failed": self.failed}

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Iterate over some images: which, and their tokens float32 [b, C, h, w]."""
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield chosen, self.tokens(chosen)
