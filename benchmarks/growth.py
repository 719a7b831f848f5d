"""How the cost of a stage grows: exponents of CPU seconds in N, K, d and the batch.

    python benchmarks/growth.py [--only cluster] [--repeats 3]

Each stage runs at three sizes of one quantity, the others being fixed, with one thread. The sizes
take turns. The exponent is the slope of log(CPU seconds) over log(size), of the least times, after
what a run of few rows takes: 1 is in proportion. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plan
import planted
import torch

sys.path.insert(0, str(plan.SOURCE))

from mlcd.classifier import ShardedClassifier
from mlcd.classifier.sampler import NegativeSampler

#: A measurement: CPU seconds of one run at a size.
Measure = Callable[[int], float]
#: CPU seconds of the start of a program; None where no program starts.
Base = Callable[[], float] | None
INLINE = ("--launcher", "inline", "--threads", 1)


class Files:
    """Planted embeddings and centroids of each size, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, n: int, d: int) -> Path:
        """Return embeddings float16 [n, d]."""
        path = self._folder / f"rows-{n}-{d}.h5"
        if not path.exists():
            planted.write(path, n, d, wide=200, narrow=max(200, n // 20))
        return path

    def centroids(self, k: int, d: int) -> Path:
        """Return K centroids as stage cluster writes them."""
        path = self._folder / f"centers-{k}-{d}.h5"
        if not path.exists():
            rows = self.rows(4 * k, d)
            plan.run("cluster", "--embeddings", rows, "--output", path, "--k", k,
                     "--iterations", 1, *INLINE)  # fmt: skip
        return path

    def cluster(self, n: int, d: int, k: int, *options: object) -> float:
        """Return CPU seconds of k-means: three passes."""
        output = self._folder / "c.h5"
        output.unlink(missing_ok=True)
        return plan.run("cluster", "--embeddings", self.rows(n, d), "--output", output, "--k", k,
                        "--iterations", 3, *INLINE, *options)[1]  # fmt: skip

    def label(self, n: int, d: int, k: int) -> float:
        """Return CPU seconds of stage label, l = 8."""
        output = self._folder / "l.h5"
        output.unlink(missing_ok=True)
        return plan.run("label", "--embeddings", self.rows(n, d), "--centroids",
                        self.centroids(k, d), "--output", output, "--top", 8,
                        "--threads", 1)[1]  # fmt: skip


def classifier(batch: int, k: int, d: int) -> float:
    """Return CPU seconds of loss and classifier, forward and backward, r = 0.1."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = ShardedClassifier(k, d, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
                             negative_ratio=0.1, seed=0)  # fmt: skip
    features = torch.randn(batch, d, requires_grad=True)
    labels = torch.randint(0, k, (batch, 8))
    head(features, labels, 0).backward()
    head.zero_grad()
    start = time.process_time()
    head(features, labels, 1).backward()
    return time.process_time() - start


def negatives(k: int) -> float:
    """Return CPU seconds of the negatives of a step, r = 0.1, on one rank of one."""
    sampler = NegativeSampler(k, k // 10, seed=0)
    sampler.draw(0, 0, k)
    start = time.process_time()
    for step in range(1, 6):
        sampler.draw(step, 0, k)
    return (time.process_time() - start) / 5


def measures(files: Files) -> dict[str, tuple[list[int], Measure, Base]]:
    """Return row → its sizes, the measurement, and what a run of next to nothing takes."""

    def start() -> float:
        return files.cluster(2048, 64, 8)

    def label() -> float:
        return files.label(64, 64, 64)

    two = ("--mode", "two_level", "--refinements", 1)
    return {
        "cluster, exact, N": ([25_000, 50_000, 100_000],
                              lambda n: files.cluster(n, 128, 1024), start),
        "cluster, exact, K": ([512, 1024, 2048],
                              lambda k: files.cluster(50_000, 128, k), start),
        "cluster, exact, d": ([64, 128, 256],
                              lambda d: files.cluster(50_000, d, 1024), start),
        "cluster, two_level, K": ([1024, 4096, 16_384],
                                  lambda k: files.cluster(100_000, 64, k, *two), start),
        "label, exact, N": ([8192, 16_384, 32_768],
                            lambda n: files.label(n, 128, 4096), label),
        "label, exact, K": ([2048, 4096, 8192],
                            lambda k: files.label(16_384, 128, k), label),
        "train, loss and classifier, batch": ([256, 512, 1024],
                                              lambda b: classifier(b, 50_000, 256), None),
        "train, loss and classifier, K": ([25_000, 50_000, 100_000],
                                          lambda k: classifier(512, k, 256), None),
        "train, loss and classifier, d": ([128, 256, 512],
                                          lambda d: classifier(512, 50_000, d), None),
        "train, negatives of a step, K": ([250_000, 500_000, 1_000_000], negatives, None),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", metavar="WORD", help="rows that begin so [all]")
    arguments = parser.parse_args()
    print("| sizes | CPU s | exponent |\n|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for row, (sizes, measure, start) in measures(Files(Path(folder))).items():
            if not row.startswith(arguments.only):
                continue
            base = min(start() for _ in range(arguments.repeats)) if start else 0.0
            taken = np.array([[measure(size) for size in sizes] for _ in range(arguments.repeats)])
            seconds = np.maximum(taken.min(0) - base, 1e-6)
            slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            shown = ", ".join(f"{value:.3g}" for value in seconds)
            of = ", ".join(f"{size:,}" for size in sizes)
            print(f"| {row} = {of} | {shown} | {slope:.2f} |", flush=True)


if __name__ == "__main__":
    main()
