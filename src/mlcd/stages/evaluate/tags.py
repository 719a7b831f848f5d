"""Scores of tags: one logistic regression per tag on frozen features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.stages.evaluate import measures, probe
from mlcd.stages.evaluate.cached import Features
from mlcd.stages.evaluate.chosen import fitted_probe, held_out, sides
from mlcd.utils.errors import UserError


def counted(dataset: Dataset, data: Features) -> np.ndarray:
    """Return bool [tags]: those on at least `min_tag_count` images, and on each side of the split.

    Raises :class:`UserError` if there is none.
    """
    train, test = sides(data)
    often = data.tags.sum(0) >= dataset.min_tag_count
    split = data.tags[train].any(0) & data.tags[test].any(0) & ~data.tags[train].all(0)
    kept: np.ndarray = often & split
    if not kept.any():
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no tag on {dataset.min_tag_count} images "
            "with both train and test ones; lower min_tag_count or set tags_field to null"
        )
    return kept


def judge(section: Evaluate, dataset: Dataset, data: Features, result: dict[str, Any]) -> None:
    """Mean over tags of the average precision on test, of one logistic regression per tag.

    The tags are those of :func:`counted`.
    """
    train, test = sides(data)
    kept = counted(dataset, data)
    measure = measures.OF_TAGS[dataset.tag_metric]

    def scorer(fit: probe.Fit, rows: torch.Tensor, targets: torch.Tensor) -> float:
        there = targets.cpu().numpy() > 0
        some = there.any(0)
        return measure(fit.logits(rows).cpu().numpy()[:, some], there[:, some])

    probed = data.for_probe(section.probe_features)
    rows = data.take(probed, train)
    targets = data.take(data.tags[:, kept].astype(np.float32), train)
    test_rows, truth = data.take(probed, test), data.tags[test][:, kept]
    held = held_out(section, data, train)
    if not targets[torch.from_numpy(held)].any():
        raise UserError(
            f"evaluate.validation_share: none of the {int(held.sum())} validation images of "
            f"{data.dataset} has a tag that counts; raise it, or change the split"
        )
    scale = probe.Scale.of(rows)
    rows = scale(rows)
    fitted, about = fitted_probe(section, data, rows, targets, held, scorer)
    logits = fitted.logits(scale(test_rows)).cpu().numpy()
    name = measures.score_name(dataset.tag_metric)
    result["tags"] = {"kept": int(kept.sum()), "too_rare": int((~kept).sum())}
    result["scores"][name] = measure(logits, truth)
    result["tags_probe"] = about
    # What equal logits score: the mean share of positives.
    result["chance"][name] = measure(np.zeros_like(logits), truth)
