"""Does it learn? Train and evaluate with several seeds; print means and 95 % intervals.

    python benchmarks/seeds.py --results results --output seeds --seeds 0 1 2

takes the labels, embeddings, images and centroids of a finished run, trains once per seed with the
sections of --config (seed s for weights, order, crops and negatives), evaluates pixels, random
weights of the same seed and the trained encoder (`--models` names others, such as frozen), and puts
the table into OUTPUT/seeds.md. A seed is not trained, and not evaluated, again while the config,
inputs and code of that stage are the ones in seed-S/train.identity.json and evaluate.identity.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import stats

from mlcd.config import Config, load
from mlcd.data.centroids import Centroids
from mlcd.data.labeled import layout
from mlcd.data.labels import Labels
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json, write_text
from mlcd.utils.fingerprint import code_hash


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=["pixels", "random", "trained"])
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    config = load(arguments.config)
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed in arguments.seeds:
        for row in one_seed(arguments, config, seed):
            values[row["dataset"], row["metric"], row["model"]].append(float(row["value"]))
    text = report(values, len(arguments.seeds))
    write_text(arguments.output / "seeds.md", text)
    print(text)


def one_seed(arguments: argparse.Namespace, config: Config, seed: int) -> list[dict[str, str]]:
    """Train and evaluate with one seed, or take what is there; return the summary's rows."""
    folder = arguments.output / f"seed-{seed}"
    summary = folder / "evaluate" / "summary.csv"
    common = ["--config", arguments.config, "--seed", str(seed)]
    results = arguments.results
    trained = train_identity(arguments, config, seed)
    judged = {"train": trained, **evaluate_identity(arguments, config, seed)}
    with once(folder / "train.identity.json", trained, folder / "train/encoder.json") as needed:
        if needed:
            run(
                "train", *common, "--output", folder / "train",
                "--labels", *sorted((results / "labels").glob("*.h5")),
                "--embeddings", *sorted((results / "embeddings").glob("*.h5")),
                "--images", *sorted((results / "images").glob("*/manifest.json")),
                "--centroids", results / "clusters" / "centroids.h5",
                "--ranks-per-node", arguments.ranks,
            )  # fmt: skip
    with once(folder / "evaluate.identity.json", judged, summary) as needed:
        if needed:
            run(
                "evaluate", *common, "--encoder", folder / "train", "--output", summary.parent,
                "--embed-config", arguments.config, "--models", *arguments.models,
            )  # fmt: skip
    with summary.open(newline="") as handle:
        return list(csv.DictReader(handle))


@contextlib.contextmanager
def once(record: Path, identity: dict[str, Any], output: Path) -> Iterator[bool]:
    """Yield whether `output` must be made, and record `identity` once it has been.

    A record is removed before the work: a run cut off is never taken for a whole one.
    """
    needed = not output.exists() or recorded(record) != identity
    if needed:
        record.unlink(missing_ok=True)
    yield needed
    if needed:
        write_json(record, identity)


def train_identity(arguments: argparse.Namespace, config: Config, seed: int) -> dict[str, Any]:
    """Return what the encoder of one seed depends on: config, inputs and code."""
    labels = sorted((arguments.results / "labels").glob("*.h5"))
    if not labels:
        raise UserError(f"{arguments.results}/labels: holds no labels; give a finished run")
    return {
        "section": config.train.model_copy(update={"seed": seed}).model_dump(mode="json"),
        "centroids": Centroids(arguments.results / "clusters" / "centroids.h5").fingerprint,
        "labels": [Labels(path).fingerprint for path in labels],
        "ranks": arguments.ranks,
        "code": code_hash("train"),
    }


def evaluate_identity(arguments: argparse.Namespace, config: Config, seed: int) -> dict[str, Any]:
    """Return what the scores of one seed depend on, besides the encoder."""
    section = config.evaluate.model_copy(update={"seed": seed, "models": arguments.models})
    return {
        "section": section.model_dump(mode="json"),
        "datasets": [layout.identity(dataset) for dataset in config.evaluate.datasets],
        "frozen": config.embed.model_dump(mode="json") if "frozen" in arguments.models else None,
        "code": code_hash("evaluate"),
    }


def recorded(path: Path) -> dict[str, Any] | None:
    """Return the identity in a file; None if it is not there or not whole."""
    try:
        return read_json(path)
    except UserError:
        return None


def run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "mlcd", *map(str, words)], check=True)


def interval(values: list[float]) -> str:
    """Return mean ± half of the 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {stats.t.ppf(0.975, len(values) - 1) * spread:.4f}"


def report(values: dict[tuple[str, str, str], list[float]], seeds: int) -> str:
    """Return a table per data set and metric, and the gain of the trained encoder seed by seed."""
    lines = [f"Mean and 95 % interval (Student's t) over {seeds} seeds.", ""]
    for dataset, metric in dict.fromkeys(key[:2] for key in values):
        lines += [f"## {dataset}, {metric}", "", "| model | value |", "|---|---:|"]
        here = {key[2]: found for key, found in values.items() if key[:2] == (dataset, metric)}
        lines += [f"| {model} | {interval(found)} |" for model, found in here.items()]
        for other in ("random", "pixels"):
            if other in here and "trained" in here:
                gains = [a - b for a, b in zip(here["trained"], here[other], strict=True)]
                lines.append(f"| trained − {other} | {interval(gains)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"seeds: {error}")
