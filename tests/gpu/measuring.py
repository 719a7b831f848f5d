"""How the steps of the acceptance are sized and timed."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from mlcd.launch.process_group import RankPlace, process_group


class Setting(NamedTuple):
    """What a step is run with.

    `tiny`: small enough for a CPU, where goals of speed say nothing. `device` 'cuda' or 'cpu'.
    `ceilings`: what the step `ceilings` measured, TFLOP/s by type, empty if it did not run.
    """

    tiny: bool
    device: str
    ceilings: dict[str, float]

    def of(self, full: Any, tiny: Any) -> Any:
        """Return the size for a GPU or the tiny one."""
        return tiny if self.tiny else full

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


class Outcome(NamedTuple):
    """Whether a step met its goal, and its figures."""

    met: bool
    figures: dict[str, Any]


def wait(setting: Setting) -> None:
    """Wait for what a GPU has been given."""
    if setting.cuda:
        torch.cuda.synchronize()


def seconds(
    work: Callable[[], object], setting: Setting, *, repeats: int = 5, warm_up: int = 2
) -> list[float]:
    """Return least, median and greatest seconds of `work`."""
    times = []
    for number in range(warm_up + repeats):
        began = time.perf_counter()
        work()
        wait(setting)
        if number >= warm_up:
            times.append(time.perf_counter() - began)
    return [min(times), statistics.median(times), max(times)]


def tflops(flop: float, times: list[float]) -> float:
    """Return the rate of the median."""
    return significant(flop / times[1] / 1e12)


def milliseconds(times: list[float]) -> list[float]:
    return [significant(1e3 * one) for one in times]


def significant(value: float) -> float:
    """Round to three digits."""
    return float(f"{value:.3g}")


def peak_gb(setting: Setting) -> float | None:
    """Return the most memory that torch has held on the GPU, in GB."""
    return significant(torch.cuda.max_memory_allocated() / 1e9) if setting.cuda else None


@contextmanager
def alone(setting: Setting) -> Iterator[RankPlace]:
    """Join a process group of this process alone, by NCCL on a GPU; one that it is in already."""
    if dist.is_initialized():
        # DeepSpeed keeps the first group of a process: there must be no second.
        yield RankPlace(0, 1, torch.device(setting.device))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group(setting.device) as place:
        yield place
