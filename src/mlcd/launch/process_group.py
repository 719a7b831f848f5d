"""Process groups: a rank's place and device, and the few collectives that stages share."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mlcd.launch import consistency
from mlcd.utils.device import take_gpu


@dataclasses.dataclass(frozen=True)
class RankPlace:
    """A rank's place in the world and the device it computes on.

    `timeout`: the longest that a collective may wait.
    """

    rank: int
    world_size: int
    device: torch.device
    timeout: datetime.timedelta = datetime.timedelta(minutes=30)

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0


@contextmanager
def process_group(
    device: str, *, inputs: Sequence[str] = (), timeout_min: float = 30.0
) -> Iterator[RankPlace]:
    """Join the process group that RANK, WORLD_SIZE and MASTER_* describe; leave it at the end.

    `device`: ``cpu`` (gloo) or ``cuda`` (NCCL, one GPU a local rank). One rank makes a group too,
    so that the same code runs at any world size. `timeout_min` is the longest that a collective may
    wait; a failed peer is noticed sooner by the launcher. Raises :class:`UserError` if a rank sees
    other `inputs` (files), runs other code, or differs otherwise (:mod:`mlcd.launch.consistency`).
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    timeout = datetime.timedelta(minutes=timeout_min)
    where = torch.device("cuda", take_gpu()) if device == "cuda" else torch.device("cpu")
    place = RankPlace(rank, world_size, where, timeout)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torch's types do not export the two stores.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, rank == 0, timeout
    )
    startup = dist.PrefixStore("startup", store)  # type: ignore[attr-defined]
    # Before the first collective, which may hang where versions differ.
    consistency.check(startup, rank, world_size, device, inputs)
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
        leave()


def leave() -> None:
    """Leave the process group, and let DeepSpeed, where it is in use, forget its copy of it.

    A process may train several times, each time in a group of its own.
    """
    dist.destroy_process_group()
    if groups := sys.modules.get("deepspeed.utils.groups"):
        vars(groups)["_WORLD_GROUP"] = None


def share_timeout(place: RankPlace) -> None:
    """Give every group of this process the patience of the first.

    Those that libraries make on their own would wait for ten minutes under NCCL, whatever the
    ranks are at.
    """
    groups: list[dist.ProcessGroup] = list(dist.distributed_c10d._world.pg_map)
    for group in groups:
        if dist.get_backend(group) == "fake":  # one process that stands for many
            continue
        dist.distributed_c10d._set_pg_timeout(place.timeout, group)
