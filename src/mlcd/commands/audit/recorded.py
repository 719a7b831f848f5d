"""A sealed run, with all that the commands need that make its files again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mlcd.commands.audit import lock as locks
from mlcd.utils.device import has_gpu
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record


class Cannot(Exception):
    """A file whose stage cannot be run again from what is here, or failed; it says why."""


class Recorded:
    """A run's results with all that commands need: sections, how it ran, files from outside.

    `lists`: files given on the command line. Raises :class:`UserError` for one that is not of this
    run.
    """

    def __init__(self, results: Path, lock: dict[str, Any], lists: Iterable[str] = ()) -> None:
        self.results = results.resolve()
        self.stages: dict[str, Any] = lock["stages"]
        self.inputs: list[dict[str, Any]] = lock["inputs"]
        self.by_hash = {node["hash"]: path for path, node in lock["files"].items()}
        self.project = _project(self.results, self.inputs)
        self._given = dict(self._checked(path) for path in lists)
        is_curated = "curate" in self.stages
        #: Folders of the embeddings that later stages read: of the frozen and the trained encoder.
        self.embeddings = "curate/embeddings" if is_curated else "embeddings"
        self.text_embeddings = "text/curated" if is_curated else "text/embeddings"
        #: Folders of all embeddings that were clustered: of images, and of regions if there are.
        self.clustered = (self.embeddings, *(["regions"] if "regions" in self.stages else []))

    def _checked(self, path: str) -> tuple[str, Path]:
        digest = locks.hash_of(path)
        if all(entry["hash"] != digest for entry in self.inputs):
            raise UserError(f"{path}: no list of this run: it has the hash {digest[:16]}…, and "
                            "those that were sealed have others")  # fmt: skip
        return digest, Path(path).resolve()

    def section(self, stage: str) -> dict[str, Any]:
        """Return the sealed section of a stage."""
        found: dict[str, Any] | None = self.stages.get(stage, {}).get("section")
        if found is None:
            raise Cannot(f"the lock has no section of stage {stage}")
        return found

    def lists(self) -> list[str] | None:
        """Return the names of the lists and folders of the run's config; None without its copy.

        A folder's chunks name its listing, which is called otherwise.
        """
        path = self.results / "report" / "config.yaml"
        if "report/config.yaml" not in self.by_hash.values() or not path.is_file():
            return None
        try:
            named = yaml.safe_load(path.read_text(encoding="utf-8"))["metadata"]
            return [Path(str(name)).name for name in named]
        except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"{path}: is no config of a run; rerun report") from None

    def outside(self, name: str, scratch: Path, identity: str | None = None) -> Path:
        """Return a file from outside, called as it was, with the content that was sealed.

        `identity` is that of the file, as what was made from it notes it, where several files in
        different folders have the name.
        """
        called = [one for one in self.inputs if one["name"] == name]
        if not called:
            raise Cannot(f"{name}: no file of this run's lock is called so")
        of = [one for one in called if identity in one.get("identities", ())]
        if len(called) > 1 and len({one["hash"] for one in called}) > 1 and len(of) != 1:
            raise Cannot(f"{name}: {len(called)} files of this run's lock are called so")
        entry = (of or called)[0]
        path: Path = self._given.get(entry["hash"]) or self._found(entry)
        if path.name == name:
            return path
        link = scratch / "lists" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return link

    def _found(self, entry: dict[str, Any]) -> Path:
        places: list[Path] = [self.results / "listings" / entry["name"]]
        if "path" in entry:
            places.append(self.project / entry["path"])
        there = [path for path in places if path.is_file()]
        for path in there:
            if locks.hash_of(str(path)) == entry["hash"]:
                return path.resolve()
        if there:
            raise Cannot(f"{there[0]}: not what was sealed; give it by --lists")
        raise Cannot(f"{entry['name']}: not where the run had it; give it by --lists")

    def named(self, folder: str, hashes: Iterable[str], *more: str) -> list[str]:
        """Return the files of a folder, or of `more`, that have these hashes, in this order."""
        paths = [self.by_hash.get(word, "") for word in hashes]
        here = tuple(f"{name}/" for name in (folder, *more))
        if not all(path.startswith(here) for path in paths):
            raise Cannot(f"{folder}: not all files that it was made from are of this run")
        return [str(self.results / path) for path in paths]

    def device(self) -> str:
        """Return cuda where the run had GPUs and this machine has one, else cpu."""
        system = self.results / locks.SYSTEM
        had = system.is_file() and read_record(system, "audit").get("gpus")
        return "cuda" if had and has_gpu() else "cpu"


def _project(results: Path, inputs: list[dict[str, Any]]) -> Path:
    """Return the folder that the run's relative paths began at: here, or above the results."""
    wanted = [entry["path"] for entry in inputs if "path" in entry]
    for folder in (Path.cwd(), *results.parents[:4]):
        if wanted and all((folder / path).exists() for path in wanted):
            return folder
    return Path.cwd()
