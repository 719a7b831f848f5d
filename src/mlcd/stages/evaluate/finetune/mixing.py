"""Blends of a batch with itself: mixup and CutMix, from (seed, step, part) alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import one_hot

#: Tells its random numbers from those of crops and of the order.
_MIX = 5


def mixed(
    images: Tensor,
    label: Tensor,
    classes: int,
    *,
    mixup: float,
    cutmix: float,
    seed: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Return images [B, 3, H, W] and targets float32 [B, classes], rows that sum to 1.

    `label` int64 [B]. Image i meets image B − 1 − i, as in timm. `mixup` and `cutmix` are the α of
    their Beta distributions, 0 for none; of both, one is drawn.
    """
    target = one_hot(label, classes).float()
    rng = np.random.default_rng([_MIX, *seed])
    if mixup and cutmix:
        chosen = "cutmix" if rng.random() < 0.5 else "mixup"
    else:
        chosen = "mixup" if mixup else "cutmix"
    alpha = mixup if chosen == "mixup" else cutmix
    if not alpha:
        return images, target
    kept = float(rng.beta(alpha, alpha))
    if chosen == "mixup":
        images = images.lerp(images.flip(0), 1 - kept)
    else:
        images, kept = _pasted(images, kept, rng)
    return images, target.lerp(target.flip(0), 1 - kept)


def _pasted(images: Tensor, kept: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of 1 − `kept` of the area, as far as it lies inside; return what is kept."""
    height, width = images.shape[-2:]
    sides = (np.sqrt(1 - kept) * np.array([height, width])).astype(int)
    center = [int(rng.integers(height)), int(rng.integers(width))]
    top, left = (max(0, middle - side // 2) for middle, side in zip(center, sides, strict=True))
    bottom, right = (
        min(size, middle + side // 2)
        for size, middle, side in zip((height, width), center, sides, strict=True)
    )
    found = images.clone()
    found[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return found, 1 - (bottom - top) * (right - left) / (height * width)
