"""What every rank of a clustering does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.config import Cluster
from mlcd.launch import resume
from mlcd.neighbors.engine import engine
from mlcd.stages.cluster.group import ProcessGroup, SingleProcess
from mlcd.stages.cluster.kmeans import cluster
from mlcd.utils.device import take_gpu

#: Longest that a collective waits, in minutes: 24 days, about as many milliseconds as an int holds.
#: Rank 0 chooses the first centers, and the slowest rank's pass may take hours; dead ranks are
#: the launcher's to notice.
_TIMEOUT_MIN = 24 * 24 * 60


def cluster_rank(
    embeddings: list[str], section: dict[str, Any], limit: int, folder: str, device: str,
    threads: int,
) -> None:  # fmt: skip
    """Run on every rank: the iterations of one clustering, whose states rank 0 saves in `folder`.

    `limit` bytes are each rank's. Raises :class:`mlcd.utils.errors.UserError`.
    """
    # torch takes 100 MB, which a run in one process has better use for.
    from mlcd.launch.process_group import process_group

    resume.check(Path(folder))
    # What is in main memory goes through gloo, on whatever device the search runs.
    with process_group("cpu", inputs=embeddings, timeout_min=_TIMEOUT_MIN):
        where = engine(device)
        on = "cuda" if where.half and where.device == "cuda" else "cpu"
        if on == "cuda":
            take_gpu()
        group = ProcessGroup(on, timeout_min=_TIMEOUT_MIN)
        cluster(embeddings, Cluster(**section), limit, Path(folder), device, threads, group)


def cluster_alone(
    embeddings: list[str], section: dict[str, Any], limit: int, folder: str, device: str,
    threads: int,
) -> None:  # fmt: skip
    """Do the same in this process alone, without a process group."""
    values = Cluster(**section)
    cluster(embeddings, values, limit, Path(folder), device, threads, SingleProcess())
