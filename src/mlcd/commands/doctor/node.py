"""One short job per partition: what a node sees of the disk, the environment and the GPU.

Run as a program, on the node: `python -m mlcd.commands.doctor.node` prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlcd
from mlcd.commands.doctor.checks import Check, fail, ok, warn
from mlcd.commands.doctor.demands import Demand
from mlcd.commands.doctor.here import package_versions
from mlcd.commands.doctor.slurm_cluster import place

#: What the stages import, as modules.
_MODULES = ("torch", "faiss", "h5py", "open_clip", "timm", "img2dataset", "deepspeed", "submitit")
#: Seconds that a file of another machine may take to show on a network disk.
_LATENCY = 30
#: Seconds by which clocks may differ: Snakemake and make compare times of files.
_SKEW = 5.0
# The file is looked at by the shell, so that a missing Python is told from a missing disk.
_SCRIPT = """
echo "node:${SLURMD_NODENAME:-$(hostname)}"
if [ "$(cat "$1/token" 2>/dev/null)" = "$2" ]; then
    echo "read:yes"; echo "$2" > "$1/reply"
else
    echo "read:no"
fi
exec "$3" -m mlcd.commands.doctor.node
"""


#: A product and random numbers by torch, a search by faiss if it is built for GPUs.
_BOTH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import faiss, numpy, torch
rows = torch.randn(256, 64, device="cuda")
found = (rows @ rows.T).argmax(1).cpu()
assert bool((found == torch.arange(256)).all()), "torch: a wrong product"
if hasattr(faiss, "GpuIndexFlatIP"):
    rows = torch.nn.functional.normalize(rows).cpu().numpy()
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 64)
    index.add(rows)
    assert (index.search(rows, 1)[1][:, 0] == numpy.arange(256)).all(), "faiss: a wrong search"
"""


def checks(asked: list[Demand], results: Path, wait: int, memories: list[int]) -> Iterator[Check]:
    """Run the job in each partition of `asked`; `results` is the folder that all jobs share.

    The bytes of memory of each GPU that is seen go to `memories`.
    """
    for demand in asked:
        results.mkdir(parents=True, exist_ok=True)
        folder = results.absolute() / f".doctor-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield from _look(demand, folder, wait, memories)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _look(demand: Demand, folder: Path, wait: int, memories: list[int]) -> Iterator[Check]:
    title = f"node of {demand.partition}"
    token = secrets.token_hex(8)
    (folder / "token").write_text(token)
    one = [option for option in place(demand) if not option.startswith("--gres")]
    if demand.gpu:
        # One GPU tells as much as eight, and comes sooner.
        one.append("--gres=" + ":".join([*demand.gres.split(":")[:-1], "1"]))
    command = ["srun", f"--immediate={wait}", "--nodes=1", "--ntasks=1", "--time=5",
               f"--mem={min(demand.memory, 4000)}", "--job-name=mlcd-doctor", "--quiet", *one,
               "sh", "-c", _SCRIPT, "doctor", str(folder), token, sys.executable]  # fmt: skip
    # Asked from within a job, srun would stay on that job's node.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_JOB", "SLURM_N"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait + 300,
                              env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        yield fail(title, "the job did not end in five minutes", "look at it: squeue --me --long")
        return
    told = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    if "node" not in told:
        yield _no_job(title, done.stderr, wait)
        return
    yield _shared(told, folder, token)
    if "python" not in told:
        lines = done.stderr.strip().splitlines()
        yield fail(
            "environment", f"{told['node']} cannot start {sys.executable} with mlcd: "
            f"{lines[-1] if lines else 'no word'}",
            "put the environment and the project on a disk that the nodes share",
        )  # fmt: skip
        return
    seen = json.loads(told["python"])
    yield _environment(told["node"], seen)
    yield _clock(told["node"], seen)
    if demand.gpu:
        memories += seen["gpu_memory"]
        yield _gpu(told["node"], seen)
        if seen["gpus"]:
            yield _together(told["node"], seen["together"])


def _no_job(title: str, errors: str, wait: int) -> Check:
    lines = [line for line in errors.strip().splitlines() if line.startswith("srun: ")]
    told = lines[-1].removeprefix("srun: ").removeprefix("error: ") if lines else "no word of srun"
    if "immediate" in errors.lower() or "Requested nodes are busy" in errors:
        return warn(title, f"none was free within {wait} s, so none was looked at",
                    f"ask again with --wait {10 * wait}")  # fmt: skip
    return fail(title, f"no job runs there: {told}", "try by hand: srun --pty bash")


