"""Pointing: does the patch that is most like a class, or like an object, lie in the object?

And the spread of an image's tokens, the figure of RICE (arXiv 2507.20025).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mlcd.stages.evaluate.dense.regions import Regions
from mlcd.stages.evaluate.dense.store import Store
from mlcd.utils.errors import UserError

_BATCH = 64


def judge(store: Store, regions: Regions) -> dict[str, Any]:
    """Return the shares of test objects that are pointed at, those of chance, and their ground.

    Two questions for each test object, each answered by the place of its image with the largest
    cosine: `class`, by the mean of the train objects of its class (each pooled over its box, and
    of unit length), is right in any object of that class; `object`, by the pooled features of its
    own crop, is right in that object alone. A mask says what an object is where the image has one,
    else its box. Objects of classes without a train object are left out.
    """
    means = prototypes(torch.from_numpy(regions.roi), regions)
    height, width, channels = store.shape
    asked = [one for one in regions.test.tolist() if regions.label[one] < regions.seen]
    crops = normalize(torch.from_numpy(store.crop).float(), dim=1)
    hits: dict[str, list[bool]] = {"class": [], "object": []}
    shares: dict[str, list[float]] = {"class": [], "object": []}
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        tokens = normalize(store.tokens(store.row[part]).flatten(2), dim=1)
        for one, places in zip(part, tokens, strict=True):
            same = (store.row == store.row[one]) & (store.name == store.name[one])
            questions = {"class": (means[regions.label[one]], np.flatnonzero(same))}
            if crops.shape[1] == channels:  # both before the projection, of one width
                questions["object"] = (crops[one], np.array([one]))
            for how, (query, wanted) in questions.items():
                inside = covered(store, wanted, height, width)
                hits[how].append(bool(inside.ravel()[int((query @ places).argmax())]))
                shares[how].append(float(inside.mean()))
    having = [how for how in hits if hits[how]]
    return {
        "scores": {f"pointing_{how}": float(np.mean(hits[how])) for how in having},
        "chance": {f"pointing_{how}": float(np.mean(shares[how])) for how in having},
        "pointing": {"objects": len(asked), "places": height * width},
    }


def prototypes(rows: Tensor, regions: Regions) -> Tensor:
    """Return unit float32 [classes, C]: means of the train objects' unit rows."""
    unit = normalize(rows[regions.train], dim=1)
    sums = torch.zeros(regions.seen, rows.shape[1]).index_add_(
        0, torch.from_numpy(regions.label[regions.train]), unit
    )
    return normalize(sums, dim=1)


def covered(store: Store, objects: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return bool [height, width]: the places whose center lies in one of the objects of an image.

    That is, in its box; and, where the image has a mask, on a pixel of its class.
    """
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    found = np.zeros((height, width), bool)
    for one in objects.tolist():
        left, top, right, bottom = store.box[one]
        box = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None, :]
        mask = store.mask(int(store.row[one]))
        if mask is not None and (number := int(store.number[one])) >= 0:
            rows = np.minimum((y * len(mask)).astype(int), len(mask) - 1)
            columns = np.minimum((x * mask.shape[1]).astype(int), mask.shape[1] - 1)
            box = box & (mask[np.ix_(rows, columns)] == number)
        found |= box
    return found


def spread(store: Store) -> dict[str, Any]:
    """Return the mean cosine between different tokens of an image, over the test images.

    Lower is more spread: 1 says that all places have the same features. Raises :class:`UserError`
    if there are none.
    """
    if not len(store.on("test")):
        raise UserError(f"evaluate.datasets: {store.dataset} has no test image")
    found: list[float] = []
    for _, tokens in store.batches(store.on("test"), _BATCH):
        found += token_cosine(tokens).tolist()
    return {"scores": {"token_cosine": float(np.mean(found))}, "chance": {}}


def token_cosine(maps: Tensor) -> Tensor:
    """Return float64 [B] of maps [B, C, h, w]: the mean cosine of all pairs of places."""
    unit = normalize(maps.double().flatten(2), dim=1)
    n = unit.shape[2]
    return (unit.sum(2).square().sum(1) - n) / max(1, n * (n - 1))
