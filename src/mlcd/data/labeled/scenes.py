"""Images with masks and objects: each kind of data set is an iterator of scenes.

A mask says the class of each pixel, an object has a box and a class. Masks and tables are
strangers' files: sizes are bounded, names are no paths, and XML has no entities.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlcd.config.dense import SEGMENTATION
from mlcd.config.labeled import Dataset
from mlcd.data.decode import BadImage, decode
from mlcd.data.labeled import voc
from mlcd.data.labeled.layout import MASKED, kind, split_of
from mlcd.data.labeled.sample import Sample
from mlcd.data.members import is_hidden
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

    `visible` is 0 of an object that VOC marks as difficult, which shall not be judged. `number`: of
    its class in masks, −1 where they do not tell.
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

    Tags are the classes of all objects of which something is visible.
    """
    for scene in scenes(dataset, iter(()), 0):
        area = {one: (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]) * one.visible
                for one in scene.objects if one.visible}  # fmt: skip
        main = max(area, key=lambda one: area[one]).name if area else None
        tags = sorted({one.name for one in area})
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
    if int(sample.label) + 1 >= IGNORED:
        raise UserError(f"{sample.key}: class {sample.label}; masks tell {IGNORED - 1} classes")
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
    number: dict[str, int] = {}
    for row in _table(folder / "objects.parquet"):
        one = _object(folder / "objects.parquet", row, in_masks=(folder / "masks").is_dir())
        if (known_as := number.setdefault(one.name, one.number)) != one.number:
            raise UserError(
                f"{folder / 'objects.parquet'}: class {one.name!r} has class_id {known_as} and "
                f"{one.number}; give it one"
            )
        objects.setdefault(row["image"], []).append(one)
    rows = _table(folder / "split.parquet")
    _refuse_twice(folder / "split.parquet", [row["image"] for row in rows])
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


def _object(path: Path, row: dict[str, Any], *, in_masks: bool) -> Object:
    """Return the object of a row. Raises :class:`UserError` for a cell that cannot be meant."""
    where = f"{path}: {row['image']}"

    def number(column: str) -> float:
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{where}: {column} is {value!r}; expected a number")
        return float(value)

    name, shown, kind = row["class"], number("visible"), number("class_id")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise UserError(f"{where}: class is {name!r}; expected a word")
    if not 0 <= shown <= 1:
        raise UserError(f"{where}: visible is {shown}; expected a share from 0 to 1")
    if not kind.is_integer() or (in_masks and not 1 <= kind < IGNORED):
        raise UserError(
            f"{where}: class_id is {row['class_id']}; expected the class's value in masks, a "
            f"whole number from 1 to {IGNORED - 1}"
        )
    box = number("x0"), number("y0"), number("x1"), number("y1")
    _check_box(path, row["image"], box)
    return Object(str(name), box, shown, int(kind))


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
    """Pascal VOC's own layout: the images with masks if the task needs them, else all."""
    folder = Path(dataset.path)
    listed = list(voc.lists(folder, segmentation=SEGMENTATION in dataset.tasks))
    _refuse_twice(folder / "ImageSets", [stem for _, stem in listed])
    for split, stem in listed:
        if not _STEM.fullmatch(stem):
            raise UserError(f"{folder}/ImageSets: {stem!r} is no plain name of a file")
        path = folder / "SegmentationClass" / f"{stem}.png"
        mask = voc.mask(path, max_pixels) if max_pixels and path.exists() else None
        notes = folder / "Annotations" / f"{stem}.xml"
        found = voc.objects(notes) if notes.exists() else []
        for name, box, _ in found:
            _check_box(notes, name, box)
        data = _bytes(folder / "JPEGImages" / f"{stem}.jpg")
        yield Scene(
            stem,
            data,
            split,
            mask,
            [
                Object(name, box, 1.0 - difficult, voc.NUMBERS.get(name, -1))
                for name, box, difficult in found
            ],
        )


def _pixel_maps(dataset: Dataset, max_pixels: int) -> Iterator[Scene]:
    """images/SPLIT/*.jpg beside annotations/SPLIT/*.png: ADE20K (0 is no class), COCO-Stuff."""
    folder = Path(dataset.path)
    shift = kind(dataset) == "ade20k"
    for split, name in MASKED[kind(dataset)].items():
        images = sorted(
            path
            for path in (folder / "images" / name).iterdir()
            if path.suffix.lower() in _IMAGES and not is_hidden(path.name)
        )
        # Of a.jpg and a.png only one can be the image of a mask.
        _refuse_twice(folder / "images" / name, [path.stem for path in images])
        for path in images:
            target = folder / "annotations" / name / f"{path.stem}.png"
            if not target.exists():
                raise UserError(f"{target}: no such file; {path} needs its mask")
            mask = voc.mask(target, max_pixels) if max_pixels else None
            if shift and mask is not None:
                mask = np.where(mask == 0, IGNORED, mask - 1).astype(np.uint8)
            yield Scene(f"{name}/{path.stem}", _bytes(path), split, mask)


def _refuse_twice(where: Path, names: list[str]) -> None:
    """Raise :class:`UserError` if an image is listed twice: both sides might know it."""
    if names and (most := Counter(names).most_common(1)[0])[1] > 1:
        raise UserError(f"{where}: image {most[0]!r} is there {most[1]} times; keep it once")


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
