"""From a decoded image to the pixels that an encoder sees. No torch: worker processes run this.

The arithmetic is that of open_clip's inference transform (torchvision's resize of a PIL image),
up to the scaling to floats, which the encoder does on its own device: uint8 pixels are a quarter of
the bytes to send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

#: One number for each of red, green and blue.
Channels = tuple[float, float, float]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
#: Longer images than this many times their shorter side are cut before scaling.
_STRIP = 32


def channels(values: Iterable[float]) -> Channels:
    """Return three numbers as such a tuple. Raises ValueError if they are not three."""
    red, green, blue = values
    return red, green, blue


def channels_problem(values: object, *, positive: bool = False) -> str:
    """Return what is wrong with a mean or (`positive`) a standard deviation per channel, or ''."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return "not a number for each of 3 channels"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return "not finite"
    return "not positive" if positive and min(values) <= 0 else ""


@dataclass(frozen=True)
class Preprocess:
    """Resize to `size`; the encoder then computes (pixel / 255 − mean) / std per channel.

    `size` is (height, width) in pixels. `resize_mode`: `shortest` fits the shorter side and crops
    the center, `longest` fits the longer side and pads with `fill`, `squash` ignores the aspect.
    Raises ValueError for a mean or std that no pixel can be normalized with.
    """

    size: tuple[int, int]
    mean: Channels
    std: Channels
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if problem := channels_problem(values, positive=name == "std"):
                raise ValueError(f"{name} {values!r} is {problem}")

    def to_json(self) -> str:
        """Return the settings as one line of JSON, equal for equal settings."""
        return json.dumps(asdict(self), sort_keys=True)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return uint8 pixels [height, width, 3] of an RGB image."""
        height, width = self.size
        image = self._without_far_ends(image)
        image = image.resize(self._scaled(image.width, image.height), _FILTERS[self.interpolation])
        if image.size != (width, height):
            # Center, as torchvision rounds it: crop where too large, pad where too small.
            left = round((image.width - width) / 2) if image.width > width else 0
            top = round((image.height - height) / 2) if image.height > height else 0
            right, bottom = min(image.width, left + width), min(image.height, top + height)
            image = image.crop((left, top, right, bottom))
        if image.size != (width, height):
            canvas = Image.new("RGB", (width, height), (self.fill,) * 3)
            canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
            image = canvas
        return np.asarray(image, dtype=np.uint8)

    def _without_far_ends(self, image: Image.Image) -> Image.Image:
        """Cut the ends of an extreme strip, which `shortest` would scale up and then crop away.

        An image of 50,000 × 1 pixels would otherwise take gigabytes on its way to a square.
        """
        longest = _STRIP * min(image.size)
        if self.resize_mode != "shortest" or max(image.size) <= longest:
            return image
        left, top = max(0, image.width - longest) // 2, max(0, image.height - longest) // 2
        return image.crop((left, top, image.width - left, image.height - top))

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after scaling, before the crop or the padding."""
        if self.resize_mode == "squash":
            return self.size[1], self.size[0]
        ratio_h, ratio_w = height / self.size[0], width / self.size[1]
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            # torchvision truncates the longer side; a thin line must keep at least one pixel.
            side = self.size[0]
            if width <= height:
                return side, max(side, int(side * height / width))
            return max(side, int(side * width / height)), side
        ratio = max(ratio_h, ratio_w) if self.resize_mode == "longest" else min(ratio_h, ratio_w)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
