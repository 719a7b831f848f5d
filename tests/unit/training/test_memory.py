"""The memory of a GPU by arithmetic: the parts held to what they are made of."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.footprints import FOOTPRINTS
from mlcd.training.memory import (
    PART,
    Job,
    encoder_bytes,
    encoder_state,
    largest,
    need,
    network_bytes,
    usable,
)

VIT_L = FOOTPRINTS["open_clip:ViT-L-14", 224, False]
LAION = Job(
    ranks=16, stage=1, batch=32768, side=224, classes=10**6, dim=768, labels=8, sampled=10**5
)


def test_state_of_the_encoder_by_stage() -> None:
    def state(weights: int, ranks: int, stage: int, accumulated: bool = False) -> int:
        return encoder_state(weights, ranks, stage, accumulated=accumulated, halves=False)

    p = 10**6
    # Weights, gradients and two moments, float32, and the buckets: one fills while one is sent.
    assert state(p, 1, 0) == 16 * p
    assert state(p, 4, 0) == 20 * p
    assert state(p, 4, 1) == (4 + 4 + 12 / 4 + 8) * p
    assert state(p, 4, 2) == (4 + 16 / 4 + 8) * p
    assert state(p, 4, 3) == (4 + 20 / 4 + 8) * p
    # Gradients that wait for the last micro-batch are whole.
    assert state(p, 4, 2, accumulated=True) == (4 + 4 + 16 / 4 + 8) * p
    # A large network's gradients leave in parts, and not all of its weights are gathered.
    large = 2 * 10**9
    assert state(large, 10**9, 3) == pytest.approx(4 * 10**9 + 8 * PART, rel=1e-6)
    # In bfloat16 a rounded copy of a bucket is sent, and gathered weights take half.
    halved = encoder_state(large, 10**9, 3, accumulated=False, halves=True)
    assert halved == pytest.approx(2 * 10**9 + 10 * PART, rel=1e-6)


def test_the_centers_follow_from_the_rows_of_a_rank() -> None:
    assert need(LAION, VIT_L, 1).centers == 62_500 * (12 * 768 + 8)
    alone = dataclasses.replace(LAION, ranks=1)
    assert need(alone, VIT_L, 1).centers == 10**6 * (12 * 768 + 8)


@pytest.mark.parametrize("memory", [40 * 10**9, 80 * 10**9])
def test_the_largest_divisor_fits_and_the_next_does_not(memory: int) -> None:
    size = largest(LAION, VIT_L, memory)
    assert size is not None and LAION.share % size == 0
    assert need(LAION, VIT_L, size).total <= usable(memory)
    assert need(LAION, VIT_L, 2 * size).total > usable(memory)
    assert size == {40 * 10**9: 128, 80 * 10**9: 256}[memory]
    assert largest(LAION, VIT_L, 4 * 10**9) is None
    # The whole share, as the first version took it, is ten times an 80 GB card.
    assert need(LAION, VIT_L, LAION.share).total > 420e9


def test_bytes_over_the_network() -> None:
    # W = 80 ranks of 410 images and float32 products: counted on gloo as 204 MB.
    eighty = dataclasses.replace(LAION, ranks=80, batch=32800, halves=False)
    assert network_bytes(eighty, 0, 1) == pytest.approx(204e6, rel=0.01)
    p = 10**8
    for halves, size in ((False, 4), (True, 2)):
        sent = [encoder_bytes(p, stage, 4, halves=halves) for stage in range(4)]
        # All-reduce; with a gather of weights, twice; four sums and four gathers.
        assert sent == [2 * size * p, 3 * size * p, 3 * size * p, 8 * size * p]
    # Weights that DeepSpeed does not keep are gathered again for the backward pass.
    assert encoder_bytes(2 * 10**9, 3, 1, halves=True) == 3 * 2 * 2 * 10**9
    whole = network_bytes(eighty, p, 4) - network_bytes(eighty, 0, 4)
    assert whole == pytest.approx(3 * 4 * p * 79 / 80, rel=1e-6)
    assert network_bytes(dataclasses.replace(eighty, ranks=1), p, 1) == 0
