"""Scores of one model from its cached features: k-NN, linear probe, retrieval, tags, texts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from mlcd.config import Evaluate
from mlcd.config.labeled import IMAGE_TEXT, TAG_RETRIEVAL, TOWER_TASKS, Dataset
from mlcd.config.registry import registry
from mlcd.data import hdf5
from mlcd.data.labeled.samples import find
from mlcd.models.text_tower import TextTower
from mlcd.stages.evaluate import (
    caption_retrieval,
    classes,
    measures,
    retrieval,
    shared_tags,
    tags,
    zero_shot,
)
from mlcd.stages.evaluate.cached import Features, read
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record, read_with_checksum, write_record


def metrics_part(
    section: Evaluate,
    paths: Sequence[str],
    output: str | os.PathLike[str],
    device: torch.device,
    tower: TextTower | None = None,
    texts: Sequence[str] = (),
    more: Sequence[str] = (),
    model: str | None = None,
) -> None:
    """Write one model's scores on all its data sets as JSON (docs/explanation/evaluation.md).

    `tower`: the text tower of the model trained, for zero-shot classification; `texts`: files of
    captions that it embedded, for image–text retrieval; `more`: results of tasks that have a part
    of their own, for the same model; `model`: its name, where no task is of it and no file tells.
    Raises :class:`UserError` if the files are of several models, encoders or seeds, or of a data
    set that the config does not have.
    """
    found: dict[str, Any] = {}
    models, weights, seeds = set(), set(), set()
    captions_of = {caption_retrieval.dataset_of(path): path for path in texts}
    for path in paths:
        data = read(path, device, trunk=section.probe_features == "trunk")
        models.add(data.model)
        seeds.add(data.seed)
        if len(models) > 1:
            raise UserError(f"{path}: features of {data.model}; expected one model's files only")
        weights.add(data.encoder_sha256)
        if len(weights) > 1:
            raise UserError(
                f"{path}: features of another encoder than {paths[0]}; run --part features of both"
            )
        if len(seeds) > 1:
            raise UserError(
                f"{path}: features of another seed than {paths[0]}; run --part features of both"
            )
        if tower is not None and tower.encoder_sha256 not in ("", data.encoder_sha256):
            raise UserError(
                f"{path}: features of another encoder than --text was trained against; run --part "
                "features again, or rerun text"
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
    for path in more:
        _add(section, path, found, models, weights, seeds)
    if not models:
        models, weights, seeds = {model or ""}, {None}, {section.seed}
    elif model not in (None, *models):
        raise UserError(f"--model: {model}, but the files are of {min(models)}; give that")
    made_from = {"features": [hdf5.fingerprint(path) for path in paths]}
    if more:
        made_from["more"] = [read_with_checksum(path, "evaluate")[1] for path in more]
    if tower is not None and tower.sha256:
        made_from["text"] = [tower.sha256]
        made_from["texts"] = [hdf5.fingerprint(path) for path in texts]
    about: dict[str, Any] = {
        "model": models.pop(), "seed": seeds.pop(), "made_from": made_from,
    }  # fmt: skip
    if sha256 := weights.pop():
        about["encoder_sha256"] = sha256
    write_record(output, {**about, "datasets": found})


def _add(
    section: Evaluate,
    path: str,
    found: dict[str, Any],
    models: set[str],
    weights: set[str | None],
    seeds: set[int],
) -> None:
    """Add the result of another part to what was `found` of its data set.

    Raises :class:`UserError` if it is of another model, encoder or seed, or of a data set that
    the config does not have.
    """
    record = read_record(path, "evaluate")
    models.add(record["model"])
    weights.add(record.get("encoder_sha256"))
    seeds.add(record["seed"])
    if max(len(models), len(weights), len(seeds)) > 1:
        raise UserError(
            f"{path}: of another model, encoder or seed than the other files; run --part "
            f"{record['part']} again"
        )
    name = find(section, record["dataset"]).name
    result = found.setdefault(name, {"images": record["images"], "scores": {}, "chance": {}})
    for key in ("classes", record["part"]):
        if key in record:
            result.setdefault(key, record[key])
    for key in ("scores", "chance"):
        if twice := set(result[key]) & set(record[key]):
            raise UserError(f"{path}: {min(twice)} of {name} a second time; give each once")
        result[key] |= record[key]


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
        classes.judge(section, dataset, data, result)
    if dataset.tags_field is not None:
        tags.judge(section, dataset, data, result)
    if labeled and "retrieval" in dataset.tasks:
        _retrieval(section, data, result)
    if TAG_RETRIEVAL in dataset.tasks:
        shared_tags.judge(section, data, result)
    named = labeled or dataset.metric in measures.OF_TAGS
    if "zero_shot" in dataset.tasks and not named:
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no classes for zero_shot; set label_field, or "
            "for tags tags_field and metric: map"
        )
    if "zero_shot" in dataset.tasks and tower is not None:
        zero_shot.judge(section, dataset, data, tower, result)
    if IMAGE_TEXT in dataset.tasks and texts is not None:
        caption_retrieval.judge(data, texts, result, tower)
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
    count_of = data.tags.shape[1] if dataset.tags_field is not None else data.classes
    found = {"classes": count_of, "test": int(data.on("test").sum())}
    for key, count in found.items():
        if key in entry and entry[key] != count:
            LOGGER.warning(
                "%s: %s: %d here, %d in the registry; its scores are not those of the literature",
                dataset.name, key, count, entry[key],
            )  # fmt: skip


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
    if not counted:
        raise UserError(
            f"evaluate.datasets: {data.dataset}: no test image has another of its class beyond its "
            "group, for retrieval; take the task out"
        )
    for k, value in found.items():
        result["scores"][f"retrieval_r{k}"] = value
        result["chance"][f"retrieval_r{k}"] = chance[k]
    result["retrieval"] = {
        "queries": counted,
        "queries_without_an_answer": int(query.sum()) - counted,
        "gallery": int(gallery.sum()),
    }
