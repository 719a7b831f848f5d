"""Disks: full and read-only ones under each stage, and a /dev/shm that is too small.

A case mounts a file system of its own in a namespace of its own (root), so that nothing outside
sees it. The stage must say one line; then it gets the space, and must make the same bytes.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cases import Case, Result
from jobs import Job, Reference, contents

_CLONE_NEWNS = 0x00020000
#: Bytes of /dev/shm that are tried: none to speak of, Docker's, and between.
SHM = ("64k", "1m", "64m")
#: Rules whose workers hand images over in shared memory.
SHARED = ("embed", "train", "text_embed")


def possible() -> bool:
    """True if this process may make namespaces (root in most containers may not)."""
    try:
        command = ["unshare", "--mount", "--propagation", "private", "true"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def cases(reference: Reference) -> Iterator[Case]:
    """A full and a read-only disk under each rule in turn, and small shared memory, without end."""
    number = 0
    while True:
        for job in reference.one_of_each():
            yield _case(reference, f"full: {job.rule}", job, _full, number)
            if number == 0:
                yield _case(reference, f"read-only: {job.rule}", job, _read_only, number)
            if job.rule in SHARED:
                yield _case(reference, f"small shm: {job.rule}", job, _small_shm, number)
        number += 1


def _case(reference: Reference, kind: str, job: Job, work, number: int) -> Case:  # type: ignore[no-untyped-def]
    def run(folder: Path, rng: random.Random) -> Result:
        _own_mounts()
        return work(reference, job, folder, rng, Result("disks", kind, number, "equal"))

    return Case("disks", kind, number, run)


def _own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rprivate", "/")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def _disk(reference: Reference, job: Job, folder: Path) -> Path:
    """Mount a disk and lay out on it what the job reads."""
    disk = folder / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk))
    place = reference.copy(disk / "place")
    job.clear(place)
    return place


def _full(
    reference: Reference, job: Job, folder: Path, rng: random.Random, result: Result
) -> Result:
    place = _disk(reference, job, folder)
    usage = shutil.disk_usage(place)
    needed = sum(
        one.stat().st_size
        for where in job.places
        for one in ([reference.folder / where] if (reference.folder / where).is_file()
                    else (reference.folder / where).rglob("*"))
        if one.is_file()
    )  # fmt: skip
    # Training keeps checkpoints beside its result: twice the optimizer's state and the weights.
    needed *= 4 if job.rule in ("train", "text") else 1
    left = int(rng.random() * needed) // 4096 * 4096
    _mount("-o", f"remount,size={usage.used + left}", str(place.parent))
    result.told = f"{left} bytes left of some {needed}; "
    return _refused_then_equal(job, place, folder, result, f"remount,size={256 << 20}")


def _read_only(
    reference: Reference, job: Job, folder: Path, rng: random.Random, result: Result
) -> Result:
    place = _disk(reference, job, folder)
    _mount("-o", "remount,ro", str(place.parent))
    return _refused_then_equal(job, place, folder, result, "remount,rw")


def _refused_then_equal(
    job: Job, place: Path, folder: Path, result: Result, enlarge: str
) -> Result:
    ended = job.run(place, folder / "said")
    outcome = ended.outcome()
    if outcome not in ("done", "noticed"):
        result.outcome, result.told = outcome, result.told + ended.said[-3000:]
        return result
    if outcome == "noticed":
        errors = [line for line in ended.said.splitlines() if " ERROR" in line or "mlcd: " in line]
        if not errors:
            result.outcome, result.told = "no word", result.told + ended.said[-3000:]
            return result
        result.counts["noticed"] = 1
    _mount("-o", enlarge, str(place.parent))
    if outcome == "noticed":
        ended = job.run(place, folder / "said")
    made = contents(place, job.places)
    if ended.status != 0:
        result.outcome, result.told = "lost", result.told + ended.said[-3000:]
    elif made != job.made:
        result.outcome = "different"
        result.told += str([name for name in job.made if made.get(name) != job.made[name]])
    return result


def _small_shm(
    reference: Reference, job: Job, folder: Path, rng: random.Random, result: Result
) -> Result:
    size = rng.choice(SHM)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm")
    place = reference.copy(folder / "place")
    job.clear(place)
    result.told = f"/dev/shm of {size}; "
    ended = job.run(place, folder / "said")
    outcome = ended.outcome()
    if outcome == "done":
        equal = contents(place, job.places) == job.made
        result.outcome = "equal" if equal else "different"
    else:
        result.outcome = "refused" if outcome == "noticed" else outcome
        result.told += ended.said[-3000:]
    return result
