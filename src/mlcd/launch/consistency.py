"""What all ranks must have alike before they start to work: inputs, code, versions, devices, time.

A node with another Python environment, a network disk that shows it an old file, or a clock that is
wrong makes a run fail in ways that are hard to read, or succeed with a wrong result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlcd
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import file_identity

#: Seconds that clocks may differ (waking up on a busy node counts in).
CLOCKS = 10.0
#: Of more files than this, some over the whole list are looked at.
_LOOKED_AT = 64
_FIX = {
    "code": "install one version of mlcd, or share one checkout",
    "device": "ask for nodes of one kind (--slurm-option constraint=…)",
}


def check(store: Any, rank: int, world_size: int, device: str, inputs: Sequence[str]) -> None:
    """Compare the facts of all ranks over torch's key-value `store`; every rank calls it.

    `inputs`: files that all ranks read. Raises :class:`UserError` on every rank if one differs,
    naming rank, host and fact.
    """
    if world_size == 1:
        return
    store.set(f"facts/{rank}", json.dumps(facts(device, inputs)))
    found = [json.loads(store.get(f"facts/{other}")) for other in range(world_size)]
    # The last one opens the gate for all, which then read their clocks at the same moment.
    if store.add("here", 1) == world_size:
        store.set("go", "")
    store.wait(["go"])
    store.set(f"clock/{rank}", str(time.time()))
    for other, entry in enumerate(found):
        entry["clock"] = float(store.get(f"clock/{other}"))
    if message := difference(found):
        raise UserError(message)


def facts(device: str, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what this rank has: versions, code, device, and a hash of each input."""
    import numpy as np
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "numpy": np.__version__,
        "code": code(),
        "device": name,
        "inputs": {path: _identity(path) for path in _some(inputs)},
    }


def difference(found: Sequence[dict[str, Any]]) -> str:
    """Return one line on the first fact that a rank has unlike most, or "" if all are alike."""
    for name in ("python", "torch", "numpy", "code", "device"):
        values = [entry[name] for entry in found]
        if odd := _odd_one(values):
            rank, usual = odd
            fix = _FIX.get(name, "give all nodes the same Python environment")
            return f"{_who(found, rank)} has {name} {values[rank]}, others have {usual}; {fix}"
    for path in found[0]["inputs"]:
        values = [entry["inputs"].get(path, "missing") for entry in found]
        if odd := _odd_one(values):
            rank, usual = odd
            sees = "does not see it" if values[rank] == "missing" else "sees another content"
            if usual == "missing":
                sees = "sees a file that others do not"
            return f"{path}: {_who(found, rank)} {sees}; put it on a disk that all nodes share"
    middle = sorted(entry["clock"] for entry in found)[(len(found) - 1) // 2]
    for rank, entry in enumerate(found):
        if abs(ahead := entry["clock"] - middle) > CLOCKS:
            way = "ahead of" if ahead > 0 else "behind"
            return (
                f"{_who(found, rank)}: its clock is {abs(ahead):.0f} s {way} others; set its time"
            )
    return ""


@functools.cache
def code() -> str:
    """Return a hash of all modules of this package."""
    digest = hashlib.sha256()
    root = Path(mlcd.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _some(inputs: Sequence[str]) -> list[str]:
    step = max(1, -(-len(inputs) // _LOOKED_AT))
    return [str(path) for path in inputs[::step]]


def _identity(path: str) -> str:
    try:
        return file_identity(path)
    except OSError:
        return "missing"


def _odd_one(values: Sequence[str]) -> tuple[int, str] | None:
    """Return the first rank whose value is not the usual one, and that one; of equals rank 0's."""
    (usual, _), *others = Counter(values).most_common()
    return (next(i for i, value in enumerate(values) if value != usual), usual) if others else None


def _who(found: Sequence[dict[str, Any]], rank: int) -> str:
    return f"rank {rank} on {found[rank]['host']}"
