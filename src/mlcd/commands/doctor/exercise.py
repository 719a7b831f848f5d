"""What the ranks of the doctor's gang do: add up a gigabyte, and train twenty small steps."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

#: Numbers of the encoder: patches of a side, width of its embeddings, side of an image.
_MODEL, _DIM, _SIDE, _CLASSES = "mlcd_vit_tiny_patch8", 192, 32, 4096
#: Images of a rank.
_BATCH = 4
#: Times that the sum is taken, the first to warm up.
_SUMS = 5


def exercise(device: str, megabytes: int, steps: int) -> dict[str, Any]:
    """Run on every rank: all-reduces of `megabytes` MB, and `steps` training steps under ZeRO 1.

    Returns `gb_per_s` (what each rank sends and receives, as NCCL's tests count it, at the median),
    `sum_is_right`, `seconds_per_step` (median), `losses_are_finite`, `losses_are_equal` (over
    ranks), and the `world_size`.
    """
    from mlcd.launch.process_group import process_group

    with process_group(device) as place:
        found = _all_reduce(place.device, place.world_size, megabytes)
        return {"world_size": place.world_size, **found, **_train(place, steps)}


def _all_reduce(device: Any, world_size: int, megabytes: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    times, right = [], True
    for _ in range(_SUMS):
        ones = torch.ones(megabytes * 250_000, device=device)
        _wait(device)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(ones)
        _wait(device)
        times.append(time.perf_counter() - began)
        right &= bool((ones == world_size).all())
    sent = 2 * (world_size - 1) / world_size * megabytes / 1000
    return {"gb_per_s": sent / statistics.median(times[1:]), "sum_is_right": right}


def _train(place: Any, steps: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from mlcd.classifier import RowSparseAdamW, ShardedClassifier
    from mlcd.config.train import Train
    from mlcd.models import trainable
    from mlcd.stages.train.engine import EncoderEngine

    section = Train(
        model=_MODEL, embedding_dim=_DIM, image_size=_SIDE, batch_size=_BATCH * place.world_size,
        zero_stage=1, precision="bf16" if place.device.type == "cuda" else "fp32",
    )  # fmt: skip
    encoder = trainable.build(_MODEL, _DIM, _SIDE, seed=0)
    engine = EncoderEngine(encoder, section, place, _BATCH)
    classifier = ShardedClassifier(
        _CLASSES, _DIM, kind=section.loss, scale=section.scale, margin=section.margin,
        margin_type=section.margin_type, negative_ratio=0.1, seed=0, device=place.device,
    )  # fmt: skip
    optimizer = RowSparseAdamW(classifier, section.classifier_lr)
    random = torch.Generator().manual_seed(place.rank)
    times, losses = [], []
    for step in range(steps):
        shape = (_BATCH, 3, _SIDE, _SIDE)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        labels = torch.randint(0, _CLASSES, (_BATCH, 8), generator=random).to(place.device)
        began = time.perf_counter()
        loss = classifier(engine.forward(images), labels, step)
        engine.backward(loss)
        engine.step(1e-4)
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(time.perf_counter() - began)
    engine.destroy()
    every: list[Any] = [None] * place.world_size
    dist.all_gather_object(every, losses)
    return {
        "seconds_per_step": statistics.median(times),
        "losses_are_finite": all(map(math.isfinite, losses)),
        "losses_are_equal": all(other == losses for other in every),
    }


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
