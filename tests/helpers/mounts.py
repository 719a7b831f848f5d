"""Disks of a test's own: small, or for reading alone, in a mount namespace (root)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import cache

_UNSHARE = ["unshare", "--mount", "--propagation", "private"]


@cache
def missing() -> str:
    """Return why no disk can be mounted here, or ''."""
    script = "mount -t tmpfs tmpfs /mnt"
    try:
        done = subprocess.run([*_UNSHARE, "sh", "-c", script], capture_output=True, text=True)
    except FileNotFoundError:
        return "unshare is not installed"
    return "" if done.returncode == 0 else f"no mounts here: {done.stderr.strip()[:100]}"


def run_on(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with `words` after the shell's `script` has mounted what it wants."""
    command = f"set -e\n{script}\nexec {shlex.join([sys.executable, *map(str, words)])}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [*_UNSHARE, "sh", "-c", command],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
