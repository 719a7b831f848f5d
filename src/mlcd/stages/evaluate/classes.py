"""Scores of classes: weighted k-NN and the linear probe, on labeled test images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.stages.evaluate import knn, measures, probe
from mlcd.stages.evaluate.cached import Features
from mlcd.stages.evaluate.chosen import Images, fitted_probe, held_out, sides
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER


class Labeled(NamedTuple):
    """Which labeled rows are `train` and `test` (bool [n] each), labels int64 [n], and classes.

    Labels are numbered so that the `seen` classes, those of train, come first; −1 where there is
    none.
    """

    train: np.ndarray
    test: np.ndarray
    label: np.ndarray
    seen: int


def judge(section: Evaluate, dataset: Dataset, data: Features, result: dict[str, Any]) -> None:
    """Weighted k-NN (accuracy) and the linear probe (the set's metric) on labeled test images.

    Test images of a class without a train image stay in, and count as wrong.
    Raises :class:`UserError` if too few images or classes are there.
    """
    labeled = sides_of(data, result)
    if "knn" in dataset.tasks:
        _knn(section, data, labeled, result)
    if "linear_probe" in dataset.tasks:
        _linear_probe(section, dataset, data, labeled, result)


def sides_of(data: Images, result: dict[str, Any]) -> Labeled:
    """Return the labeled sides; what is left out, and counts as wrong, goes to `result`.

    Raises :class:`UserError` if too few images or classes are there.
    """
    train, test = (side & (data.label >= 0) for side in sides(data))
    counts = np.bincount(data.label[train], minlength=data.classes)
    if (counts > 0).sum() < 2 or not test.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} needs two classes in train and a labeled test "
            "image; see label_field, or set it to null"
        )
    # Classes of train first: there is nothing for the others to be learned from.
    seen = int((counts > 0).sum())
    number = np.empty(data.classes, np.int64)
    number[counts > 0] = np.arange(seen)
    number[counts == 0] = np.arange(seen, data.classes)
    label = np.where(data.label >= 0, number[data.label], -1)
    unseen = test & (label >= seen)
    result["classes"] = {
        "all": data.classes,
        "in_train": seen,
        "with_one_train_image": int((counts == 1).sum()),
        "unlabeled_images": int((data.label < 0).sum()),
        "test_images_of_unseen_classes": int(unseen.sum()),
    }
    if unseen.any():
        LOGGER.warning(
            "%s: %d test images are of classes without a train image; they count as wrong",
            data.dataset,
            unseen.sum(),
        )
    return Labeled(train, test, label, seen)


def _knn(
    section: Evaluate,
    data: Features,
    labeled: Labeled,
    result: dict[str, Any],
) -> None:
    train, test, label, seen = labeled
    truth, targets = data.take(label, test), data.take(label, train)
    rows, test_rows = data.take(data.feature, train), data.take(data.feature, test)
    ks = [k for k in section.knn_k if k <= len(rows)]
    if not ks:
        raise UserError(
            f"evaluate.knn_k: {min(section.knn_k)} neighbors of {len(rows)} labeled train "
            f"images in {data.dataset}; lower it"
        )
    if left_out := sorted(set(section.knn_k) - set(ks)):
        LOGGER.warning(
            "evaluate.knn_k: %s has %d labeled train images; left out there: %s",
            data.dataset, len(rows), ", ".join(map(str, left_out)),
        )  # fmt: skip
    constant = by_size(targets, len(truth), seen)
    found = knn.predict(rows, targets, test_rows, ks, section.knn_temperature)
    for k, predicted in found.items():
        result["scores"][f"knn_{k}"] = float((predicted == truth).double().mean())
        result["chance"][f"knn_{k}"] = measures.accuracy(constant, truth)


def _linear_probe(
    section: Evaluate,
    dataset: Dataset,
    data: Features,
    labeled: Labeled,
    result: dict[str, Any],
) -> None:
    train, test, label, seen = labeled
    truth, targets = data.take(label, test), data.take(label, train)
    metric = dataset.class_metric
    measures.check(metric, data.dataset, data.classes, truth, "test")
    held = held_out(section, data, train, label[train])
    side = targets[torch.from_numpy(held)]
    measures.check(metric, data.dataset, data.classes, side, "validation")
    measure = measures.OF_CLASSES[metric]
    probed = data.for_probe(section.probe_features)
    rows, test_rows = data.take(probed, train), data.take(probed, test)
    scale = probe.Scale.of(rows)
    rows = scale(rows)  # the unscaled ones are let go: they may be gigabytes
    fitted, about = fitted_probe(
        section, data, rows, targets, held,
        lambda fit, rows, targets: measure(fit.logits(rows), targets),
    )  # fmt: skip
    name = measures.score_name(metric)
    result["scores"][name] = measure(fitted.logits(scale(test_rows)), truth)
    result["chance"][name] = measure(by_size(targets, len(truth), seen), truth)
    result["linear_probe"] = about


def by_size(targets: torch.Tensor, rows: int, seen: int) -> torch.Tensor:
    """Return what the same answer for every image is: the classes by their size in train."""
    return torch.bincount(targets).float().expand(rows, seen)
