"""Random resized crops: where they lie, and two ways to compute their pixels.

``exact`` is Pillow's bicubic filter on the whole decoded image. ``fast`` is the same filter in
torch's vector code, and lets libjpeg decode a JPEG smaller where that leaves the filter twice the
pixels that are wanted. Both are functions of (seed, epoch, image) and see the same crops.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mlcd.data.decode import Encoded

#: Images over this size were refused by embed already; here it only bounds memory.
_MAX_PIXELS = 200_000_000
_CROP = 3
#: Pixels that the filter must have left for each one wanted, in each direction, after libjpeg has
#: made an image smaller. With fewer, pixels differ by more than a level on average.
_LEFT = 2.0
#: Starts that are tried on each axis of a fast crop.
_STARTS = 12

#: Left, top, right, bottom in pixels.
Box = tuple[float, float, float, float]


class Augment(NamedTuple):
    """Random resized crop (aspect 3/4 to 4/3) and flip, from (seed, epoch, image) alone."""

    side: int  #: pixels of the square output
    min_area: float  #: least share of the image that the crop keeps
    flip: bool
    seed: int
    fast: bool = False  #: by torch's vector code, within a level of Pillow's on average

    def decoded(self, data: bytes, epoch: int, index: int) -> np.ndarray:
        """Return uint8 [3, side, side] of an image's bytes, a view. Raises :class:`BadImage`."""
        encoded = Encoded(data, max_pixels=_MAX_PIXELS)
        if not self.fast or encoded.jpeg_size is None:
            return self(encoded.decode(), epoch, index)
        rng = self._rng(epoch, index)
        box = self._box(rng, *encoded.jpeg_size)
        shrink = self._shrink(box)
        return self._fast(rng, encoded.decode(shrink), _divided(box, shrink))

    def view(self, width: int, height: int, epoch: int, index: int) -> tuple[Box, bool]:
        """Return what is seen of an image of that size: its crop, and whether that is mirrored."""
        rng = self._rng(epoch, index)
        return self._box(rng, width, height), self._flips(rng)

    def __call__(self, image: Image.Image, epoch: int, index: int) -> np.ndarray:
        """Return uint8 [3, side, side] of an RGB image, a view."""
        rng = self._rng(epoch, index)
        box = self._box(rng, *image.size)
        if self.fast:
            return self._fast(rng, image, box)
        image = image.resize(
            (self.side, self.side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
        )
        pixels = np.asarray(image).transpose(2, 0, 1)
        return pixels[:, :, ::-1] if self._flips(rng) else pixels

    def _fast(self, rng: np.random.Generator, image: Image.Image, box: Box) -> np.ndarray:
        pixels = resized(image, box, self.side)
        found: np.ndarray = (pixels.flip(2) if self._flips(rng) else pixels).numpy()
        return found

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _CROP, epoch, index])

    def _flips(self, rng: np.random.Generator) -> bool:
        return self.flip and bool(rng.random() < 0.5)

    def _shrink(self, box: Box) -> int:
        """Return by how much a JPEG is decoded smaller: 1, 2, 4 or 8."""
        least = min(box[2] - box[0], box[3] - box[1])
        fits = (n for n in (8, 4, 2) if least >= max(n * n, _LEFT * n * self.side))
        return next(fits, 1)

    def _box(self, rng: np.random.Generator, width: int, height: int) -> Box:
        """Return left, top, right, bottom in pixels; the center square if ten draws do not fit."""
        for _ in range(10):
            area = width * height * rng.uniform(self.min_area, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


def _divided(box: Box, by: int) -> Box:
    return box[0] / by, box[1] / by, box[2] / by, box[3] / by


class _Axis(NamedTuple):
    """Source pixels `first` … `last` − 1 (`first` may be negative), `step` of them per output
    pixel; the first `extra` output pixels are left out."""

    first: int
    last: int
    step: float
    extra: int


def _axis(low: float, high: float, size: int, side: int) -> _Axis:
    """Return how `side` pixels of the interval [low, high) of an axis are computed.

    torch's filter begins at a whole source pixel. So some output pixels are computed before the
    first one that is wanted, as many as bring that nearest to its true place.
    """
    step = (high - low) / side
    reach = 2 * max(step, 1.0)  # of the bicubic filter, in source pixels
    # Its first wanted pixel must not see where the source pixels begin.
    least = math.ceil(reach / step)
    extra = min(
        range(least, least + _STARTS), key=lambda n: abs(low - n * step - round(low - n * step))
    )
    first = round(low - extra * step)
    # What is left of an error is shared by both ends.
    step = ((low + high) / 2 - first) / (extra + side / 2)
    return _Axis(first, min(size, math.ceil(high + reach) + 1), step, extra)


def resized(image: Image.Image, box: Box, side: int) -> torch.Tensor:
    """Return uint8 [3, side, side]: the box of an RGB image by torch's antialiased bicubic filter.

    The filter and its rounding are Pillow's up to 16-bit weights; the box is met to some hundredths
    of a pixel. Where the filter begins outside of the image, its first pixels are repeated.
    """
    x, y = _axis(box[0], box[2], image.width, side), _axis(box[1], box[3], image.height, side)
    left, top = max(0, -x.first), max(0, -y.first)
    inside = _pixels(image)[max(0, y.first) : y.last, max(0, x.first) : x.last]
    source = np.empty((y.last - y.first, x.last - x.first, inside.shape[2]), np.uint8)
    source[top:, left:] = inside
    source[:top] = source[top]
    source[:, :left] = source[:, left : left + 1]
    found: torch.Tensor = torch.ops.aten._upsample_bicubic2d_aa(
        torch.from_numpy(source).permute(2, 0, 1)[None], (y.extra + side, x.extra + side), False,
        1 / y.step, 1 / x.step,
    )  # fmt: skip
    return found[0, :3, y.extra :, x.extra :]


def _pixels(image: Image.Image) -> np.ndarray:
    """Return uint8 [H, W, 4] (the fourth is no color), or [H, W, 3] where that is a copy."""
    if hasattr(image, "__arrow_c_array__"):
        import pyarrow as pa

        # An image of more than 16 MB lies in several pieces.
        try:
            flat = pa.array(image).values
        except (pa.ArrowInvalid, ValueError, MemoryError):
            return np.asarray(image)
        pixels: np.ndarray = flat.to_numpy().reshape(image.height, image.width, -1)
        return pixels
    return np.asarray(image)
