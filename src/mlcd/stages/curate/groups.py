"""Groups of rows that hang together by pairs: union-find over all chunks, and who is kept.

Pairs come in any order and number. They are brought into one form as often as memory asks for it:
each group as a star around its lowest row. So what is held never exceeds the rows that have a pair,
and equal groups are equal arrays, whatever pairs told of them.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

#: Pairs that are gathered before they are brought into form.
_MOST = 1 << 22


def stars(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups of the pairs `first`, `second` (int64 [pairs]) as stars.

    That is lowest row and other row of each group, int64 [rows in groups − groups], other rows
    rising.
    """
    rows, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    place = place.reshape(2, -1)
    graph = scipy.sparse.coo_array(
        (np.ones(place.shape[1], bool), (place[0], place[1])), shape=(len(rows), len(rows))
    )
    _, group = connected_components(graph, directed=False)
    # Rows rise, so the first of a group is its lowest.
    _, lowest = np.unique(group, return_index=True)
    center = rows[lowest[group]]
    other = center != rows
    return center[other].astype(np.int64), rows[other].astype(np.int64)


class Groups:
    """Groups that grow by pairs."""

    def __init__(self) -> None:
        self._first: list[np.ndarray] = []
        self._second: list[np.ndarray] = []
        self._loose = 0

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Add pairs, int64 [pairs] each."""
        if not len(first):
            return
        self._first.append(first)
        self._second.append(second)
        self._loose += len(first)
        if self._loose > _MOST:
            self.as_stars()

    def as_stars(self) -> tuple[np.ndarray, np.ndarray]:
        """Return :func:`stars` of all pairs so far."""
        none = np.zeros(0, np.int64)
        found = stars(np.concatenate([none, *self._first]), np.concatenate([none, *self._second]))
        self._first, self._second, self._loose = [found[0]], [found[1]], 0
        return found


def keepers(
    center: np.ndarray, other: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows that are left out, and the row of their group that is kept, int64 [m] each.

    `center`, `other`: stars; `pixels` int64 [N]. Kept is the row with the most pixels, of several
    the lowest. Rows left out rise.
    """
    lowest = np.unique(center)
    rows = np.concatenate([lowest, other])
    group = np.concatenate([lowest, center])
    order = np.lexsort((rows, -pixels[rows], group))
    rows, group = rows[order], group[order]
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])[: len(group)])
    best = np.repeat(rows[starts], np.diff([*starts.tolist(), len(rows)]))
    out = rows != best
    rows, best = rows[out], best[out]
    order = np.argsort(rows, kind="stable")
    return rows[order], best[order]
