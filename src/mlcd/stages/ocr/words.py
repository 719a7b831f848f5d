"""From a line of text to its words: letters and digits as they compare, and nothing else."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator

from mlcd.data.ocr import Text

#: A longer run of characters is no word.
MOST_CHARACTERS = 64


def words_of(text: str, min_length: int) -> list[str]:
    """Return the words of a line, in their order; a word may stand there several times.

    Compatible forms of a character are one (NFKC), and so are capitals and small letters (case
    folding). Words lie between blanks; marks at their ends are cut off, marks inside stay (don't,
    3.5). Characters that show nothing (control, direction, unassigned) are left out. A word has
    `min_length` to :data:`MOST_CHARACTERS` characters, a letter or digit at each end.
    """
    # Folding may leave a form that is not normal.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found = []
    for part in text.split():
        word = "".join(char for char in part if unicodedata.category(char)[0] != "C")
        inside = [place for place, char in enumerate(word) if _is_inside(char)]
        while inside and unicodedata.category(word[inside[0]])[0] == "M":
            inside.pop(0)  # an accent without its letter
        if inside:
            word = word[inside[0] : inside[-1] + 1]
            if min_length <= len(word) <= MOST_CHARACTERS:
                found.append(word)
    return found


def _is_inside(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"


def words_by_image(
    text: Text, min_confidence: float, min_length: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Iterate over row and words of the images of a chunk that have any, each with the highest
    confidence of its lines, in the order in which they stand there.
    """
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    columns = text.rows().tolist(), text.confidence().tolist(), text.texts()
    for row, confidence, line in zip(*columns, strict=True):
        # NaN is less than nothing.
        if confidence >= min_confidence:
            for word in words_of(line, min_length):
                found[row][word] = max(confidence, found[row].get(word, 0.0))
    yield from found.items()
