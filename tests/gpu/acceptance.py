"""Acceptance on one GPU in under ten minutes: what no CPU can prove.

    make test-gpu                                  on a machine with a GPU
    make test-gpu GPU=--tiny                       every step small, on a CPU
    python3 tests/gpu/acceptance.py --wheels DIR   on a bare machine: torch, a folder of wheels

Each step is a child process with a time limit of its own, so that one that fails or hangs costs no
other. A step prints one line of JSON: its verdict (met, missed: it runs but not as fast as its
goal, failed, left out), its goal, and its figures, times as least, median and greatest. All lines
are in --output too. Exits with 1 unless every verdict is met.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Step(NamedTuple):
    """`function` of a module of this folder, its limit in seconds, and its goal in words."""

    function: str
    limit: int
    goal: str


STEPS = {
    "ceilings": Step("compute.ceilings", 30, "products and copies of this GPU, for the others"),
    "classifier_exact": Step(
        "compute.classifier_exact", 40, "within 2e-5 (float32) and 8e-3 (bfloat16) of float64"
    ),
    "classifier_speed": Step("compute.classifier_speed", 40, "125,000 × 768, 32,768 rows: < 35 ms"),
    "zero": Step("compute.zero", 90, "losses of ZeRO 0 to 3 within 1e-5 (fp32) and 3e-2 (bf16)"),
    "training_step": Step("compute.training_step", 180, "ViT-L/14, K = 1M: ≥ 50 % of bf16 peak"),
    "data": Step("files.data", 60, "mlcd train decodes and crops ≥ 900 images/s"),
    "embed": Step("files.embed", 60, "≥ 87 % of the slower of decoder and encoder"),
    "search": Step("compute.search", 50, "K = 1M: ≥ 60 % of fp16 peak, ids those of float64"),
    "probe": Step("compute.linear_probe", 50, "loss within 1e-4 of the CPU's"),
    "checkpoint": Step("files.checkpoint", 40, "training stands still < 1.5 s, the bytes are back"),
}
#: Seconds of all steps.
LIMIT = 570
#: Needed besides torch: the stages' own libraries, without Snakemake's and those of downloads.
WHEELS = (
    "numpy", "h5py", "scipy", "pandas", "pyarrow", "pydantic", "pyyaml", "pillow", "safetensors",
    "scikit-learn", "threadpoolctl", "tqdm", "psutil", "timm", "open_clip_torch", "deepspeed",
    "submitit", "tensorboard", "torchvision", "opencv-python-headless", "huggingface_hub",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small, on a CPU; no goals of speed")
    parser.add_argument("--only", default="", metavar="STEP,STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--output", type=Path, default=Path("gpu-acceptance.jsonl"))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of all steps [570]")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR",
        help="first make an environment from this machine's torch and these wheels",
    )  # fmt: skip
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.only.split(","))) - set(STEPS)
    if unknown:
        parser.error(f"--only: no such step: {', '.join(sorted(unknown))}")
    if arguments.wheels:
        return in_own_environment(arguments.wheels)
    return run(arguments)


def in_own_environment(wheels: Path) -> int:
    """Run the same command in an environment made of this one's torch and `wheels`."""
    with tempfile.TemporaryDirectory(prefix="mlcd-gpu-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        python = Path(folder, "bin/python")
        # What is here is there too, also where this is an environment of its own.
        (site,) = Path(folder, "lib").glob("python*/site-packages")
        here = [path for path in sys.path if path.endswith("-packages")]
        (site / "here.pth").write_text("\n".join(here) + "\n")
        faiss = "faiss-gpu" if list(wheels.glob("faiss_gpu*")) else "faiss-cpu"
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*pip, "--no-index", "--find-links", wheels, *WHEELS, faiss], check=True)
        words = list(sys.argv[1:])
        for number, word in enumerate(words):
            if word.startswith("--wheels"):
                del words[number : number + (1 if "=" in word else 2)]
                break
        return subprocess.run([python, __file__, *words]).returncode


def run(arguments: argparse.Namespace) -> int:
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    if arguments.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Children are forks of this process: libraries are imported once, and CUDA is not begun here.
    for name in ("gpu.compute", "gpu.files"):
        importlib.import_module(name)
    began, ceilings, verdicts = time.monotonic(), {}, []
    for name in arguments.only.split(",") if arguments.only else STEPS:
        limit = min(STEPS[name].limit, arguments.limit - (time.monotonic() - began))
        line = {"step": name, "goal": STEPS[name].goal, **one(name, limit, arguments, ceilings)}
        if name == "ceilings" and line["verdict"] == "met":
            ceilings = {key: value for key, value in line.items() if key.startswith(("bf", "fl"))}
        verdicts.append(line["verdict"])
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        with arguments.output.open("a") as file:
            file.write(text + "\n")
    return 0 if set(verdicts) == {"met"} else 1


def one(
    name: str, limit: float, arguments: argparse.Namespace, ceilings: dict[str, float]
) -> dict[str, Any]:
    """Run a step in a child of its own; return its verdict, figures and seconds."""
    if limit < 5:
        return {"verdict": "left out", "why": "no time was left"}
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(name, arguments.tiny, ceilings, sender))
    child.start()
    sender.close()
    found: dict[str, Any]
    try:
        if receiver.poll(limit):
            found = receiver.recv()
        else:
            found = {"verdict": "failed", "why": f"took more than {limit:.0f} s"}
    except EOFError:
        child.join()
        found = {"verdict": "failed", "why": f"its process ended with {child.exitcode}"}
    finally:
        end(child)
    return {**found, "wall_s": round(time.monotonic() - began, 1)}


def end(child: multiprocessing.process.BaseProcess) -> None:
    """End a child and all that it started."""
    child.join(2)
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.join()


def in_child(name: str, tiny: bool, ceilings: dict[str, float], sender: Connection) -> None:
    """Run a step in its own group of processes, what it says on stderr; send what it found."""
    os.setsid()
    os.dup2(2, 1)
    try:
        import torch

        from gpu.measuring import Setting

        if not (tiny or torch.cuda.is_available()):
            raise RuntimeError("torch sees no GPU here; --tiny runs on a CPU")
        torch.set_num_threads(1 if tiny else os.cpu_count() or 1)
        module, function = STEPS[name].function.split(".")
        setting = Setting(tiny, "cpu" if tiny else "cuda", ceilings)
        outcome = getattr(importlib.import_module(f"gpu.{module}"), function)(setting)
        sender.send({"verdict": "met" if outcome.met else "missed", **outcome.figures})
    except BaseException as error:
        traceback.print_exc()
        sender.send({"verdict": "failed", "why": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    raise SystemExit(main())
