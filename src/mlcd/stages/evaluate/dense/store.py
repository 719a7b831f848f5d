"""Patch tokens of all images of a data set, on disk while the dense tasks look at them.

Parts of :data:`PART` images at most: `N.npy` has the tokens float16 [b, h, w, C] and `N.masks.npy`
the masks to judge by, one behind the other, both to be read in any order; `N.h5` has all else and
is written last. A job that is cut off loses at most one part. They are in the folder of the job's
saved state, and go with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.dense import DENSE_TASKS, SPREAD
from mlcd.config.labeled import Dataset
from mlcd.data import hdf5
from mlcd.data.decode import BadImage, decode, is_turned
from mlcd.data.labeled.sample import judged
from mlcd.data.labeled.samples import samples
from mlcd.data.labeled.scenes import IGNORED, Scene, resized, scenes
from mlcd.data.labeled.voc import Box
from mlcd.stages.evaluate.dense.encode import DenseModel
from mlcd.stages.evaluate.table import (
    SPLITS,
    check_failures,
    refuse_equal_keys,
    refuse_not_finite,
    words_of,
)
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import progress

#: Images of a part, and pixels of their masks, at most.
PART = 256
_MASKS = 1 << 28
#: Files that are open at once: a large data set has more parts than a process may open.
_OPEN = 64
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

    Images that no task looks at are left out. Raises :class:`UserError` for what is not as its kind
    has it: a mask of another size, a box outside of its image.
    """
    found = scenes(dataset, samples(dataset), section.max_pixels)
    wanted = (scene for scene in found if scene.split != "train" or _is_fitted(dataset))
    told = progress(wanted, label=f"tokens of {dataset.name}", unit="image")
    for number, block in enumerate(_blocks(iter(told))):
        if not (folder / f"{number:05d}.h5").exists():
            columns, tokens, masks = _encoded(section, block, model, regions, batch_size, workers)
            for rows in (tokens, columns["pooled"], columns["object_crop"]):
                refuse_not_finite(f"model on {dataset.name}", rows)
            for ending, array in (("npy", tokens), ("masks.npy", masks)):
                with atomic_path(folder / f"{number:05d}.{ending}") as temporary:
                    np.save(temporary, array)
            hdf5.write(folder / f"{number:05d}.h5", _KIND, columns, {"number": number})


def _is_fitted(dataset: Dataset) -> bool:
    """Return whether a task learns from train images. The spread of tokens does not."""
    return any(task in dataset.tasks for task in DENSE_TASKS if task != SPREAD)


def _blocks(found: Iterator[Scene]) -> Iterator[list[Scene]]:
    block: list[Scene] = []
    pixels = 0
    for scene in found:
        block.append(scene)
        pixels += 0 if scene.mask is None else scene.mask.size
        if len(block) == PART or pixels > _MASKS:
            yield block
            block, pixels = [], 0
    if block:
        yield block


