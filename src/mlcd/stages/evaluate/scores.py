"""Scores of one model from its cached features: k-NN, linear probe, retrieval, tags, texts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.evaluate import IMAGE_TEXT, TOWER_TASKS, Dataset
from mlcd.config.registry import registry
from mlcd.data import hdf5
from mlcd.data.labeled.samples import find
from mlcd.models.text_tower import TextTower
from mlcd.stages.evaluate import caption_retrieval, knn, measures, probe, retrieval, zero_shot
from mlcd.stages.evaluate.cached import Features, read
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import write_record

#: Digits after the point of every score. With n test images a score moves in steps of 1 / n.
DIGITS = 4


def metrics_part(
    section: Evaluate,
    paths: Sequence[str],
    output: str | os.PathLike[str],
    device: torch.device,
    tower: TextTower | None = None,
    texts: Sequence[str] = (),
) -> None:
    """Write one model's scores on all its data sets as JSON (docs/explanation/evaluation.md).

    `tower`: the text tower of the model trained, for zero-shot classification; `texts`: files of
    captions that it embedded, for image–text retrieval.
    Raises :class:`UserError` if the files are of several models or encoders, or of a data set that
    the config does not have.
    """
    found: dict[str, Any] = {}
    models, weights = set(), set()
    seed = section.seed
    captions_of = {caption_retrieval.dataset_of(path): path for path in texts}
    for path in paths:
        data = read(path, device, trunk=section.probe_features == "trunk")
        models.add(data.model)
        seed = data.seed
        if len(models) > 1:
            raise UserError(f"{path}: features of {data.model}; expected one model's files only")
        weights.add(data.encoder_sha256)
        if len(weights) > 1:
            raise UserError(
                f"{path}: features of another encoder than {paths[0]}; run --part features of both"
            )
        if data.dataset in found:
            raise UserError(f"{path}: features of {data.dataset} a second time; give each once")
        start = time.monotonic()
        found[data.dataset] = score(
            section, find(section, data.dataset), data, tower, captions_of.get(data.dataset)
        )
        LOGGER.info(
            "%s on %s in %.1f s: %s",
            data.model, data.dataset, time.monotonic() - start,
            ", ".join(f"{key} {value:.4f}" for key, value in found[data.dataset]["scores"].items()),
        )  # fmt: skip
    made_from = {"features": [hdf5.fingerprint(path) for path in paths]}
    if tower is not None and tower.sha256:
        made_from["text"] = [tower.sha256]
        made_from["texts"] = [hdf5.fingerprint(path) for path in texts]
    about: dict[str, Any] = {"model": models.pop(), "seed": seed, "made_from": made_from}
    if sha256 := weights.pop():
        about["encoder_sha256"] = sha256
    write_record(output, {**about, "datasets": found})


def score(
    section: Evaluate,
    dataset: Dataset,
    data: Features,
    tower: TextTower | None = None,
    texts: str | None = None,
) -> dict[str, Any]:
    """Return scores, the scores of chance, and what they rest on, as JSON-able values."""
    result: dict[str, Any] = {
        "features": data.fingerprint,
        "dim": data.feature.shape[1],
        "images": {
            "train": int(data.on("train").sum()),
            "validation": int(data.on("validation").sum()),
            "test": int(data.on("test", "query", "gallery").sum()),
            "failed": data.failed,
        },
        "scores": {},
        "chance": {},
    }
    _compare_with_registry(dataset, data)
    labeled = (data.label >= 0).any()
    if labeled and {"knn", "linear_probe"} & set(dataset.tasks):
        _classes(section, dataset, data, result)
    if dataset.tags_field is not None:
        _tags(section, dataset, data, result)
    if labeled and "retrieval" in dataset.tasks:
        _retrieval(section, data, result)
    named = labeled or dataset.metric in measures.OF_TAGS
    if "zero_shot" in dataset.tasks and not named:
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no classes for zero_shot; set label_field, or "
            "for tags tags_field and metric: map"
        )
    if "zero_shot" in dataset.tasks and tower is not None:
        zero_shot.judge(section, dataset, data, tower, result)
    if IMAGE_TEXT in dataset.tasks and texts is not None:
        caption_retrieval.judge(data, texts, result)
    if data.model == "trained":
        given = {"zero_shot": tower, IMAGE_TEXT: texts}
        for task in (task for task in dataset.tasks if task in given and given[task] is None):
            option = "--texts" if task == IMAGE_TEXT else "--text"
            LOGGER.warning("%s: without %s there is no %s", data.dataset, option, task)
    # What only the trained encoder is judged by leaves the others without a score.
    if not result["scores"] and not set(dataset.tasks) & set(TOWER_TASKS):
        raise UserError(
            f"evaluate.datasets: {data.dataset} has neither classes nor tags; set label_field or "
            "tags_field"
        )
    for key in ("scores", "chance"):
        result[key] = {name: round(value, DIGITS) for name, value in result[key].items()}
    return result


def _compare_with_registry(dataset: Dataset, data: Features) -> None:
    """Warn if a data set of a known name is not the one that published figures are of."""
    entry = registry().get(dataset.name, {})
    classes = data.tags.shape[1] if dataset.tags_field is not None else data.classes
    found = {"classes": classes, "test": int(data.on("test").sum())}
    for key, count in found.items():
        if key in entry and entry[key] != count:
            LOGGER.warning(
                "%s: %s: %d here, %d in the registry; its scores are not those of the literature",
                dataset.name, key, count, entry[key],
            )  # fmt: skip


def _sides(data: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return bool [n] twice: images to learn from, and to test on."""
    train, test = data.on("train", "validation"), data.on("test")
    for side, chosen in (("train", train), ("test", test)):
        if not chosen.any():
            raise UserError(
                f"evaluate.datasets: {data.dataset} has no {side} images; see split_field"
            )
    return train, test


