"""What a figure was measured on: CPU, instructions, BLAS and versions."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import peers
import threadpoolctl

#: What decides how fast products are, as Linux names it.
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")
_PACKAGES = ("numpy", "faiss-cpu", "faiss-gpu", "torch", "torchvision", "pillow", "scikit-learn",
             "superkmeans", "img2dataset", "webdataset")  # fmt: skip
#: Variables that change which kernels libraries choose.
_CHOSEN = ("OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def description() -> str:
    """Return a few lines for people."""
    import faiss  # noqa: F401, so that its BLAS is listed
    import numpy  # noqa: F401

    text = Path("/proc/cpuinfo").read_text(errors="replace")
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    libraries = [
        f"{Path(info['filepath']).parent.name} {info['internal_api']} {info['version']} "
        f"({info.get('architecture', '?')})"
        for info in threadpoolctl.threadpool_info()
        if info["user_api"] == "blas"
    ]
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    lists = [] if peers.missing() else peers.LIST.read_text().splitlines()
    apart = [line.replace("==", " ") for line in lists if line.startswith(peers.NAMES)]
    chosen = [f"{name}={os.environ[name]}" for name in _CHOSEN if name in os.environ]
    load = ", ".join(f"{value:.0f}" for value in os.getloadavg())
    parts = [
        f"CPU: {fields.get('model name', '?')}, {os.cpu_count()} cores, load {load}",
        "instructions: " + " ".join(name for name in _INSTRUCTIONS if name in flags),
        "BLAS: " + "; ".join(libraries),
        "versions: " + ", ".join([*versions, *apart]),
        *(["set: " + " ".join(chosen)] if chosen else []),
    ]
    return "\n".join(parts)
