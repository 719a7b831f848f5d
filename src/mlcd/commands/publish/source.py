"""What is published of a run: its chunks, how images of them are named, and what was recorded.

Labels lie beside embeddings, or say themselves which images they are of; the table of a chunk's
images has the URLs and hashes. All of them are compared with their records while they are read.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.commands.audit import integrity
from mlcd.commands.audit import lock as locks
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore, read_manifest
from mlcd.data.labels import Labels
from mlcd.data.local_table import is_local
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Stages that make labels: their settings are published.
STAGES = ("prepare", "download", "embed", "curate", "regions", "cluster", "label")
#: What the place of something on this machine begins with.
_PLACE = r"(?:file:/+|~|[A-Za-z]:[\\/]|\\\\|/(?!/)|\.\.?[\\/])"
#: A setting that is one, perhaps after its kind (`local-dir:`): names may hold blanks and commas.
_WHOLE = re.compile(rf"((?:(?!file:)[\w-]{{2,}}:)?){_PLACE}.*", re.DOTALL)
#: A place among other words of a setting.
_AMONG = re.compile(rf"""(?<![^:=,;|\s'"([{{]){_PLACE}[^\s,;|'")\]}}]*""")
#: The count of images whose owners' headers forbid the use (mlcd.stages.download.reasons).
_OPTED_OUT = "opted_out"


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
    labeled images), `options`. Raises :class:`UserError` if the run is not sealed, has changed
    since, or has no labels.
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
        paths = sorted(path for path in self.lock["files"] if re.fullmatch(r"labels/.+\.h5", path))
        if not paths:
            raise UserError(f"{results}: has no labels to publish; run the stage label first")
        files = [Labels(results / path) for path in paths]
        self.K, self.l = files[0].num_classes, files[0].l
        self.with_similarity = all(file.has_similarity for file in files)
        self.chunks = [self._chunk(file) for file in files]
        self.starts = np.cumsum([0, *(chunk.rows for chunk in self.chunks)])
        self.rows = int(self.starts[-1])

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
        images = images_of(self.results, labels, wanted)
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
    def model(self) -> dict[str, Any]:
        """What is known of the encoder whose embeddings the centers are of; {} for nothing."""
        return model_of(Centroids(self.centers)) if self.centers else {}

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
            counts["refused"] += int(manifest["counts"].get(_OPTED_OUT, 0))
            asked = (manifest.get("asked") or {}).get("respect_opt_out") is True
            state = "on_disk" if chunk.local else "honored" if asked else "not_honored"
            counts[state] += int(manifest["counts"].get("success", 0))
        return dict(counts)


def images_of(results: Path, labels: Labels, columns: list[str]) -> pd.DataFrame:
    """Return key, sha256, places and `columns` of the images of the rows of `labels`, in order.

    Raises :class:`UserError` if the chunk's files are not of one another.
    """
    import pandas as pd

    name = Path(labels.path).stem
    store = ImageStore(results / "images" / name)
    if labels.manifest:
        keys, made_from = labels.keys(), labels.manifest
    else:
        embeddings = Embeddings(labels.embeddings_in(results))
        if labels.embeddings != embeddings.fingerprint:
            raise UserError(
                f"{labels.path}: of other embeddings than {embeddings.path}; rerun label"
            )
        keys, made_from = embeddings.keys(), str(embeddings.attributes.get("manifest", ""))
    if made_from != store.fingerprint:
        raise UserError(f"{labels.path}: of other images than {store.folder}; rerun the stages")
    table = store.arrived(columns)
    place = pd.Index(table["key"]).get_indexer([key.decode() for key in keys])
    if len(keys) != labels.n or (place < 0).any():
        raise UserError(f"{labels.path}: its rows are not those of {store.folder}; rerun label")
    return table.iloc[place]


def model_of(centers: Centroids) -> dict[str, Any]:
    """Return what centers say of their encoder; {} for nothing, or for what nobody can read."""
    try:
        found = json.loads(centers.model)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def without_places(value: Any) -> Any:
    """Return a setting in which a path is a mere name: where it lay says nothing to others."""
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    if isinstance(value, str):
        if found := _WHOLE.fullmatch(value):
            return found[1] + _last(value)
        return _AMONG.sub(lambda found: _last(found[0]), value)
    return value


def _last(place: str) -> str:
    return re.split(r"[\\/]", place.rstrip("/\\"))[-1]


def _relative(place: str) -> str | None:
    """Return an image's place below its folder; None where an archive has it by a whole path."""
    inner = place.rpartition("#")[2] if "#" in place else ""
    return None if any(text.startswith(("/", "~", "\\")) for text in (place, inner)) else place


def _lists(rows: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
