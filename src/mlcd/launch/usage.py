"""What a rank takes: memory, CPU time and GPU use, for the record of a job."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import psutil

from mlcd.utils.files import write_json

_GPU_EVERY = 30.0


class Usage:
    """Measures this process and its children; :meth:`update` writes what is known to `path`.

    The file: `max_rss_mb` (peak of the sum over the process and its children), `cpu_s` (theirs too,
    ended ones included), `written_mb` (what this process gave to write), `in_disk` (it waits for a
    disk right now), `wall_s`, and `gpu_busy` (mean share of time that this rank's GPU worked, 0 to
    1; null without nvidia-smi). It is also the rank's sign of life: its time changes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = psutil.Process()
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._rss = 0
        self._gpu: list[float] = []
        self._gpu_asked = -_GPU_EVERY
        self._smi = shutil.which("nvidia-smi") if os.environ.get("CUDA_VISIBLE_DEVICES") else None

    def update(self) -> None:
        """Measure and write; from any thread."""
        with self._lock:
            self._update()

    def _update(self) -> None:
        times = self._process.cpu_times()
        cpu, rss = sum(times[:4]), self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                rss += child.memory_info().rss
                cpu += sum(child.cpu_times()[:2])
        self._rss = max(self._rss, rss)
        if self._smi and time.monotonic() - self._gpu_asked >= _GPU_EVERY:
            self._gpu_asked = time.monotonic()
            self._ask_gpu()
        busy = round(sum(self._gpu) / len(self._gpu), 3) if self._gpu else None
        write_json(
            self._path,
            {"max_rss_mb": self._rss >> 20, "cpu_s": round(cpu, 1),
             "written_mb": self._written() >> 20,
             "in_disk": self._process.status() == psutil.STATUS_DISK_SLEEP,
             "wall_s": round(time.monotonic() - self._start, 1), "gpu_busy": busy},
        )  # fmt: skip

    def _written(self) -> int:
        try:
            return int(self._process.io_counters().write_chars)
        except (AttributeError, psutil.Error):  # not told by this system
            return 0

    def _ask_gpu(self) -> None:
        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        mine = visible[int(os.environ.get("LOCAL_RANK", "0")) % len(visible)]
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            answer = subprocess.run(
                [str(self._smi), "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
                 f"--id={mine}"],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
            self._gpu.append(float(answer.stdout) / 100)
