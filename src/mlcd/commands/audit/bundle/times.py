"""times.json: what differs each time that a bundle is made: times, and the hashes of signatures.

It comes last, and so names all files of the bundle.
Nothing else of the bundle holds a time or a random number, so that all other files of equal runs
are equal.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

from mlcd.commands.audit.bundle.run import Run
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record, write_record

NAME = "times"
FILE = "times.json"
#: Signatures are made with random numbers.
SIGNATURES = "signatures"


def varies(name: str) -> bool:
    """Tell whether a file of the bundle is another each time; bundle.json has no hash of it."""
    return name == FILE or name.startswith(f"{SIGNATURES}/")


def holds(folder: Path, name: str) -> bool:
    """Tell whether such a file is as it was written: times.json knows."""
    try:
        record = read_record(folder / FILE, "audit")
        return name == FILE or record["signatures"].get(name) == sha256_file(folder / name)
    except (UserError, OSError):
        return False


def written(folder: Path) -> set[str]:
    """Return the files of the bundle in `folder`, as its times.json says; none without it."""
    try:
        return {FILE, *map(str, read_record(folder / FILE, "audit")["files"])}
    except (UserError, TypeError):
        return set()


def write(run: Run, folder: Path) -> list[Path]:
    """Write when the bundle and the files of each stage were written, and how long jobs took."""
    now = datetime.datetime.now(datetime.UTC)
    stages: dict[str, dict[str, Any]] = {}
    for path, node in run.lock["files"].items():
        written = _moment((run.results / path).stat().st_mtime)
        stage = stages.setdefault(node["stage"], {"first": written, "last": written})
        stage["first"] = min(stage["first"], written)
        stage["last"] = max(stage["last"], written)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    record = {
        "made": now.isoformat(timespec="seconds"),
        "stages": dict(sorted(stages.items())),
        "job_seconds": _seconds(run.results / "benchmarks"),
        "files": sorted(files),
        "signatures": {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted((folder / SIGNATURES).glob("*"))
        },
    }
    write_record(folder / FILE, record)
    return [folder / FILE]


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _seconds(folder: Path) -> dict[str, float]:
    """Return rule or job → seconds, of the benchmarks that Snakemake wrote."""
    found = {}
    for path in sorted(folder.rglob("*.tsv")):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            seconds = sum(float(row["s"]) for row in rows)
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            continue  # a time that cannot be read is no fault of the run
        found[path.relative_to(folder).with_suffix("").as_posix()] = round(seconds, 1)
    return found
