"""The jobs of a run, as its lock tells of them: what each wrote, and from which files.

No clock and no log of Snakemake's is asked: files name what they were made from.
"""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import Any

from mlcd.commands.audit.nodes import ORDER


@dataclasses.dataclass(frozen=True)
class Job:
    """A job: its stage, the part of it (a chunk, a model, a format; '' if there is one job).

    `files` it wrote and `inputs` it read: paths below the results, sorted. `jobs`: names of those
    that wrote the inputs. `hashes`: all that its files say they were made from.
    """

    stage: str
    part: str
    files: tuple[str, ...]
    inputs: tuple[str, ...]
    jobs: tuple[str, ...]
    hashes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Stage and part."""
        return f"{self.stage} {self.part}".strip()


def part_of(path: str) -> str:
    """Return which part of its stage wrote a file: a chunk, a model, a format, a page, or ''."""
    parts = PurePosixPath(path).parts
    first, stem = parts[0], PurePosixPath(path).name.split(".")[0]
    if first in ("images", "export"):
        return parts[1] if len(parts) > 2 else ""
    if first in ("urls", "embeddings", "labels", "report"):
        return stem
    if first in ("curate", "ocr", "regions"):
        return "/".join((*parts[1:-1], stem))
    if first == "evaluate":
        return "/".join((*parts[1:-1], stem))
    return ""


def jobs_of(lock: dict[str, Any]) -> list[Job]:
    """Return the jobs of a run in the order of the stages, then of their parts."""
    files: dict[tuple[str, str], list[str]] = {}
    by_hash: dict[str, list[str]] = {}
    for path, node in lock["files"].items():
        files.setdefault((node["stage"], part_of(path)), []).append(path)
        by_hash.setdefault(node["hash"], []).append(path)
    found = []
    for stage, part in sorted(files, key=lambda key: (ORDER.index(key[0]), key[1])):
        mine = files[stage, part]
        words = {word for path in mine for word in lock["files"][path]["inputs"]}
        inputs = {path for word in words for path in by_hash.get(word, [])}.difference(mine)
        before = {
            Job(lock["files"][path]["stage"], part_of(path), (), (), ()).name for path in inputs
        }
        found.append(
            Job(stage, part, tuple(sorted(mine)), tuple(sorted(inputs)), tuple(sorted(before)),
                frozenset(words))
        )  # fmt: skip
    return found


def by_stage(jobs: list[Job]) -> list[Job]:
    """Return one job for each stage, which wrote and read what its jobs did."""
    found = []
    for stage in dict.fromkeys(job.stage for job in jobs):
        mine = [job for job in jobs if job.stage == stage]
        files = {path for job in mine for path in job.files}
        inputs = {path for job in mine for path in job.inputs} - files
        before = {name.split(" ")[0] for job in mine for name in job.jobs} - {stage}
        words = frozenset[str]().union(*(job.hashes for job in mine))
        found.append(
            Job(stage, "", tuple(sorted(files)), tuple(sorted(inputs)), tuple(sorted(before)),
                words)
        )  # fmt: skip
    return found
