"""Measures, held to their definitions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from mlcd.stages.evaluate import measures


def test_measures_are_their_definitions():
    rng = np.random.default_rng(1)
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 6])  # 6: a class that could not be learned
    logits = torch.from_numpy(rng.standard_normal((8, 6)))
    logits[:3, 0] += 9
    logits[4, 1] += 9
    logits[6, 2], logits[6, 3] = 5, 9  # second of the list
    logits[3], logits[5] = torch.arange(6), torch.arange(6)  # classes 0 and 1: last and fifth
    y = torch.from_numpy(truth)
    assert measures.accuracy(logits, y) == pytest.approx(4 / 8)
    assert measures.mean_per_class(logits, y) == pytest.approx((3 / 4 + 1 / 2 + 0 + 0) / 4)
    assert measures.mean_top1_top5(logits, y) == pytest.approx((4 / 8 + 6 / 8) / 2)
    two = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [0.0, 2.0], [5.0, 5.5]])
    assert measures.roc_auc(two, torch.tensor([0, 1, 0, 1, 0])) == pytest.approx(5.5 / 6)


def test_eleven_point_map_is_pascals():
    rng = np.random.default_rng(2)
    truth = rng.random((40, 3)) < 0.3
    logits = rng.standard_normal((40, 3)) + truth

    def plain(scores, right):
        """VOC 2007's own loop: sort, cumulate, best precision from each recall on."""
        order = np.argsort(-scores)
        hits = np.cumsum(right[order])
        recall, precision = hits / right.sum(), hits / np.arange(1, len(right) + 1)
        return np.mean([precision[recall >= step / 10 - 1e-12].max() for step in range(11)])

    expected = np.mean([plain(logits[:, tag], truth[:, tag]) for tag in range(3)])
    assert measures.eleven_point_map(logits, truth) == pytest.approx(expected)
    assert measures.eleven_point_map(logits, truth) != pytest.approx(
        measures.mean_average_precision(logits, truth), abs=1e-3
    )


@pytest.mark.parametrize("levels", [2, 7, None])
def test_average_precision_is_that_of_scikit_learn(levels):
    """Also with equal logits, of which there are many at few levels, and tags on no image."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((150, 20)).astype(np.float32)
    if levels is not None:
        logits = np.floor(logits * levels / 4)
    truth = rng.random((150, 20)) < np.linspace(0, 1, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tag on no image
        expected = average_precision_score(truth, logits, average="macro")
    found = measures.mean_average_precision(logits, truth)
    assert found == pytest.approx(expected, rel=1e-12)


def test_average_precision_of_no_tag_is_0():
    assert measures.mean_average_precision(np.zeros((3, 0)), np.zeros((3, 0), bool)) == 0.0
