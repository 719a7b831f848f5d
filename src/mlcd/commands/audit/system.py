"""The machine and the packages that a run was sealed on: what last bits may depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

#: Instruction sets that libraries of numbers choose their code by.
_FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
#: Variables that decide threads and the order of sums.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTHONHASHSEED",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return packages, revision, Python, processor, GPUs and settings; no names, paths or times.

    Threads and what is deterministic are this process's: a stage may choose otherwise for itself.
    """
    import mlcd
    from mlcd.stages.report import provenance

    return {
        "mlcd": mlcd.__version__,
        "revision": _revision(Path(mlcd.__file__).parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "processor": _processor(),
        "torch": _torch(),
        "gpus": _gpus(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": provenance.package_versions(),
    }


def difference() -> str:
    """Return how the source tree differs from its revision, as `git apply` takes it; '' if not.

    Of code, rules and workflow: files that git does not track are not in it.
    """
    import mlcd
    from mlcd.stages.report import provenance

    folder = Path(mlcd.__file__).parent
    if provenance.revision(folder) is None:
        return ""
    top = Path(provenance.git(folder, "rev-parse", "--show-toplevel"))
    words = ["diff", "--no-color", "--no-ext-diff", "HEAD", "--", "src", "rules", "workflow"]
    changes = provenance.git(top, *words)
    return f"{changes}\n" if changes else ""


def _revision(folder: Path) -> dict[str, Any] | None:
    """Return the revision of the source, and its day."""
    from mlcd.stages.report import provenance

    found = provenance.revision(folder)
    if found is None:
        return None
    return {**found, "date": provenance.git(folder, "show", "-s", "--format=%cs", "HEAD")}


def _processor() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name", platform.processor()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
    }


def _torch() -> dict[str, Any]:
    import torch

    return {
        "version": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": _nccl(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def _nccl() -> str | None:
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _gpus() -> list[dict[str, str]]:
    query = "name,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    names = query.split(",")
    return [
        dict(zip(names, map(str.strip, line.split(",")), strict=False))
        for line in done.stdout.splitlines()
    ]
