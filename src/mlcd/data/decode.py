"""Decode images that came from strangers: the header is checked before a pixel is decoded.

:func:`decode` alone says what an image is, for every stage: what download stores at an image size,
embed and train read, evaluate judges, the report shows. Its results, always 8-bit RGB:

==========================  =====================================================================
in the file                 becomes
==========================  =====================================================================
1-bit gray                  0 and 255
2- and 4-bit gray           scaled to 0 … 255
8-bit gray, RGB, palette    as they are; gray in all three channels
16-bit gray (12-bit TIFF)   value × 255 / 65535 (4095), rounded
16-bit RGB, RGBA, gray+A    the high byte of each value
32-bit integer gray         as 16-bit gray if all values lie in 0 … 65535, else ``not_an_image``
floating-point gray         ``not_an_image``: nothing says which value is white
gray TIFF with white as 0   inverted
CMYK, YCbCr                 RGB by Pillow's formulas, no color profile
Lab and other color spaces  ``not_an_image``
alpha, transparent colors   composited on white (a transparent 16-bit RGB color: by high bytes)
color profile (ICC)         ignored, as the transforms of CLIP, timm and torchvision ignore it
orientation (EXIF, XMP)     applied: pixels stand upright, width and height are those after it
animation, several pages    the first one
==========================  =====================================================================
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

# Pillow would fill a truncated image with gray; a gray half is worse than a counted failure.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# The size limit below is ours and comes before decoding; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None

#: TIFF's tags; a 12-bit image has the mode I;16 and values up to 4095.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
#: Formats that are decoded. Others (PSD, EPS, WMF …) have parsers of doubtful safety.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: Modes of Pillow's that its `convert` takes to RGB with a known meaning.
_MODES = frozenset(
    {"1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
)
#: Values of the orientation tag, and how an image stored so is turned upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Those that change width for height.
_SIDEWAYS = (5, 6, 7, 8)
#: Where in an image's `info` an orientation may stand.
_ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class BadImage(ValueError):
    """An image that cannot be used. `reason` is one word for counts: see :func:`decode`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode `data` to an upright RGB image without metadata, by the table of this module.

    Raises :class:`BadImage` with reason ``empty`` (no bytes), ``not_an_image`` (unknown format or
    colors), ``too_large`` (width × height in the header exceeds `max_pixels`; nothing was decoded)
    or ``damaged`` (truncated or corrupt).
    """
    return Encoded(data, max_pixels=max_pixels).decode()


def is_turned(data: bytes) -> bool:
    """Return whether an image's header asks to turn its pixels, which :func:`decode` does."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return _orientation(image) in _UPRIGHT
    except Exception:  # parsers raise many kinds; decode tells them
        return False


class Encoded:
    """An image of which the header alone was read. Raises :class:`BadImage` as :func:`decode`.

    `jpeg_size`: upright width and height in pixels of a JPEG. None for other formats, whose
    orientation may stand behind the pixels, and which cannot be decoded smaller.
    """

    def __init__(self, data: bytes, *, max_pixels: int) -> None:
        self.jpeg_size: tuple[int, int] | None = None
        self._data = data
        with _told(data):
            if not data:
                raise BadImage("empty", "zero bytes")
            self._image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = self._image.size
            if width * height > max_pixels:
                raise BadImage("too_large", f"{width} × {height} exceeds {max_pixels} pixels")
            if self._image.format == "JPEG":
                sideways = _orientation(self._image) in _SIDEWAYS
                self.jpeg_size = (height, width) if sideways else (width, height)

    def decode(self, shrink: int = 1) -> Image.Image:
        """Return the upright RGB image, once; of a JPEG one of each `shrink` (1, 2, 4, 8) pixels.

        The decoder itself makes it smaller, from fewer frequencies: sides become ⌈side / shrink⌉.
        Sides of `shrink`² pixels at least can be. Raises :class:`BadImage`.
        """
        width, height = self._image.size
        smaller = self.jpeg_size is not None and min(width, height) >= shrink**2
        assert shrink == 1 or smaller, "cannot be decoded smaller"
        with _told(self._data):
            if shrink > 1:
                # The mode stays: gray is not made color here.
                self._image.draft(None, (width // shrink, height // shrink))
            return _rgb(self._image)

    def looked_at(self) -> tuple[int, int]:
        """Read the image to its end, once; return upright width and height. Raises BadImage.

        A JPEG is decoded at the least size, which finds what a whole decoding finds damaged: the
        decoder reads the same codes, and leaves out the sums that make pixels of them.
        """
        if self.jpeg_size is None:
            return self.decode().size
        self.decode(next(each for each in (8, 4, 2, 1) if min(self.jpeg_size) >= each**2))
        return self.jpeg_size


@contextlib.contextmanager
def _told(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow's parsers raise on hostile bytes into :class:`BadImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise BadImage("not_an_image", f"first bytes {data[:8]!r}") from None
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # they raise many kinds
        raise BadImage("damaged", str(error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as upright RGB without metadata. Raises what Pillow raises."""
    # What the raw values are is forgotten once they are loaded.
    raw_mode = _raw_mode(image)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bit(image)
    elif image.mode not in _MODES:
        raise BadImage("not_an_image", f"colors of mode {image.mode}")
    _scale_transparent(image, raw_mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image)
    # Pillow's convert would copy an image that is RGB already. The file's own class is left behind.
    image = image.convert("RGB") if image.mode != "RGB" else image._new(image.im)
    if turn is not None:
        image = image.transpose(turn)
    # Nothing of the file shall reach what is stored from this image.
    image.info = {}
    return image


def _raw_mode(image: Image.Image) -> str:
    """Return how a PNG's values are stored (L;4, RGB;16B), or ''."""
    if image.format != "PNG":
        return ""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile else ""


def _orientation(image: Image.Image) -> int:
    """Return the orientation tag, 1 where there is none; one in damaged EXIF counts as none.

    Pillow turns a TIFF as it loads it.
    """
    if image.format == "TIFF" or not any(name in image.info for name in _ORIENTED):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsers of EXIF raise many kinds
        return 1


def _scale_transparent(image: Image.Image, raw_mode: str) -> None:
    """Bring a PNG's transparent color, which has the file's depth, to that of the pixels."""
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}[raw_mode]
    elif isinstance(transparent, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale gray of 16 (or 12) bits to 8, where Pillow's convert would clip all above 255 to white.

    Raises :class:`BadImage` with reason ``not_an_image``.
    """
    values = np.asarray(image)
    # Pillow before 11.3 gives 16-bit PNG the mode I.
    if image.mode == "F" or not 0 <= values.min() <= values.max() <= 65535:
        raise BadImage("not_an_image", f"gray of mode {image.mode}, which value is white?")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    white = 4095 if bits == 12 else 65535
    scaled = np.multiply(values, np.float32(255 / white), dtype=np.float32)
    levels = np.rint(scaled, out=scaled).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # Pillow inverts only 8 bits and fewer
        levels = 255 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return Image.fromarray(levels)
