"""Checkpoints of three ranks with known rows."""

import threading

import torch

from mlcd.data.checkpoints import CheckpointWriter, Snapshot

ROWS = {
    "weight": torch.arange(50 * 4, dtype=torch.float32).view(50, 4),
    "row_step": torch.arange(50),
}


def bounds(world_size, rank):
    return 50 * rank // world_size, 50 * (rank + 1) // world_size


def snapshot(step, world_size, rank):
    start, stop = bounds(world_size, rank)
    return Snapshot(
        step,
        start,
        {name: (rows[start:stop] + step).clone() for name, rows in ROWS.items()},
        {"mean": torch.full((3,), float(rank)), "count": torch.tensor(7)},
        {"weight/a": torch.ones(2, 3), "exp_avg/a": torch.zeros(2, 3)} if rank == 0 else None,
        64,
    )


def write(folder, saved, world_size=3, *, keep=9, resumed=0):
    """Write checkpoints as `world_size` ranks (threads here) do."""
    writers = [
        CheckpointWriter(
            folder, "run", {"seed": 5}, rank=rank, world_size=world_size, keep=keep, resumed=resumed
        )
        for rank in range(world_size)
    ]
    for step in saved:
        _save(writers, [snapshot(step, world_size, rank) for rank in range(world_size)])


def save_all(folder, snapshots):
    """Write one checkpoint of the run: a snapshot for each rank."""
    ranks = len(snapshots)
    _save(
        [
            CheckpointWriter(folder, "run", {"seed": 5}, rank=rank, world_size=ranks)
            for rank in range(ranks)
        ],
        snapshots,
    )


def _save(writers, snapshots):
    threads = [
        threading.Thread(target=writer.save, args=(one,))
        for writer, one in zip(writers, snapshots, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.wait()
