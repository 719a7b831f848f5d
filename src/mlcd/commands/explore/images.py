"""Small copies of a run's images, made when they are asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from mlcd.commands.explore.index import Index
from mlcd.commands.explore.runs import Run
from mlcd.data.decode import BadImage, Encoded
from mlcd.utils.errors import UserError

#: Longest side in pixels of a copy: of a tile of a map, of a page, and of an image alone.
SIDES = (64, 160, 320, 1024)
#: Bytes of copies that are kept in memory.
_KEPT = 64 << 20


class Thumbnails:
    """Makes them, and keeps those asked for last. For any thread."""

    def __init__(self, run: Run, index: Index, max_pixels: int) -> None:
        self._run, self._index, self._max_pixels = run, index, max_pixels
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._bytes = 0
        # Decoding takes memory by the pixel: only so many at once.
        self._at_once = threading.Semaphore(2)

    def get(self, chunk: int, row: int, side: int) -> bytes:
        """Return an image as WebP, `side` pixels long at most. `chunk` and `row` are checked.

        Raises :class:`UserError` if its bytes are gone or changed, and
        :class:`~mlcd.data.decode.BadImage` if they cannot be decoded.
        """
        name = chunk, row, side
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        with self._at_once:
            data = small(self._original(chunk, row), side, max_pixels=self._max_pixels)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = data
                self._bytes += len(data)
            while self._bytes > _KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _original(self, chunk: int, row: int) -> bytes:
        """Return an image's bytes. Raises :class:`UserError` if they are gone or have changed."""
        if self._index.places is None:
            raise UserError(f"{self._run.results}: the images of the run are not there")
        place = self._index.places.get(int(self._run.starts[chunk]) + row)
        return self._run.image(chunk, *place)


def small(data: bytes, side: int, *, max_pixels: int) -> bytes:
    """Return an image's bytes as a WebP whose longer side is at most `side`; never enlarged.

    Raises :class:`~mlcd.data.decode.BadImage`.
    """
    encoded = Encoded(data, max_pixels=max_pixels)
    shrink = 1
    if encoded.jpeg_size is not None:
        shortest, longest = min(encoded.jpeg_size), max(encoded.jpeg_size)
        fits = (each for each in (8, 4, 2) if longest >= 2 * side * each and shortest >= each**2)
        shrink = next(fits, 1)
    image = encoded.decode(shrink)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


def why_not(error: Exception) -> str:
    """Return in a word why an image does not show."""
    return error.reason if isinstance(error, BadImage) else "gone or changed" if isinstance(
        error, UserError) else "unreadable"  # fmt: skip
