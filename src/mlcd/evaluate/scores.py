"""k-NN, linear probe and mean average precision of one model, from its cached features."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.evaluate import Dataset
from mlcd.errors import UserError
from mlcd.evaluate import knn, probe
from mlcd.evaluate.datasets import find
from mlcd.evaluate.features import KIND
from mlcd.files import write_json
from mlcd.progress import LOGGER
from mlcd.stores import h5

#: Digits after the point of every score. With n test pictures a score moves in steps of 1 / n.
DIGITS = 4


@dataclass
class Features:
    """One features file: see docs/formats.md. `label` and `group` are −1 where there is none."""

    model: str
    dataset: str
    seed: int
    fingerprint: str
    feature: torch.Tensor
    train: np.ndarray
    label: np.ndarray
    classes: int
    tags: np.ndarray
    tag_names: list[str]
    group: np.ndarray
    failed: dict[str, int]


def read(path: str | os.PathLike[str], device: torch.device) -> Features:
    """Read a features file. Raises :class:`UserError` if it is missing or damaged."""
    with h5.reading(path, KIND) as file:
        columns = {name: dataset[:] for name, dataset in file.items()}
        attributes = dict(file.attrs)
    n = len(columns["train"])
    tags = np.zeros((n, len(columns["tag_name"])), bool)
    tags[columns["tag"][:, 0], columns["tag"][:, 1]] = True
    # Pictures without a group are each by themselves.
    group = columns["group"].astype(np.int64)
    alone = group < 0
    group[alone] = group.max(initial=-1) + 1 + np.arange(alone.sum())
    reasons = Counter(reason.decode() for reason in columns["failed_reason"])
    return Features(
        model=str(attributes["model"]),
        dataset=str(attributes["dataset"]),
        seed=int(attributes["seed"]),
        fingerprint=str(attributes["fingerprint"]),
        feature=torch.from_numpy(columns["feature"]).to(device),
        train=columns["train"],
        label=columns["label"].astype(np.int64),
        classes=len(columns["class_name"]),
        tags=tags,
        tag_names=[name.decode() for name in columns["tag_name"]],
        group=group,
        failed=dict(sorted(reasons.items())),
    )


def metrics_part(
    section: Evaluate,
    paths: Sequence[str],
    output: str | os.PathLike[str],
    device: torch.device,
) -> None:
    """Write the scores of one model on all its data sets as JSON; see docs/evaluation.md.

    Raises :class:`UserError` if the files are of several models, or of a data set that the config
    does not have.
    """
    found: dict[str, Any] = {}
    models = set()
    seed = section.seed
    for path in paths:
        data = read(path, device)
        models.add(data.model)
        seed = data.seed
        if len(models) > 1:
            raise UserError(f"{path}: features of {data.model}; expected one model's files only")
        if data.dataset in found:
            raise UserError(f"{path}: features of {data.dataset} a second time; give each once")
        start = time.monotonic()
        found[data.dataset] = score(section, find(section, data.dataset), data)
        LOGGER.info(
            "%s on %s in %.1f s: %s",
            data.model,
            data.dataset,
            time.monotonic() - start,
            ", ".join(f"{key} {value:.4f}" for key, value in found[data.dataset]["scores"].items()),
        )
    write_json(output, {"model": models.pop(), "seed": seed, "datasets": found})


def score(section: Evaluate, dataset: Dataset, data: Features) -> dict[str, Any]:
    """Return scores, the scores of chance, and what they rest on, as JSON-able values."""
    result: dict[str, Any] = {
        "features": data.fingerprint,
        "dim": data.feature.shape[1],
        "pictures": {
            "train": int(data.train.sum()),
            "test": int((~data.train).sum()),
            "failed": data.failed,
        },
        "scores": {},
        "chance": {},
    }
    for side, chosen in (("train", data.train), ("test", ~data.train)):
        if not chosen.any():
            raise UserError(
                f"evaluate.datasets: {data.dataset} has no {side} pictures; see split_field"
            )
    if dataset.label_field is not None:
        _classes(section, data, result)
    if dataset.tags_field is not None:
        _tags(section, dataset, data, result)
    for key in ("scores", "chance"):
        result[key] = {name: round(value, DIGITS) for name, value in result[key].items()}
    return result


def _classes(section: Evaluate, data: Features, result: dict[str, Any]) -> None:
    """Weighted k-NN and the linear probe, both as accuracy on the labelled test pictures.

    Test pictures of a class without a train picture stay in, and count as wrong.
    """
    train, test = data.train & (data.label >= 0), ~data.train & (data.label >= 0)
    counts = np.bincount(data.label[train], minlength=data.classes)
    if (counts > 0).sum() < 2 or not test.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} needs two classes in train and a labelled test "
            "picture; see label_field, or set it to null"
        )
    too_large = max(section.knn_k)
    if too_large > train.sum():
        raise UserError(
            f"evaluate.knn_k: {too_large} neighbours of {train.sum()} labelled train pictures in "
            f"{data.dataset}; lower it"
        )
    # Classes of train alone, renumbered: the others have nothing to be learned from.
    number = np.full(data.classes, -1)
    number[counts > 0] = np.arange((counts > 0).sum())
    label = number[data.label]
    unseen = test & (label < 0)
    result["classes"] = {
        "all": data.classes,
        "in_train": int((counts > 0).sum()),
        "with_one_train_picture": int((counts == 1).sum()),
        "unlabelled_pictures": int((data.label < 0).sum()),
        "test_pictures_of_unseen_classes": int(unseen.sum()),
    }
    if unseen.any():
        LOGGER.warning(
            "%s: %d test pictures are of classes without a train picture; they count as wrong",
            data.dataset,
            unseen.sum(),
        )
    truth = _tensor(label, test, data)
    rows, targets = _tensor(data.feature, train, data), _tensor(label, train, data)
    test_rows = _tensor(data.feature, test, data)

    ks, temperature = section.knn_k, section.knn_temperature
    for k, predicted in knn.predict(rows, targets, test_rows, ks, temperature).items():
        result["scores"][f"knn_{k}"] = _accuracy(predicted, truth)

    held = probe.validation_rows(
        data.group[train], section.validation_share, section.seed, label[train]
    )
    scale = probe.Scale.of(rows)
    fitted, about = _probe(section, data, scale(rows), targets, held, _class_score)
    result["scores"]["linear_probe"] = _accuracy(fitted.logits(scale(test_rows)).argmax(1), truth)
    result["linear_probe"] = about
    majority = float((truth == int(np.argmax(np.bincount(label[train])))).float().mean())
    result["chance"] |= dict.fromkeys(result["scores"], majority)


def _tags(section: Evaluate, dataset: Dataset, data: Features, result: dict[str, Any]) -> None:
    """Mean over tags of the average precision on test, of one logistic regression a tag.

    Tags on at least `min_tag_count` pictures count, if there is one on each side of the split.
    """
    train, test = data.train, ~data.train
    often = data.tags.sum(0) >= dataset.min_tag_count
    split = data.tags[train].any(0) & data.tags[test].any(0) & ~data.tags[train].all(0)
    kept = often & split
    if not kept.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no tag on {dataset.min_tag_count} pictures "
            "with both train and test ones; lower min_tag_count or set tags_field to null"
        )
    rows = _tensor(data.feature, train, data)
    targets = _tensor(data.tags[:, kept].astype(np.float32), train, data)
    test_rows, truth = _tensor(data.feature, test, data), data.tags[test][:, kept]
    held = probe.validation_rows(data.group[train], section.validation_share, section.seed)
    scale = probe.Scale.of(rows)
    fitted, about = _probe(section, data, scale(rows), targets, held, _tag_score)
    logits = fitted.logits(scale(test_rows)).cpu().numpy()
    result["tags"] = {"kept": int(kept.sum()), "too_rare": int((~kept).sum())}
    result["scores"]["tags_map"] = mean_average_precision(truth, logits)
    result["tags_probe"] = about
    # A random order's average precision is about the share of positives.
    result["chance"]["tags_map"] = float(truth.mean(0).mean())


def _probe(
    section: Evaluate,
    data: Features,
    rows: torch.Tensor,
    targets: torch.Tensor,
    held: np.ndarray,
    scorer: Callable[[probe.Fit, torch.Tensor, torch.Tensor], float],
) -> tuple[probe.Fit, dict[str, Any]]:
    """Choose C by `scorer` on the `held` rows, then fit on all of them."""
    if not held.any() or held.all():
        raise UserError(
            f"evaluate.validation_share: {section.validation_share:g} of the train pictures of "
            f"{data.dataset} leaves none on one side; change it, or set group_field to null"
        )
    candidates, iterations = section.probe_regularisation, section.probe_max_iterations
    validation = torch.from_numpy(held).to(rows.device)
    choice = probe.choose(rows, targets, validation, candidates, iterations, scorer)
    fitted = probe.fit(probe.Rows(rows), targets, choice.c, iterations, start=choice.fit)
    if fitted.iterations >= iterations:
        LOGGER.warning(
            "evaluate.probe_max_iterations: the probe of %s on %s stopped at %d; raise it",
            data.model,
            data.dataset,
            iterations,
        )
    return fitted, {
        "c": choice.c,
        "validation_pictures": int(held.sum()),
        "validation_score": {f"{c:g}": round(s, DIGITS) for c, s in choice.scores.items()},
        "iterations": fitted.iterations,
    }


def _tensor(values: np.ndarray | torch.Tensor, rows: np.ndarray, data: Features) -> torch.Tensor:
    """Return the rows (bool [n]) of `values` on the device of the features."""
    device = data.feature.device
    return torch.as_tensor(values, device=device)[torch.from_numpy(rows).to(device)]


def _class_score(fit: probe.Fit, rows: torch.Tensor, targets: torch.Tensor) -> float:
    return _accuracy(fit.logits(rows).argmax(1), targets)


def _tag_score(fit: probe.Fit, rows: torch.Tensor, targets: torch.Tensor) -> float:
    truth = targets.cpu().numpy() > 0
    seen = truth.any(0)
    return mean_average_precision(truth[:, seen], fit.logits(rows).cpu().numpy()[:, seen])


def mean_average_precision(truth: np.ndarray, logits: np.ndarray) -> float:
    """Mean over columns of the average precision of `logits` [n, t] for `truth` bool [n, t]."""
    from sklearn.metrics import average_precision_score

    if not truth.shape[1]:
        return 0.0
    return float(average_precision_score(truth, logits, average="macro"))


def _accuracy(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    return float((predicted == truth).float().mean())
