"""Part `labels`: the words of each image of a chunk as class ids."""

from __future__ import annotations

import os

import numpy as np

from mlcd.config import Ocr
from mlcd.data import labels
from mlcd.data.ocr import Text, Vocabulary
from mlcd.stages.ocr.words import words_by_image
from mlcd.utils.logging import LOGGER


def write_labels(
    text: str | os.PathLike[str],
    vocabulary: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Ocr,
) -> None:
    """Write the labels of one chunk, in the format of labels/{chunk}.h5 (formats.md).

    Of an image's words that are classes the `section.top` read with the most confidence, of equal
    ones those in more images. An image without any has −1 only. Raises :class:`UserError`.
    """
    source, classes = Text(text), Vocabulary(vocabulary)
    ids = {word: number for number, word in enumerate(classes.words)}
    label = np.full((source.n, section.top), -1, np.int32)
    confidence = np.zeros((source.n, section.top), np.float16)
    for row, words in words_by_image(source, section.min_confidence, section.min_length):
        known = [(-sure, ids[word]) for word, sure in words.items() if word in ids]
        known.sort()
        for place, (sure, number) in enumerate(known[: section.top]):
            label[row, place], confidence[row, place] = number, -sure
    attributes = {
        "chunk": source.chunk,
        "num_classes": len(classes),
        "embeddings": source.embeddings,
        "text": source.fingerprint,
        "vocabulary": classes.checksum,
        "section": section.for_labels(),
    }
    with labels.writing(output, attributes) as writer:
        # Nothing is known of a next word: the gap is that of none.
        writer.append(label, confidence, np.full(source.n, -1.0))
    LOGGER.info(
        "ocr: %s: %d of %d images have words that are classes",
        source.chunk, int((label[:, 0] >= 0).sum()), source.n,
    )  # fmt: skip
