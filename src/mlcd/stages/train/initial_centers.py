"""Initial class centers from the k-means centroids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from mlcd.data.centroids import Centroids

_ROWS = 65_536


def initial_rows(
    centroids: Centroids, dim: int, start: int, stop: int, seed: int, rank: int = 0
) -> torch.Tensor:
    """Return centers `start` … `stop` − 1 as float32 unit rows [stop − start, dim].

    Where the centroids have more dimensions they are projected to their `dim` principal ones (after
    subtraction of their mean, which all of them share and which therefore separates none); where
    they have fewer, zeros are appended, which keeps every cosine. A collective call: rank 0 finds
    the axes, so that all ranks use the same.
    """
    rows = centroids.rows(start, stop).astype(np.float64)
    if centroids.d > dim:
        mean, axes = np.zeros(centroids.d), np.zeros((centroids.d, dim))
        if rank == 0:
            mean, axes = principal_axes(_blocks(centroids), dim)
        if dist.is_initialized() and dist.get_world_size() > 1:
            packed = torch.from_numpy(np.vstack([mean[None], axes.T]))
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            packed = packed.to(device)
            dist.broadcast(packed, 0)
            mean, axes = packed[0].cpu().numpy(), packed[1:].cpu().numpy().T
        rows = (rows - mean) @ axes
    elif centroids.d < dim:
        rows = np.pad(rows, ((0, 0), (0, dim - centroids.d)))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    for row in np.flatnonzero(norms[:, 0] < 1e-6):
        # A center at the mean has no direction left; a random one is as good as any.
        rows[row] = np.random.default_rng([seed, start + int(row)]).standard_normal(dim)
        norms[row] = np.linalg.norm(rows[row])
    return torch.from_numpy((rows / norms).astype(np.float32))


def principal_axes(blocks: Iterator[np.ndarray], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [d] and the first `dim` principal axes [d, dim] of rows given in blocks.

    Float64; the largest entry of every axis is positive, which makes the signs definite.
    """
    count = 0
    total: np.ndarray = np.zeros(1)
    products: np.ndarray = np.zeros((1, 1))
    for block in blocks:
        block = block.astype(np.float64)
        count += len(block)
        total = total + block.sum(axis=0)
        products = products + block.T @ block
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :dim]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dim)]
    return mean, axes * np.sign(largest)


def _blocks(centroids: Centroids) -> Iterator[np.ndarray]:
    for start in range(0, centroids.K, _ROWS):
        yield centroids.rows(start, min(start + _ROWS, centroids.K))
