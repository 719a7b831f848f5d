"""Part `vocabulary`: the words of all chunks that are classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from mlcd.config import Ocr
from mlcd.data.ocr import Text
from mlcd.stages.ocr.words import words_by_image
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.records import write_record


def write_vocabulary(
    paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], section: Ocr
) -> None:
    """Write the words that are in at least `section.min_count` images (formats.md).

    Those in the most images come first, of equal ones the first in the order of code points: their
    order depends on no chunk. Raises :class:`UserError` if there is none.
    """
    counts: Counter[str] = Counter()
    images = with_words = lines = failed = 0
    hashes = []
    for path in progress(paths, label="words", unit="chunk"):
        text = Text(path)
        images, lines, failed = images + text.n, lines + text.lines, failed + text.failed
        hashes.append(text.fingerprint)
        for _, words in words_by_image(text, section.min_confidence, section.min_length):
            counts.update(list(words))
            with_words += 1
    enough = [(word, count) for word, count in counts.items() if count >= section.min_count]
    if not enough:
        raise UserError(
            f"ocr.min_count: none of the {len(counts)} words in {with_words} of {images} images is "
            f"in {section.min_count} of them; lower it, lower ocr.min_confidence, or set "
            "ocr.enabled to false"
        )
    enough.sort(key=lambda item: (-item[1], item[0]))
    kept = enough[: section.most_words]
    write_record(
        output,
        {
            "words": [list(item) for item in kept],
            "images": images,
            "images_with_words": with_words,
            "images_failed": failed,
            "lines": lines,
            "distinct_words": len(counts),
            "section": section.for_vocabulary(),
            "made_from": {"text": hashes},
        },
    )
    LOGGER.info(
        "ocr: %d of %d words are classes; %d of %d images have words",
        len(kept), len(counts), with_words, images,
    )  # fmt: skip
