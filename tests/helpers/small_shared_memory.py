"""Reads batches while /dev/shm is all but full: python small_shared_memory.py FOLDER."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

from helpers.train_stores import stores
from mlcd.stages.train import inputs
from mlcd.stages.train.images import Steps
from mlcd.training.crops import Augment
from mlcd.training.read_ahead import batches
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError


def main(folder: Path) -> None:
    """Read steps that take more than is left of /dev/shm; then leave nothing of it."""
    paths = stores(folder)
    inputs.build_index(
        inputs.check(paths["labels"], paths["embeddings"], paths["images"], paths["centroids"]),
        folder / "index",
    )
    index = inputs.Index(folder / "index")
    order = Order(index.counts, batch=32, block=4, window=16, seed=0)
    steps = Steps(index, order, Augment(64, 0.5, True, 0), rank=0, world_size=1, micro_batches=1)
    others = Path("/dev/shm/others")
    others.write_bytes(b"\0" * ((1 << 20) - (128 << 10)))
    for step, batch in enumerate(batches(steps, 0, 4, workers=2, pin=False)):
        assert torch.equal(batch.images, steps[step].images)
    print(4 * batch.images.numel(), "bytes read")
    with others.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    try:
        next(batches(steps, 0, 4, workers=2, pin=False))
    except UserError as error:
        print(error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
