"""Regions: the class of the object in a box, by k-NN and by a linear probe, in several views.

crop   the box is cut out and encoded by itself: the ceiling, one forward pass per object
roi    the mean of the image's own map over the box (RoIAlign, arXiv 1703.06870)
layer  the region layer on the box in that map, of encoders that were trained with one
image  the features of the whole image: what the box adds is what is above it
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlcd.config import Evaluate
from mlcd.models.region_layer import RegionLayer, roi_mean
from mlcd.stages.evaluate import knn, measures, probe
from mlcd.stages.evaluate.chosen import DIGITS, fitted_probe
from mlcd.stages.evaluate.dense.store import Store
from mlcd.utils.errors import UserError

#: Shares of the image's area from which a box is medium, and large.
_MEDIUM, _LARGE = 1 / 16, 1 / 4
#: Visible share from which an object is free.
_FREE = 0.95
_BATCH = 64


class Regions:
    """Objects to learn from and to judge by: `train` and `test` int64 places among the store's.

    `label` int64 [m] counts classes of the train objects first; `seen` of them; `model`, `dataset`:
    names, for messages. Raises :class:`UserError` if there are too few.
    """

    def __init__(self, section: Evaluate, store: Store, model: str) -> None:
        self.model, self.dataset = model, store.dataset
        shown = store.visible >= section.region_min_visible
        sides = [shown & np.isin(store.row, store.on(side)) for side in ("train", "test")]
        self.train, self.test = (np.flatnonzero(side) for side in sides)
        self.left_out = int((~shown).sum())
        names = sorted(set(store.name[self.train].tolist()))
        if len(names) < 2 or not len(self.test):
            raise UserError(
                f"evaluate.datasets: {store.dataset} needs objects of two classes in train and one "
                "in test, for regions and pointing"
            )
        number = {name: place for place, name in enumerate(names)}
        self.seen = len(names)
        self.label: np.ndarray = np.array([number.get(name, self.seen) for name in
                                           store.name.tolist()], np.int64)  # fmt: skip
        self.groups = _groups(store)

    @property
    def truth(self) -> Tensor:
        """Labels int64 of the objects to judge by."""
        return torch.from_numpy(self.label[self.test])


def judge(
    section: Evaluate,
    store: Store,
    regions: Regions,
    device: torch.device,
    layer: RegionLayer | None = None,
) -> dict[str, Any]:
    """Return accuracies on the test objects, those of chance, and both by size and overlap."""
    views = {"crop": store.crop, "roi": pooled(store), "image": store.pooled[store.row]}
    if layer is not None:
        views["layer"] = layered(store, layer)
    targets = torch.from_numpy(regions.label[regions.train])
    constant = torch.bincount(targets).float().expand(len(regions.test), regions.seen)
    chance = measures.accuracy(constant, regions.truth)
    scores: dict[str, float] = {}
    parts: dict[str, dict[str, float]] = {}
    names = [store.key[row] for row in store.row[regions.train].tolist()]
    held = probe.validation_rows(names, section.validation_share, section.seed,
                                 targets.numpy())  # fmt: skip
    if not held.any() or held.all():
        raise UserError(
            f"evaluate.validation_share: {section.validation_share:g} of the train images of "
            f"{store.dataset} leaves no objects on one side; change it"
        )
    for view, rows in views.items():
        whole = torch.from_numpy(rows).to(device)
        train, test = whole[regions.train], whole[regions.test]
        right = {
            "knn": _knn(section, train, targets.to(device), test) == regions.truth,
            "probe": _probe(section, regions, train, targets.to(device), test, held)
            == regions.truth,
        }
        for how, hits in right.items():
            name = f"region_{how}_{view}"
            scores[name] = float(hits.double().mean())
            parts[name] = {
                group: round(float(hits[torch.from_numpy(chosen[regions.test])].double().mean()),
                             DIGITS)
                for group, chosen in regions.groups.items() if chosen[regions.test].any()
            }  # fmt: skip
    counts = {group: int(chosen[regions.test].sum()) for group, chosen in regions.groups.items()}
    return {
        "scores": scores,
        "chance": dict.fromkeys(scores, chance),
        "regions": {
            "train": len(regions.train), "test": len(regions.test), "classes": regions.seen,
            "hardly_visible": regions.left_out, "test_by_group": counts, "by_group": parts,
        },
    }  # fmt: skip


def pooled(store: Store) -> np.ndarray:
    """Return float32 [m, C]: each object's mean of its image's map over its box."""
    found = np.zeros((len(store.row), store.shape[2]), np.float32)
    for start in range(0, len(store.row), _BATCH):
        part = slice(start, start + _BATCH)
        maps = store.tokens(store.row[part])
        found[part] = roi_mean(maps, torch.from_numpy(store.box[part])).numpy()
    return found


def layered(store: Store, layer: RegionLayer) -> np.ndarray:
    """Return float32 [m, width]: what the region layer says of each object, before projection."""
    found = np.zeros((len(store.row), layer.settings["width"]), np.float32)
    for start in range(0, len(store.row), _BATCH):
        part = slice(start, start + _BATCH)
        rows, owner = np.unique(store.row[part], return_inverse=True)
        boxes = torch.from_numpy(store.box[part]).float()
        with torch.inference_mode():
            features = layer.features(store.tokens(rows), boxes, torch.from_numpy(owner))
        found[part] = features.numpy()
    return found


def _knn(section: Evaluate, train: Tensor, targets: Tensor, test: Tensor) -> Tensor:
    k = min(section.region_k, len(train))
    return knn.predict(train, targets, test, [k], section.knn_temperature)[k].cpu()


def _probe(
    section: Evaluate,
    regions: Regions,
    train: Tensor,
    targets: Tensor,
    test: Tensor,
    held: np.ndarray,
) -> Tensor:
    scale = probe.Scale.of(train)
    fitted, _ = fitted_probe(
        section, regions, scale(train), targets, held,
        lambda fit, rows, targets: measures.accuracy(fit.logits(rows), targets),
    )  # fmt: skip
    return fitted.logits(scale(test)).argmax(1).cpu()


def _groups(store: Store) -> dict[str, np.ndarray]:
    """Return bool [m] by name: objects by the area of their box, and by what hides them."""
    width, height = store.box[:, 2] - store.box[:, 0], store.box[:, 3] - store.box[:, 1]
    area = width * height
    return {
        "small": area < _MEDIUM,
        "medium": (area >= _MEDIUM) & (area < _LARGE),
        "large": area >= _LARGE,
        "free": store.visible >= _FREE,
        "covered": store.visible < _FREE,
    }
