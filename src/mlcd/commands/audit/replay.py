"""Run a stage again in a scratch folder, from the inputs and the section that were recorded.

Equal bytes are proof that this code, on this machine, makes the file of these inputs. Other
machines may round otherwise (training, encoders): the largest difference is then said.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.commands.audit.nodes import Node, collect
from mlcd.utils.records import read_record

#: Relative difference of numbers that still counts as equal within rounding.
TOLERANCE = 1e-3

#: Why what lies in a folder of the results is not made again.
_CANNOT = {
    "urls": "its list is no part of the results; run mlcd prepare with it",
    "images": "the web may have changed; --bytes compares them",
    "export": "it is compared with the weights by its outputs (--numbers)",
    "text": "its training is not run again",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a replayed file compares: `verdict` is equal, close, different or unknown."""

    path: str
    verdict: str
    what: str


class Cannot(Exception):
    """A file whose stage cannot be run again from what is here, or failed; it says why."""


def replay(results: Path, lock: dict[str, Any], path: str, scratch: Path) -> Outcome:
    """Make the file `path` (below `results`) again below `scratch`, and compare it."""
    try:
        run_again(results, lock["stages"], path, scratch)
    except Cannot as why:
        return Outcome(path, "unknown", str(why))
    nodes, problems, _ = collect(scratch)
    if path not in nodes:
        said = problems[0].what if problems else "the stage wrote no such file"
        return Outcome(path, "unknown", said)
    node = nodes[path]
    if node.hash == lock["files"][path]["hash"]:
        return Outcome(path, "equal", f"{node.of}: {node.hash[:16]}…")
    return _compared(results / path, scratch / path, node)


def run_again(results: Path, stages: dict[str, Any], path: str, scratch: Path) -> None:
    """Run the stage that writes `path`; its output lies at the same place below `scratch`.

    `stages`: of the lock, with section and how it ran. Raises :class:`Cannot`.
    """
    output = scratch / path
    output.parent.mkdir(parents=True, exist_ok=True)
    stage, words = _command(results, stages, Path(path))
    target = output.parent if stage == "train" else output
    section = json.dumps(stages[stage]["section"])
    done = subprocess.run(
        [sys.executable, "-m", "mlcd", stage, *words, "--output", str(target), "--config", section],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Cannot(said[-1] if said else f"mlcd {stage} ended with {done.returncode}")


def _command(results: Path, stages: dict[str, Any], place: Path) -> tuple[str, list[str]]:
    """Return the stage that writes `place`, and its command line without output and section."""
    chunk, folder = place.stem, place.parts[0]
    centroids = ["--centroids", str(results / "clusters" / "centroids.h5")]
    if folder == "embeddings":
        images = results / "images" / chunk / "manifest.json"
        return "embed", ["--images", str(images), "--threads", "1"]
    if place == Path("clusters/centroids.h5"):
        return "cluster", ["--embeddings", *_all(results / "embeddings")]
    if place == Path("labels/summary.json"):
        return "label", ["--summarize", *_all(results / "labels"), *centroids]
    if folder == "labels":
        return "label", ["--embeddings", str(results / "embeddings" / place.name), *centroids]
    if folder == "train" and place.suffix in (".safetensors", ".json"):
        ranks = stages["train"]["how"].get("ranks", 1)
        names = [Path(labels).stem for labels in _all(results / "labels")]
        manifests = [str(results / "images" / name / "manifest.json") for name in names]
        vectors = [str(results / "embeddings" / f"{name}.h5") for name in names]
        wide = [f"--ranks-per-node={ranks}", "--threads=1", "--device=cpu"]
        return "train", ["--labels", *_all(results / "labels"), "--embeddings", *vectors,
                         "--images", *manifests, *centroids, *wide]  # fmt: skip
    if folder == "evaluate":
        return "evaluate", _evaluate(results, stages, place)
    raise Cannot(_CANNOT.get(folder, "no stage that can be run again writes it"))


def _evaluate(results: Path, stages: dict[str, Any], place: Path) -> list[str]:
    here, encoder = results / "evaluate", ["--encoder", str(results / "train")]
    if place.parent.name == "features":
        model, _, dataset = place.stem.partition("-")
        words = ["--part", "features", "--model", model, "--dataset", dataset]
        if model == "frozen":
            return [*words, "--embed-config", json.dumps(stages["embed"]["section"])]
        return words if model == "pixels" else [*words, *encoder]
    if place.parent.name != "evaluate" or place.suffix != ".json":
        raise Cannot("it shows what the scores say, which --numbers compares with it")
    names = [dataset["name"] for dataset in stages["evaluate"]["section"]["datasets"]]
    features = [str(here / "features" / f"{place.stem}-{name}.h5") for name in names]
    # One thread, as the rule has it: the fit of a probe sums over threads.
    words = ["--part", "metrics", "--features", *features, "--threads", "1"]
    if place.stem == "trained" and (results / "text" / "text.json").is_file():
        words += ["--text", str(results / "text"), *encoder]
        words += ["--texts", *texts] if (texts := _all(here / "texts")) else []
    return words


def _all(folder: Path) -> list[str]:
    """Return the HDF5 files of a folder, sorted."""
    return sorted(map(str, folder.glob("*.h5")))


def _compared(old: Path, new: Path, node: Node) -> Outcome:
    """Compare the numbers of two files that differ."""
    if old.suffix == ".json":
        if difference := scores_differ(old, new):
            return Outcome(node.path, "different", difference)
        return Outcome(node.path, "close", f"numbers equal within {TOLERANCE:g}")
    worst = 0.0
    for name, first, second in _arrays(old, new):
        if first.shape != second.shape:
            return Outcome(node.path, "different", f"{name}: another shape")
        if not np.issubdtype(first.dtype, np.floating):
            if not np.array_equal(first, second):
                share = float(np.mean(first != second))
                return Outcome(node.path, "different", f"{name}: {share:.2%} of entries differ")
            continue
        scale = max(1e-12, float(np.abs(first).max(initial=0)))
        gap = np.abs(first.astype(np.float64) - second.astype(np.float64)).max(initial=0)
        worst = max(worst, float(gap) / scale)
    verdict = "close" if worst <= TOLERANCE else "different"
    return Outcome(node.path, verdict, f"largest difference {worst:.2g} of the largest number")


def _arrays(old: Path, new: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if old.suffix == ".safetensors":
        from safetensors.numpy import load_file

        first, second = load_file(old), load_file(new)
        return [(name, first[name], second[name]) for name in first if name in second]
    import h5py

    with h5py.File(old) as a, h5py.File(new) as b:
        return [(name, a[name][()], b[name][()]) for name in a if name in b]


def scores_differ(old: Path, new: Path) -> str:
    """Return the first number that differs between two records of scores, in words; '' if none."""
    known = dict(_numbers(read_record(new, "evaluate"), ""))
    for where, one in _numbers(read_record(old, "evaluate"), ""):
        other = known.get(where)
        if other is None:
            return f"{where}: {one:.6g} recorded, none now"
        if abs(one - other) > TOLERANCE * max(1.0, abs(one)):
            return f"{where}: {one:.6g} recorded, {other:.6g} now"
    return ""


def _numbers(value: Any, where: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, one in value.items() if "second" not in str(key)
                for pair in _numbers(one, f"{where} {key}".strip())]  # fmt: skip
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(where, float(value))]
    return []
