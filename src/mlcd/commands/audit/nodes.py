"""The files of a run as nodes of a chain: what each says it is, and what it was made from.

Every stage writes a hash of its result into the result, or into the record beside it, at the moment
of writing: HDF5 files in their attributes, weights in their description, tars in the manifest,
tables of JSON and CSV in themselves. Here they are read, not computed, so that the chain of 900
chunks and 40,000 tars takes seconds. Whether the bytes still are those, :mod:`.integrity` asks.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.data import hdf5
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.records import CHECKSUM, read_csv, read_with_checksum

#: Folders below the results that no result rests on (saved states, logs, times, this chain), and
#: ablations, which are runs of their own.
LEFT_OUT = frozenset({"state", "logs", "benchmarks", "tensorboard", "audit", "listings", "ablate"})
#: Written after the run by `snakemake --report`: it shows what is sealed, and times.
_SNAKEMAKE_REPORT = "report.html"
#: Stages in the order of the chain.
ORDER = (
    "prepare", "download", "embed", "curate", "regions", "cluster", "label", "ocr", "train", "text",
    "evaluate", "export", "report",
)  # fmt: skip
#: What a hash is of: the content, as the writer hashed it, or the bytes, hashed then or now.
CONTENT, BYTES, SEALED = "content", "bytes", "bytes when sealed"


@dataclasses.dataclass(frozen=True)
class Node:
    """A file of the run.

    `path`: below the results folder, POSIX. `stage`: who wrote it. `hash`: hex, `of` what it is.
    `size`: bytes. `inputs`: hashes of what it was made from, as its writer recorded them.
    `repeats`: False if an equal run may write other bytes (times and speeds are in them).
    `sealed`: SHA-256 of the bytes when the run was sealed, of files whose hash is of the content;
    '' for those beyond the 256 MiB that sealing reads.
    """

    path: str
    stage: str
    hash: str
    of: str
    size: int
    inputs: tuple[str, ...] = ()
    repeats: bool = True
    sealed: str = ""

    def record(self) -> dict[str, Any]:
        """Return the node as JSON; its path is the key."""
        value = dataclasses.asdict(self) | {"inputs": list(self.inputs)}
        del value["path"]
        return value


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that does not hold: `path` below the results, and what is wrong in one line."""

    path: str
    what: str


