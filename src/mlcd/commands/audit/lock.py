"""lock.json: all files of a run by hash, the sections and the code that made them, and one hash.

The root hash is the run's identity. It is of every file that an equal run writes equally, of what
went in, and of section and code of each stage; not of times, machines and pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.commands.audit.nodes import BYTES, CONTENT, Node, collect
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file, sha256_json, write_text
from mlcd.utils.fingerprint import code_record, file_identity
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claim
from mlcd.utils.records import read_record, write_record

LOCK = Path("audit") / "lock.json"
CODE = Path("audit") / "code.json"
SYSTEM = Path("audit") / "system.json"
CHANGES = Path("audit") / "source.diff"
RULES = Path("audit") / "rules.json"
FORMAT = 1
#: Inputs up to this size are hashed whole; of larger ones it is size, first and last MiB.
_WHOLE = 1 << 30
#: Bytes of a file whose hash is of its content, up to which its bytes are hashed as well.
_SMALL = 64 << 20


def build(
    results: Path,
    stages: dict[str, Any],
    inputs: Sequence[str],
) -> dict[str, Any]:
    """Return the lock of a finished run.

    `stages`: of each stage its `section`, and `code`, its hash, as the workflow gave them.
    `inputs`: lists, and other files from outside. Raises :class:`UserError` if a file is damaged or
    missing, or if the chain does not hold: a run is sealed whole.
    """
    nodes, problems, others = collect(results)
    if problems:
        raise UserError(f"{results / problems[0].path}: {problems[0].what}")
    if not nodes:
        raise UserError(f"{results}: holds no results of a run; run the workflow first")
    for path in others:
        LOGGER.warning("%s: of no stage, so it is not part of the lock", results / path)
    for node in nodes.values():
        if not (results / node.path).is_file():
            raise UserError(f"{results / node.path}: missing; run the workflow, which makes it")
    if broken := crossings(nodes, stages):
        path, word = broken[0]
        raise UserError(
            f"{results / path}: made from a file of hash {word[:16]}… that these results do not "
            "hold; rerun the workflow"
        )
    nodes = {path: _sealed(results, node) for path, node in nodes.items()}
    value: dict[str, Any] = {
        "format": FORMAT,
        "inputs": [_input(path) for path in sorted(set(inputs))],
        "stages": {
            stage: {
                "section": about.get("section"),
                "code": about["code"],
                "how": _how(results, stage),
            }
            for stage, about in sorted(stages.items())
        },
        "files": {path: node.record() for path, node in nodes.items()},
        "not_locked": others,
    }
    return {"root": root_of(value), **value}


def root_of(lock: dict[str, Any]) -> str:
    """Return the run's identity: a SHA-256 of all in a lock that an equal run gives equally."""
    files = {
        path: [node["hash"], node["inputs"]]
        for path, node in lock["files"].items()
        if node["repeats"]
    }
    inputs = sorted([entry["name"], entry["hash"]] for entry in lock["inputs"])
    return sha256_json([lock["format"], inputs, lock["stages"], files])


def crossings(nodes: dict[str, Node], stages: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (path, hash) where a file names an input that no file of the run is.

    Centers that the config keeps may be of images as they were before.
    """
    known = {node.hash for node in nodes.values()}
    kept = (stages.get("cluster", {}).get("section") or {}).get("centers")
    return [
        (node.path, word)
        for node in nodes.values()
        for word in node.inputs
        if word not in known and not (kept and node.stage == "cluster")
    ]


def write(
    results: Path,
    lock: dict[str, Any],
    system: dict[str, Any],
    changes: str,
    rules: dict[str, list[str]],
) -> None:
    """Write lock.json last; beside it code, system, source.diff, rules and the page, by hashes.

    `changes`: how the source tree differs from its revision. `rules`: rule → rules it waited for.
    Raises :class:`UserError` if somebody else's file lies where the page goes.
    """
    from mlcd.commands.audit import page

    claim(results / page.PAGE)
    (results / LOCK).parent.mkdir(parents=True, exist_ok=True)
    code = {stage: code_record(stage) for stage in lock["stages"]}
    write_record(results / CODE, {"stages": code})
    write_record(results / SYSTEM, system)
    write_text(results / CHANGES, changes)
    write_record(results / RULES, {"rules": rules})
    beside = {path.name: sha256_file(results / path) for path in (CODE, SYSTEM, CHANGES, RULES)}
    lock = {**lock, "beside": beside}
    write_text(results / page.PAGE, page.html(lock, nodes_of(lock), system))
    beside[page.PAGE.name] = sha256_file(results / page.PAGE)
    write_record(results / LOCK, lock)


def read(results: Path) -> dict[str, Any]:
    """Return a lock. Raises :class:`UserError` if it is missing, damaged or of another version."""
    lock = read_record(results / LOCK, "audit")
    if lock.get("format") != FORMAT:
        raise UserError(f"{results / LOCK}: of another version of mlcd")
    wanted = ("root", "inputs", "stages", "files", "beside", "not_locked")
    if lacking := [name for name in wanted if name not in lock]:
        raise UserError(f"{results / LOCK}: lacks {lacking[0]!r}, so it is damaged")
    return lock


def nodes_of(lock: dict[str, Any]) -> dict[str, Node]:
    """Return the nodes of a lock. Raises :class:`UserError` if one is no node below the results."""
    for path in lock["files"]:
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or "\0" in path:
            raise UserError(f"{LOCK}: {path!r} is no file below the results, so it is damaged")
    try:
        return {
            path: Node(path, **{**node, "inputs": tuple(node["inputs"])})
            for path, node in lock["files"].items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{LOCK}: its files are no nodes ({error}), so it is damaged") from None


def _how(results: Path, stage: str) -> dict[str, int]:
    """Return how wide a stage ran, where its bytes depend on it."""
    if stage != "train" or not (results / "train" / "encoder.json").is_file():
        return {}
    about = read_record(results / "train" / "encoder.json", "train")
    return {"ranks": int(about["ranks"])} if "ranks" in about else {}


def _sealed(results: Path, node: Node) -> Node:
    """Return a node with the hash of its bytes too, where its hash leaves out blanks and gaps."""
    if node.of != CONTENT or node.size > _SMALL:
        return node
    return dataclasses.replace(node, sealed=sha256_file(results / node.path))


def _input(path: str) -> dict[str, Any]:
    file = Path(path)
    try:
        size = file.stat().st_size
        whole = size <= _WHOLE
        digest = sha256_file(file) if whole else file_identity(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; an input of the run is gone") from None
    of = BYTES if whole else "size, first and last MiB"
    return {"name": file.name, "hash": digest, "of": of, "bytes": size}
