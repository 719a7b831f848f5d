"""Broken configs and options: the tests beside this file, with the campaign's seed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cases import LIMIT, Case, Result, run

HERE = Path(__file__).parent
#: Part → the test module; it says how many cases it makes.
MODULES = {"configs": "test_config_fuzz.py", "options": "test_option_fuzz.py"}


def cases(part: str) -> Iterator[Case]:
    """One case after the other; each is a whole module with a seed of its own, without end."""
    number = 0
    while True:
        yield Case(part, "fuzz", number, lambda f, r, n=number: _fuzz(part, f, r, n))
        number += 1


def _fuzz(part: str, folder: Path, rng: random.Random, number: int) -> Result:
    module = HERE / MODULES[part]
    found = re.search(r"^CASES = (\d+)", module.read_text(), re.MULTILINE)
    result = Result(
        part, "fuzz", number, "refused", counts={"cases": int(found[1]) if found else 1}
    )
    seed = str(rng.randrange(10**6))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(module)]

    def work() -> int:
        os.environ["MLCD_FUZZ_SEED"] = seed
        return subprocess.run(command, cwd=HERE.parents[1]).returncode

    ended = run(work, folder / "said", 4 * LIMIT)
    if ended.hung or ended.status != 0:
        result.outcome = "hang" if ended.hung else "traceback"
        result.told = f"MLCD_FUZZ_SEED={seed}; {ended.said[-3000:]}"
    return result