def _shared(told: dict[str, str], folder: Path, token: str) -> Check:
    fix = "set results (config) to a folder on the disk that the nodes share, and start from there"
    if told["read"] != "yes":
        return fail("shared disk", f"{told['node']} does not see {folder}", fix)
    end = time.monotonic() + _LATENCY
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if (folder / "reply").read_text().strip() == token:
                return ok("shared disk", f"{told['node']} and this machine read each other's files")
        # A listing makes NFS look again.
        list(folder.iterdir())
        time.sleep(0.2)
    return fail("shared disk", f"what {told['node']} writes to {folder} does not show here", fix)


def _environment(node: str, seen: dict[str, Any]) -> Check:
    if seen["broken"]:
        name, error = next(iter(seen["broken"].items()))
        return fail("environment", f"{node} cannot import {name}: {error}",
                    "the node lacks a library of the system, or is of another kind: see the log of "
                    f"srun python -c 'import {name}'")  # fmt: skip
    mine = _self()
    other = [
        f"{name} {seen['versions'].get(name) or 'missing'} (here {version})"
        for name, version in mine["versions"].items()
        if seen["versions"].get(name) != version
    ]
    if seen["code"] != mine["code"]:
        other.append(f"mlcd of {seen['path']} (here {mine['path']})")
    if other:
        return fail("environment", f"{node} has {', '.join(other[:5])}",
                    "use one environment for all nodes, on the shared disk")  # fmt: skip
    return ok("environment", f"{node} imports all, {len(mine['versions'])} versions as here")


def _clock(node: str, seen: dict[str, Any]) -> Check:
    # The job has ended a moment ago: its clock is behind by that at most.
    late = seen["time"] - time.time()
    if -60 < late < _SKEW:
        return ok("clock", f"{node} agrees")
    return warn("clock", f"that of {node} is {late:+.0f} s off this one's",
                "files look newer than they are: ask the cluster about NTP")  # fmt: skip


def _gpu(node: str, seen: dict[str, Any]) -> Check:
    if seen["gpus"]:
        return ok("gpu", f"{node}: {', '.join(seen['gpus'])}; faiss sees {seen['faiss_gpus']}")
    torch = seen["versions"].get("torch", "")
    return fail(
        "gpu", f"{node} was given CUDA_VISIBLE_DEVICES={seen['visible']}, but torch {torch} sees "
        "no GPU",
        "install torch built for CUDA (environment.yml) that fits the node's driver: nvidia-smi",
    )  # fmt: skip


def _together(node: str, error: str) -> Check:
    if not error:
        return ok("cuda", f"{node}: torch and faiss compute in one process, in either order")
    return fail(
        "cuda", f"{node}: torch and faiss do not compute in one process: {error}",
        "their CUDA libraries differ: install both for one CUDA, in a fresh environment",
    )  # fmt: skip


def together() -> str:
    """Return why torch and faiss do not compute on a GPU in one process; "" if they do.

    Both bring CUDA libraries, some of one name: which are loaded depends on the order of imports,
    so that each is tried in a process of its own.
    """
    for first, second in (("torch", "faiss"), ("faiss", "torch")):
        command = [sys.executable, "-c", _BOTH, first, second]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return f"{first} before {second}: {lines[-1][:200]}"
    return ""


def _self() -> dict[str, Any]:
    """Return versions of this Python, and a hash of mlcd's code."""
    from mlcd.config import SECTIONS
    from mlcd.utils.files import sha256_json
    from mlcd.utils.fingerprint import code_hash

    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    return {
        "versions": python | package_versions(),
        "code": sha256_json([code_hash(stage) for stage in SECTIONS]),
        "path": str(Path(mlcd.__file__).parent),
    }


def main() -> None:
    """Print what this node sees."""
    broken = {}
    from importlib import import_module

    import mlcd.utils.compat  # noqa: F401

    for name in _MODULES:
        try:
            import_module(name)
        except Exception as error:  # whatever a broken library raises is what is asked for
            broken[name] = " ".join(str(error).split())[:200]
    gpus, memory, faiss_gpus = [], [], 0
    if not broken:
        import faiss
        import torch

        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus, memory = [gpu.name for gpu in found], [gpu.total_memory for gpu in found]
        faiss_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    seen = {
        **_self(), "broken": broken, "gpus": gpus, "gpu_memory": memory,
        "faiss_gpus": faiss_gpus, "time": time.time(),
        "together": together() if gpus else "",
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), "host": socket.gethostname(),
    }  # fmt: skip
    print(f"python:{json.dumps(seen)}", flush=True)


if __name__ == "__main__":
    main()
