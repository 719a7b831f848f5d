"""Which clusters' captions have a word: lists of clusters by the word's hash.

A word is a run of letters and digits, in lower case. It stands for itself by 32 bits of a hash, so
that no dictionary of strings is held: with ten million words, one in 430 shares its list with
another.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np

from mlcd.commands.explore.merging import SortedParts
from mlcd.commands.explore.store import Column, Files

#: Words that are looked up of a query, and characters that a word may have.
_MOST_WORDS, _LONGEST = 16, 64
_COUNT = np.iinfo(np.uint16).max
#: Pairs of a word and a cluster that are merged at once.
_MERGED = 8 << 20


class WordWriter:
    """Collects the words of chunk after chunk, on disk below `folder`."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files = files
        self._parts = SortedParts(folder, "words")

    def append(self, captions: list[str], clusters: np.ndarray) -> None:
        """Add the captions of a chunk, and the cluster of each image, int32 [n]; −1 for none."""
        row, word = _words_of(captions)
        given = clusters[row] >= 0
        key = word[given] << np.uint64(32) | clusters[row[given]].astype(np.uint64)
        pairs, count = np.unique(key, return_counts=True)
        self._parts.add(pairs, count=count.astype(np.uint32))

    def close(self) -> None:
        """Write the lists: `word_hashes` [words], `word_ends` [words + 1], and of each list
        `word_clusters` and `word_counts`, how many captions of the cluster have the word.
        """
        hashes, ends = self._files.sink("word_hashes", "u4"), self._files.sink("word_ends", "i8")
        clusters = self._files.sink("word_clusters", "u4")
        counts = self._files.sink("word_counts", "u2")
        last = -1
        for block in self._parts.merged(_MERGED):
            pairs, first = np.unique(block["key"], return_index=True)
            if not len(pairs):
                continue
            count = np.add.reduceat(block["count"].astype(np.int64), first)
            found, start = np.unique(pairs >> np.uint64(32), return_index=True)
            # A word's list may have begun in the block before.
            new = found != last
            ends.append(clusters.rows + start[new])
            hashes.append(found[new])
            last = int(found[-1])
            clusters.append(pairs & np.uint64(0xFFFFFFFF))
            counts.append(np.minimum(count, _COUNT))
        ends.append(np.array([clusters.rows]))
        for sink in (hashes, ends, clusters, counts):
            sink.close()
        self._parts.remove()


class Words:
    """Looks words up."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._hashes = columns["word_hashes"].read()
        self._ends = columns["word_ends"]
        self._clusters, self._counts = columns["word_clusters"], columns["word_counts"]

    def find(self, query: str, sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return clusters int64 [m] with captions that have all words of `query`, best first.

        And of how many captions, int64 [m]: of several words the rarest one. `sizes` int64 [K] are
        images per cluster; m ≤ `most`. Best is the largest count / √size: many captions, and a
        large share of them.
        """
        found: np.ndarray | None = None
        count = np.zeros(0, np.int64)
        for word in list(dict.fromkeys(words_of(query)))[:_MOST_WORDS]:
            clusters, counts = self._list(word)
            if found is None:
                found, count = clusters, counts
                continue
            found, mine, other = np.intersect1d(
                found, clusters, assume_unique=True, return_indices=True
            )
            count = np.minimum(count[mine], counts[other])
        if found is None:
            return np.zeros(0, np.int64), count
        score = count / np.sqrt(np.maximum(sizes[found], 1))
        best = np.lexsort((found, -score))[:most]
        return found[best], count[best]

    def _list(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        wanted = hash_of([word])[0]
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        start, stop = map(int, self._ends.read(place, place + 2))
        clusters, counts = self._clusters.read(start, stop), self._counts.read(start, stop)
        return clusters.astype(np.int64), counts.astype(np.int64)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in the order of the text."""
    lowered = unicodedata.normalize("NFC", text).lower()
    return [word[:_LONGEST] for word in re.split(r"[\W_]+", lowered) if word]


def hash_of(words: list[str]) -> np.ndarray:
    """Return 32 bits of a hash of each word, uint64 [n]; the same on any machine."""
    import pandas as pd

    hashes = pd.util.hash_array(np.array(words, object), categorize=False)
    return np.asarray(hashes >> np.uint64(32))


def _words_of(captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, hash of a word) of each word of each caption, once; int64 and uint64 [m]."""
    lists = [sorted(set(words_of(text))) for text in captions]
    row = np.repeat(np.arange(len(lists)), [len(words) for words in lists])
    flat = [word for words in lists for word in words]
    if not flat:
        return row, np.zeros(0, np.uint64)
    import pandas as pd

    codes, distinct = pd.factorize(np.array(flat, object))
    return row, hash_of(list(distinct))[codes]
