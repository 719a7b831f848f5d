"""Are the files still what the lock says? The chain in seconds, and all bytes where asked.

Chain: every file is there, says of itself what the lock says, and names only inputs of this run.
Bytes: what a file says of itself is also true. Every dataset, tar and table is hashed again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlcd.commands.audit import bundle, cards
from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import SEALED, Finding, Node, collect
from mlcd.data import hdf5
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.logging import progress
from mlcd.utils.records import read_csv, read_record


def chain(results: Path, lock: dict[str, Any], root: str | None = None) -> list[Finding]:
    """Compare what the files of `results` say with the lock; `root` is the identity expected."""
    found: list[Finding] = []
    name = locks.LOCK.as_posix()
    if lock["root"] != locks.root_of(lock):
        found.append(Finding(name, "its root hash is not of its entries: the lock was edited"))
    if root is not None and lock["root"] != root:
        found.append(Finding(name, f"is of the run {lock['root']}, not of {root}"))
    found += _beside(results, lock)
    found += bundle.check(results)
    locked = locks.nodes_of(lock)
    nodes, problems, others = collect(results)
    found += problems
    damaged = {problem.path for problem in problems}
    for path, node in locked.items():
        found += _compared(results, path, node, nodes.get(path), path in damaged)
    found += cards.check(results, lock)
    known = {*locked, *lock["not_locked"], *damaged}
    for path in sorted({*nodes, *others} - known):
        found.append(Finding(path, "added since the run was sealed"))
    found += [
        Finding(path, f"made from a file of hash {word[:16]}… that is not of this run")
        for path, word in locks.crossings(locked, lock["stages"], lock["inputs"])
    ]
    if not damaged:
        found += _said(results, locked)
    return found


def _said(results: Path, locked: dict[str, Node]) -> list[Finding]:
    try:
        return list(summary(results, locked))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return [Finding("evaluate/summary.csv", " ".join(str(error).split()))]


def summary(results: Path, files: Iterable[str]) -> Iterator[Finding]:
    """Iterate over scores of the summary that are not those of their models' files."""
    name = "evaluate/summary.csv"
    if not (results / name).is_file():
        return
    known = {}
    for path in filter(is_scores, files):
        about = read_record(results / path, "evaluate")
        for dataset, found in about["datasets"].items():
            for metric, value in found["scores"].items():
                known[about["model"], dataset, metric] = float(value)
    for row in read_csv(results / name, "evaluate"):
        place = row["model"], row["dataset"], row["metric"]
        if place in known:
            # The table has four digits.
            value, said = known[place], float(row["value"])
            # A score that does not exist is NaN in both.
            if not (
                abs(said - value) <= 1e-6 + 1e-4 * abs(value) or (said != said) & (value != value)
            ):
                yield Finding(name, f"{' '.join(place)} is not {known[place]}")
        elif known and row["model"] != "chance" and not row["dataset"].startswith("mean"):
            yield Finding(name, f"{' '.join(place)} is a score of no file")


def is_scores(path: str) -> bool:
    """True for the scores of a model."""
    return path.startswith("evaluate/") and path.count("/") == 1 and path.endswith(".json")


def accepted(results: Path) -> list[str]:
    """Return in words the changes of code that were accepted while a stage was unfinished."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for name in ("train/encoder.json", "text/text.json", "clusters/centroids.h5"):
        try:
            if name.endswith(".h5"):
                about = hdf5.attributes(results / name)[0]
                changes = json.loads(str(about.get("accepted_code", "[]")))
            else:
                changes = read_record(results / name, "its stage").get("accepted_code", [])
        except (UserError, OSError, ValueError):
            continue  # missing, or damaged, which the chain says
        found.append((name, changes))
    return [
        f"{name}: other code was accepted at step {one['step']}: "
        f"{', '.join(one['modules']) or 'of an unknown version'}; reason: {one['reason'] or 'none'}"
        for name, changes in found
        for one in changes
    ]


def not_sealed(results: Path, lock: dict[str, Any]) -> list[str]:
    """Return in words the files that lay there when the run was sealed, and are no part of it."""
    names = [name for name in map(str, lock["not_locked"]) if (results / name).is_file()]
    more = [f"and {len(names) - 20} more files of no stage"] if len(names) > 20 else []
    return [f"{name}: of no stage, so nothing is said of it" for name in names[:20]] + more


def _beside(results: Path, lock: dict[str, Any]) -> Iterator[Finding]:
    for name, digest in lock["beside"].items():
        path = results / locks.LOCK.parent / Path(name).name
        where = path.relative_to(results).as_posix()
        if not path.is_file():
            yield Finding(where, "missing")
        elif sha256_file(path) != digest:
            yield Finding(where, "not what was sealed")


def _compared(
    results: Path, path: str, locked: Node, node: Node | None, damaged: bool
) -> Iterator[Finding]:
    file = results / path
    if not file.is_file():
        yield Finding(path, "missing")
    elif node is None:
        if not damaged:
            yield Finding(path, "no record tells of it any more: the one beside it is damaged")
    elif node.hash != locked.hash:
        yield Finding(path, f"says {node.hash[:16]}…, and was sealed as {locked.hash[:16]}…")
    # The identity is not of these, and --bytes goes by them.
    elif (node.of, node.stage, node.repeats) != (locked.of, locked.stage, locked.repeats):
        yield Finding(path, "is not of the kind that the lock says: the lock was edited")
    elif node.inputs != locked.inputs:
        yield Finding(path, "names other inputs than when it was sealed")
    elif file.stat().st_size != locked.size:
        yield Finding(path, f"has {file.stat().st_size} bytes, and was sealed with {locked.size}")
    elif locked.sealed and file.suffix != ".h5" and sha256_file(file) != locked.sealed:
        yield Finding(path, "its bytes are not those that were sealed")


def contents(
    results: Path, lock: dict[str, Any], share: float, seed: int
) -> tuple[list[Finding], str]:
    """Hash a share of the files again; return what differs, and how much that was in words."""
    nodes = locks.nodes_of(lock)
    # Pages and logs were hashed by the chain already.
    files = [node for node in nodes.values() if node.of != SEALED]
    chosen = files
    if share < 1:
        count = max(1, round(share * len(files)))
        chosen = sorted(random.Random(seed).sample(files, count), key=lambda node: node.path)
    found: list[Finding] = []
    for node in progress(chosen, total=len(chosen), label="bytes", unit="file"):
        found += bytes_of(results, node)
    told = f"{len(chosen)} of {len(files)} files hashed"
    if len(chosen) < len(files):
        missed = 1 - len(chosen) / len(files)
        told += f": one altered file would be missed with probability {missed:.3f}"
    return found, told


def bytes_of(results: Path, node: Node) -> Iterator[Finding]:
    """Iterate over what is wrong with the bytes of a file: at most one finding."""
    path = results / node.path
    try:
        if not path.is_file():  # a pipe would be read without end
            raise UserError(f"{path}: is no file")
        digest = node.hash
        if path.suffix == ".h5":
            digest = hdf5.verified_fingerprint(path)
            # Between its datasets lie bytes that no content is in.
            if node.sealed and sha256_file(path) != node.sealed:
                digest = ""
        elif path.suffix not in (".json", ".csv") or node.of == "bytes":
            # Those were read whole, with their checksum, by the chain.
            digest = sha256_file(path)
    except (UserError, OSError) as error:
        yield Finding(node.path, " ".join(str(error).replace(f"{results}/", "").split()))
        return
    if digest != node.hash:
        yield Finding(node.path, "its bytes are not those that were written")
