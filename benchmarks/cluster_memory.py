"""Out of core: k-means of rows that need four times --memory-limit, beside the same in memory.

    python benchmarks/cluster_memory.py --limit 512MiB --repeats 3

The limited runs are in a memory cgroup (needs root) of the limit and the centers, which the kernel
enforces: page cache counts, and a process that needs more is killed. The file is dropped from the
page cache before every run. Prints a table in Markdown, medians over the repeats; all runs must end
with the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import kinds  # noqa: E402

from mlcd.utils.units import parse_size  # noqa: E402

CGROUPS = Path("/sys/fs/cgroup")
CHILD = """
import pathlib, re, resource, sys, time
from mlcd import cli
began = time.monotonic()
code = cli.main(sys.argv[1:])
wall = time.monotonic() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(wall, usage.ru_utime + usage.ru_stime, time.thread_time(), int(peak) / 1024)
raise SystemExit(code)
"""


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """Make a memory cgroup of `limit` bytes (version 1 or 2); remove it at the end."""
    first = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if first else CGROUPS) / f"mlcd-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def run(data: Path, output: Path, group: Path | None, *options: object) -> tuple[float, ...]:
    """Cluster in a process of its own.

    Returns wall seconds, CPU seconds, those of the main thread, which does not read, and the peak
    RSS in MiB.
    """
    with data.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = ["cluster", "--embeddings", data, "--output", output, *options]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, words)],
        # The child joins the group before it becomes Python, so that all it takes counts.
        preexec_fn=group and (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"mlcd cluster ended with {done.returncode}")
    return tuple(map(float, done.stdout.split()[-4:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", default="512MiB")
    parser.add_argument("--times", type=float, default=4, help="rows as float32, in limits")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    limit, k, d = parse_size(arguments.limit), arguments.k, arguments.dim
    n = int(arguments.times * limit / (4 * d))
    allowed = limit + 4 * k * d
    options = ["--k", k, "--iterations", arguments.iterations, "--threads", arguments.threads]
    names = {"in memory": 16 * limit, f"limit {arguments.limit}": limit}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    digests = set()
    with tempfile.TemporaryDirectory() as folder, cgroup(allowed) as group:
        data, output = Path(folder) / "e.h5", Path(folder) / "c.h5"
        began = time.monotonic()
        kinds.write(data, "planted", n, d, 3000)
        print(f"{n} × {d} rows, {data.stat().st_size / 2**20:.0f} MiB in the file", flush=True)
        print(f"{4 * n * d / 2**20:.0f} MiB as float32; written", end=" ")
        print(f"in {time.monotonic() - began:.0f} s", flush=True)
        for _ in range(arguments.repeats):
            for name, size in names.items():
                inside = group if size == limit else None
                found[name].append(run(data, output, inside, *options, "--memory-limit", size))
                digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
                print(name, found[name][-1], flush=True)
        (peak,) = (
            int(re.search(r"\d+", (group / name).read_text())[0])
            for name in ("memory.max_usage_in_bytes", "memory.peak")
            if (group / name).exists()
        )
    if len(digests) > 1:
        raise SystemExit("the runs end with different bytes")
    print(f"K = {k}, {arguments.iterations} iterations, {arguments.threads} threads; ", end="")
    print(f"cgroup of {allowed / 2**20:.0f} MiB, {peak / 2**20:.0f} MiB used with page cache\n")
    print("| | wall s | CPU s | of the main thread | peak RSS, MiB | wall | CPU | main thread |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    medians = {
        name: [statistics.median(run[i] for run in runs) for i in range(3)]
        for name, runs in found.items()
    }
    for name, times in medians.items():
        cells = [f"{seconds:.1f}" for seconds in times]
        cells.append(f"{max(run[3] for run in found[name]):.0f}")
        cells += [f"{a / b:.2f} ×" for a, b in zip(times, medians["in memory"], strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
