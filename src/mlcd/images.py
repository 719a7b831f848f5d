"""Decode pictures that came from strangers: the header is checked before a pixel is decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageFile, UnidentifiedImageError

# Pillow would fill a truncated picture with grey; a grey half is worse than a counted failure.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# The size limit below is ours and comes before decoding; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None

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
    ``damaged`` (truncated or corrupt).
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
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(canvas, image).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        raise BadImage("damaged", str(error)) from None
