"""Compose scenes: drawings of known classes on photographs, with boxes, masks and classes.

Every choice comes from Python's `random.Random(text).random()`, the one sequence that Python
promises to keep, and every pixel from whole numbers. So equal sources, options and Pillow give
equal pixels on any machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mlcd.data.decode import BadImage, decode
from mlcd.data.members import IMAGES, ending_of, is_hidden, labeled_members
from mlcd.utils.errors import UserError

#: Folders of the demo's pack that are classes of objects, in the order of their numbers from 1.
#: Each shows things that look alike, has twenty drawings or more in train and seven in test.
CLASSES = (
    "animals/birds", "animals/bugs", "buildings/homes", "food/beverages", "food/fruit",
    "people/clothing", "people/smilies", "recreation/games", "recreation/music", "shapes/arrows",
    "transportation/boating", "transportation/roadsigns",
)  # fmt: skip
#: Levels off white at which a drawing's page ends: JPEG's ringing stays under it.
_PAGE = 24
#: Drawings of thin lines, and long ones, are not told apart at some 25 pixels.
_LEAST_FILL, _MOST_ASPECT = 0.2, 3.0
#: Photographs are read at this shorter side: the largest piece that becomes a ground.
_GROUND_SIDE = 256
_TEST_SHARE = 0.25
_MAX_PIXELS = 20_000_000
#: How often objects are placed, and then drawn, before a scene is given up.
_PLACINGS, _DRAWINGS = 40, 25


class Draws:
    """Draws of one scene, by a text that names it."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def below(self, n: int) -> int:
        """Return a whole number of 0 … n − 1."""
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        """Return a whole number of low … high."""
        return low + self.below(high - low + 1)

    def sample(self, n: int, count: int) -> list[int]:
        """Return `count` different numbers of 0 … n − 1."""
        left = list(range(n))
        return [left.pop(self.below(len(left))) for _ in range(count)]


class Stamp(NamedTuple):
    """A drawing without its page: `image` is RGBA."""

    key: str
    image: Image.Image


class Sources(NamedTuple):
    """Drawings of one split by class, in the order of CLASSES, and grounds (RGB) by file name."""

    stamps: list[list[Stamp]]
    grounds: list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class Look:
    """What scenes are like: `size` in pixels per side, longer sides of objects in pixels from
    `low` to `high`, `visible` the least share of an object that others may leave, `contrast` of
    the ground in 256ths of the photograph's.
    """

    size: int
    low: int
    high: int
    visible: float
    contrast: int


class Object(NamedTuple):
    """An object: its class from 1, its drawing, the box of all its pixels, x0 y0 x1 y1 half-open,
    `area` its pixels, `seen` those that no other object covers.
    """

    number: int
    key: str
    box: tuple[int, int, int, int]
    area: int
    seen: int

    @property
    def visible(self) -> float:
        """Share of its pixels that are visible."""
        return self.seen / self.area


class Scene(NamedTuple):
    """`pixels` uint8 [S, S, 3]; `mask` uint8 [S, S], the class at each pixel, 0 for the ground."""

    pixels: np.ndarray
    mask: np.ndarray
    objects: list[Object]
    ground: str

    @property
    def main(self) -> Object:
        """The object with most visible pixels, of equal ones the first painted."""
        return max(self.objects, key=lambda item: item.seen)


def read_stamps(pack: Path) -> dict[str, list[list[Stamp]]]:
    """Return split → drawings by class, of the demo's pack. Raises :class:`UserError`."""
    found: dict[str, list[list[Stamp]]] = {
        split: [[] for _ in CLASSES] for split in ("train", "test")
    }
    for key, data, fields in labeled_members(pack):
        if fields["folder"] in CLASSES and (image := cut_out(decode(data, max_pixels=_MAX_PIXELS))):
            number = CLASSES.index(fields["folder"])
            found[fields["split"]][number].append(Stamp(key, image))
    for split, classes in found.items():
        for name, stamps in zip(CLASSES, classes, strict=True):
            if not stamps:
                raise UserError(f"{pack}: has no drawing of {name} for {split}; see demo/README.md")
    return found


def cut_out(image: Image.Image) -> Image.Image | None:
    """Return a drawing on white (RGB) as RGBA without the white that touches its border.

    None for a drawing of thin lines, a long one, or nothing.
    """
    levels = np.asarray(image)
    page, _ = ndimage.label(np.pad(levels.min(axis=2) > 255 - _PAGE, 1, constant_values=True))
    ink = page[1:-1, 1:-1] != page[0, 0]
    if not ink.any():
        return None
    alpha = Image.fromarray(np.where(ink, 255, 0).astype(np.uint8))
    box = alpha.getbbox()
    assert box is not None
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) > _MOST_ASPECT * min(width, height):
        return None
    if ink.sum() < _LEAST_FILL * width * height:
        return None
    cut = image.copy()
    cut.putalpha(alpha)
    return cut.crop(box)


