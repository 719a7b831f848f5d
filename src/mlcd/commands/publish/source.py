"""What is published of a run: its chunks, how images of them are named, and what was recorded.

Labels lie beside embeddings, or say themselves which images they are of; the table of a chunk's
images has the URLs and hashes. All of them are compared with their records while they are read.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.commands.audit import integrity
from mlcd.commands.audit import lock as locks
from mlcd.data.centroids import Centroids
from mlcd.data.image_store import read_manifest
from mlcd.data.labels import Labels
from mlcd.data.local_table import is_local
from mlcd.stages.download.reasons import OPTED_OUT
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

#: Stages that make labels: their settings are published.
STAGES = ("prepare", "download", "embed", "curate", "regions", "cluster", "label")
#: Keys of the config whose values are paths.
_PATHS = ("centers", "columns", "embeddings", "initial", "labels", "tables")
#: What the place of something on this machine begins with.
_PLACE = r"(?:file:/+|~|[A-Za-z]:[\\/]|\\\\|/(?!/)|\.\.?[\\/])"
#: A setting that is one, perhaps after its kind (`local-dir:`): names may hold blanks and commas.
_WHOLE = re.compile(rf"((?:(?!file:)[\w-]{{2,}}:)?){_PLACE}.*", re.DOTALL)
#: A place among other words of a setting.
_AMONG = re.compile(rf"""(?<![^:=,;|\s'"([{{]){_PLACE}[^\s,;|'")\]}}]*""")


@dataclasses.dataclass(frozen=True)
class Options:
    """What of the images is published beside hashes and labels."""

    urls: bool = True
    captions: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk with labels. `rows`: labeled images. `local`: they lay on disk already.

    `resized`: the stored bytes, whose hash is recorded, are not those that were served.
    """

    name: str
    labels: Path
    images: Path
    urls: Path
    rows: int
    local: bool
    resized: bool


class Source:
    """A sealed run, opened by its results.

    Attributes: `results`, `root` (its identity), `lock` (dict), `chunks`, `K`, `l`, `rows` (all
    labeled images), `options`, `model` (what the centers say of the encoder whose embeddings they
    are of; {} for nothing). Raises :class:`UserError` if the run is not sealed, has changed since,
    or has no labels, or if its centers say of the encoder what nobody can read.
    """

    def __init__(self, results: Path, options: Options) -> None:
        self.results, self.options = results, options
        if not (results / locks.LOCK).is_file():
            raise UserError(
                f"{results / locks.LOCK}: missing, so the run is not finished or not sealed; "
                "`mlcd run` seals a run as its last step"
            )
        self.lock = locks.read(results)
        self.root: str = self.lock["root"]
        if found := integrity.chain(results, self.lock):
            more = f" ({len(found)} such files)" if len(found) > 1 else ""
            raise UserError(
                f"{results / found[0].path}: {found[0].what}{more}; run the workflow again, which "
                "seals what it made, or see `mlcd audit verify`"
            )
        paths = locks.labels_of(results, self.lock)
        if not paths:
            raise UserError(f"{results}: has no labels to publish; run the stage label first")
        files = [Labels(results / path) for path in paths]
        self.K, self.l = files[0].num_classes, files[0].l
        self.with_similarity = all(file.has_similarity for file in files)
        self.chunks = [self._chunk(file) for file in files]
        self.starts = np.cumsum([0, *(chunk.rows for chunk in self.chunks)])
        self.rows = int(self.starts[-1])
        self.model = Centroids(self.centers).described if self.centers else {}

    def _chunk(self, file: Labels) -> Chunk:
        if (file.num_classes, file.l) != (self.K, self.l):
            raise UserError(f"{file.path}: of another number of classes or labels; rerun label")
        name = Path(file.path).stem
        images = self.results / "images" / name
        asked = read_manifest(images / "manifest.json").get("asked") or {}
        urls = self.results / "urls" / f"{name}.parquet"
        resized = asked.get("image_size") is not None
        return Chunk(name, Path(file.path), images, urls, file.n, is_local(urls), resized)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns, in their order: those that the images of any chunk have."""
        found = []
        if self.options.urls:
            found += ["url"] if any(not chunk.local for chunk in self.chunks) else []
            found += ["path"] if any(chunk.local for chunk in self.chunks) else []
        found += ["caption"] if self.options.captions else []
        found += ["sha256"]
        found += ["stored_sha256"] if any(chunk.resized for chunk in self.chunks) else []
        found += ["width", "height", "label"]
        return found + (["similarity"] if self.with_similarity else [])

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        import pyarrow as pa

        kinds: dict[str, pa.DataType] = {
            "width": pa.int32(), "height": pa.int32(), "label": pa.list_(pa.int32(), self.l),
            "similarity": pa.list_(pa.float32(), self.l),
        }  # fmt: skip
        return pa.schema([(name, kinds.get(name, pa.string())) for name in self.columns])

    def table(self, number: int) -> pa.Table:
        """Return the rows of a chunk. Raises :class:`UserError` if its files do not fit."""
        import pyarrow as pa

        chunk = self.chunks[number]
        labels = Labels(chunk.labels)
        wanted = ["row", "url", "width", "height"] + ["caption"] * self.options.captions
        images = labels.images_in(self.results, wanted)
        values: dict[str, Any] = {
            "label": _lists(labels.label()),
            "width": images["width"].to_numpy(np.int32),
            "height": images["height"].to_numpy(np.int32),
            "sha256": images["sha256"].tolist(),
        }
        if chunk.resized:
            values["stored_sha256"] = values["sha256"]
            values["sha256"] = self._served(chunk, images["row"].to_numpy(np.int64))
        if self.with_similarity:
            values["similarity"] = _lists(labels.similarity().astype(np.float32))
        if self.options.urls:
            places = images["url"].tolist()
            values |= {"path": list(map(_relative, places))} if chunk.local else {"url": places}
        if self.options.captions:
            values["caption"] = images["caption"].tolist()
        # Of images on disk there is no URL, and of others no path.
        for name in set(self.columns) - set(values):
            values[name] = [None] * len(images)
        return pa.table([values[name] for name in self.columns], schema=self.schema)

    def _served(self, chunk: Chunk, rows: np.ndarray) -> list[str | None]:
        """Return the hashes that the list itself has of the images that were served; None: none."""
        import pyarrow.parquet as pq

        if chunk.local:
            return [None] * len(rows)
        column = pq.read_table(chunk.urls, columns=["sha256"])["sha256"]
        return [text or None for text in column.take(rows).to_pylist()]

    @property
    def centers(self) -> Path | None:
        """The file of the centers, None where labels are of no centers."""
        path = self.results / "clusters" / "centroids.h5"
        return path if "clusters/centroids.h5" in self.lock["files"] else None

    @cached_property
    def lists(self) -> list[str]:
        """Names of the lists that images came from."""
        nodes = self.lock["files"].values()
        cut = {word for node in nodes if node["stage"] == "prepare" for word in node["inputs"]}
        return sorted(
            {
                str(entry["name"])
                for entry in self.lock["inputs"]
                if cut.intersection(entry.get("identities", ()))
            }
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Stage → its settings as they were sealed, without the places of files."""
        stages = {name: self.lock["stages"].get(name, {}).get("section") for name in STAGES}
        return {name: without_places(value) for name, value in stages.items() if value}

    @cached_property
    def opt_out(self) -> dict[str, int]:
        """What the downloads recorded of owners' headers that forbid the use, in images.

        `refused`: left out for their header; `honored` and `not_honored`: fetched with and without
        asking for it; `on_disk`: never fetched.
        """
        counts: Counter[str] = Counter(refused=0, honored=0, not_honored=0, on_disk=0)
        for chunk in self.chunks:
            manifest = read_manifest(chunk.images / "manifest.json")
            asked = (manifest.get("asked") or {}).get("respect_opt_out") is True
            counts.update(opt_outs(manifest["counts"], honored=asked, local=chunk.local))
        return dict(counts)


def opt_outs(counts: Mapping[str, int], *, honored: bool, local: bool) -> Counter[str]:
    """Return what a chunk's counts say of owners' headers; see :attr:`Source.opt_out`."""
    state = "on_disk" if local else "honored" if honored else "not_honored"
    found = {"refused": int(counts.get(OPTED_OUT, 0)), state: int(counts.get("success", 0))}
    return +Counter(found)


def without_places(value: Any) -> Any:
    """Return a setting in which a path is a mere name: where it lay says nothing to others.

    What a key of :data:`_PATHS` has is a path, also a relative one.
    """
    if isinstance(value, dict):
        return {key: _name(one) if key in _PATHS else without_places(one) for key, one in
                value.items()}  # fmt: skip
    if isinstance(value, list):
        return [without_places(one) for one in value]
    if isinstance(value, str):
        if found := _WHOLE.fullmatch(value):
            return found[1] + _last(value)
        return _AMONG.sub(lambda found: _last(found[0]), value)
    return value


def _name(value: Any) -> Any:
    if isinstance(value, list):
        return [_name(one) for one in value]
    return _last(value) if isinstance(value, str) else value


def _last(place: str) -> str:
    return re.split(r"[\\/]", place.rstrip("/\\"))[-1]


def _relative(place: str) -> str | None:
    """Return an image's place below its folder; None where an archive has it by a whole path."""
    inner = place.rpartition("#")[2] if "#" in place else ""
    return None if any(text.startswith(("/", "~", "\\")) for text in (place, inner)) else place


def _lists(rows: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
