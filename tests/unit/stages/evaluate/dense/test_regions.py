"""Regions, pointing and spread against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlcd.stages.evaluate.dense import pointing
from mlcd.stages.evaluate.dense.regions import roi_mean


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Value at a point in pixels, centers at halves, the nearest beyond the outermost."""
    height, width = plane.shape
    y, x = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, a = y - top, x - left
    upper = (1 - a) * plane[top, left] + a * plane[top, right]
    lower = (1 - a) * plane[bottom, left] + a * plane[bottom, right]
    return (1 - b) * upper + b * lower


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.7, 0.9), (0, 0, 1, 1), (0.4, 0.4, 0.45, 0.42)])
def test_a_region_is_the_mean_of_its_cells(box):
    maps = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(3))
    found = roi_mean(maps, torch.tensor([box], dtype=torch.float64))
    plane, values = maps[0].numpy(), np.zeros(2)
    for row in range(14):
        for column in range(14):
            y = (box[1] + (row + 0.5) / 14 * (box[3] - box[1])) * 5
            x = (box[0] + (column + 0.5) / 14 * (box[2] - box[0])) * 6
            values += [bilinear(channel, y, x) / 14**2 for channel in plane]
    np.testing.assert_allclose(found[0].numpy(), values, atol=1e-5)


def test_a_region_is_that_of_torchvision():
    """Its plain Python form: the compiled operator is missing beside some builds of torch."""
    import mlcd.utils.compat  # noqa: F401

    module = pytest.importorskip("torchvision.ops.roi_align")
    theirs = getattr(module, "_roi_align", None)
    if theirs is None:
        pytest.skip("this torchvision has no plain form")
    theirs = getattr(theirs, "__wrapped__", theirs)
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    # Inside of the outermost centers, where both interpolate.
    box = torch.tensor([[0.2, 0.15, 0.8, 0.7]])
    rois = torch.cat([torch.zeros(1, 1), box * 8], dim=1)
    expected = theirs(maps, rois, 1.0, 7, 7, 2, True).mean((2, 3))
    torch.testing.assert_close(roi_mean(maps, box.double()), expected, atol=1e-5, rtol=1e-4)


def test_spread_is_the_mean_over_pairs():
    maps = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    found = pointing.token_cosine(maps)
    for image, value in zip(maps.double().flatten(2), found, strict=True):
        columns = image.T
        pairs = [
            float(torch.cosine_similarity(columns[i], columns[j], dim=0))
            for i in range(6) for j in range(6) if i != j
        ]  # fmt: skip
        assert float(value) == pytest.approx(np.mean(pairs))
    same = torch.ones(1, 4, 3, 3)
    assert float(pointing.token_cosine(same)) == pytest.approx(1)


class Placed:
    """As a Store of one image of 8 × 8 pixels with one object."""

    row = np.array([0])
    name = np.array([b"a"])
    number = np.array([2])
    box = np.array([[0.0, 0.0, 0.5, 0.5]])

    def __init__(self, mask: np.ndarray | None) -> None:
        self._mask = mask

    def mask(self, row: int) -> np.ndarray | None:
        return self._mask


def test_an_object_is_its_pixels_in_its_box_or_else_its_box():
    inside = pointing.covered(Placed(None), np.array([0]), 4, 4)
    assert inside.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 2:] = 2  # the same class beyond the box does not count
    inside = pointing.covered(Placed(mask), np.array([0]), 4, 4)
    assert inside.tolist() == [[False, True, False, False]] * 2 + [[False] * 4] * 2
