"""Split the demo's images so that no test image has its like in train.

Clip art comes in series: one title for fifty drawings, one drawing in two colors. Images that
share a title (numbers aside) or look nearly the same form a group, and groups are never divided.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from PIL import Image

#: Share of each folder's images that go to test, as far as its groups can be packed.
TEST_SHARE = 0.2
#: Folders with fewer images are in train only: a class needs images to be learned from.
MIN_FOLDER = 10
#: Relative difference of thumbnails under which two images count as the same. Looked at: pairs
#: under 0.1 are the same drawing, pairs from 0.1 to 0.2 are the same with a detail changed.
NEAR = 0.2
THUMBNAIL = 16


def thumbnail(jpeg: bytes) -> np.ndarray:
    """Return the ink (255 minus level) of an image on a 16 × 16 grid, float32 [768]."""
    side = (THUMBNAIL, THUMBNAIL)
    small = Image.open(io.BytesIO(jpeg)).convert("RGB").resize(side, Image.Resampling.BOX)
    return 255 - np.asarray(small, dtype=np.float32).ravel()


def near_pairs(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (i, j), i < j, whose difference is under NEAR of the fainter image's norm.

    `thumbnails` is float32 [n, 768]. The norm makes faint line drawings comparable: in gray levels
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


def group_near(images: list[dict[str, Any]]) -> list[int]:
    """Return for each image the index of the first image of its group (union-find)."""
    parent = list(range(len(images)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    pairs = near_pairs(np.stack([thumbnail(image["jpeg"]) for image in images]))
    for index, image in enumerate(images):
        for name in sorted(image["names"]):
            pairs.append((first_with.setdefault(name, index), index))
    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(i) for i in range(len(images))]


def assign_split(images: list[dict[str, Any]], groups: list[int]) -> None:
    """Set `fields["split"]` to train or test, whole groups at a time, in the order of a hash.

    A group goes to test where all of its folders have room for it: each folder gives at most
    TEST_SHARE of its images, and small folders none.
    """
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for image, group in zip(images, groups, strict=True):
        members[group].append(image)
    sizes = Counter(image["fields"]["folder"] for image in images)
    room = {
        folder: round(TEST_SHARE * size) if size >= MIN_FOLDER else 0
        for folder, size in sizes.items()
    }
    for _, group in sorted((_order(group[0]), group) for group in members.values()):
        wanted = Counter(image["fields"]["folder"] for image in group)
        fits = all(room[folder] >= count for folder, count in wanted.items())
        for folder, count in wanted.items():
            room[folder] -= count if fits else 0
        for image in group:
            image["fields"]["split"] = "test" if fits else "train"


def _order(image: dict[str, Any]) -> str:
    return hashlib.sha256(f"split {image['fields']['source']}".encode()).hexdigest()