def _encoded(
    section: Evaluate,
    block: list[Scene],
    model: DenseModel,
    regions: bool,
    batch_size: int,
    workers: int,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the columns of a part, its tokens, and its masks to judge by."""

    def prepare(scene: Scene) -> tuple[Scene, np.ndarray, list[np.ndarray], tuple[int, int]] | str:
        try:
            image = decode(scene.data, max_pixels=section.max_pixels)
        except BadImage as error:
            return error.reason
        if (scene.mask is not None or scene.objects) and is_turned(scene.data):
            raise UserError(
                f"evaluate.datasets: {scene.key}: its header asks to turn its pixels, and its mask "
                "or boxes may be of either way; store it upright"
            )
        if scene.mask is not None and scene.mask.shape != (image.height, image.width):
            raise UserError(
                f"evaluate.datasets: {scene.key}: its mask has {scene.mask.shape[::-1]} pixels, "
                f"its image {image.size}; fetch both again"
            )
        objects = [replace(one, box=_inside(scene.key, one.box, image.size))
                   for one in scene.objects if regions]  # fmt: skip
        crops = [model.crop(image, one.box) for one in objects]
        scene = replace(scene, objects=objects)
        return scene, model.whole(image), crops, (image.height, image.width)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        done = list(pool.map(prepare, block))
    kept = [item for item in done if not isinstance(item, str)]
    failed = [(scene.key, item) for scene, item in zip(block, done, strict=True)
              if isinstance(item, str)]  # fmt: skip
    maps, pooled = model.encoded([pixels for _, pixels, _, _ in kept], batch_size)
    crops = [crop for _, _, found, _ in kept for crop in found]
    of_crops = model.pooled(crops, batch_size) if crops else np.zeros((0, pooled.shape[1]), "f4")
    side = FINER * maps.shape[1], FINER * maps.shape[2]
    objects = [(row, one) for row, (scene, *_) in enumerate(kept) for one in scene.objects]
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
        "mask_size": np.array([mask.size for mask in full], np.int64),
        "mask_largest": np.array([_largest(mask) for mask in full], np.int64),
        "object_row": np.array([row for row, _ in objects], np.int64),
        "object_class": words_of([one.name for _, one in objects]),
        "object_box": np.array([one.box for _, one in objects], np.float64).reshape(-1, 4),
        "object_number": np.array([one.number for _, one in objects], np.int64),
        "object_visible": np.array([one.visible for _, one in objects], np.float64),
        "object_crop": of_crops,
        "failed_key": words_of([key for key, _ in failed]),
        "failed_reason": words_of([reason for _, reason in failed]),
    }, maps, np.concatenate([empty[:0].ravel(), *(mask.ravel() for mask in full)])  # fmt: skip


def _inside(key: str, box: Box, size: tuple[int, int]) -> Box:
    """Return the part of a box that lies in its image, of `size` width and height."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(size[0])), min(box[3], float(size[1]))
    if left >= right or top >= bottom:
        raise UserError(
            f"evaluate.datasets: {key}: box {box} lies outside of its image, {size[0]} × {size[1]} "
            "pixels; boxes are x0, y0, x1, y1 in its pixels"
        )
    return left, top, right, bottom


def _largest(mask: np.ndarray) -> int:
    """Return the largest class of a mask, −1 if nothing of it is judged."""
    return int(mask[mask != IGNORED].max(initial=0)) if (mask != IGNORED).any() else -1


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
            name: np.concatenate(pieces) for name, pieces in columns.items()
        }
        self._check(section, dataset, found)
        self.dataset = dataset.name
        self.key: list[bytes] = found["key"].tolist()
        # As VOC's test.txt has images without masks and annotations, which can judge nothing.
        known = found["mask_largest"] >= 0
        known[found["object_row"]] = True
        self.split = judged(np.array(SPLITS)[found["split"]], known)
        self.size, self.pooled, self.target = found["size"], found["pooled"], found["target"]
        self.row, self.name = found["object_row"], found["object_class"]
        self.number = found["object_number"]
        self.visible, self.crop = found["object_visible"], found["object_crop"]
        scale = self.size[self.row][:, [1, 0, 1, 0]]
        self.box: np.ndarray = found["object_box"] / scale
        self.failed = dict(sorted(Counter(map(bytes.decode, found["failed_reason"])).items()))
        self._starts = np.array(starts)
        self._ends = np.cumsum(found["mask_size"])
        self._largest: np.ndarray = found["mask_largest"]
        self._parts = parts
        # Mapped into memory, not read.
        self._mapped = lru_cache(_OPEN)(partial(np.load, mmap_mode="r"))

    def _check(self, section: Evaluate, dataset: Dataset, found: dict[str, np.ndarray]) -> None:
        keys, failed_keys, reasons = (
            [word.decode(errors="backslashreplace") for word in found.get(name, ())]
            for name in ("key", "failed_key", "failed_reason")
        )
        failed = list(zip(failed_keys, reasons, strict=True))
        if not keys and not failed:
            side = "" if _is_fitted(dataset) else "test "
            raise UserError(
                f"{dataset.path}: no {side}images; docs/how-to/evaluate.md says what is read"
            )
        check_failures(section, dataset, failed, len(keys) + len(failed))
        refuse_equal_keys(dataset.path, keys)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of the map, and channels."""
        height, width, channels = self._tokens(0).shape[1:]
        return height, width, channels

    def _tokens(self, part: int) -> np.ndarray:
        tokens: np.ndarray = self._mapped(str(self._parts[part].with_suffix(".npy")))
        return tokens

    def on(self, split: str) -> np.ndarray:
        """Return the images int64 [k] to learn from (train, validation) or to judge by (test)."""
        wanted = ["train", "validation"] if split == "train" else ["test", "query", "gallery"]
        return np.flatnonzero(np.isin(self.split, wanted))

    def tokens(self, rows: np.ndarray) -> torch.Tensor:
        """Return float32 [k, C, h, w] of some images."""
        part = np.searchsorted(self._starts, rows, side="right") - 1
        found = [self._tokens(p)[row - self._starts[p]] for p, row in zip(part, rows, strict=True)]
        return torch.from_numpy(np.stack(found).astype(np.float32)).permute(0, 3, 1, 2)

    def mask(self, row: int) -> np.ndarray | None:
        """Return the mask uint8 [height, width] of an image to judge by, None without one.

        Without a pixel that is judged it is as without one.
        """
        if self._largest[row] < 0:
            return None
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        first, (height, width) = int(self._starts[part]), self.size[row].tolist()
        before = int(self._ends[first - 1]) if first else 0
        end = int(self._ends[row]) - before
        masks: np.ndarray = self._mapped(str(self._parts[part].with_suffix(".masks.npy")))
        return masks[end - height * width : end].reshape(height, width)

    def mask_classes(self) -> int:
        """Return one more than the largest class of all masks."""
        return max(0, _largest(self.target), int(self._largest.max(initial=-1))) + 1

    def counts(self) -> dict[str, Any]:
        """Return the images of each side, as the JSON of a model has them."""
        sides = {side: int((self.split == side).sum()) for side in ("train", "validation")}
        return {**sides, "test": len(self.on("test")), "failed": self.failed}

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Iterate over some images: which, and their tokens float32 [b, C, h, w]."""
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield chosen, self.tokens(chosen)
