"""The index of a run, open for questions: what `mlcd explore` knows of each cluster.

Columns of K rows are held in memory; what has a row for each image is read by slices.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np

from mlcd.commands.explore import store
from mlcd.commands.explore.build import SORTS, build
from mlcd.commands.explore.centers import CenterSearch
from mlcd.commands.explore.layout import morton
from mlcd.commands.explore.places import ImagePlaces
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.texts import Texts
from mlcd.commands.explore.words import Words
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Points of a tile of the map at most.
TILE = 8192
#: Levels of the map: at the last a tile is as wide as one of its whole numbers.
LEVELS = 17
_FOLDER = re.compile(r"index-[0-9a-f]{16}")


class Index:
    """An index, opened by folder. Raises :class:`UserError` if it is not whole.

    Attributes: `K`, `n` (images), `chunks` (names), `has_images` (and captions), `known` (names
    of the columns that are known), `columns` (name of :data:`.build.SORTS` → array [K]), `orders`
    (the same → clusters by falling value), `centers` (None without), `places` and `words` (None
    without images).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record, self._files = store.open_columns(folder)
        self.K, self.n = int(record["k"]), int(record["images"])
        self.chunks = list(record["chunks"])
        self.has_images = bool(record["has_images"])
        self.known = [name for name in SORTS if name in record["known"]]
        self.columns = {name: self._files[name].read() for name in SORTS}
        self.orders = {name: self._files[f"by_{name}"].read() for name in SORTS}
        self._ends = self._files["member_ends"].read()
        self._texts = Texts(self._files) if self.has_images else None
        self.places = ImagePlaces(self._files) if self.has_images else None
        self.words = Words(self._files) if self.has_images else None
        self.centers = CenterSearch(self._files) if "center_rows" in self._files else None
        self._open_map()

    def members(self, cluster: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers int64 [m] and similarities float32 [m] of images, nearest first.

        Of those of `cluster` (`self.columns["size"]` many) from place `start` on, m ≤ `count`.
        """
        first, last = int(self._ends[cluster]), int(self._ends[cluster + 1])
        begin = min(first + start, last)
        end = min(begin + count, last)
        numbers = self._files["members"].read(begin, end).astype(np.int64)
        return numbers, self._files["member_similarity"].read(begin, end).astype(np.float32)

    def signatures(self, cluster: int, count: int) -> np.ndarray:
        """Return the signatures (:mod:`.duplicates`) of its first images, uint64 [≤ count]."""
        first, last = int(self._ends[cluster]), int(self._ends[cluster + 1])
        return self._files["member_signature"].read(first, min(first + count, last))

    def texts(self, places: list[tuple[int, int]]) -> list[tuple[str, str]]:
        """Return (caption, URL) of images, ('', '') where none are known."""
        return self._texts.read(places) if self._texts else [("", "")] * len(places)

    def neighbors(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest other clusters int32 [m] and the cosines of their centers [m]."""
        ids, cosines = self.all_neighbors(cluster, cluster + 1)
        return ids[0], cosines[0]

    def all_neighbors(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same of clusters start … stop − 1, [stop − start, m]; m: 0 without centers."""
        if "neighbors" not in self._files:
            none = np.zeros((stop - start, 0))
            return none.astype(np.int32), none.astype(np.float32)
        files = self._files["neighbors"], self._files["neighbor_similarity"]
        return files[0].read(start, stop), files[1].read(start, stop)

    def tile(self, z: int, x: int, y: int, by: str) -> bytes:
        """Return the centers of a tile of the map: of 2^z × 2^z tiles column x, row y.

        Little-endian: how many points follow (uint32) and how many the tile has, then of all
        points the cluster (uint32), x and y (uint16), the rank of the column `by` in 256 parts
        and the size on a scale of logarithms (uint8 each). A tile with more than `TILE` points
        gives an even part of them.
        """
        if not len(self._ids):
            return np.zeros(2, "<u4").tobytes()
        shift = 2 * (LEVELS - 1 - z)
        corner = int(morton(np.array([[x, y]], np.uint16))[0]) << shift
        low, high = np.searchsorted(self._morton, [corner, corner + (1 << shift)])
        step = max(1, -(-(high - low) // TILE))
        part = slice(low, high, step)
        ids = self._ids[part]
        head = np.array([len(ids), high - low], "<u4")
        columns = [ids, self._places[part, 0], self._places[part, 1], self._rank(by)[ids],
                   self._scale[ids]]  # fmt: skip
        return head.tobytes() + b"".join(column.tobytes() for column in columns)

    def map(self) -> np.ndarray | None:
        """Return x and y of all clusters on the map, uint16 [K, 2]; None if there is no map."""
        return self._places[self._place_of] if len(self._ids) else None

    def where(self, cluster: int) -> list[int] | None:
        """Return x and y of a cluster on the map; None if there is no map."""
        if not len(self._ids):
            return None
        return [int(value) for value in self._places[self._place_of[cluster]]]

    def close(self) -> None:
        """Close all files."""
        for column in self._files.values():
            column.close()

    def _open_map(self) -> None:
        self._ranks: dict[str, np.ndarray] = {}
        if "map_ids" not in self._files:
            self._ids = np.zeros(0, np.uint32)
            return
        self._ids = self._files["map_ids"].read()
        self._places = self._files["map_places"].read()
        # Numbers of 64 bits: the end of the last tile has none of 32.
        self._morton = morton(self._places).astype(np.int64)
        self._place_of = np.empty(self.K, np.int32)
        self._place_of[self._ids] = np.arange(self.K, dtype=np.int32)
        size = np.log1p(self.columns["size"].astype(np.float64))
        self._scale = np.rint(255 * size / max(size.max(), 1e-9)).astype(np.uint8)

    def _rank(self, by: str) -> np.ndarray:
        """Return the place of each cluster in an order, uint8 [K]: 255 has the largest value."""
        if by not in self._ranks:
            rank = np.empty(self.K, np.uint8)
            rank[self.orders[by]] = (np.arange(self.K)[::-1] * 256 // self.K).astype(np.uint8)
            self._ranks[by] = rank
        return self._ranks[by]


def open_index(run: Run, folder: Path, *, threads: int = 0) -> Index:
    """Open the index of `run` below `folder`, and build it first if there is none of this run.

    In the run's own folder, indexes of its earlier states are removed, and nothing else; another
    folder may have those of several runs. Raises :class:`UserError`.
    """
    target = folder / f"index-{run.fingerprint[:16]}"
    if target.is_dir():
        try:
            found = Index(target)
        except UserError as error:
            LOGGER.warning("%s", error)
            _remove(target)
        else:
            if found.has_images or not run.has_images():
                return found
            LOGGER.info("%s: images have come since it was built", target)
            found.close()
            _remove(target)
    build(run, target, threads=threads)
    own = folder.resolve().is_relative_to(run.results.resolve())
    for other in sorted(folder.glob("index-*")) if own else ():
        if other != target and _FOLDER.fullmatch(other.name):
            _remove(other)
    return Index(target)


def _remove(folder: Path) -> None:
    """Remove a folder that holds nothing but an index's files."""
    if folder.is_symlink() or any(
        entry.is_dir() or (entry.suffix != ".bin" and entry.name != store.RECORD)
        for entry in folder.iterdir()
    ):
        raise UserError(f"{folder}: holds other files than an index; move it away")
    shutil.rmtree(folder)
