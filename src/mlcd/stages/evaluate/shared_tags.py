"""Retrieval by tags in common: of an image's tags, how many do its nearest images have?

Several tags per image make the question "of the same class?" too easy: at four tags of twenty, most
images share one. So each answer counts by its share. This is the average cumulative gain of
retrieval with several labels (ACG@k; Järvelin and Kekäläinen, 2002), divided by the number of the
query's tags. With one tag per image it is the precision at k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from mlcd.config import Evaluate
from mlcd.stages.evaluate.cached import Features
from mlcd.utils.errors import UserError

#: Similarities held at once.
_BLOCK = 1 << 26


def judge(section: Evaluate, data: Features, result: dict[str, Any]) -> None:
    """Add shared_tags_k for each k of `retrieval_k`, of tagged test images among one another.

    Raises :class:`UserError` if fewer than two groups of test images have tags.
    """
    rows = data.on("test", "query", "gallery") & data.tags.any(1)
    if len(set(data.group[rows].tolist())) < 2:
        raise UserError(
            f"evaluate.datasets: {data.dataset} has no two test images with tags for "
            "tag_retrieval; see split_field"
        )
    found, chance, counted = shared(
        data.take(data.feature, rows),
        data.take(data.tags, rows),
        data.take(data.group, rows),
        section.retrieval_k,
    )
    for k, value in found.items():
        result["scores"][f"shared_tags_{k}"] = value
        result["chance"][f"shared_tags_{k}"] = chance
    result["tag_retrieval"] = {"queries": counted}


def shared(
    features: torch.Tensor, tags: torch.Tensor, group: torch.Tensor, ks: Sequence[int]
) -> tuple[dict[int, float], float, int]:
    """Return k → mean share of an image's tags that its k nearest images have, chance, queries.

    `features` is float [n, d], compared by cosine; `tags` bool [n, m], one or more in each row;
    `group` int64 [n]. Images of the query's own group, itself first of all, are no answers, and a
    query without an answer is left out. Where there are fewer than k answers, all count. Chance:
    an answer drawn at random, at any k.
    """
    features = functional.normalize(features, dim=1)
    weights = tags.to(features.dtype)
    per_query = weights / weights.sum(1, keepdim=True)
    totals = dict.fromkeys(ks, 0.0)
    chance, counted = 0.0, 0
    size = max(1, _BLOCK // len(features))
    for start in range(0, len(features), size):
        block = slice(start, start + size)
        allowed = group[block, None] != group
        some = allowed.any(1)
        similarity = (features[block] @ features.T).masked_fill_(~allowed, -torch.inf)
        in_common = (per_query[block] @ weights.T).masked_fill_(~allowed, 0)
        answers = allowed.sum(1)
        nearest = similarity.topk(min(max(ks), len(features)), dim=1).indices
        gains = in_common.gather(1, nearest).double().cumsum(1)
        for k in ks:
            # Past the last answer come rows of the query's own group, which add nothing.
            among = answers.clamp(max=k)[some]
            last = gains[some, min(k, gains.shape[1]) - 1]
            totals[k] += float((last / among).sum())
        chance += float((in_common.double().sum(1)[some] / answers[some]).sum())
        counted += int(some.sum())
    n = max(1, counted)
    return {k: total / n for k, total in totals.items()}, chance / n, counted