def _classes(section: Evaluate, dataset: Dataset, data: Features, result: dict[str, Any]) -> None:
    """Weighted k-NN (accuracy) and the linear probe (the set's metric) on labeled test images.

    Test images of a class without a train image stay in, and count as wrong.
    """
    sides, label, seen = _seen_classes(data, result)
    if "knn" in dataset.tasks:
        _knn(section, data, sides, label, seen, result)
    if "linear_probe" in dataset.tasks:
        _linear_probe(section, dataset, data, sides, label, seen, result)


def _seen_classes(
    data: Features, result: dict[str, Any]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, int]:
    """Return which rows are train and test (bool [n] each), labels int64 [n], classes of train.

    Labels are numbered so that the classes of train come first; −1 where there is none.
    """
    train, test = (side & (data.label >= 0) for side in _sides(data))
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
    return (train, test), label, seen


def _knn(
    section: Evaluate,
    data: Features,
    sides: tuple[np.ndarray, np.ndarray],
    label: np.ndarray,
    seen: int,
    result: dict[str, Any],
) -> None:
    """Weighted k-NN on the rows, labels and number of classes of :func:`_seen_classes`."""
    train, test = sides
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
    constant = _by_size(targets, len(truth), seen)
    found = knn.predict(rows, targets, test_rows, ks, section.knn_temperature)
    for k, predicted in found.items():
        result["scores"][f"knn_{k}"] = float((predicted == truth).double().mean())
        result["chance"][f"knn_{k}"] = measures.accuracy(constant, truth)


def _linear_probe(
    section: Evaluate,
    dataset: Dataset,
    data: Features,
    sides: tuple[np.ndarray, np.ndarray],
    label: np.ndarray,
    seen: int,
    result: dict[str, Any],
) -> None:
    """The probe by the set's metric, on the same as :func:`_knn`."""
    train, test = sides
    truth, targets = data.take(label, test), data.take(label, train)
    metric = dataset.class_metric
    measures.check(metric, data.dataset, data.classes, truth, "test")
    held = _held(section, data, train, label[train])
    side = targets[torch.from_numpy(held)]
    measures.check(metric, data.dataset, data.classes, side, "validation")
    measure = measures.OF_CLASSES[metric]
    probed = data.for_probe(section.probe_features)
    rows, test_rows = data.take(probed, train), data.take(probed, test)
    scale = probe.Scale.of(rows)
    rows = scale(rows)  # the unscaled ones are let go: they may be gigabytes
    fitted, about = _probe(
        section, data, rows, targets, held,
        lambda fit, rows, targets: measure(fit.logits(rows), targets),
    )  # fmt: skip
    name = measures.score_name(metric)
    result["scores"][name] = measure(fitted.logits(scale(test_rows)), truth)
    result["chance"][name] = measure(_by_size(targets, len(truth), seen), truth)
    result["linear_probe"] = about


def _by_size(targets: torch.Tensor, rows: int, seen: int) -> torch.Tensor:
    """Return what the same answer for every image is: the classes by their size in train."""
    return torch.bincount(targets).float().expand(rows, seen)


