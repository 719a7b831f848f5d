"""The report's page "Audit": the chain of a sealed run as a graph whose boxes open.

It is drawn from the lock and system.json alone, so equal seals give equal bytes. No script runs and
nothing is fetched. A stage of 40,000 files is a box that shows the first of each kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from markupsafe import Markup

from mlcd.commands.audit import lanes
from mlcd.commands.audit.nodes import ORDER, Node
from mlcd.utils.units import decimal_size

PAGE = Path("audit") / "chain.html"
#: Stage → what its files are, and what they are of, in words.
_WORDS = {
    "inputs": ("Inputs", "lists and files from outside"),
    "prepare": ("URLs", "rows of the lists, cut into chunks"),
    "download": ("Images", "tars and the tables of their rows"),
    "embed": ("Embeddings", "vectors of the images by the frozen encoder"),
    "curate": ("Curation", "which images are kept, and their embeddings"),
    "regions": ("Regions", "boxes in images, embedded as these are"),
    "cluster": ("Centroids", "clusters of the embeddings"),
    "label": ("Labels", "the nearest centroids of each image"),
    "ocr": ("Words", "text in the images, and its words as labels"),
    "train": ("Encoder", "trained on images and labels"),
    "text": ("Text tower", "trained against the encoder"),
    "evaluate": ("Features and scores", "of all models on all data sets"),
    "export": ("Exports", "the encoder for other libraries"),
    "report": ("Report", "pages for people; no part of the identity"),
}
#: Files of a kind, and of no stage, that are shown.
_SHOWN = 4
#: Kinds of files of a stage, and characters of a section, that are shown.
_KINDS, _SECTION = 12, 6000


def html(lock: dict[str, Any], nodes: dict[str, Node], system: dict[str, Any]) -> str:
    """Return the page of a lock, its nodes and its system.json."""
    from mlcd.stages.report.page import Drawing, render, table

    rows = _rows(lock, nodes)
    lines = lanes.lay([row["stage"] for row in rows], {r["stage"]: r["from"] for r in rows})
    for number, row in enumerate(rows):
        row |= {"head": lanes.head(lines, number), "tail": lanes.tail(lines, number)}
    chunks = len({PurePosixPath(path).parent for path in nodes if path.startswith("images/")})
    body = render(
        "chain.html",
        root=lock["root"],
        rows=rows,
        width=lanes.width(lines),
        height=lanes.HEAD,
        machine=table(["what", "value"], [*_machine(system), *_beside(lock)]),
        not_locked=lock["not_locked"][:_SHOWN],
        more_not_locked=len(lock["not_locked"]) - _SHOWN,
    )
    files = f"{len(nodes):,} file{'s' * (len(nodes) != 1)}"
    of = f", {chunks:,} chunk{'s' * (chunks != 1)} of images" if chunks else ""
    lead = (
        f"Sealed: {files}{of}. Each file has a hash, and names the hashes of what it was made "
        "from. A line leads from a stage's files down to those made from them. Open a box for its "
        "files, its settings and the hash of its code."
    )
    drawing = Drawing(
        f"The chain of run {lock['root'][:12]}", lead, body, warnings=_warnings(system)
    )
    return drawing.html()


def _warnings(system: dict[str, Any]) -> list[str]:
    revision = system.get("revision")
    if isinstance(revision, dict) and revision.get("modified"):
        return ["The source tree was modified since its revision: audit/source.diff says how."]
    return []


def _rows(lock: dict[str, Any], nodes: dict[str, Node]) -> list[dict[str, Any]]:
    """Return the rows of the graph, from the top: inputs, then stages that left files."""
    stage_of = {node.hash: node.stage for node in nodes.values()}
    rows: list[dict[str, Any]] = []
    for stage in ORDER:
        own = [node for node in nodes.values() if node.stage == stage]
        if not own:
            continue
        about = lock["stages"].get(stage, {})
        rows.append({
            "stage": stage,
            "name": _WORDS[stage][0],
            "what": _WORDS[stage][1],
            "files": len(own),
            "bytes": decimal_size(sum(node.size for node in own)),
            "code": about.get("code"),
            "how": ", ".join(f"{key} {value}" for key, value in about.get("how", {}).items()),
            "section": _section(about.get("section")),
            "from": _sources(own, stage, stage_of),
            "kinds": list(_kinds(own)),
            "counted": any(node.repeats for node in own),
        })  # fmt: skip
    if lock["inputs"] and rows:
        # No file says which input it is of, but the lists come first.
        rows[0]["from"] = {"inputs": len(lock["inputs"])}
        rows.insert(0, _inputs(lock))
    return rows


def _inputs(lock: dict[str, Any]) -> dict[str, Any]:
    name, what = _WORDS["inputs"]
    entries = lock["inputs"]
    files = [_file(entry["name"], entry) for entry in entries[:_SHOWN]]
    size = decimal_size(sum(entry.get("bytes", 0) for entry in entries))
    kind = {"name": "", "count": len(entries), "bytes": size, "files": files,
            "more": len(entries) - len(files)}  # fmt: skip
    return {"stage": "inputs", "name": name, "what": what, "files": len(entries), "bytes": size,
            "code": None, "how": "", "section": "", "from": {}, "kinds": [kind],
            "counted": True}  # fmt: skip


def _sources(own: list[Node], stage: str, stage_of: dict[str, str]) -> dict[str, int]:
    """Return the other stages whose files these were made from → how many of their files."""
    found: dict[str, int] = {}
    for word in {word for node in own for word in node.inputs}:
        source = stage_of.get(word)
        if source not in (None, stage):
            found[str(source)] = found.get(str(source), 0) + 1
    return {name: found[name] for name in ORDER if name in found}


def _kinds(own: list[Node]) -> Iterator[dict[str, Any]]:
    """Iterate over the kinds of files of a stage: those whose paths differ in a chunk or number."""
    groups: dict[str, list[Node]] = {}
    for node in sorted(own, key=lambda node: node.path):
        groups.setdefault(_pattern(node.path), []).append(node)
    for name, nodes in list(groups.items())[:_KINDS]:
        yield _kind(name, nodes, _SHOWN)
    if rest := [node for nodes in list(groups.values())[_KINDS:] for node in nodes]:
        yield _kind("others", rest, 0)


def _kind(name: str, nodes: list[Node], shown: int) -> dict[str, Any]:
    """Return files of one kind: the name of all, the first, and how many there are beside these."""
    files = [_file(node.path, node.record()) for node in nodes[:shown]]
    size = decimal_size(sum(node.size for node in nodes))
    return {
        "name": name, "count": len(nodes), "bytes": size, "files": files,
        "more": len(nodes) - len(files),
    }  # fmt: skip


def _file(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    size = entry.get("size", entry.get("bytes"))
    # Of a data set no size is known.
    told = "" if size is None else decimal_size(size)
    return {"name": name, "hash": entry["hash"], "bytes": told, "of": entry["of"],
            "repeats": entry.get("repeats", True)}  # fmt: skip


def _pattern(path: str) -> str:
    """Return a path with the names of chunks, and numbers of tars, replaced."""
    path = re.sub(r"[^/]+-\d{5}(?=[./])", "{chunk}", path)
    return re.sub(r"/\d{5}(?=\.)", "/{number}", path)


def _section(section: Any) -> str:
    if not section:
        return ""
    # YAML knows plain objects only.
    plain = json.loads(json.dumps(section))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
    return text if len(text) <= _SECTION else f"{text[:_SECTION]}\n… (all of it: audit/lock.json)"


def _beside(lock: dict[str, Any]) -> Iterator[tuple[str, Markup]]:
    from mlcd.stages.report.page import code

    for name, digest in lock.get("beside", {}).items():
        yield f"audit/{name}", code(digest)


def _machine(system: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what last bits depend on, in words."""
    from mlcd.stages.report.page import code

    processor, torch = system.get("processor") or {}, system.get("torch") or {}
    gpus = [" ".join(map(str, one.values())) for one in system.get("gpus") or []]
    commit = (system.get("revision") or {}).get("commit")
    cuda = f", CUDA {torch['cuda']}, cuDNN {torch.get('cudnn')}" if torch.get("cuda") else ""
    facts = [
        ("mlcd", system.get("mlcd")),
        ("revision", code(commit) if commit else "none: not a checkout"),
        ("Python", f"{system.get('python')} on {system.get('platform')}, {system.get('libc')}"),
        ("processor", f"{processor.get('model')}, {processor.get('cores')} cores"),
        ("instructions", " ".join(processor.get("flags", [])) or "not known"),
        ("torch", f"{torch.get('version')} ({torch.get('capability')}){cuda}"),
        ("GPUs", "; ".join(gpus) or "none"),
        ("packages", f"{len(system.get('packages', {}))}, with versions in audit/system.json"),
    ]
    return [(name, value if isinstance(value, str) else str(value)) for name, value in facts]
