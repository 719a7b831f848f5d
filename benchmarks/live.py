"""What live scores cost a training: the same one without them and with them, in turn.

    python benchmarks/live.py --results results [--repeats 3] [--every 4]

Trains the encoder of a demo's config for one epoch on a chunk of its results, as one rank, and has
each `every`-th step scored on images of the demo's labeled set. A step's seconds are the median
over the lines of metrics.jsonl. The training's CPU seconds are those of its own process, from its
start to its end; the scores' are those of the process beside it. The load is what else waits for
the processors of this machine, before each training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import machine  # noqa: E402

from mlcd.utils.records import parse_line, read_record  # noqa: E402

BATCH = 32


class Cost(NamedTuple):
    """Seconds of a training; `load` before it, `scores` that came."""

    step: float
    own_cpu: float
    scores_cpu: float
    load: float
    scores: int


def train(results: Path, output: Path, live: str) -> Cost:
    """Train in a process of its own; `live` is a section evaluate as JSON."""
    (chunk, *_) = sorted((results / "labels").glob("*.h5"))
    section = dict(read_record(results / "train" / "encoder.json", "train")["section"])
    section |= {"batch_size": BATCH, "epochs": 1, "log_every": 1, "initial": None}
    section |= {"high_res_image_size": None, "warmup_steps": 1}
    command = [
        sys.executable, "-m", "mlcd", "train", "--labels", str(chunk),
        "--embeddings", str(results / "embeddings" / chunk.name),
        "--images", str(results / "images" / chunk.stem / "manifest.json"),
        "--centroids", str(results / "clusters" / "centroids.h5"), "--output", str(output),
        "--launcher", "inline", "--ranks-per-node", "1", "--workers", "0", "--threads", "1",
        "--checkpoint-every", "4", "--config", json.dumps(section), "--live", live,
    ]  # fmt: skip
    load, before = os.getloadavg()[0], _children()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with output.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        watched, own = psutil.Process(process.pid), 0.0
        while process.poll() is None:
            try:
                times = watched.cpu_times()
                own = max(own, times.user + times.system)
                process.wait(0.05)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, subprocess.TimeoutExpired):
                continue
    if process.returncode:
        said = output.with_suffix(".log").read_text()[-3000:]
        raise SystemExit(f"{said}\nthe training ended with {process.returncode}")
    lines = [parse_line(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    step = statistics.median(BATCH / line["images_per_s"] for line in lines)
    scored = output / "live.jsonl"
    count = len(scored.read_text().splitlines()) if scored.exists() else 0
    return Cost(step, own, _children() - before - own, load, count)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--images", type=int, default=200, help="labeled images of a score")
    arguments = parser.parse_args()
    few = {"name": "openclipart", "path": str(ROOT / "demo" / "openclipart.tar"),
           "label_field": "top"}  # fmt: skip
    on = {"datasets": [few], "live_every": arguments.every, "live_images": arguments.images}
    ways = {"without": "", "with": json.dumps(on)}
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.repeats):
            for name, live in ways.items():
                cost = train(arguments.results, Path(folder) / f"{name}{number}", live)
                found[name].append(cost)
                print(f"{name}: {cost}", file=sys.stderr, flush=True)
    print(machine.description())
    print("\n| live scores | ms per step | CPU s of the training | CPU s of the scores | scores "
          "| load before |\n|---|--:|--:|--:|--:|--:|")  # fmt: skip
    for name, costs in found.items():
        steps = _of([1000 * cost.step for cost in costs], 0)
        own = _of([cost.own_cpu for cost in costs], 1)
        scores_cpu = _of([max(0.0, cost.scores_cpu) for cost in costs], 1)
        load = _of([cost.load for cost in costs], 1)
        counts = _of([float(cost.scores) for cost in costs], 0)
        print(f"| {name} | {steps} | {own} | {scores_cpu} | {counts} | {load} |")


def _of(values: list[float], digits: int) -> str:
    """Return median (least–most)."""
    least, middle, most = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


if __name__ == "__main__":
    main()
