"""Memory found by shapes alone, held to what a real step holds and to what its allocator gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from helpers.open_clip_tiny import NAME
from mlcd.models import footprint, trainable, vit

IMAGES = 6
TINY = f"open_clip:{NAME}"


def encoder_of(model: str, side: int, checkpointing: bool) -> trainable.Encoder:
    encoder = trainable.build(model, 32, side).train()
    if checkpointing:
        encoder.trunk.set_grad_checkpointing(True)
    for weight in encoder.parameters():
        weight.grad = torch.zeros_like(weight)
    return encoder


def step(encoder: trainable.Encoder) -> None:
    """A real forward and backward pass, as of any micro-batch but the first."""
    images = torch.zeros(IMAGES, 3, encoder.image_size, encoder.image_size)
    with vit.lean():
        encoder(images).float().sum().backward()


def allocated(encoder: trainable.Encoder) -> int:
    """Return the peak of what torch's allocator gave out in a step, beyond what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(encoder)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model", "side"), [("mlcd_vit_tiny_patch8", 32), ("resnet10t", 64), (TINY, 32)]
)
def test_the_peak_is_that_of_a_real_step(model: str, side: int, checkpointing: bool) -> None:
    encoder = encoder_of(model, side, checkpointing)
    found = footprint.peak(encoder, IMAGES, bf16=False)
    step(encoder)  # loads what is loaded once
    weights = list(encoder.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    live = footprint.LiveBytes([*weights, *gradients, *encoder.buffers()])
    with live:
        step(encoder)
    assert live.peak == pytest.approx(found, rel=0.01)
    if "resnet" not in model:  # convolutions on CPUs have work space of their own
        assert allocated(encoder) == pytest.approx(found, rel=0.1)


def test_a_footprint_is_a_line_through_micro_batches() -> None:
    encoder = encoder_of(TINY, 32, False)
    before = [weight.clone() for weight in encoder.parameters()]
    found = footprint.measure(encoder, bf16=True)
    assert found.peak(64) == pytest.approx(footprint.peak(encoder, 64, bf16=True), rel=0.01)
    assert found.weights == sum(weight.numel() for weight in before)
    # Nothing of the encoder is touched.
    assert all(map(torch.equal, before, encoder.parameters()))
    assert not any(weight.grad.any() for weight in encoder.parameters())
    # Two blocks of 17 tokens of 32; the patches of 8 pixels; the projection to 32.
    blocks = 2 * (2 * 17 * 12 * 32**2 + 4 * 17**2 * 32)
    assert found.flop == blocks + 2 * 16 * 3 * 8**2 * 32 + 2 * 32 * 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model", "side", "images"), [("open_clip:ViT-L-14", 224, 32), ("resnet50", 224, 64)]
)
def test_the_peak_on_a_gpu_is_within_a_seventh(
    model: str, side: int, images: int, checkpointing: bool
) -> None:
    encoder = encoder_of(model, side, checkpointing).cuda()
    for weight in encoder.parameters():
        weight.grad = torch.zeros_like(weight)
    found = footprint.measure(encoder, bf16=True).peak(images)
    for _ in range(2):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        batch = torch.zeros(images, 3, side, side, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            embeddings = encoder(batch)
        embeddings.float().sum().backward()
        del batch, embeddings
    measured = torch.cuda.max_memory_allocated() - before
    assert measured == pytest.approx(found, rel=0.15)
