"""Split the demo's pictures so that no test picture has its like in train.

Clip art comes in series: one title for fifty drawings, one drawing in two colours. Pictures that
share a title (numbers aside) or look nearly the same form a group, and groups are never divided.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from PIL import Image

#: Share of each folder's pictures that go to test, as far as its groups can be packed.
TEST_SHARE = 0.2
#: Folders with fewer pictures are in train only: a class needs pictures to be learned from.
MIN_FOLDER = 10
#: Relative difference of thumbnails under which two pictures count as the same. Looked at: pairs
#: under 0.1 are the same drawing, pairs from 0.1 to 0.2 are the same with a detail changed.
NEAR = 0.2
THUMBNAIL = 16


def thumbnail(jpeg: bytes) -> np.ndarray:
    """Return the ink (255 minus level) of a picture on a 16 × 16 grid, float32 [768]."""
    side = (THUMBNAIL, THUMBNAIL)
    small = Image.open(io.BytesIO(jpeg)).convert("RGB").resize(side, Image.Resampling.BOX)
    return 255 - np.asarray(small, dtype=np.float32).ravel()


def near_pairs(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (i, j), i < j, whose difference is under NEAR of the fainter picture's norm.

    `thumbnails` is float32 [n, 768]. The norm makes faint line drawings comparable: in grey levels
    alone all of them would be near each other.
    """
    exact = thumbnails.astype(np.float64)
    squares = (exact**2).sum(axis=1)
    pairs = []
    for i in range(len(exact)):
        distance = squares[i] + squares[i + 1 :] - 2 * exact[i + 1 :] @ exact[i]
        faint = np.minimum(squares[i], squares[i + 1 :])
        pairs += [(i, i + 1 + int(j)) for j in np.nonzero(distance < NEAR**2 * faint)[0]]
    return pairs


def group_near(pictures: list[dict[str, Any]]) -> list[int]:
    """Return for each picture the index of the first picture of its group (union-find)."""
    parent = list(range(len(pictures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    pairs = near_pairs(np.stack([thumbnail(picture["jpeg"]) for picture in pictures]))
    for index, picture in enumerate(pictures):
        for name in sorted(picture["names"]):
            pairs.append((first_with.setdefault(name, index), index))
    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(i) for i in range(len(pictures))]


def assign_split(pictures: list[dict[str, Any]], groups: list[int]) -> None:
    """Set `fields["split"]` to train or test, whole groups at a time, in the order of a hash.

    A group goes to test where all of its folders have room for it: each folder gives at most
    TEST_SHARE of its pictures, and small folders none.
    """
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for picture, group in zip(pictures, groups, strict=True):
        members[group].append(picture)
    sizes = Counter(picture["fields"]["folder"] for picture in pictures)
    room = {
        folder: round(TEST_SHARE * size) if size >= MIN_FOLDER else 0
        for folder, size in sizes.items()
    }
    for _, group in sorted((_order(group[0]), group) for group in members.values()):
        wanted = Counter(picture["fields"]["folder"] for picture in group)
        fits = all(room[folder] >= count for folder, count in wanted.items())
        for folder, count in wanted.items():
            room[folder] -= count if fits else 0
        for picture in group:
            picture["fields"]["split"] = "test" if fits else "train"


def _order(picture: dict[str, Any]) -> str:
    return hashlib.sha256(f"split {picture['fields']['source']}".encode()).hexdigest()
