"""What the child process of test_sharded's memory test runs."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from mlcd.classifier import ShardedClassifier


def status(field: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure(ratio: float) -> tuple[int, int]:
    """Return the measured peak of forward and backward over the inputs, and the formula's bound."""
    torch.set_num_threads(1)
    classes, dim, batch, labels = 60_000, 256, 512, 8
    head = ShardedClassifier(
        classes, dim, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
        negative_ratio=ratio, seed=0,
    )  # fmt: skip
    embedding = torch.randn(batch, dim, requires_grad=True)
    target = torch.randint(classes, (batch, labels))
    # Loads what is loaded once: kernels, thread pools, the allocator's arenas.
    head(embedding, target, 0).backward()
    head.zero_grad()
    embedding.grad = None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    head(embedding, target, 1).backward()
    return status("VmHWM") - before, head.peak_memory(batch, labels)
