"""Images with masks and objects: each kind of data set is an iterator of scenes.

A mask says the class of each pixel, an object has a box and a class. Masks and tables are
strangers' files: sizes are bounded, names are no paths, and XML has no entities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlcd.config.labeled import Dataset
from mlcd.data.decode import BadImage, decode
from mlcd.data.labeled import voc
from mlcd.data.labeled.layout import MASKED, kind, split_of
from mlcd.data.labeled.sample import Sample
from mlcd.data.url_lists import open_parquet
from mlcd.utils.errors import UserError

#: The value of a mask where nothing is judged.
IGNORED = 255
#: Gray levels above it are the digit's own pixels.
_INK = 127
_STEM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_IMAGES = (".jpg", ".jpeg", ".png")
_COLUMNS = {
    "objects.parquet": ("image", "class", "class_id", "x0", "y0", "x1", "y1", "visible"),
    "split.parquet": ("image", "split"),
}


@dataclass(frozen=True)
class Object:
    """One object: its class, its box x0, y0, x1, y1 in pixels (half-open), its visible share.

    `number`: of its class in masks, −1 where they do not tell.
    """

    name: str
    box: tuple[float, float, float, float]
    visible: float = 1.0
    number: int = -1


@dataclass(frozen=True)
class Scene:
    """One image: its bytes, its split, `mask` (uint8 [h, w], or None), and its objects."""

    key: str
    data: bytes
    split: str
    mask: np.ndarray | None = None
    objects: list[Object] = field(default_factory=list)


def scenes(dataset: Dataset, found: Iterator[Sample], max_pixels: int) -> Iterator[Scene]:
    """Iterate over a data set in its own order; `found` are its samples where it has no masks.

    Raises :class:`UserError` with the file whose content is not what its kind has.
    """
    readers: dict[str, Callable[[Dataset, int], Iterator[Scene]]] = {
        "scenes": _composed,
        "voc": _voc,
        "ade20k": _pixel_maps,
        "coco_stuff": _pixel_maps,
    }
    form = kind(dataset)
    if form in readers:
        yield from readers[form](dataset, max_pixels)
        return
    for sample in found:
        yield _of_digit(sample) if form in ("idx", "digits") else _plain(sample)


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Iterate over the images of a kind with masks: the class is that of the largest object.

    Tags are the classes of all objects.
    """
    for scene in scenes(dataset, iter(()), 0):
        area = {one: (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]) * one.visible
                for one in scene.objects}  # fmt: skip
        main = max(area, key=lambda one: area[one]).name if area else None
        tags = sorted({one.name for one in scene.objects})
        yield Sample(scene.key, scene.data, scene.split, label=main, tags=tags)


def _plain(sample: Sample) -> Scene:
    return Scene(sample.key, sample.data, sample.split)


def _of_digit(sample: Sample) -> Scene:
    """Return a gray image on black: its ink is the mask and the box of its only object."""
    try:
        gray = np.asarray(decode(sample.data, max_pixels=1 << 20).convert("L"))
    except BadImage:  # counted where it is decoded next
        return _plain(sample)
    ink = gray > _INK
    if sample.label is None or not ink.any():
        return Scene(sample.key, sample.data, sample.split, np.zeros(gray.shape, np.uint8))
    mask = (ink * (int(sample.label) + 1)).astype(np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Scene(
        sample.key,
        sample.data,
        sample.split,
        mask,
        [Object(sample.label, box, number=int(sample.label) + 1)],
    )


def _composed(dataset: Dataset, max_pixels: int) -> Iterator[Scene]:
    """images/, masks/, objects.parquet and split.parquet (docs/how-to/evaluate.md)."""
    folder = Path(dataset.path)
    objects: dict[str, list[Object]] = {}
    for row in _table(folder / "objects.parquet"):
        box = tuple(float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        _check_box(folder / "objects.parquet", row["image"], box)
        one = Object(
            str(row["class"]), (box[0], box[1], box[2], box[3]), float(row["visible"]),
            int(row["class_id"]),
        )  # fmt: skip
        objects.setdefault(row["image"], []).append(one)
    rows = _table(folder / "split.parquet")
    known = {row["image"] for row in rows}
    if lost := set(objects) - known:
        raise UserError(
            f"{folder / 'objects.parquet'}: image {min(lost)!r} is not in split.parquet"
        )
    for row in rows:
        split, stem = split_of(row["split"]), row["image"]
        if split is None:
            raise UserError(f"{folder / 'split.parquet'}: split {row['split']!r} of {stem}")
        path = folder / "masks" / f"{stem}.png"
        mask = voc.mask(path, max_pixels) if max_pixels and path.exists() else None
        data = _bytes(folder / "images" / f"{stem}.png")
        yield Scene(stem, data, split, mask, objects.get(stem, []))


def _table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table. Raises :class:`UserError` for columns or names that do not do."""
    wanted = _COLUMNS[path.name]
    table = open_parquet(path)
    if missing := [name for name in wanted if name not in table.schema_arrow.names]:
        raise UserError(f"{path}: has no column {missing[0]!r}; write {', '.join(wanted)}")
    try:
        rows: list[dict[str, Any]] = table.read(columns=list(wanted)).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({str(error)[:200]}); fetch it again") from None
    for row in rows:
        if not isinstance(row["image"], str) or not _STEM.fullmatch(row["image"]):
            raise UserError(f"{path}: image {row['image']!r} is no plain name of a file")
    return rows


def _voc(dataset: Dataset, max_pixels: int) -> Iterator[Scene]:
    """Pascal VOC's own layout, with the lists of its segmentation, or else of its detection."""
    folder = Path(dataset.path)
    for split, stem in voc.lists(folder):
        if not _STEM.fullmatch(stem):
            raise UserError(f"{folder}/ImageSets: {stem!r} is no plain name of a file")
        path = folder / "SegmentationClass" / f"{stem}.png"
        mask = voc.mask(path, max_pixels) if max_pixels and path.exists() else None
        notes = folder / "Annotations" / f"{stem}.xml"
        found = voc.objects(notes) if notes.exists() else []
        for name, box in found:
            _check_box(notes, name, box)
        data = _bytes(folder / "JPEGImages" / f"{stem}.jpg")
        yield Scene(
            stem,
            data,
            split,
            mask,
            [Object(name, box, number=voc.NUMBERS.get(name, -1)) for name, box in found],
        )


def _pixel_maps(dataset: Dataset, max_pixels: int) -> Iterator[Scene]:
    """images/SPLIT/*.jpg beside annotations/SPLIT/*.png: ADE20K (0 is no class), COCO-Stuff."""
    folder = Path(dataset.path)
    shift = kind(dataset) == "ade20k"
    for split, name in MASKED[kind(dataset)].items():
        images = sorted(
            path for path in (folder / "images" / name).iterdir() if path.suffix in _IMAGES
        )
        for path in images:
            target = folder / "annotations" / name / f"{path.stem}.png"
            if not target.exists():
                raise UserError(f"{target}: no such file; {path} needs its mask")
            mask = voc.mask(target, max_pixels) if max_pixels else None
            if shift and mask is not None:
                mask = np.where(mask == 0, IGNORED, mask - 1).astype(np.uint8)
            yield Scene(f"{name}/{path.stem}", _bytes(path), split, mask)


def _check_box(path: Path, name: str, box: tuple[float, ...]) -> None:
    if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        raise UserError(f"{path}: {name}: box {box} is empty; expected x0 < x1 and y0 < y1")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; fetch the images too") from None


def resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask of another size, each pixel the nearest of the old ones."""
    image = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image)
