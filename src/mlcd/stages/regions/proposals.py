"""Which boxes of an image are its regions: segments at several scales, or given boxes.

Worker processes run this, so no torch.

Segments are those of Felzenszwalb and Huttenlocher (Efficient Graph-Based Image Segmentation, IJCV
2004): pixels grow together while the difference between two groups is small beside that within
them, and a larger scale lets groups grow larger. The box of each segment is a candidate. A thing
that stands out is a segment at several scales, and ground reaches the edges of the image: so boxes
come first that touch fewest edges, of these those found at most scales, then the larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from mlcd.config import Regions
from mlcd.data import boxes
from mlcd.data.decode import BadImage, decode
from mlcd.data.decode_pool import ImageLocation, ImageReader
from mlcd.data.preprocess import Preprocess

#: Blur before an image is segmented, in pixels: its authors' own.
_SIGMA = 0.8


class Asked(NamedTuple):
    """An image to look at: where it lies, and its own boxes [n, 4] in section.unit, if given."""

    place: ImageLocation
    given: np.ndarray | None


class Found(NamedTuple):
    """Regions of an image of `size` (width, height): `box` float32 [m, 4] in shares, and `pixels`
    uint8 [m, H, W, 3] as the encoder sees them.
    """

    size: tuple[int, int]
    box: np.ndarray
    pixels: np.ndarray


class ReadAsked:
    """Reads the bytes of an :class:`Asked`; the boxes go along."""

    def __init__(self) -> None:
        self._read = ImageReader()

    def __call__(self, asked: Asked) -> tuple[bytes, np.ndarray | None]:
        """Return them. Raises as :class:`ImageReader`."""
        return self._read(asked.place), asked.given


@dataclass(frozen=True)
class FindRegions:
    """Bytes and given boxes to :class:`Found`, as a worker does it. Raises :class:`BadImage`."""

    section: Regions
    pixels: Preprocess
    max_pixels: int

    def __call__(self, read: tuple[bytes, np.ndarray | None]) -> Found:
        data, given = read
        try:
            image = decode(data, max_pixels=self.max_pixels)
            box = regions_of(image, self.section, given)
            height, width = self.pixels.size
            cut = np.zeros((len(box), height, width, 3), np.uint8)
            for row, edges in enumerate(box.tolist()):
                cut[row] = self.pixels(image.crop(tuple(edges)))
        except MemoryError:
            raise BadImage("out_of_memory", "too large for this machine") from None
        sides = np.array([image.width, image.height] * 2, np.float64)
        return Found(image.size, (box / sides).astype(np.float32), cut)


def regions_of(image: Image.Image, section: Regions, given: np.ndarray | None) -> np.ndarray:
    """Return the regions of an RGB image in its pixels, int64 [m, 4], in the order of choice."""
    if given is None:
        candidates, scale = _segments(image, section)
    else:
        unit = [image.width, image.height] * 2 if section.unit == "shares" else 1
        candidates = boxes.whole_pixels(given * unit, image.width, image.height)
        scale = np.zeros(len(candidates), np.int64)
    sides = candidates[:, 2:] - candidates[:, :2]
    least = section.least_side
    least *= min(image.size) if least < 1 else 1
    large = (sides >= max(1, least)).all(axis=1)
    candidates, scale = candidates[large], scale[large]
    if given is None:
        # The larger of two near-equal boxes stands for both; equal areas from the upper left.
        order = np.lexsort((scale, *candidates.T[::-1], -boxes.areas(candidates)))
        candidates, scale = candidates[order], scale[order]
    whole = np.array([[0, 0, image.width, image.height]], np.int64)
    # People's boxes stand in their order: those after the last that is wanted do not matter.
    most = None if given is None else section.most
    owner = boxes.distinct(candidates, section.max_overlap, apart=whole, most=most)
    kept = np.flatnonzero(owner == np.arange(len(owner)))
    if given is None:
        scales = np.array([len(np.unique(scale[owner == number])) for number in kept], np.int64)
        edges = (candidates[kept] == whole[0]).sum(axis=1)
        kept = kept[np.lexsort((-scales, edges))]
    chosen: np.ndarray = candidates[kept[: section.most]]
    return chosen


def _segments(image: Image.Image, section: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of all segments int64 [n, 4], and the number of each one's scale [n]."""
    from scipy import ndimage
    from skimage.segmentation import felzenszwalb

    shrink = section.segment_side / max(image.size)
    size = max(2, round(image.width * shrink)), max(2, round(image.height * shrink))
    small = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    found, scale = [np.zeros((0, 4))], []
    for number, value in enumerate(section.segment_scales):
        labels = felzenszwalb(small, scale=value, sigma=_SIGMA, min_size=section.segment_pixels)
        edges = [
            (across.start, down.start, across.stop, down.stop)
            for down, across in ndimage.find_objects(labels + 1)
        ]
        found.append(np.array(edges, np.float64).reshape(-1, 4))
        scale += [number] * len(edges)
    factors = np.array([image.width / size[0], image.height / size[1]] * 2)
    box = boxes.whole_pixels(np.concatenate(found) * factors, image.width, image.height)
    return box, np.array(scale, np.int64)
