"""lock.json: all files of a run by hash, the sections and the code that made them, and one hash.

The root hash is the run's identity. It is of every file that an equal run writes equally, of what
went in, and of section and code of each stage; not of times, machines and pages.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.commands.audit.nodes import BYTES, CONTENT, ORDER, Node, collect
from mlcd.data.listing import summary
from mlcd.data.listing_table import is_listing
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
FORMAT = 2
#: What a lock holds, and a node and an input of it: a stranger's may hold anything.
_KINDS = {"root": str, "inputs": list, "stages": dict, "files": dict, "beside": dict,
          "not_locked": list}  # fmt: skip
_NODE = {"stage": str, "hash": str, "of": str, "size": int, "inputs": list, "repeats": bool}
_INPUT = {"name": str, "hash": str, "of": str}
#: Inputs up to this size are hashed whole; of larger ones it is size, first and last MiB.
_WHOLE = 1 << 30
_ENDS = "size, first and last MiB"
#: Bytes of files that are hashed as well where their hash is of their content.
_READ = 256 << 20


def build(
    results: Path,
    stages: dict[str, Any],
    inputs: Sequence[str],
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the lock of a finished run.

    `stages`: of each stage its `section`, and `code`, its hash, as the workflow gave them.
    `inputs`: lists, and other files from outside. `datasets`: NAME=IDENTITY of those that models
    are judged on, as :func:`mlcd.data.labeled.layout.identity` has it. Raises :class:`UserError`
    if a file is damaged or missing, or if the chain does not hold: a run is sealed whole.
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
    outside = [_input(path) for path in sorted(set(inputs))] + _datasets(datasets)
    if broken := crossings(nodes, stages, outside):
        path, word = broken[0]
        raise UserError(
            f"{results / path}: made from a file of hash {word[:16]}… that is not of this run, "
            "nor of its lists and data sets; rerun the workflow, or remove the file if it is of a "
            "chunk that the config no longer has"
        )
    nodes = _sealed(results, nodes)
    value: dict[str, Any] = {
        "format": FORMAT,
        "inputs": outside,
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


def crossings(
    nodes: dict[str, Node], stages: dict[str, Any], inputs: Sequence[dict[str, Any]]
) -> list[tuple[str, str]]:
    """Return (path, hash) where a file names an input that is of no file of the run, nor input.

    Centers that the config keeps may be of images as they were before.
    """
    known = {node.hash for node in nodes.values()}
    known.update(word for entry in inputs for word in entry.get("identities", ()))
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
    for name, kind in _KINDS.items():
        if not isinstance(lock.get(name), kind):
            raise UserError(f"{results / LOCK}: has no {name!r} as it should, so it is damaged")
    if not (
        all(_has(node, _NODE) and node["stage"] in ORDER for node in lock["files"].values())
        and all(_has(entry, _INPUT) for entry in lock["inputs"])
        and all(_has(about, {"code": str}) for about in lock["stages"].values())
        and all(isinstance(path, str) for path in lock["not_locked"])
    ):
        raise UserError(f"{results / LOCK}: its entries are none of a lock, so it is damaged")
    return lock


def labels_of(results: Path, lock: dict[str, Any]) -> list[str]:
    """Return the files of labels that the run counts, below the results, sorted.

    Those that labels/summary.json names, as :func:`mlcd.data.labels.of_run` has it: of chunks that
    the config no longer has, files lie there and are sealed too. All, if the summary tells of none
    or is damaged, which the chain says.
    """
    places = {path: node["hash"] for path, node in lock["files"].items()}
    # A pattern would match at the end, where labels of regions and of words lie in such a folder.
    files = sorted(path for path in places if re.fullmatch(r"labels/[^/]+\.h5", path))
    try:
        about = read_record(results / "labels" / "summary.json", "label")
    except UserError:
        return files
    counted = set(about.get("made_from", {}).get("labels", []))
    found = [path for path in files if places[path] in counted]
    return found if counted and len(found) == len(counted) else files


def _has(value: Any, kinds: Mapping[str, type]) -> bool:
    """Tell whether a value read from JSON is an object with these fields, each of its type."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in kinds.items()
    )


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
    names = {"train": "encoder.json", "text": "text.json"}
    path = results / stage / names.get(stage, "")
    if stage not in names or not path.is_file():
        return {}
    about = read_record(path, stage)
    return {"ranks": int(about["ranks"])} if "ranks" in about else {}


def _sealed(results: Path, nodes: dict[str, Node]) -> dict[str, Node]:
    """Return nodes with the hash of their bytes too, where their hash leaves out blanks and gaps.

    The smallest first, as many as are read in seconds: at any size all records are among them.
    """
    found, room = dict(nodes), _READ
    for node in sorted(nodes.values(), key=lambda node: (node.size, node.path)):
        if node.of == CONTENT and (room := room - node.size) >= 0:
            digest = sha256_file(results / node.path)
            found[node.path] = dataclasses.replace(node, sealed=digest)
    return found


def _input(path: str) -> dict[str, Any]:
    file, digest = Path(path), hash_of(path)
    size = file.stat().st_size
    of = BYTES if size <= _WHOLE else _ENDS
    value = {"name": file.name, "hash": digest, "of": of, "bytes": size,
             "identities": _identities(file)}  # fmt: skip
    # An absolute path says something about the machine, and nothing to others.
    return value if file.is_absolute() else {**value, "path": file.as_posix()}


def hash_of(path: str) -> str:
    """Return the hash of a file from outside as a lock has it. Raises :class:`UserError`."""
    try:
        whole = Path(path).stat().st_size <= _WHOLE
        return sha256_file(path) if whole else file_identity(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; an input of the run is gone") from None


def _identities(file: Path) -> list[str]:
    """Return what chunks say that they were cut from: a list, or parts of a listing."""
    if is_listing(file):
        return summary(file).identities
    return [file_identity(str(file))]


def _datasets(given: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for word in sorted(given):
        name, equals, identity = word.partition("=")
        if not (name and equals and identity):
            raise UserError(f"--datasets: expected NAME=IDENTITY, got {word!r}")
        found.append({"name": name, "hash": identity, "of": f"the data set's files: {_ENDS}",
                      "identities": [identity]})  # fmt: skip
    return found
