"""Checks of this machine: Python, packages, faiss, config, disk, memory, cores."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from mlcd.commands.doctor.checks import Check, fail, ok, warn
from mlcd.commands.doctor.demands import Demand
from mlcd.config import Config, load
from mlcd.data import at_start
from mlcd.data.sources import plan
from mlcd.data.url_lists import Chunk
from mlcd.utils import disk
from mlcd.utils.device import has_gpu
from mlcd.utils.errors import UserError
from mlcd.utils.units import decimal_size

#: Assumed bytes of an image as served, and of one stored with a side of 384 pixels.
_SERVED, _AT_384 = 100_000, 30_000
#: Bytes per row of embeddings, labels, lists and tables.
_ROW = 2_500
#: And of the copy that stage curate makes of kept embeddings.
_CURATED = 1_600
#: And per region, of which an image may have regions.most.
_REGION = 1_800


def environment() -> Iterator[Check]:
    """Look at Python, the packages that mlcd needs, and faiss."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield ok("python", version)
    else:
        yield fail("python", version, "make the environment anew with Python 3.11 or 3.12")
    yield _packages()
    yield _faiss()
    yield from _cuda_stacks(
        {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    )


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
        fix = "make install, or pip install with constraints/cpu.txt, in a fresh environment"
        return fail("packages", "; ".join(bad), fix)
    return ok("packages", f"{len(wanted)} as required, torch {_version('torch')}")


def _faiss() -> Check:
    flavours = [name for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    if len(flavours) == 2:
        return fail(
            "faiss", "faiss-cpu and faiss-gpu are both installed and overwrite one another",
            "pip uninstall faiss-cpu faiss-gpu, then install one of them alone",
        )  # fmt: skip
    if not flavours:
        fix = "pip install 'mlcd[cpu]', or on GPU nodes 'mlcd[gpu]'"
        return fail("faiss", "not installed", fix)
    try:
        import faiss
    except ImportError as error:
        return fail("faiss", f"does not import ({error})", f"reinstall {flavours[0]}")
    return ok("faiss", f"{flavours[0]} {faiss.__version__}")


def _cuda_stacks(versions: dict[str, str]) -> Iterator[Check]:
    """Look for CUDA libraries of two major versions, as wheels of torch and faiss bring them.

    They have libraries of the same name (libcurand.so.10): the one that is imported first wins.
    """
    majors: dict[str, list[str]] = {}
    for name, version in sorted(versions.items()):
        # nvidia-cublas-cu12 12.8.4.1; from CUDA 13 on the names have no number.
        if name in ("nvidia-cuda-runtime", "nvidia-cublas"):
            majors.setdefault(version.split(".")[0], []).append(f"{name} {version}")
        elif found := re.fullmatch(r"nvidia-(?:cuda-runtime|cublas)-cu(\d+)", name):
            majors.setdefault(found[1], []).append(f"{name} {version}")
    if len(majors) == 1:
        yield ok("cuda", f"one stack, of CUDA {next(iter(majors))}")
    elif majors:
        told = " and ".join(names[0] for names in majors.values())
        yield warn(
            "cuda", f"two stacks in one environment: {told}; libraries of one name are loaded from "
            "whichever is imported first",
            "see the check `cuda` of a GPU node: mlcd doctor --profile NAME",
        )  # fmt: skip


def gpu_memory() -> int | None:
    """Return the bytes of memory of this machine's smallest GPU, or None if it has none."""
    if not has_gpu():
        return None
    import torch

    count = range(torch.cuda.device_count())
    return min(torch.cuda.get_device_properties(i).total_memory for i in count)


def config_and_disk(path: str) -> Iterator[Check]:
    """Look at the config, its lists, and whether the disk of its results holds the run."""
    try:
        config = load(path)
        chunks = plan(config.metadata, config.prepare, Path(config.results, "listings"))
    except UserError as error:
        yield fail("config", str(error), "fix the config, then ask again")
        return
    rows = sum(chunk.rows for chunk in chunks.values())
    try:
        at_start.check(config, path, lambda: chunks)
        yield ok("config", f"{path}: {rows:,} rows in {len(chunks):,} chunks")
    except UserError as error:
        yield fail("config", str(error), "fix the config, then ask again")
    yield disk_room(config, chunks.values())


def disk_room(config: Config, chunks: Iterable[Chunk]) -> Check:
    """Compare what the run of these chunks may write with what is free under its results."""
    rows = stored = 0
    for chunk in chunks:
        rows += chunk.rows
        # Images on disk stay where they are.
        stored += chunk.rows if config.download.image_size or not chunk.identity else 0
    folder = disk.existing(config.results)
    if refused := disk.may_write(folder):
        return fail("disk", str(refused), "change results in the config")
    side = config.download.image_size
    image = _SERVED if side is None else _AT_384 * (side / 384) ** 2
    row = _ROW + (_CURATED if config.curate.enabled else 0)
    row += _REGION * (config.regions.most if config.regions.source else 0)
    needed = rows * row + stored * image
    free = disk.free(folder)
    seen = f"{decimal_size(free)} free under {folder}, some {decimal_size(needed)} needed"
    if needed < 0.8 * free:
        return ok("disk", seen)
    fix = "put results (a config key, or a symbolic link) on a larger disk"
    assumed = f"{seen}, if an image takes {decimal_size(image)}"
    return (fail if needed > 1.5 * free else warn)("disk", assumed, fix)


def memory_and_cores(asked: list[Demand]) -> Iterator[Check]:
    """Compare what jobs ask for with what this machine has (without a scheduler)."""
    total, free = psutil.virtual_memory()[:2]
    most = max(asked, key=lambda demand: demand.memory)
    asked_for = most.memory * 1e6
    seen = f"{decimal_size(free)} of {decimal_size(total)} free; {most.rule} may take "
    seen += decimal_size(asked_for)
    if asked_for <= free:
        yield ok("memory", seen)
    else:
        fix = "end other programs, or shrink that stage's section of the config"
        yield (fail if asked_for > 1.5 * total else warn)("memory", seen, fix)
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if load < 2 * cores:
        yield ok("cores", f"{cores}, load {load:.1f}")
    else:
        yield warn("cores", f"{cores}, load {load:.1f}", "others use this machine: expect to wait")
