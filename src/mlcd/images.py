"""Decode pictures that came from strangers: the header is checked before a pixel is decoded."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

# Pillow would fill a truncated picture with grey; a grey half is worse than a counted failure.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# The size limit below is ours and comes before decoding; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None

#: TIFF's tag; a 12-bit picture has the mode I;16 and values up to 4095.
_BITS_PER_SAMPLE = 258
#: Formats that are decoded. Others (PSD, EPS, WMF …) have parsers of doubtful safety.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class BadImage(ValueError):
    """A picture that cannot be used. `reason` is one word for counts: see :func:`decode`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode `data` to an RGB picture, transparency composited on white.

    Raises :class:`BadImage` with reason ``empty`` (no bytes), ``not_an_image`` (unknown format),
    ``too_large`` (width × height in the header exceeds `max_pixels`; nothing was decoded) or
    ``damaged`` (truncated or corrupt). 32-bit and floating-point grey is ``not_an_image`` too:
    nothing says which value is white.
    """
    if not data:
        raise BadImage("empty", "zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("not_an_image", f"first bytes {data[:8]!r}") from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes
        raise BadImage("damaged", str(error)) from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_large", f"{width} × {height} exceeds {max_pixels} pixels")
    try:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            image = _eight_bit(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(canvas, image).convert("RGB")
        return image.convert("RGB")
    except BadImage:
        raise
    except Exception as error:
        raise BadImage("damaged", str(error)) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale grey of 16 (or 12) bits to 8, where Pillow's convert would clip all above 255 to white.

    Raises :class:`BadImage` with reason ``not_an_image``.
    """
    values = np.asarray(image)
    # Pillow before 11.3 gives 16-bit PNG the mode I.
    if image.mode == "F" or not 0 <= values.min() <= values.max() <= 65535:
        raise BadImage("not_an_image", f"grey of mode {image.mode}, which value is white?")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    white = 4095 if bits == 12 else 65535
    scaled = np.multiply(values, np.float32(255 / white), dtype=np.float32)
    levels = np.rint(scaled, out=scaled).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return Image.fromarray(levels)