def _tags(section: Evaluate, dataset: Dataset, data: Features, result: dict[str, Any]) -> None:
    """Mean over tags of the average precision on test, of one logistic regression per tag.

    Tags on at least `min_tag_count` images count, if there is one on each side of the split.
    """
    train, test = _sides(data)
    often = data.tags.sum(0) >= dataset.min_tag_count
    split = data.tags[train].any(0) & data.tags[test].any(0) & ~data.tags[train].all(0)
    kept = often & split
    if not kept.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no tag on {dataset.min_tag_count} images "
            "with both train and test ones; lower min_tag_count or set tags_field to null"
        )
    measure = measures.OF_TAGS[dataset.tag_metric]

    def scorer(fit: probe.Fit, rows: torch.Tensor, targets: torch.Tensor) -> float:
        there = targets.cpu().numpy() > 0
        some = there.any(0)
        return measure(fit.logits(rows).cpu().numpy()[:, some], there[:, some])

    probed = data.for_probe(section.probe_features)
    rows = data.take(probed, train)
    targets = data.take(data.tags[:, kept].astype(np.float32), train)
    test_rows, truth = data.take(probed, test), data.tags[test][:, kept]
    held = _held(section, data, train)
    if not targets[torch.from_numpy(held)].any():
        raise UserError(
            f"evaluate.validation_share: none of the {int(held.sum())} validation images of "
            f"{data.dataset} has a tag that counts; raise it, or change the split"
        )
    scale = probe.Scale.of(rows)
    rows = scale(rows)
    fitted, about = _probe(section, data, rows, targets, held, scorer)
    logits = fitted.logits(scale(test_rows)).cpu().numpy()
    name = measures.score_name(dataset.tag_metric)
    result["tags"] = {"kept": int(kept.sum()), "too_rare": int((~kept).sum())}
    result["scores"][name] = measure(logits, truth)
    result["tags_probe"] = about
    # What equal logits score: the mean share of positives.
    result["chance"][name] = measure(np.zeros_like(logits), truth)


def _retrieval(section: Evaluate, data: Features, result: dict[str, Any]) -> None:
    """R@k: test images among one another, or query images in the gallery where these are."""
    labeled = data.label >= 0
    gallery = labeled & data.on("gallery")
    query = labeled & data.on("query" if gallery.any() else "test")
    if not gallery.any():
        gallery = query
    if not query.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no labeled test images, nor query and "
            "gallery, for retrieval; see split_field"
        )
    found, chance, counted = retrieval.recall_of_class(
        data.take(data.feature, query),
        data.take(data.label, query),
        data.take(data.group, query),
        data.take(data.feature, gallery),
        data.take(data.label, gallery),
        data.take(data.group, gallery),
        section.retrieval_k,
    )
    for k, value in found.items():
        result["scores"][f"retrieval_r{k}"] = value
        result["chance"][f"retrieval_r{k}"] = chance[k]
    result["retrieval"] = {
        "queries": counted,
        "queries_without_an_answer": int(query.sum()) - counted,
        "gallery": int(gallery.sum()),
    }


def _held(
    section: Evaluate, data: Features, train: np.ndarray, label: np.ndarray | None = None
) -> np.ndarray:
    """Return which of the `train` rows (bool [n], validation among them) choose C: bool [train].

    The set's own validation split, or else a share of train, cut by a hash of group or key.
    """
    held: np.ndarray = data.split[train] == "validation"
    if not held.any():
        names = [data.group_name[row] for row in np.flatnonzero(train)]
        held = probe.validation_rows(names, section.validation_share, section.seed, label)
    if label is not None:
        # A class that only validation has could not be fitted: its images stay in the fit.
        held = held & np.isin(label, label[~held])
    if not held.any() or held.all():
        raise UserError(
            f"evaluate.validation_share: {section.validation_share:g} of the train images of "
            f"{data.dataset} leaves none on one side; change it, or set group_field to null"
        )
    return held


def _probe(
    section: Evaluate,
    data: Features,
    rows: torch.Tensor,
    targets: torch.Tensor,
    held: np.ndarray,
    scorer: Callable[[probe.Fit, torch.Tensor, torch.Tensor], float],
) -> tuple[probe.Fit, dict[str, Any]]:
    """Choose C by `scorer` on the `held` rows, then fit on all of them."""
    iterations = section.probe_max_iterations
    validation = torch.from_numpy(held).to(rows.device)
    limits = (section.probe_c_min, section.probe_c_max)
    choice = probe.choose(rows, targets, validation, limits, iterations, scorer)
    fitted = probe.fit(choice.rows, targets, choice.c, iterations, start=choice.fit)
    if fitted.iterations >= iterations:
        LOGGER.warning(
            "evaluate.probe_max_iterations: the probe of %s on %s stopped at %d; raise it",
            data.model,
            data.dataset,
            iterations,
        )
    elif fitted.excess > 10 * probe.TOLERANCE:
        LOGGER.warning(
            "the probe of %s on %s ended at iteration %d about %.1e above the least loss: no "
            "step found made it less; its score may be too low",
            data.model, data.dataset, fitted.iterations, fitted.excess,
        )  # fmt: skip
    return fitted, {
        "dim": rows.shape[1],
        "c": choice.c,
        "validation_images": int(held.sum()),
        "validation_score": {f"{c:g}": round(s, DIGITS) for c, s in choice.scores.items()},
        "iterations": fitted.iterations,
    }
