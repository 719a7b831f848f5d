"""What the paper reports for the same changes, so that orders can be laid side by side.

An et al., arXiv 2407.17331v2. The changes of l and r: ViT-B/32, LAION-400M, 5 epochs, ImageNet
linear probe. The losses: Eq. 4 against Eq. 5, 32 epochs, ImageNet linear probe; one label (UNICOM)
against MLCD: ResNet-50 on ImageNet with K = 8,000, mean of 27 linear probes.
"""

from __future__ import annotations

from typing import Any

from mlcd.config import Cell

L = {1: 71.4, 2: 72.9, 4: 73.2, 8: 75.2, 16: 72.1, 32: 68.7}
R = {0.01: 73.4, 0.05: 75.1, 0.1: 75.2, 0.2: 74.9, 0.5: 68.3, 1.0: 63.2}
K = {
    100_000: 66.9,
    200_000: 71.1,
    500_000: 74.4,
    1_000_000: 75.2,
    2_000_000: 74.9,
    5_000_000: 74.7,
}
LOSS = {("mlcd", "mlc"): (78.1, 76.9), ("mlcd", "single"): (67.5, 58.3)}
#: What the paper leaves as it is while it changes one thing. Its K is of its own images.
_SETTING: dict[str, Any] = {"loss": "mlcd", "l": 8, "r": 0.1}


def published(one: Cell, other: Cell) -> tuple[float, float] | None:
    """Return the paper's two figures for a pair of cells, or None where it has no such pair.

    The paper changes one thing at a time, from mlcd, l = 8, r = 0.1: a pair has figures if what
    it shares is of that setting, K apart. Its K stand for hundreds of millions of images and are
    never laid beside those of a smaller run.
    """
    if _only("l", one, other):
        values = L.get(one.l), L.get(other.l)
    elif _only("r", one, other):
        values = R.get(one.r), R.get(other.r)
    elif _only("k", one, other):
        values = K.get(one.k), K.get(other.k)
    elif _only("loss", _as_many(one), _as_many(other)):
        pair = LOSS.get((one.loss, other.loss))
        turned = LOSS.get((other.loss, one.loss))
        values = pair or (turned and turned[::-1]) or (None, None)
    else:
        return None
    first, second = values
    return None if first is None or second is None else (first, second)


def _only(name: str, one: Cell, other: Cell) -> bool:
    """Say whether two cells differ in `name` alone and share the paper's setting else."""
    here, there = one._asdict(), other._asdict()
    rest = [key for key in here if key != name]
    return here[name] != there[name] and all(
        here[key] == there[key] == _SETTING.get(key, here[key]) for key in rest
    )


def _as_many(cell: Cell) -> Cell:
    """Return `single` with the paper's l: its own, always 1, is part of that loss."""
    return cell._replace(l=_SETTING["l"]) if cell.loss == "single" else cell