def read_grounds(folder: Path) -> dict[str, list[tuple[str, Image.Image]]]:
    """Return split → photographs of `folder`; a quarter of the files, by hash of the name, is test.

    Raises :class:`UserError` if there are fewer than two, or one is damaged.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; unpack Debian's tuxpaint-data, or name a folder of "
            "photographs with --grounds"
        )
    paths = [path for path in folder.iterdir()
             if ending_of(path.name) in IMAGES and not is_hidden(path.name)]  # fmt: skip
    if len(paths) < 2:
        raise UserError(f"{folder}: holds {len(paths)} images; two splits need two or more")
    paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    held = max(1, round(_TEST_SHARE * len(paths)))
    found: dict[str, list[tuple[str, Image.Image]]] = {"train": [], "test": []}
    for place, path in enumerate(paths):
        try:
            image = decode(path.read_bytes(), max_pixels=_MAX_PIXELS)
        except BadImage as error:
            raise UserError(f"{path}: {error}; take it out of the folder") from None
        short = min(image.size)
        width, height = (side * _GROUND_SIDE // short for side in image.size)
        small = image.resize((width, height), Image.Resampling.BOX)
        found["test" if place < held else "train"].append((path.name, small))
    return found


def compose(draws: Draws, sources: Sources, look: Look, count: int) -> Scene:
    """Return a scene of `count` objects of different classes.

    Raises :class:`UserError` if they cannot be placed within the limits of `look`.
    """
    name, ground = _ground(draws, sources.grounds, look)
    for _ in range(_DRAWINGS):
        chosen = draws.sample(len(sources.stamps), count)
        stamps = [_stamp(draws, sources.stamps[number], look) for number in chosen]
        for _ in range(_PLACINGS):
            scene = _paint(draws, ground, chosen, stamps)
            if all(item.visible >= look.visible for item in scene.objects):
                return scene._replace(ground=name)
    raise UserError(
        f"--objects: {count} objects do not fit into {look.size} pixels with {look.visible:g} of "
        "each visible; lower --scale or --visible"
    )


def _ground(
    draws: Draws, grounds: Sequence[tuple[str, Image.Image]], look: Look
) -> tuple[str, np.ndarray]:
    """Return a name and a square piece of a photograph, perhaps mirrored: uint8 [S, S, 3]."""
    name, photo = grounds[draws.below(len(grounds))]
    short = min(photo.size)
    side = draws.between(min(look.size, short), short)
    left, top = (draws.between(0, length - side) for length in photo.size)
    piece = photo.resize(
        (look.size, look.size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
    )
    levels = 128 + ((np.asarray(piece).astype(np.int32) - 128) * look.contrast) // 256
    pixels = levels.astype(np.uint8)
    return name, pixels[:, ::-1] if draws.below(2) else pixels


def _stamp(draws: Draws, stamps: Sequence[Stamp], look: Look) -> tuple[str, np.ndarray]:
    """Return a drawing's key and pixels uint8 [h, w, 4], resized and perhaps mirrored."""
    key, image = stamps[draws.below(len(stamps))]
    side, long = draws.between(look.low, look.high), max(image.size)
    width, height = (max(1, (2 * length * side + long) // (2 * long)) for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return key, pixels[:, ::-1] if draws.below(2) else pixels


def _paint(
    draws: Draws,
    ground: np.ndarray,
    chosen: Sequence[int],
    stamps: Sequence[tuple[str, np.ndarray]],
) -> Scene:
    """Paint drawings over one another at random places, each wholly inside; alphas in 255ths."""
    size = len(ground)
    pixels, owner = ground.astype(np.int32), np.zeros((size, size), np.int32)
    boxes, areas = [], []
    for order, (_, stamp) in enumerate(stamps, 1):
        height, width = stamp.shape[:2]
        left, top = draws.between(0, size - width), draws.between(0, size - height)
        here = (slice(top, top + height), slice(left, left + width))
        color, alpha = stamp[:, :, :3].astype(np.int32), stamp[:, :, 3:].astype(np.int32)
        pixels[here] = (alpha * color + (255 - alpha) * pixels[here] + 127) // 255
        covered = alpha[:, :, 0] >= 128
        owner[here][covered] = order
        rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
        boxes.append((left + int(columns[0]), top + int(rows[0]),
                      left + int(columns[-1]) + 1, top + int(rows[-1]) + 1))  # fmt: skip
        areas.append(int(covered.sum()))
    seen = np.bincount(owner.ravel(), minlength=len(stamps) + 1)
    objects = [
        Object(number + 1, key, box, area, int(seen[order]))
        for order, (number, (key, _), box, area) in enumerate(
            zip(chosen, stamps, boxes, areas, strict=True), 1
        )
    ]
    numbers = np.array([0, *(number + 1 for number in chosen)], np.uint8)
    return Scene(pixels.astype(np.uint8), numbers[owner], objects, "")
