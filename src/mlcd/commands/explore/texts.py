"""Captions and URLs of all images, in small compressed blocks: a page of images reads a few.

The table of a chunk holds them by column, in row groups of a whole chunk: one caption would cost
as much as all.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from mlcd.commands.explore.store import Column, Files
from mlcd.utils.errors import UserError

#: Images whose texts are compressed together.
BLOCK = 64
#: Characters of a caption and of a URL that are kept.
_CAPTION, _URL = 1000, 2000
#: Bytes that a block may have once it is inflated: UTF-8 takes four for a character at most.
_MOST = BLOCK * (4 * (_CAPTION + _URL) + 8)


class TextWriter:
    """Appends the texts of chunk after chunk."""

    def __init__(self, files: Files) -> None:
        self._data = files.sink("texts", "u1")
        self._ends = files.sink("text_blocks", "i8")
        self._first = files.sink("text_chunks", "i8")
        self._end = self._blocks = 0
        self._ends.append(np.zeros(1))

    def append(self, captions: Sequence[str], urls: Sequence[str]) -> None:
        """Append the texts of all images of the next chunk."""
        self._first.append(np.array([self._blocks]))
        for start in range(0, len(captions), BLOCK):
            part = slice(start, start + BLOCK)
            block = zlib.compress(_packed(captions[part], urls[part]), 6)
            self._data.append(np.frombuffer(block, np.uint8))
            self._end += len(block)
            self._blocks += 1
            self._ends.append(np.array([self._end]))

    def close(self) -> None:
        """Finish the files."""
        for sink in (self._data, self._ends, self._first):
            sink.close()


class Texts:
    """Reads them."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._data = columns["texts"]
        self._ends = columns["text_blocks"]
        self._first = columns["text_chunks"].read()

    def read(self, places: Iterable[tuple[int, int]]) -> list[tuple[str, str]]:
        """Return (caption, URL) of each (chunk, row), in their order."""
        wanted = [(int(self._first[chunk]) + row // BLOCK, row % BLOCK) for chunk, row in places]
        numbers = dict.fromkeys(number for number, _ in wanted)
        for number in numbers:
            self._ends.advise(number, number + 2)
        ends = {number: self._ends.read(number, number + 2).tolist() for number in numbers}
        for start, stop in ends.values():
            self._data.advise(start, stop)
        known = {number: self._block(start, stop) for number, (start, stop) in ends.items()}
        return [known[number][row] for number, row in wanted]

    def _block(self, start: int, stop: int) -> list[tuple[str, str]]:
        try:
            data = zlib.decompressobj().decompress(self._data.read(start, stop).tobytes(), _MOST)
            return _unpacked(data)
        except (zlib.error, ValueError):
            raise UserError(
                "the index of mlcd explore is damaged; remove its folder, it is built again"
            ) from None


def _packed(captions: Sequence[str], urls: Sequence[str]) -> bytes:
    texts = [caption[:_CAPTION].encode("utf-8", "replace") for caption in captions]
    texts += [url[:_URL].encode("utf-8", "replace") for url in urls]
    lengths = np.array([len(text) for text in texts], "<u4")
    return np.array([len(texts)], "<u4").tobytes() + lengths.tobytes() + b"".join(texts)


def _unpacked(data: bytes) -> list[tuple[str, str]]:
    count = int(np.frombuffer(data, "<u4", 1)[0])
    lengths = np.frombuffer(data, "<u4", count, 4).astype(np.int64)
    ends = (4 + 4 * count + np.cumsum([0, *lengths.tolist()])).tolist()
    texts = [data[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(ends)]
    return list(zip(texts[: count // 2], texts[count // 2 :], strict=True))
