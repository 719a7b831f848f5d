"""Linear segmentation: its measure against plain loops, and what a planted map gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlcd.config import Evaluate
from mlcd.data.labeled.scenes import IGNORED
from mlcd.stages.evaluate.dense import segmentation


class Planted:
    """As a Store: maps [n, C, 6, 6] that are given, and masks of 24 × 24 pixels."""

    dataset = "planted"

    def __init__(self, maps: torch.Tensor, masks: np.ndarray) -> None:
        self._maps, self._masks = maps, masks
        self.target = masks
        self.shape = (6, 6, maps.shape[1])

    def on(self, split: str) -> np.ndarray:
        half = len(self._masks) // 2
        return np.arange(half) if split == "train" else np.arange(half, 2 * half)

    def mask(self, row: int) -> np.ndarray:
        return self._masks[row]

    def mask_classes(self) -> int:
        return 4

    def tokens(self, rows: np.ndarray) -> torch.Tensor:
        return self._maps[rows]

    def batches(self, rows: np.ndarray, size: int):
        for start in range(0, len(rows), size):
            yield rows[start : start + size], self.tokens(rows[start : start + size])


def planted(informative: bool) -> Planted:
    """Masks of quarters, each of one class; the map has the class, or noise."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 4, (40, 2, 2)).astype(np.uint8)
    masks = grid.repeat(12, 1).repeat(12, 2)
    masks[:, 0, 0] = IGNORED
    maps = torch.randn(40, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    if informative:
        maps[:, :4] = 0
        maps.scatter_(1, torch.from_numpy(grid.repeat(3, 1).repeat(3, 2))[:, None].long(), 5.0)
    return Planted(maps, masks)


@pytest.mark.parametrize("informative", [True, False])
def test_a_map_of_classes_gives_nearly_one_and_noise_gives_chance(informative):
    section = Evaluate(segmentation_steps=300, segmentation_batch_size=8, segmentation_lr=0.01)
    found = segmentation.judge(section, planted(informative), torch.device("cpu"))
    score, chance = found["scores"]["segmentation_miou"], found["chance"]["segmentation_miou"]
    assert 0.04 < chance < 0.1  # one class of four everywhere
    if informative:
        # Between quarters of other classes the bilinear upsampling blends.
        assert score > 0.85
        assert found["segmentation"]["pixel_accuracy"] > 0.9
    else:
        assert score < 0.25
    again = segmentation.judge(section, planted(informative), torch.device("cpu"))
    assert again == found


def plain_iou(truth: np.ndarray, said: np.ndarray, classes: int) -> list[float]:
    """Mean over pixels, one by one."""
    found = []
    for number in range(classes):
        both = either = 0
        for a, b in zip(truth.ravel(), said.ravel(), strict=True):
            if a == IGNORED:
                continue
            both += a == number and b == number
            either += a == number or b == number
        found.append(both / either if either else np.nan)
    return found


def test_iou_is_that_of_plain_loops():
    rng = np.random.default_rng(1)
    truth = rng.choice([0, 1, 2, 4, IGNORED], (9, 13)).astype(np.uint8)
    said = rng.choice([0, 1, 3, 4], (9, 13))
    found = segmentation.iou(segmentation.confusion(truth, said, 6))
    np.testing.assert_allclose(found, plain_iou(truth, said, 6))
    assert np.isnan(found[5])
    assert found[2] == found[3] == 0


def test_images_of_a_step_are_drawn_without_repeats_until_all_have_come():
    section = Evaluate(segmentation_steps=5, segmentation_batch_size=8)
    source, seen = planted(True), []
    tokens = source.tokens
    source.tokens = lambda rows: seen.extend(rows.tolist()) or tokens(rows)
    segmentation.fit(section, source, np.arange(40), 4, torch.device("cpu"))
    assert sorted(seen) == list(range(40))
