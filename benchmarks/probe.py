"""The linear probe against scikit-learn's: loss, accuracy, time and memory of one fit each.

    python benchmarks/probe.py --features results/evaluate/features/*-*.h5 --c 0.01 1

Both minimize the same objective on the same rows (train, centered and scaled as the probe does)
from zero, with at most 1,000 iterations and --threads, in turn in this process, or with --memory
each in a fresh one, whose peak is then known. Losses are taken in float64. `tight` is scikit-learn
in float64 with a tolerance of 1e-7 and 10,000 iterations, for the minimum itself; it takes long.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measure import _status
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mlcd.stages.evaluate import probe
from mlcd.stages.evaluate.cached import read

Solution = tuple[np.ndarray, np.ndarray, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs="+", required=True, metavar="H5")
    parser.add_argument("--c", type=float, nargs="+", default=[0.01, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, help="train rows at most, evenly spread [all]")
    parser.add_argument("--tight", action="store_true")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    fits = {"mlcd": ours, "scikit-learn": partial(theirs, dtype=np.float32, tol=1e-4, most=1000)}
    if arguments.tight:
        fits["tight"] = partial(theirs, dtype=np.float64, tol=1e-7, most=10_000)
    print("| set | C | probe | loss | test accuracy | iterations | CPU s | wall s | peak MB |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for path in arguments.features:
        x, y, test_x, test_y, name = load(path, arguments.rows)
        shape = f"{name}, {x.shape[0]} × {x.shape[1]}, {y.max() + 1} classes"
        for c in arguments.c:
            run = alone if arguments.memory else measured
            for label, fit in fits.items():
                (weight, bias, iterations), cpu, wall, peak = run(
                    fit, path, c, arguments.threads, arguments.rows
                )
                loss = objective(weight, bias, x, y, c)
                right = float(((test_x @ weight + bias).argmax(1) == test_y).mean())
                memory = f"{peak / 1e6:.0f}" if arguments.memory else ""
                print(f"| {shape} | {c:g} | {label} | {loss:.6f} | {right:.4f} | {iterations} | "
                      f"{cpu:.2f} | {wall:.2f} | {memory} |", flush=True)  # fmt: skip


def load(path: str, rows: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Return train rows and classes, test rows and classes, scaled by train, and a name."""
    data = read(path, torch.device("cpu"))
    train, test = data.on("train", "validation"), data.on("test")
    columns = data.for_probe("trunk")
    features = probe.Scale.of(columns[torch.from_numpy(train)])(columns).numpy()
    chosen = np.flatnonzero(train)
    if rows is not None and rows < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, rows).astype(int)]
    return features[chosen], data.label[chosen], features[test], data.label[test], data.dataset


def ours(x: np.ndarray, y: np.ndarray, c: float) -> Solution:
    found = probe.fit(probe.Rows(torch.from_numpy(x)), torch.from_numpy(y), c, 1000)
    return found.weight.numpy(), found.bias.numpy(), found.iterations


def theirs(
    x: np.ndarray, y: np.ndarray, c: float, *, dtype: type, tol: float, most: int
) -> Solution:
    found = LogisticRegression(C=c, max_iter=most, tol=tol).fit(x.astype(dtype), y)
    return found.coef_.T, found.intercept_, int(found.n_iter_[0])


def objective(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray, c: float
) -> float:
    """The objective of :mod:`mlcd.stages.evaluate.probe` in float64."""
    logits = x.astype(np.float64) @ weight.astype(np.float64) + bias
    loss = (logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).mean()
    return float(loss + np.square(weight.astype(np.float64)).sum() / (2 * c * len(y)))


def alone(
    fit: Callable[..., Solution], path: str, c: float, threads: int, rows: int | None
) -> tuple[Solution, float, float, int]:
    """Run a fit in a fresh process: its solution, CPU and wall seconds, peak bytes over inputs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (fit, path, c, threads, rows))


def measured(
    fit: Callable[..., Solution], path: str, c: float, threads: int, rows: int | None
) -> tuple[Solution, float, float, int]:
    torch.set_num_threads(threads)
    x, y = load(path, rows)[:2]
    # Both libraries' first call loads code: a fit of a few rows comes before.
    few = np.r_[np.unique(y, return_index=True)[1], 0]
    with threadpool_limits(threads):
        fit(x[few], y[few], c)
        before = _status("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        found = fit(x, y, c)
        return (
            found,
            time.process_time() - cpu,
            time.perf_counter() - wall,
            max(0, _status("VmHWM") - before),
        )


if __name__ == "__main__":
    main()
