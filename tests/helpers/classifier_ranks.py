"""What each rank of tests/unit/classifier/test_ranks.py runs; results go to a file per rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.losses import cluster_loss

# Neither divides evenly by 2, 3 and 4; the batch does. K is beyond the rows that are set at a time.
NUM_CLASSES, DIM, BATCH, LABELS = 4999, 24, 12, 8

SETTINGS = list(
    itertools.product(("mlcd", "mlc", "single"), ("cosface", "arcface", "none"), (0.01, 1.0))
)


def spawn(world: int, folder: Path) -> list[dict[str, Any]]:
    """Run :func:`rank_main` on `world` gloo ranks; return the results in the order of ranks."""
    torch.multiprocessing.spawn(rank_main, (world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def problem(seed: int = 0, num_classes: int = NUM_CLASSES) -> tuple[torch.Tensor, ...]:
    """Return embeddings [B, d], centers [K, d] and labels [B, l] with repeats and padding."""
    random = torch.Generator().manual_seed(seed)
    embedding = torch.randn(BATCH, DIM, generator=random)
    center = torch.randn(num_classes, DIM, generator=random)
    labels = torch.randint(num_classes, (BATCH, LABELS), generator=random)
    labels[::3, 1] = labels[::3, 0]
    labels[1, 2:] = -1
    labels[2] = torch.arange(LABELS) - 1
    return embedding, center, labels.clamp(max=num_classes - 1)


def classifier(num_classes: int = NUM_CLASSES, **changes: Any) -> ShardedClassifier:
    """Return a small classifier; a tiny memory limit makes it work in many blocks."""
    settings = {
        "kind": "mlcd",
        "scale": 64.0,
        "margin": 0.3,
        "margin_type": "cosface",
        "negative_ratio": 0.1,
        "seed": 5,
        "memory_limit": 1 << 16,
    }
    return ShardedClassifier(num_classes, DIM, **{**settings, **changes})


def dense(head: ShardedClassifier) -> torch.Tensor:
    """Return the gradient of the local rows as a matrix."""
    whole = torch.zeros_like(head.weight, requires_grad=False)
    if head.gradient is not None:
        whole[head.gradient.rows] = head.gradient.values
    return whole


def distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return |value − reference| / |reference|, by norms; absolute where the reference is 0."""
    error, size = (value.double() - reference).norm(), reference.norm()
    return float(error / size if size > 0 else error)


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init-{world}", rank=rank, world_size=world
    )
    results = {
        "settings": [compare(rank, world, *setting) for setting in SETTINGS],
        "halves": compare(rank, world, "mlcd", "cosface", 0.1, compute_dtype=torch.bfloat16),
        # Fewer classes than ranks: some ranks have no row.
        "few": compare(rank, world, "mlcd", "cosface", 1.0, num_classes=3),
        "no reduce-scatter": compare(rank, world, "mlcd", "cosface", 0.1, reduce_scatter=False),
        "training": training(rank, world),
        "saturation": saturation(rank, world),
        "traffic": {
            "float32": traffic(rank, world, torch.float32),
            "bfloat16": traffic(rank, world, torch.bfloat16),
        },
        "sampled": [classifier().sampled_rows(step).tolist() for step in range(3)],
        "start": classifier().start,
        "random_rows": classifier().weight.detach(),
    }
    torch.save(results, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def compare(
    rank: int,
    world: int,
    kind: str,
    margin_type: str,
    ratio: float,
    *,
    num_classes: int = NUM_CLASSES,
    reduce_scatter: bool = True,
    **changes: Any,
) -> dict[str, float]:
    """Return relative errors of loss and gradients against the one-process float64 function."""
    changes |= {"kind": kind, "margin_type": margin_type, "negative_ratio": ratio}
    head = classifier(num_classes, **changes)
    head.exchange.reduce_scatter = reduce_scatter
    embedding, center, labels = problem(num_classes=num_classes)
    head.load_rows(center)
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    local = embedding[part].clone().requires_grad_()
    loss = head(local, labels[part], step=7)
    (loss / 2).backward()

    whole, rows = (tensor.double().requires_grad_() for tensor in (embedding, center))
    negatives = torch.from_numpy(head.sampler.draw(7, 0, num_classes))
    reference = cluster_loss(
        whole, rows, labels, negatives, kind=kind, scale=64.0, margin=0.3, margin_type=margin_type
    )
    (reference / 2).backward()
    return {
        "loss": distance(loss.detach(), reference.detach()),
        "value": float(loss.detach()),
        # As DeepSpeed would average it.
        "embedding": distance(local.grad / world, whole.grad[part]),
        "center": distance(dense(head), rows.grad[head.start : head.stop]),
    }


def training(rank: int, world: int) -> dict[str, Any]:
    """Two optimizer steps of two micro-batches each, clipped; return what must not depend on W."""
    head = classifier(encoder_gradients="summed")
    head.load_rows(problem()[1])
    optimizer = RowSparseAdamW(head, lr=0.05, weight_decay=0.1)
    losses, norms, terms, gradients = [], [], [], []
    for step in range(2):
        for micro in range(2):
            embedding, _, labels = problem(seed=10 * step + micro)
            part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
            local = embedding[part].clone().requires_grad_()
            loss = head(local, labels[part], step) / 2
            loss.backward()
            losses.append(float(loss.detach()))
            terms.append([float(value) for value in head.statistics.values()])
            gradients.append(local.grad)
        norms.append(float(optimizer.clip(1.0)))
        norms.append(float(optimizer.grad_norm()))
        optimizer.step()
        optimizer.zero_grad()
    return {
        "losses": losses,
        "norms": norms,
        "terms": terms,
        "embedding": torch.stack(gradients, 1),
        "weight": head.weight.detach(),
        **optimizer.state_tensors(),
    }


def counting(collective: Callable[[torch.Tensor], Any], sizes: list[int]) -> Callable[..., Any]:
    """Return `collective`, noting the bytes that each call is given."""

    def counted(tensor: torch.Tensor) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return collective(tensor)

    return counted


def traffic(rank: int, world: int, compute_dtype: torch.dtype) -> dict[str, list[int]]:
    """Return the bytes that a training step hands to each collective, by the exchange's method."""
    head = classifier(compute_dtype=compute_dtype)
    handed: dict[str, list[int]] = {}
    for name in ("gather", "add", "scatter_sum"):
        handed[name] = []
        setattr(head.exchange, name, counting(getattr(head.exchange, name), handed[name]))
    embedding, _, labels = problem()
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    head(embedding[part].clone().requires_grad_(), labels[part], step=0).backward()
    RowSparseAdamW(head, lr=0.05).clip(1.0)
    return handed


def saturation(rank: int, world: int) -> int:
    """Return how many classes are drawn where l · B exceeds r · K and all labels are distinct."""
    num_classes = BATCH * LABELS
    head = classifier(num_classes, negative_ratio=0.25)
    labels = torch.randperm(num_classes, generator=torch.Generator().manual_seed(1))
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    head(problem()[0][part], labels.view(BATCH, LABELS)[part], step=0).backward()
    assert len(head.gradient.rows) == head.stop - head.start  # Every class is a positive.
    return len(head.sampled_rows(0))


def run(head: ShardedClassifier, step: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward and backward; return loss, embedding gradient, dense gradient of the centers."""
    embedding, center, labels = problem()
    head.load_rows(center)
    embedding.requires_grad_()
    loss = head(embedding, labels, step)
    loss.backward()
    return loss.detach(), embedding.grad, dense(head)
