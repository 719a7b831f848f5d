"""Checks of this machine: Python, packages, faiss, config, disk, memory, cores."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from mlcd.config import Config, load
from mlcd.doctor.checks import Check, fail, gigabytes, ok, warn
from mlcd.doctor.demands import Demand
from mlcd.errors import UserError
from mlcd.plan import plan

#: Assumed bytes of a picture as served, and of one stored with a side of 384 pixels.
_SERVED, _AT_384 = 100_000, 30_000
#: Bytes a row of embeddings, labels, lists and tables.
_ROW = 2_500


def environment() -> Iterator[Check]:
    """Look at Python, the packages that mlcd needs, and faiss."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield ok("python", version)
    else:
        yield fail("python", version, "make the environment anew with Python 3.11 or 3.12")
    yield _packages()
    yield _faiss()


def package_versions() -> dict[str, str]:
    """Return name → version of all that mlcd requires, extras apart; "" for what is missing."""
    return {item.name: _version(item.name) for item in _requirements()}


def _requirements() -> list[Requirement]:
    try:
        lines = metadata.requires("mlcd") or []
    except metadata.PackageNotFoundError:
        return []
    found = map(Requirement, lines)
    return [item for item in found if item.marker is None or item.marker.evaluate({"extra": ""})]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> Check:
    wanted = _requirements()
    if not wanted:
        return fail("packages", "mlcd itself is not installed", "pip install --editable '.[cpu]'")
    bad = []
    for item in wanted:
        version = _version(item.name)
        if not version:
            bad.append(f"{item.name} is missing")
        elif not item.specifier.contains(version, prereleases=True):
            bad.append(f"{item.name} is {version}, wanted {item.specifier}")
    if bad:
        mend = "make install, or pip install with constraints/cpu.txt, in a fresh environment"
        return fail("packages", "; ".join(bad), mend)
    return ok("packages", f"{len(wanted)} as required, torch {_version('torch')}")


def _faiss() -> Check:
    flavours = [name for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    if len(flavours) == 2:
        return fail(
            "faiss", "faiss-cpu and faiss-gpu are both installed and overwrite one another",
            "pip uninstall faiss-cpu faiss-gpu, then install one of them alone",
        )  # fmt: skip
    if not flavours:
        return fail("faiss", "not installed", "pip install '.[cpu]', or '.[gpu]' on GPU nodes")
    try:
        import faiss
    except ImportError as error:
        return fail("faiss", f"does not import ({error})", f"reinstall {flavours[0]}")
    return ok("faiss", f"{flavours[0]} {faiss.__version__}")


def config_and_disk(path: str) -> Iterator[Check]:
    """Look at the config, its lists, and whether the disk of its results holds the run."""
    try:
        config = load(path)
        chunks = plan(config.metadata, config.prepare.chunk_rows)
    except UserError as error:
        yield fail("config", str(error), "mend the config, then ask again")
        return
    rows = sum(chunk.rows for chunk in chunks.values())
    yield ok("config", f"{path}: {rows:,} rows in {len(chunks):,} chunks")
    yield _disk(config, rows)


def _disk(config: Config, rows: int) -> Check:
    folder = Path(config.results).absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return fail("disk", f"{folder} may not be written", "change results in the config")
    side = config.download.image_size
    picture = _SERVED if side is None else _AT_384 * (side / 384) ** 2
    needed = rows * (picture + _ROW) / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    seen = f"{free:,.0f} GB free under {folder}, some {needed:,.1f} GB needed"
    if needed < 0.8 * free:
        return ok("disk", seen)
    mend = "put results (a config key, or a symbolic link) on a larger disk"
    assumed = f"{seen}, if a picture takes {picture / 1000:.0f} kB"
    return (fail if needed > 1.5 * free else warn)("disk", assumed, mend)


def memory_and_cores(asked: list[Demand]) -> Iterator[Check]:
    """Compare what jobs ask for with what this machine has (without a scheduler)."""
    total, free = (value / 1e6 for value in psutil.virtual_memory()[:2])
    most = max(asked, key=lambda demand: demand.memory)
    seen = f"{gigabytes(free)} of {gigabytes(total)} free; {most.rule} may take "
    seen += gigabytes(most.memory)
    if most.memory <= free:
        yield ok("memory", seen)
    else:
        mend = "end other programs, or shrink that stage's section of the config"
        yield (fail if most.memory > 1.5 * total else warn)("memory", seen, mend)
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if load < 2 * cores:
        yield ok("cores", f"{cores}, load {load:.1f}")
    else:
        yield warn("cores", f"{cores}, load {load:.1f}", "others use this machine: expect to wait")
