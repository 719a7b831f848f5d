"""Whether a text tower fits: the memory of its pass, and what is refused with what would fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlcd.config.text import Text
from mlcd.models import footprint
from mlcd.models import text_tower as towers
from mlcd.stages.text import fit
from mlcd.training.memory import usable

GB = 10**9
#: CLIP's tower of ViT-B, on two layers.
SECTION = Text(
    width=512, layers=2, heads=8, context_length=77, batch_size=32768, precision="bf16"
)  # fmt: skip
DIM = 512


@pytest.fixture(scope="module")
def traced():
    """Each footprint is traced once."""
    return {on: fit.footprint(SECTION, DIM, on) for on in (False, True)}


@pytest.fixture
def recorded(monkeypatch, traced):
    monkeypatch.setattr(fit, "footprint", lambda section, dim, on: traced[on])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_that_of_a_real_step(checkpointing: bool) -> None:
    section = Text(width=64, layers=2, heads=2, context_length=16, precision="fp32")
    tower = towers.build(section, 32).train()
    if checkpointing:
        tower.transformer.set_grad_checkpointing(True)
    for weight in tower.parameters():
        weight.grad = torch.zeros_like(weight)
    tokens = torch.randint(1, 1000, (8, 16))

    def inputs(count: int) -> torch.Tensor:
        return torch.zeros(count, 16, dtype=torch.int64, device="cpu")

    found = footprint.peak(tower, 8, bf16=False, inputs=inputs)
    known = [*tower.parameters(), *(w.grad for w in tower.parameters()), *tower.buffers()]
    live = footprint.LiveBytes(known)
    with live:
        tower(tokens)[0].float().sum().backward()
    assert live.peak == pytest.approx(found, rel=0.02)


def test_a_share_follows_from_ranks(recorded, traced) -> None:
    asked = fit.job(SECTION, 16, DIM)
    taken = fit.need(asked, traced[False])
    assert asked.share == 2048
    assert taken.loss == 5 * 4 * 2048 * 32768 + 16 * 32768 * 512
    assert taken.images == traced[False].peak(2048) > traced[True].peak(2048)
    assert fit.refusal(SECTION, asked, 80 * GB) is None


@pytest.mark.parametrize(
    ("ranks", "memory", "words"),
    [
        (16, 5 * GB, "set text.activation_checkpointing: true"),
        (4, 9 * GB, "set text.activation_checkpointing: true, 8 GPUs"),
        (1, GB, "take GPUs with more memory"),
    ],
)
def test_what_does_not_fit_names_what_does(recorded, traced, ranks, memory, words) -> None:
    asked = fit.job(SECTION, ranks, DIM)
    said = fit.refusal(SECTION, asked, memory)
    assert said is not None and words in said
    assert said.startswith(f"text: {32768 // ranks} pairs of 32768 at once take")


def test_a_smaller_batch_is_the_last_resort(recorded, traced) -> None:
    asked = dataclasses.replace(fit.job(SECTION, 2, DIM), batch=2**21)
    ways = [words for words, _ in fit._ways_out(asked)]
    assert ways[0].endswith("activation_checkpointing: true")
    assert ways[-1].endswith("text.batch_size: 2") and usable(100) == 95
