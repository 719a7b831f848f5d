"""Pascal VOC's files: lists of a split, masks of class indices, and annotations in XML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

import numpy as np
from PIL import Image

from mlcd.data.labeled.layout import split_of
from mlcd.utils.errors import UserError

#: Bytes of an annotation at most; VOC's have some thousand.
_LARGEST = 1 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")

#: VOC's classes in the order of their numbers in masks, from 1.
_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(_CLASSES, start=1)}

Box = tuple[float, float, float, float]


def lists(folder: Path, *, segmentation: bool) -> Iterator[tuple[str, str]]:
    """Yield (split, stem) of the images with masks, or of all: ImageSets/Segmentation, or Main.

    If only one of the two is there, it is taken.
    """
    names = ("Segmentation", "Main") if segmentation else ("Main", "Segmentation")
    places = (folder / "ImageSets" / name for name in names)
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        raise UserError(f"{folder}: has no ImageSets/Segmentation nor ImageSets/Main; fetch it")
    for name in ("train", "val", "test"):
        path = place / f"{name}.txt"
        if path.exists():
            split = split_of(name)
            assert split is not None
            for line in path.read_text(encoding="utf-8", errors="replace").split():
                yield split, line


def mask(path: Path, max_pixels: int) -> np.ndarray:
    """Return the class indices uint8 [h, w] of a PNG of gray levels or of a palette.

    Of fewer than 8 bits too, as programs that make PNGs smaller write them: Pillow scales gray of
    2 and 4 bits to 255, and here it is scaled back. Raises :class:`UserError` for another file, or
    one of more pixels.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{path}: {image.width} × {image.height} pixels are more than "
                    "evaluate.max_pixels; raise it"
                )
            if image.mode not in ("1", "L", "P"):
                raise UserError(
                    f"{path}: of mode {image.mode}; expected a PNG of 8 bits, a class per pixel"
                )
            # Forgotten once the pixels are loaded.
            scale = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1)
            found: np.ndarray = np.array(image, np.uint8) // scale
            return found
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds on damage
        raise UserError(f"{path}: not a whole PNG ({error}); fetch it again") from None


def objects(path: Path) -> list[tuple[str, Box, bool]]:
    """Return class and box of each object of an annotation, and whether it is marked difficult.

    Boxes are half-open, from 0.

    VOC counts pixels from 1, the last one included. Raises :class:`UserError` for XML with a
    document type or entities, which annotations do not have, and for what is no annotation.
    """
    data = path.read_bytes()[: _LARGEST + 1]
    if len(data) > _LARGEST:
        raise UserError(f"{path}: more than {_LARGEST} bytes; not an annotation of VOC")
    reader = _Reader()
    try:
        reader.parse(data)
        return [(one["name"], _box(one), one.get("difficult") == "1") for one in reader.found]
    except (expat.ExpatError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not an annotation of VOC ({error}); fetch it again") from None


def _box(one: dict[str, str]) -> Box:
    left, top, right, bottom = (float(one[side]) for side in _SIDES)
    return left - 1, top - 1, right, bottom


class _Reader:
    """Collects of annotation/object: name, difficult and bndbox/*, in bounded memory."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []
        self._place: list[str] = []

    def parse(self, data: bytes) -> None:
        """Read the whole document. Raises ValueError for a document type, as entities need one."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda name: self._place.pop()
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = _refused
        parser.EntityDeclHandler = _refused
        parser.Parse(data, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._place.append(name)
        if self._place == ["annotation", "object"]:
            self.found.append({})

    def _text(self, text: str) -> None:
        # Parts of an object have boxes of their own, deeper down.
        inside = self._place[:2] == ["annotation", "object"]
        name = self._place[2:] in (["name"], ["difficult"])
        side = self._place[2:3] == ["bndbox"] and self._place[3:] and self._place[3] in _SIDES
        if inside and (name or side):
            key = self._place[-1]
            self.found[-1][key] = (self.found[-1].get(key, "") + text).strip()


def _refused(*_: object) -> None:
    raise ValueError("it declares a document type or an entity")
