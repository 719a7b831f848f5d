"""One process as rank 0 of 80 and of 128: the plan's figures, held to a whole simulated step."""

from __future__ import annotations

import resource

import pytest
import torch
import torch.distributed as dist

from helpers.benchmark_scripts import load
from helpers.open_clip_tiny import NAME, register
from mlcd.config.train import Train
from mlcd.models import vit
from mlcd.training.memory import CONTEXT, network_bytes
from mlcd.training.width import Shapes, rank_of

width = load("width")


@pytest.mark.parametrize(
    ("ranks", "classes", "stage"), [(80, 10**7, 1), (128, 10**6, 2)], ids=["80", "128"]
)
def test_a_step_holds_and_sends_what_is_planned(ranks, classes, stage, capsys) -> None:
    register()
    section = Train(
        model=f"open_clip:{NAME}", embedding_dim=768, image_size=32, batch_size=ranks * 256,
        negative_ratio=0.1, scale=64, precision="bf16", zero_stage=stage,
    )  # fmt: skip
    job, found, _ = width.planned(section, ranks, classes, 80 * 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = width.step(section, job, micro_batch=128)
    # Nothing of it is really there, but for labels and the numbers of rows.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    planned = width.need(job, found, 128)
    centers = -(-classes // ranks) * 12 * 768
    assert seen.state > centers and planned.centers == pytest.approx(centers, rel=0.01)
    # A bound: planned as if all labels of a step were this rank's, beside large images.
    assert 0.3 * (planned.total - CONTEXT) < seen.peak < planned.total - CONTEXT
    sent = seen.traffic.sent(ranks)
    assert sent == pytest.approx(network_bytes(job, found.weights, 2), rel=0.02)
    calls = seen.traffic.calls
    # Two micro-batches: of the encoder one sum and a gather of matrices and one of vectors.
    assert calls["allreduce", "bfloat16"] == 1
    assert (calls["allgather", "bfloat16"], calls["allgather", "float32"]) == (2 + 1, 1)
    assert (calls["reducescatter", "float32"], calls["allgather", "int64"]) == (2, 2)
    # Sums per image, the norm of the encoder's gradient, of the centers'.
    assert calls["allreduce", "float64"] == 2 + 1 and calls["allreduce", "float32"] == 2
    assert sum(calls.values()) == 14


def test_floats_are_shapes_and_integers_are_real() -> None:
    with rank_of(8) as place, Shapes(classes=100):
        assert place.world_size == dist.get_world_size() == 8 and vit._LEAN.get()
        rows = torch.zeros(10**6, 10**6)  # 4 TB
        picked = rows[torch.arange(10**6) % 3 == 0]
        assert picked.shape == (333_334, 10**6)
        dist.all_reduce(picked)
        assert picked.sum().item() == 1.0 and not bool(picked.isnan().any())
        labels = torch.full((4,), -1)
        everyone = torch.zeros(32, dtype=torch.int64)
        dist.all_gather_into_tensor(everyone, labels)
        assert everyone.unique().numel() > 8 and int(everyone.max()) < 100
    assert not dist.is_initialized() and not vit._LEAN.get()
