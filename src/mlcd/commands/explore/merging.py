"""Group many rows by a key, beyond memory: sorted parts on disk, merged by ranges of the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: One key in this many is looked at to cut the range of keys into equal parts.
_SAMPLED = 1024


class SortedParts:
    """Parts of a table, each sorted by `key`, below `folder`; see :meth:`merged`.

    A part takes its own files; the sum of all is as large as the table.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._parts: list[dict[str, Path]] = []
        self._samples: list[np.ndarray] = []
        self.rows = 0

    def add(self, key: np.ndarray, **columns: np.ndarray) -> None:
        """Add a part: `key` uint64 [n] in any order, `columns` [n] each."""
        order = np.argsort(key, kind="stable")
        part = {}
        for name, column in {"key": key, **columns}.items():
            part[name] = self._folder / f"{self._name}-{len(self._parts):05d}-{name}.npy"
            np.save(part[name], column[order])
        self._parts.append(part)
        self._samples.append(key[order][::_SAMPLED])
        self.rows += len(key)

    def merged(self, most: int) -> Iterator[dict[str, np.ndarray]]:
        """Iterate over blocks of the whole table by rising key, of about `most` rows.

        All rows of a key are in one block, in the order in which they were added.
        """
        if not self._parts:
            return
        samples = np.sort(np.concatenate(self._samples))
        step = max(1, most // _SAMPLED)
        # Blocks end before these keys.
        ends = np.unique(samples[step::step])
        opened = [
            {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in part.items()}
            for part in self._parts
        ]
        cuts = [
            np.concatenate([[0], np.searchsorted(part["key"], ends), [len(part["key"])]])
            for part in opened
        ]
        for block in range(len(ends) + 1):
            table = {
                name: np.concatenate(
                    [part[name][cut[block] : cut[block + 1]]
                     for part, cut in zip(opened, cuts, strict=True)]
                )
                for name in opened[0]
            }  # fmt: skip
            order = np.argsort(table["key"], kind="stable")
            yield {name: column[order] for name, column in table.items()}

    def remove(self) -> None:
        """Remove the parts' files."""
        for part in self._parts:
            for path in part.values():
                path.unlink(missing_ok=True)
