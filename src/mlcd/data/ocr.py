"""The files of stage ocr: the lines of text in a chunk's images, and the words that are classes.

    text = Text("results/ocr/text/a-00000.h5")        # row, confidence, box and text of each line
    words = Vocabulary("results/ocr/vocabulary.json")  # class id → word

The words of each image, as class ids, are labels like others: :class:`mlcd.data.labels.Labels`
reads results/ocr/labels/. Text comes from images of strangers: nothing but letters to compare.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mlcd.data import hdf5
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_with_checksum

KIND = "ocr_text"
#: Characters of a line that are kept, and lines of an image.
MOST_CHARACTERS, MOST_LINES = 256, 256


class Line(NamedTuple):
    """A line of text: `box` is its left, top, right and bottom as shares of the image's sides."""

    text: str
    confidence: float
    box: tuple[float, float, float, float]


class Text:
    """The lines of text in a chunk's images. Raises :class:`UserError` if damaged.

    Attributes: `path`, `chunk`, `n` (images), `lines`, `failed` (images that could not be read),
    `embeddings` (fingerprint of the file whose rows the images are) and `fingerprint`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with hdf5.reading(path, KIND) as file:
            shapes = {"row": (), "confidence": (), "box": (4,), "bytes": ()}
            lines = len(file["row"]) if "row" in file else 0
            if "text" not in file or any(
                name not in file or file[name].shape != (lines, *rest)
                for name, rest in shapes.items()
            ):
                raise UserError(f"{path}: lacks what it should hold; rerun ocr")
            self.lines = lines
            about = file.attrs
            self.chunk = str(about["chunk"])
            self.n, self.failed = int(about["images"]), int(about["failed"])
            self.embeddings, self.fingerprint = str(about["embeddings"]), str(about["fingerprint"])

    def rows(self) -> np.ndarray:
        """Return the row of the embeddings that each line is of, int32 [lines], never falling."""
        rows = self._whole("row")
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.n and (np.diff(rows) >= 0).all()):
            raise UserError(f"{self.path}: names images that are not there; rerun ocr")
        return rows

    def confidence(self) -> np.ndarray:
        """Return the confidence of each line, float32 [lines]."""
        return self._whole("confidence")

    def boxes(self) -> np.ndarray:
        """Return left, top, right and bottom of each line as shares of its image's sides.

        float32 [lines, 4].
        """
        return self._whole("box")

    def texts(self) -> list[str]:
        """Return the text of each line."""
        data, ends = self._whole("text").tobytes(), np.cumsum(self._whole("bytes"), dtype=np.int64)
        if len(ends) and (ends[-1] != len(data) or (np.diff(ends) < 0).any()):
            raise UserError(f"{self.path}: its lines are not as long as its text; rerun ocr")
        spans = itertools.pairwise([0, *ends.tolist()])
        return [data[start:stop].decode("utf-8", "replace") for start, stop in spans]

    def _whole(self, name: str) -> np.ndarray:
        with hdf5.reading(self.path, KIND) as file:
            return hdf5.whole(file, name)


def columns(images: Iterable[tuple[int, list[Line]]]) -> dict[str, np.ndarray]:
    """Return the datasets of a file of text, from the lines of images by row."""
    found = [(row, line) for row, lines in images for line in lines[:MOST_LINES]]
    texts = [line.text[:MOST_CHARACTERS].encode("utf-8", "replace") for _, line in found]
    boxes = np.array([line.box for _, line in found], np.float32).reshape(-1, 4)
    return {
        "row": np.array([row for row, _ in found], np.int32),
        "confidence": np.array([line.confidence for _, line in found], np.float32),
        "box": np.clip(boxes, 0, 1),
        "bytes": np.array([len(text) for text in texts], np.int32),
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }


class Vocabulary:
    """The words that are classes. Raises :class:`UserError` if damaged.

    Attributes: `path`, `words` (class id → word: those in the most images first), `images` (those
    that each is in), `checksum` (hex).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        record, self.checksum = read_with_checksum(path, "ocr")
        try:
            pairs = [(str(word), int(images)) for word, images in record["words"]]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: holds no words; rerun ocr") from None
        self.words = [word for word, _ in pairs]
        self.images = [images for _, images in pairs]

    def __len__(self) -> int:
        return len(self.words)
