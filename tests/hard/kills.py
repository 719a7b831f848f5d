"""Kills: a random process of a stage or of a whole run dies at a random moment, up to three times.

Then the same command runs to its end. Every file of the result must have the bytes of the run that
nobody disturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from cases import LIMIT, Case, Ended, Result, begin, below, finish, run
from jobs import Job, Reference, contents

#: Share of the kills that take the whole tree at once, as the loss of a machine does.
WHOLE = 0.25
#: Starts after the last kill within which the work must be done.
STARTS = 3


def cases(reference: Reference) -> Iterator[Case]:
    """Kills of each stage by its own command, without end: one job of each rule in turn."""
    number = 0
    while True:
        for job in reference.one_of_each():
            yield Case(
                "kills", job.rule, number,
                lambda f, r, job=job, number=number: _stage(reference, job, f, r, number),
            )  # fmt: skip
        number += 1


def runs(reference: Reference, made: dict[str, str], seconds: float) -> Iterator[Case]:
    """Kills of whole `mlcd run` runs, without end."""
    number = 0
    while True:
        yield Case(
            "kills", "whole run", number,
            lambda f, r, number=number: _run(reference, made, seconds, f, r, number),
        )  # fmt: skip
        number += 1


def _stage(reference: Reference, job: Job, folder: Path, rng: random.Random, number: int) -> Result:
    place = reference.copy(folder / "place")
    job.clear(place)
    said = folder / "said"
    result = Result("kills", job.rule, number, "equal")
    last = _disturb(lambda: job.work(place), said, job.seconds, rng, result, job.limit)
    made = contents(place, job.places) if last.status == 0 else {}
    return _judge(result, last, job.made, made)


def _run(
    reference: Reference, made: dict[str, str], seconds: float, folder: Path,
    rng: random.Random, number: int,
) -> Result:  # fmt: skip
    place = reference.copy_project(folder / "place")
    result = Result("kills", "whole run", number, "equal")
    limit = max(5 * LIMIT, 20 * seconds)
    last = _disturb(lambda: mlcd_run(place), folder / "said", seconds, rng, result, limit, most=4)
    found = contents(place, ["results"], whole=True) if last.status == 0 else {}
    return _judge(result, last, made, found)


def mlcd_run(place: Path) -> int:
    """Run the workflow in `place` to its end; return the exit status."""
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(place / "src"), "PATH": binaries}
    command = [sys.executable, "-m", "mlcd", "run", "--profile", "profiles/local", "--cores", "2"]
    os.chdir(place)
    os.execve(sys.executable, command, environment)


def _disturb(work, said, seconds, rng, result, limit, most=3) -> Ended:  # type: ignore[no-untyped-def]
    """Start and kill up to `most` times, then let it end; return how the last start ended."""
    result.counts = {"kills": 0}
    for _ in range(rng.randint(1, most)):
        share, whole, pick = rng.random(), rng.random() < WHOLE, rng.random()
        start = time.monotonic()
        said.unlink(missing_ok=True)
        pid = begin(work, said)
        moment = start + share * seconds
        while time.monotonic() < moment and not _over(pid):
            time.sleep(0.005)
        if not _over(pid) and (victims := below()):
            chosen = victims if whole else [victims[int(pick * len(victims))]]
            for victim in chosen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            result.counts["kills"] += 1
            result.told += f"killed {'all' if whole else _name(chosen[0])} at {share:.2f}; "
        ended = finish(pid, said, start, limit)
        if ended.hung or ended.traceback:
            return ended
    for _ in range(STARTS):
        ended = run(work, said, limit)
        if ended.status == 0 or ended.hung or ended.traceback:
            break
    return ended


def _over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return "the program" if words == psutil.Process().cmdline() else " ".join(words)[-60:]
    return "a process"


def _judge(result: Result, last: Ended, expected: dict[str, str], found: dict[str, str]) -> Result:
    if last.status != 0 or last.hung or last.traceback:
        outcome = last.outcome()
        result.outcome = "lost" if outcome == "noticed" else outcome
        result.told += last.said[-3000:]
    elif found != expected:
        different = [name for name in expected if found.get(name) != expected[name]]
        more = [name for name in found if name not in expected]
        result.outcome = "different"
        result.told += f"different: {different}; more: {more}"
    return result


def whole_reference(reference: Reference, scratch: Path) -> tuple[dict[str, str], float]:
    """Run `mlcd run` undisturbed; return what it makes and how long it takes."""
    place = reference.copy_project(scratch / "whole")
    ended = run(lambda: mlcd_run(place), scratch / "whole-said", 10 * LIMIT)
    if ended.status != 0:
        raise SystemExit(f"mlcd run: status {ended.status}\n{ended.said[-3000:]}")
    return contents(place, ["results"], whole=True), ended.seconds
