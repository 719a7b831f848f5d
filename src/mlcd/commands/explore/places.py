"""Where the bytes of each image lie, by its number: 20 bytes that are read at once.

The embeddings hold the same, in blocks that are read and checked whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlcd.commands.explore.store import Column, Files
from mlcd.data.embeddings import Places

#: A tar's number is kept above so many bits of the place in it.
_OFFSET_BITS = 48


class Place(NamedTuple):
    """An image's place within its chunk, as :meth:`.runs.Run.image` takes it."""

    tar: int
    offset: int
    size: int
    digest: int


class PlaceWriter:
    """Appends the places of chunk after chunk."""

    def __init__(self, files: Files) -> None:
        self._sinks = {
            "image_place": files.sink("image_place", "u8"),
            "image_size": files.sink("image_size", "u4"),
            "image_digest": files.sink("image_digest", "u8"),
        }

    def append(self, places: Places) -> None:
        """Append the places of all images of the next chunk."""
        tar = places.tar.astype(np.uint64) << np.uint64(_OFFSET_BITS)
        self._sinks["image_place"].append(tar | places.offset.astype(np.uint64))
        self._sinks["image_size"].append(places.size)
        self._sinks["image_digest"].append(places.digest)

    def close(self) -> None:
        """Finish the files."""
        for sink in self._sinks.values():
            sink.close()


class ImagePlaces:
    """Reads them."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._columns = [columns[f"image_{name}"] for name in ("place", "size", "digest")]

    def get(self, number: int) -> Place:
        """Return the place of image `number` of all."""
        place, size, digest = (int(c.read(number, number + 1)[0]) for c in self._columns)
        return Place(place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1), size, digest)
