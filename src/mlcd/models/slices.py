"""The forward pass of a batch on a processor's cores, the same bytes for any number of them.

Libraries of numbers divide an operation among threads, and then sum in another order: a feature's
last bits would follow from the number of cores that were free. Here a batch is cut into slices of a
fixed number of images, and each slice runs on one core. The cores take slices side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

#: Images that one core takes at once. Fewer leave its vector units idle, more leave cores idle.
SLICE = 8

Outputs = Sequence[Tensor | None]


def forward(compute: Callable[[Tensor], Outputs], images: Tensor) -> list[Tensor | None]:
    """Return the outputs of `compute` for `images` [B, …], each [B, …] again, or None.

    `compute` takes at most :data:`SLICE` images and is called by as many threads at once as torch
    has; modes such as inference and autocast, which belong to a thread, it enters itself. On other
    devices than the CPU it takes the whole batch.
    """
    if images.device.type != "cpu" or not len(images):
        return list(compute(images))
    threads = torch.get_num_threads()
    pieces = images.split(SLICE)
    # Each thread takes this as its own number when it first computes.
    torch.set_num_threads(1)
    try:
        if min(threads, len(pieces)) == 1:
            done = [_padded(compute, piece) for piece in pieces]
        else:
            with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
                done = list(pool.map(lambda piece: _padded(compute, piece), pieces))
    finally:
        torch.set_num_threads(threads)
    found: list[Tensor | None] = []
    for parts in zip(*done, strict=True):
        given = [part for part in parts if part is not None]
        found.append(torch.cat(given) if given else None)
    return found


def _padded(compute: Callable[[Tensor], Outputs], piece: Tensor) -> Outputs:
    """Run a slice; a short one with rows of zeros behind it, since shapes choose the algorithm."""
    rows = len(piece)
    if rows < SLICE:
        # Laid out as the others are: strides choose it, too.
        whole = torch.empty_strided(
            (SLICE, *piece.shape[1:]), piece.stride(), dtype=piece.dtype
        ).zero_()
        whole[:rows] = piece
        piece = whole
    return [None if part is None else part[:rows] for part in compute(piece)]