def collect(results: Path) -> tuple[dict[str, Node], list[Finding], list[str]]:
    """Return the nodes by path, the files that are damaged, and those of no stage.

    Raises :class:`UserError` if `results` is no folder.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give the folder of a run's results")
    nodes: dict[str, Node] = {}
    problems: list[Finding] = []
    others: list[str] = []
    for path in _files(results):
        if path in nodes:
            continue
        reader = _reader(path)
        if reader is None:
            others.append(path)
            continue
        try:
            if not (results / path).is_file():  # a pipe or a device would be read without end
                raise UserError(f"{results / path}: is no file")
            found = reader(results, path)
        except (UserError, KeyError, TypeError, ValueError, OSError) as error:
            problems.append(Finding(path, _one_line(error, results)))
            continue
        nodes.update((node.path, node) for node in found)
    told = {problem.path for problem in problems}
    # A file that only its record tells of, and whose record is damaged, is not another's.
    others = [path for path in others if path not in nodes and path not in told]
    return dict(sorted(nodes.items())), problems, others


def _files(results: Path) -> Iterator[str]:
    """Iterate over all files but those left out; records first, since they tell of others."""
    found = []
    seen: set[str] = set()
    # Folders may be links to a larger disk; one that leads back to where it was is not entered.
    for folder, folders, files in os.walk(results, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        below = Path(folder).relative_to(results)
        if below.parts and stage_of(below.as_posix()) is None and _is_run(Path(folder)):
            # The results of another run may lie below these (results/mine), with its own seal.
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and name[0] != ".")
        found += [(below / name).as_posix() for name in files if name[0] != "."]
    found = [path for path in found if path != _SNAKEMAKE_REPORT]
    yield from sorted(found, key=lambda path: (not path.endswith(".json"), path))


def _is_run(folder: Path) -> bool:
    """True if a folder holds the results of a run, from its first stage on."""
    kept = (folder / "audit" / "lock.json", folder / "report" / "config.yaml")
    return any(path.is_file() for path in kept) or any(folder.glob("urls/*.json"))


def _reader(path: str) -> Callable[[Path, str], list[Node]] | None:
    """Return what reads a file of this place; None if no stage writes there, or a record tells."""
    place = PurePosixPath(path)
    parts = place.parts
    if stage_of(path) is None:
        return None
    if parts[0] == "urls" and place.suffix == ".json":
        return _urls
    if parts[0] == "images" and place.name == "manifest.json":
        return _images
    if parts[0] == "export" and place.name == "check.json":
        return _export
    if place.name in ("encoder.json", "text.json"):
        return _weights
    if place.suffix == ".h5":
        return _hdf5
    stage = stage_of(path)
    if stage is None or parts[0] in ("images", "urls", "export") or place.suffix == ".safetensors":
        return None
    if stage == "report" or place.suffix in (".svg", ".md", ".png", ".pdf"):
        return _page
    readers = {".json": _record, ".csv": _table, ".jsonl": _lines}
    return readers.get(place.suffix)


def stage_of(path: str) -> str | None:
    """Return the stage that writes a file below the results, or None."""
    first, *more = PurePosixPath(path).parts
    if first == "regions":
        # Regions are labeled as images are.
        return "label" if more[:1] == ["labels"] else "regions"
    stages = {
        "urls": "prepare", "images": "download", "embeddings": "embed", "curate": "curate",
        "clusters": "cluster", "labels": "label", "ocr": "ocr", "train": "train", "text": "text",
        "evaluate": "evaluate", "export": "export", "report": "report",
    }  # fmt: skip
    return stages.get(first)


def _node(results: Path, path: str, hash: str, of: str, *inputs: str, **more: Any) -> Node:
    size = more.pop("size", None)
    size = (results / path).stat().st_size if size is None else int(size)
    kept = tuple(sorted({word for word in inputs if word}))
    return Node(path, str(stage_of(path)), hash, of, size, kept, **more)


def _urls(results: Path, path: str) -> list[Node]:
    record, checksum = read_with_checksum(results / path, "its stage")
    table = PurePosixPath(path).with_suffix(".parquet").as_posix()
    made = str(record.get("list", ""))
    rows = _node(results, table, record["table"], BYTES, made, size=_size(results / table))
    return [_node(results, path, checksum, CONTENT, record["table"]), rows]


def _images(results: Path, path: str) -> list[Node]:
    manifest, _ = read_with_checksum(results / path, "its stage")
    folder = PurePosixPath(path).parent
    urls = manifest.get("urls", "")
    found = [
        _node(
            results, (folder / _name(tar["name"])).as_posix(), tar["sha256"], BYTES, urls,
            size=tar["bytes"],
        )
        for tar in manifest["tars"]
    ]  # fmt: skip
    table = (folder / "rows.parquet").as_posix()
    found.append(_node(results, table, manifest["table"], BYTES, urls, size=_size(results / table)))
    made = [urls, *(node.hash for node in found)]
    return [*found, _node(results, path, manifest["fingerprint"], CONTENT, *made)]


def _weights(results: Path, path: str) -> list[Node]:
    about, checksum = read_with_checksum(results / path, "its stage")
    weights = PurePosixPath(path).with_suffix(".safetensors").as_posix()
    made = [word for words in about.get("made_from", {}).values() for word in words]
    if path.endswith("text.json"):
        made.append(about["encoder_sha256"])
    found = [_node(results, weights, about["sha256"], BYTES, *made, size=_size(results / weights))]
    if layer := about.get("regions"):  # the layer that was trained beside the encoder
        beside = PurePosixPath(path).with_name(_name(layer["file"])).as_posix()
        size = _size(results / beside)
        found.append(_node(results, beside, layer["sha256"], BYTES, *made, size=size))
    hashes = (node.hash for node in found)
    return [*found, _node(results, path, checksum, CONTENT, *hashes)]


def _export(results: Path, path: str) -> list[Node]:
    about, checksum = read_with_checksum(results / path, "its stage")
    folder = PurePosixPath(path).parent
    weights, sizes = about["encoder_sha256"], about["bytes"]
    found = [
        _node(results, (folder / _name(name)).as_posix(), digest, BYTES, weights, size=sizes[name])
        for name, digest in about["files"].items()
    ]
    check = _node(results, path, checksum, CONTENT, *(node.hash for node in found))
    card = (folder / "README.md").as_posix()
    # check.json does not name the card, which names the run.
    cards = _page(results, card, weights) if (results / card).is_file() else []
    return [*found, *cards, check]


def _hdf5(results: Path, path: str) -> list[Node]:
    if stage_of(path) is None:
        return []
    attributes, fingerprint = hdf5.attributes(results / path)
    made: list[str] = [
        str(attributes[name])
        for name in (
            "manifest", "centroids", "encoder_sha256", "images", "text_sha256", "facts", "curation",
            "text", "vocabulary",
        )
        if isinstance(attributes.get(name), str)
    ]  # fmt: skip
    if path.startswith("text/embeddings/"):
        made.append(str(json.loads(str(attributes["model"]))["weights_sha256"]))
    said = attributes.get("embeddings", "")
    if attributes["kind"] == "centroids":
        section = hdf5.json_object(
            results / path, "section", str(attributes.get("section", "")), "cluster"
        )
        if section.get("centers"):
            said = ""  # made by another run, of its embeddings
    made += json.loads(said) if str(said).startswith("[") else [str(said)]
    return [_node(results, path, fingerprint, CONTENT, *made)]


def _record(results: Path, path: str) -> list[Node]:
    about, checksum = read_with_checksum(results / path, "its stage")
    made = [word for words in about.get("made_from", {}).values() for word in words]
    made.append(str(about.get("encoder_sha256", "")))
    return [_node(results, path, checksum, CONTENT, *made)]


def _table(results: Path, path: str) -> list[Node]:
    rows = read_csv(results / path, "its stage")
    with (results / path).open(encoding="utf-8") as file:
        heading = file.readline().rstrip("\n").rpartition(",")[2]
    made = {row.get("encoder_sha256", "") for row in rows}
    return [_node(results, path, heading.removeprefix(f"{CHECKSUM} "), CONTENT, *made)]


def _lines(results: Path, path: str) -> list[Node]:
    return [_node(results, path, sha256_file(results / path), SEALED, repeats=False)]


def _page(results: Path, path: str, *inputs: str) -> list[Node]:
    # Pages carry times and figures that are drawn by libraries.
    digest = sha256_file(results / path)
    return [_node(results, path, digest, SEALED, *inputs, repeats=False)]


def _size(path: Path) -> int:
    """Return the size of a file whose record does not tell it; −1 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _name(word: Any) -> str:
    """Return the name of a file as a record has it. Raises ValueError if it leads elsewhere."""
    if not isinstance(word, str) or word != PurePosixPath(word).name:
        raise ValueError(f"{word!r} is no name of a file beside it")
    return word


def _one_line(error: Exception, results: Path) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(f"{results}{os.sep}", "")
