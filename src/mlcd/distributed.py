"""Process groups: a rank's place and device, and the few collectives that stages share."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mlcd import startup


@dataclasses.dataclass(frozen=True)
class Place:
    """A rank's place in the world and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0


@contextmanager
def process_group(
    device: str, *, inputs: Sequence[str] = (), timeout_min: float = 30.0
) -> Iterator[Place]:
    """Join the process group that RANK, WORLD_SIZE and MASTER_* describe; leave it at the end.

    `device`: ``cpu`` (gloo) or ``cuda`` (NCCL, one GPU a local rank). One rank makes a group too,
    so that the same code runs at any world size. `timeout_min` is the longest that a collective may
    wait; a failed peer is noticed sooner by the launcher. Raises :class:`UserError` if a rank sees
    other `inputs` (files), runs other code, or differs otherwise (:mod:`mlcd.startup`).
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if device == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local_rank)
        place = Place(rank, world_size, torch.device("cuda", local_rank))
    else:
        place = Place(rank, world_size, torch.device("cpu"))
    timeout = datetime.timedelta(minutes=timeout_min)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size, rank == 0, timeout)
    # Before the first collective, which may hang where versions differ.
    startup.check(dist.PrefixStore("startup", store), rank, world_size, device, inputs)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=place.device if device == "cuda" else None,
    )
    try:
        yield place
    finally:
        dist.destroy_process_group()


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Return the sum over all ranks of each value, in float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()
