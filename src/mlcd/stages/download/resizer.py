"""Images as they are stored: the served bytes, or resized and encoded as JPEG.

It stands where img2dataset has its own resizer, which decodes with OpenCV: the two do not agree on
what an image is (OpenCV keeps 16 bits, and its JPEG encoder clips them to white).
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from mlcd.config import Download
from mlcd.data.decode import BadImage, Encoded
from mlcd.stages.download.reasons import OWN

#: Longest side over shortest of an image whose shorter side is scaled to a given length: beyond
#: it the result would be mostly length, of any number of bytes.
LONGEST = 32
#: Sides that a JPEG can have.
_JPEG_SIDE = 65_500
#: Bicubic and antialiased, as the encoders' own preprocessing; the gap speeds up strong reductions.
_FILTER, _GAP = Image.Resampling.BICUBIC, 3.0


class Resizer:
    """Reads an image to its end before it counts; then keeps its bytes, or resizes and encodes it.

    Called as img2dataset calls its own: bytes in; bytes, width, height, width and height before,
    and the reason of a failure out.
    """

    def __init__(self, section: Download) -> None:
        self._side = section.image_size
        self._mode = section.resize_mode
        self._quality = section.encode_quality
        self._least = section.min_image_size
        self._max_pixels = section.max_pixels

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> tuple[Any, ...]:
        data = img_stream.getvalue()
        try:
            encoded = Encoded(data, max_pixels=self._max_pixels)
            if self._side is None:
                size = before = encoded.looked_at()
                self._require(before)
            else:
                image = encoded.decode()
                before = image.size
                self._require(before)
                image = resized(image, self._side, self._mode, max_pixels=self._max_pixels)
                data, size = _jpeg(image, self._quality), image.size
        except BadImage as error:
            return (*[None] * 5, OWN + error.reason)
        except MemoryError:
            return (*[None] * 5, f"{OWN}other")
        return data, *size, *before, None

    def _require(self, size: tuple[int, int]) -> None:
        if min(size) < self._least:
            raise BadImage("too_small", f"{size[0]} × {size[1]}")


def resized(image: Image.Image, side: int, mode: str, *, max_pixels: int) -> Image.Image:
    """Return an RGB image resized to `side` pixels in one of download.resize_mode's ways.

    `keep_ratio` makes the shorter side `side`; `center_crop` the center square; `border` makes the
    longer side `side` and pads to a square with white. Work and memory are bounded by the result.
    Raises :class:`BadImage` with reason ``too_thin`` where keep_ratio's result would be longer than
    32 times its shorter side, of more than `max_pixels`, or longer than a JPEG can be.
    """
    width, height = image.size
    if mode == "center_crop":
        # The square is cut by the filter itself: scaling all of a thin image would take gigabytes.
        shorter = min(width, height)
        left, top = (width - shorter) / 2, (height - shorter) / 2
        return image.resize((side, side), _FILTER, (left, top, left + shorter, top + shorter), _GAP)
    if mode == "keep_ratio":
        shorter, longer = sorted((width, height))
        scale = side / shorter
        length = longer * scale
        if length > min(LONGEST * side, max(side, max_pixels / side), _JPEG_SIDE):
            raise BadImage("too_thin", f"{width} × {height} would become {side} × {length:.0f}")
    else:
        scale = side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = image if size == image.size else image.resize(size, _FILTER, reducing_gap=_GAP)
    if mode == "border":
        canvas = Image.new("RGB", (side, side), "white")
        canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        return canvas
    return image


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
