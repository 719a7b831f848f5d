"""Zero-shot classification: classes are named in prompts, a text tower embeds them (CLIP, LiT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import prompts
from mlcd.models import text_tower as towers
from mlcd.stages.evaluate import measures, tags
from mlcd.stages.evaluate.cached import Features
from mlcd.utils.errors import UserError


def class_weights(
    tower: towers.TextTower, names: Sequence[Sequence[str]], templates: Sequence[str]
) -> torch.Tensor:
    """Return unit rows float32 [classes, d]: the mean over a class's names in all prompts.

    Each prompt's feature is normalized before the mean, as in CLIP's ensemble.
    """
    rows = []
    for of_class in names:
        texts = [prompt.replace("{}", name).strip() for name in of_class for prompt in templates]
        rows.append(towers.encode(tower, texts).mean(0))
    return normalize(torch.stack(rows), dim=1)


def similarities(feature: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return similarities float32 [n, classes] of images' features [n, d]."""
    return normalize(feature.float(), dim=1) @ weights.T


def judge(
    section: Evaluate,
    dataset: Dataset,
    data: Features,
    tower: towers.TextTower,
    result: dict[str, Any],
) -> None:
    """Add the set's metric on test images to `result`, by the names of all classes or tags.

    Of tags where the metric is theirs: of those, and on the images, that the probe of tags is
    judged by. Raises :class:`UserError` if there is nothing to judge.
    """
    of_tags = dataset.metric in measures.OF_TAGS
    test = data.on("test") & (of_tags | (data.label >= 0))
    if not test.any():
        raise UserError(f"evaluate.datasets: {data.dataset} has no labeled test images")
    if tower.embedding_dim != data.feature.shape[1]:
        raise UserError(
            f"--text: features of {tower.embedding_dim} dimensions, those of {data.dataset} have "
            f"{data.feature.shape[1]}; rerun text"
        )
    words = data.tag_name if of_tags else data.class_name
    names = [[word] for word in words]
    if dataset.class_names is not None:
        names = prompts.class_names(dataset.class_names, words)
    chosen = section.templates_of(dataset)
    texts = prompts.templates(chosen)
    metric = dataset.tag_metric if of_tags else dataset.class_metric
    name = measures.zero_shot_name(metric)
    truth = data.take(data.tags if of_tags else data.label, test)
    if not of_tags:
        measures.check(metric, data.dataset, data.classes, truth, "test")
    weights = class_weights(tower, names, texts).to(data.feature.device)
    logits = similarities(data.take(data.feature, test), weights)
    if of_tags:
        kept = tags.counted(dataset, data)
        rows, there = logits.cpu().numpy()[:, kept], data.tags[test][:, kept]
        result["scores"][name] = measures.OF_TAGS[metric](rows, there)
        result["chance"][name] = measures.OF_TAGS[metric](np.zeros_like(rows), there)
    else:
        result["scores"][name] = measures.OF_CLASSES[metric](logits, truth)
        # Guessing a class at random, and five of them.
        one, five = 1 / len(names), min(1.0, 5 / len(names))
        guess = {"roc_auc": 0.5, "mean_top1_top5": (one + five) / 2}
        result["chance"][name] = guess.get(metric, one)
    result["zero_shot"] = {"templates": chosen, "prompts": len(texts)}
