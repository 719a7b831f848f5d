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

import functools
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.utils.fingerprint import kept

if TYPE_CHECKING:
    from mlcd.utils.fingerprint.code import Code

_ROOT = Path(__file__).parents[2]


@functools.cache
def this_code() -> Code:
    """Return the code of this package."""
    # To read code takes longer to import than a kept answer takes to read.
    from mlcd.utils.fingerprint.code import Code

    return Code(_ROOT)


def code_hash(stage: str) -> str:
    """Return a hash (hex, 16 digits) of the code that the results of `stage` depend on."""
    found: str = code_record(stage)["hash"]
    return found


@functools.cache
def code_record(stage: str) -> dict[str, Any]:
    """Return :func:`code_hash` with what :func:`differing` needs to name modules later.

    Each job of Snakemake asks for all stages anew, and each gang. The answers are therefore kept
    for as long as no byte of the package changes (:mod:`mlcd.utils.fingerprint.kept`).
    """
    return kept.answer(_ROOT, stage, lambda: this_code().record(stage))


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
