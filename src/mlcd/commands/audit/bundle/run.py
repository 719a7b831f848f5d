"""What each part of the bundle is made from: a sealed run, and what a part says that cannot be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.utils.records import read_record


class Lacking(Exception):
    """A part that cannot be made, since `package` (its name on the registry) is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"the package {package} is not installed")
        self.package = package


@dataclasses.dataclass(frozen=True)
class Run:
    """A sealed run: its folder, its lock (lock.json), its machine and packages (system.json).

    `key`: private key that the run is signed with, or None.
    """

    results: Path
    lock: dict[str, Any]
    system: dict[str, Any]
    key: Path | None = None

    def record(self, path: str) -> dict[str, Any] | None:
        """Return the JSON record at `path` below the results; None if the run has no such file.

        Raises :class:`UserError` if it is damaged.
        """
        if not (self.results / path).is_file():
            return None
        return read_record(self.results / path, "its stage")

    def section(self, stage: str) -> dict[str, Any]:
        """Return the section of a stage as it was sealed; {} if the seal was given none."""
        section = self.lock["stages"].get(stage, {}).get("section")
        return dict(section) if isinstance(section, dict) else {}

    def files_from_outside(self) -> list[dict[str, Any]]:
        """Return the inputs that are one file each: lists, centers, names; no data sets."""
        return [entry for entry in self.lock["inputs"] if "bytes" in entry]

    def files(self, *patterns: str) -> list[str]:
        """Return the sealed files below the results that match a pattern (fnmatch), sorted."""
        return sorted(
            path
            for path in self.lock["files"]
            if any(PurePosixPath(path).match(one) for one in patterns)
        )


def write_json(path: Path, value: Any) -> Path:
    """Write `value` with sorted keys, so that equal values are equal bytes; return the path.

    For files whose form a standard sets: they have no room for a checksum of ours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def digest_of(node: dict[str, Any]) -> str:
    """Return the SHA-256 of the bytes of a sealed file; '' if only its content was hashed."""
    digest = node["sealed"] if node["of"] == "content" else node["hash"]
    return str(digest)
