"""Which code a stage's results depend on, as one hash for Snakemake's `params`.

Snakemake does not look into `src/`. Each rule therefore carries a hash of all definitions that the
stage's `run` and `add_arguments` reach, by name, by import, through re-exports, in annotations
(`section: Train` leads to its properties) and through strings such as "mlcd.stages.export.to_timm".

What changes nothing: formatting, comments, docstrings, annotations, messages (what is raised,
logged, printed, or shown as help), names of modules, functions, classes, methods, parameters and
local variables, and the place of a definition. So a reworded message or a move keeps every result.

What counts: anything else that is reached, wherever it stands, files of the package that it reads
included. In doubt a change counts. Names that something outside may know stay as they are: fields
of dataclasses, named tuples, typed dicts and models (they can reach files by `asdict` or
`model_dump`), members of a class with a base from outside (a `torch.nn.Module`'s are keys of its
state), and parameters of functions that are handed on. The fields of the config do not count,
since their values reach a rule as its other parameter; its properties and validators do.

Not followed are the rooms that say how and where work runs, never what: `graph.BOUNDARY`.

Read `tokens.py` first, then `colors.py`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mlcd.utils.fingerprint.colors import Reach
from mlcd.utils.fingerprint.definitions import Definitions
from mlcd.utils.fingerprint.graph import BOUNDARY, Graph

_ROOT = Path(__file__).parents[2]
#: What of a stage's module is run.
_ENTRIES = ("add_arguments", "run")


class Code:
    """The code of the package whose folder is `root`, each file read once."""

    def __init__(self, root: Path, boundary: tuple[str, ...] = BOUNDARY) -> None:
        self.graph = Graph(root, boundary)
        self._definitions = Definitions(self.graph)
        self._reached: dict[str, Reach] = {}

    def reach(self, stage: str) -> Reach:
        """Return all that the results of `stage` depend on."""
        if stage not in self._reached:
            name = f"stages.{stage}"
            module = self.graph.module(name)
            if module is None:
                raise ValueError(f"{name}: no such module in {self.graph.root}")
            found = (self.graph.resolve(module, entry) for entry in _ENTRIES)
            roots = [target[1:3] for target in found if target is not None and target[0] == "node"]
            self._reached[stage] = Reach(self._definitions, roots)
        return self._reached[stage]

    def hash(self, stage: str) -> str:
        """Return a hash (hex, 16 digits) of the code that the results of `stage` depend on."""
        return self.reach(stage).hash

    def without(self, module: str) -> Code:
        """Return the code as it is after `module` was edited; all else is not read again."""
        other = Code(self.graph.root, self.graph.boundary)
        other.graph.take(self.graph, module)
        other._definitions.take(self._definitions, module)
        return other

    def record(self, stage: str) -> dict[str, Any]:
        """Return the hash of `stage` and, to name later what differs, one of each definition."""
        return {
            "stage": stage,
            "hash": self.hash(stage),
            "modules": self.reach(stage).shapes(),
        }


@functools.cache
def this_code() -> Code:
    """Return the code of this package."""
    return Code(_ROOT)


@functools.cache
def code_hash(stage: str) -> str:
    """Return a hash (hex, 16 digits) of the code that the results of `stage` depend on.

    Each job of Snakemake asks for all stages anew. The answers are therefore kept beside Python's
    own bytecode, for as long as no byte of the package changes.
    """
    cache = _ROOT / "__pycache__" / "code_hashes.json"
    package = _bytes_of(_ROOT)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["package"] == package:
            known = dict(kept["stages"])
    if not isinstance(known.get(stage), str):
        known[stage] = this_code().hash(stage)
        # A folder that cannot be written to, say: then it is computed each time.
        with contextlib.suppress(OSError):
            _keep(cache, {"package": package, "stages": known})
    return known[stage]


@functools.cache
def _bytes_of(root: Path) -> str:
    """Return a hash of all files of the package and of the Python that parses them."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(root.rglob("*")):
        if "__pycache__" not in path.parts and path.is_file():
            digest.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _keep(cache: Path, value: dict[str, Any]) -> None:
    if sys.dont_write_bytecode:
        return
    cache.parent.mkdir(exist_ok=True)
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(cache)


def code_record(stage: str) -> dict[str, Any]:
    """Return :func:`code_hash` with what :func:`differing` needs to name modules later."""
    return this_code().record(stage)


def differing(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    """Return module → definitions that differ between two of :func:`code_record`.

    A definition that only moved, or got another name, is not among them, unless nothing else
    explains why the hashes differ.
    """
    if old["hash"] == new["hash"] or not old["modules"]:
        return {}
    sides = [record["modules"] for record in (old, new)]
    for place in (0, 1):
        shapes = [
            Counter(words.split(" ")[place] for keys in side.values() for words in keys.values())
            for side in sides
        ]
        found: dict[str, set[str]] = {}
        for side, left in zip(sides, (shapes[0] - shapes[1], shapes[1] - shapes[0]), strict=True):
            for module, keys in side.items():
                changed = {key for key, words in keys.items() if left[words.split(" ")[place]]}
                if changed:
                    found.setdefault(module, set()).update(changed)
        if found:
            return {module: sorted(found[module]) for module in sorted(found)}
    return {}


def file_identity(path: str) -> str:
    """Return a hash of a file's size and of its first and last MiB, cheap for any size.

    For inputs from outside (URL lists, data sets): a copy or a fresh checkout has a new time and
    the same content, and must not make anything stale. A parquet footer, which holds the statistics
    of all columns, lies in the last MiB.
    """
    target = Path(path)
    size = target.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with target.open("rb") as handle:
        digest.update(handle.read(1 << 20))
        if size > 1 << 20:
            handle.seek(max(1 << 20, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()[:16]
