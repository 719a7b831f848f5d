"""The probe's whole search for C against scikit-learn's LogisticRegression over the same Cs.

    OMP_NUM_THREADS=1 python benchmarks/probe_search.py --repeats 3

Three kinds of rows: isotropic blobs that overlap, the same with a power-law spectrum (column j of
its axes scaled by 1 / √j), and real features: those of random crops of the demo's images through
the packaged encoder (`crops.py`), turned to their first axes. Each contender runs in a fresh
process, in turn within each round, one thread, float32. scikit-learn fits the Cs that ours looked
at, in rising order: each from the fit before (`warm_start`), or each from zero; with its default
tolerance and at most 1,000 iterations. It imports nothing within its time; what our first fit loads
counts. `plain` is ours without early ends, at a tolerance of 1e-8, once: which C is right.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import goals
import machine
import numpy as np
import torch

from mlcd.stages.evaluate import measures, probe

SIZES = ((2000, 128, 20), (4000, 256, 50))
LIMITS, MOST, SHARE = (1e-6, 1e6), 1000, 0.2
CONTENDERS = ("mlcd", "scikit-learn, warm", "scikit-learn, cold")
Rows = tuple[np.ndarray, np.ndarray]


def blobs(n: int, d: int, classes: int) -> Rows:
    rng = np.random.default_rng(0)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    centers = rng.standard_normal((classes, d)) * 0.14
    return centers[y] + rng.standard_normal((n, d)), y


def spectrum(n: int, d: int, classes: int) -> Rows:
    x, y = blobs(n, d, classes)
    axes = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    return (x / np.sqrt(np.arange(1, d + 1))) @ axes, y


def crops(n: int, d: int, classes: int) -> Rows:
    """Features before the projection of crops of the images in the `classes` largest folders."""
    from crops import ROOT, crop
    from PIL import Image

    from mlcd.config.encoders import PACKAGED
    from mlcd.data.members import labeled_members
    from mlcd.models import frozen, unprojected

    rng = np.random.default_rng(0)
    members = [(data, about["folder"]) for _, data, about in
               labeled_members(ROOT / "demo/openclipart.tar")]  # fmt: skip
    _, label = np.unique([folder for _, folder in members], return_inverse=True)
    largest = np.argsort(-np.bincount(label), kind="stable")[:classes]
    chosen = np.flatnonzero(np.isin(label, largest))
    images = {row: Image.open(io.BytesIO(members[row][0])).convert("RGB") for row in chosen}
    encoder = frozen.load(PACKAGED, image_size=96)
    taken = np.r_[chosen, rng.choice(chosen, max(0, n - len(chosen)))][:n]
    found = [
        unprojected.of_frozen(
            encoder, torch.stack([encoder.preprocess(crop(images[row], rng)) for row in part])
        )[1]
        for part in np.array_split(taken, -(-n // 128))
    ]
    x = torch.cat(found).double()
    x -= x.mean(0)
    axes = torch.linalg.eigh(x.T @ x)[1][:, -d:]
    return (x @ axes).numpy(), np.unique(label[taken], return_inverse=True)[1]


def split(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return probe.validation_rows([b"%d" % row for row in range(len(x))], SHARE, 0, y)


def accuracy(fit: probe.Fit, rows: torch.Tensor, targets: torch.Tensor) -> float:
    return measures.accuracy(fit.logits(rows), targets)


def ours(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> dict[float, float]:
    rows, targets, mask = map(torch.from_numpy, (x, y, held))
    return probe.choose(rows, targets, mask, LIMITS, MOST, accuracy).scores


def theirs(
    x: np.ndarray, y: np.ndarray, held: np.ndarray, cs: list[float], warm: bool
) -> dict[float, float]:
    from sklearn.linear_model import LogisticRegression

    # That a fit ended at 1,000 iterations.
    warnings.simplefilter("ignore")
    model = LogisticRegression(max_iter=MOST, warm_start=warm)
    scores = {}
    for c in cs:
        model.set_params(C=c).fit(x[~held], y[~held])
        scores[c] = float((model.predict(x[held]) == y[held]).mean())
    return scores


def run(name: str, path: str, cs: list[float]) -> tuple[dict[float, float], float]:
    """Return scores by C and CPU seconds; for a fresh process."""
    torch.set_num_threads(1)
    with np.load(path) as data:
        x, y, held = data["x"], data["y"], data["held"]
    if name == "plain":
        probe.TOLERANCE = 1e-8
        probe._Settled.__call__ = lambda *_: False  # type: ignore[method-assign]
    elif name != "mlcd":
        few = np.r_[np.unique(y, return_index=True)[1], 0]
        theirs(x[few], y[few], np.zeros(len(few), bool) | (np.arange(len(few)) == len(few) - 1),
               [1.0], False)  # fmt: skip
    start = time.process_time()
    if name in ("mlcd", "plain"):
        scores = ours(x, y, held)
    else:
        scores = theirs(x, y, held, cs, name.endswith("warm"))
    return scores, time.process_time() - start


def best(scores: dict[float, float]) -> float:
    return max(scores, key=lambda c: (scores[c], -c))


def compare(kind: str, size: tuple[int, int, int], repeats: int, folder: str) -> None:
    x, y = {"blobs": blobs, "spectrum": spectrum, "crops": crops}[kind](*size)
    x = np.ascontiguousarray((x - x.mean(0)) / x.std(), np.float32)
    path = str(Path(folder, "rows.npz"))
    np.savez(path, x=x, y=y.astype(np.int64), held=split(x, y))
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    scores: dict[str, dict[float, float]] = {}
    cs: list[float] = []
    context = multiprocessing.get_context("spawn")
    for turn in range(repeats):
        for name in (*CONTENDERS, *(["plain"] if turn == 0 else [])):
            with context.Pool(1) as pool:
                scores[name], seconds = pool.apply(run, (name, path, cs))
            cs = list(scores["mlcd"])
            times.setdefault(name, []).append(seconds)
    first = statistics.median(times["scikit-learn, warm"])
    title = f"{kind}, {size[0]} × {size[1]}, {size[2]} classes"
    for name, found in times.items():
        middle, c = statistics.median(found), best(scores[name])
        print(
            f"| {title} | {name} | {middle:.2f} ({min(found):.2f} to {max(found):.2f}) | "
            f"{middle / first:.2f} | {len(scores[name])} | {c:g} | {scores[name][c]:.4f} |",
            flush=True,
        )
    peers = {name: times[name] for name in CONTENDERS[1:]}
    goals.state(f"probe, search for C, {title}", times["mlcd"], peers, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["blobs", "spectrum", "crops"])
    arguments = parser.parse_args()
    print(machine.description(), end="\n\n")
    print("| rows | search | CPU s | times scikit-learn, warm | fits | C | validation accuracy |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for kind in arguments.kinds:
                compare(kind, size, arguments.repeats, folder)


if __name__ == "__main__":
    main()
