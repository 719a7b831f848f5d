"""The state of a k-means run between iterations, kept on disk in two generations."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlcd.data import hdf5
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

_KIND = "cluster-state"
#: Newest checkpoints kept: one may be damaged by the disk.
_KEPT = 2


class State(NamedTuple):
    """Centers float32 [K, d] after `len(records)` iterations, sizes int64 [K] in the last one.

    `records` holds one dict per iteration, as written to iterations.jsonl.
    """

    centers: np.ndarray
    size: np.ndarray
    records: list[dict[str, Any]]


def save(folder: Path, state: State) -> None:
    """Write the state atomically as a new generation and remove the ones before the last two."""
    records = json.dumps(state.records)
    hdf5.write(
        _path(folder, len(state.records)),
        _KIND,
        {"centroid": state.centers, "size": state.size},
        {"records": records, "sha256": _digest(state.centers, state.size, records)},
    )
    for path in _generations(folder)[_KEPT:]:
        path.unlink()


class Saver:
    """Saves states in `folder` beside the work on the next one; None saves none.

    A state must not change until :meth:`wait` returns.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def save(self, state: State) -> None:
        """Begin to save `state`, once the last one is saved."""
        self.wait()
        if self._folder:
            self._saving = self._pool.submit(save, self._folder, state)

    def wait(self) -> None:
        """Wait until what was given to :meth:`save` is on the disk. Raises what failed."""
        if self._saving:
            saving, self._saving = self._saving, None
            saving.result()


def load(folder: Path) -> State | None:
    """Return the newest whole state, or None. A damaged one is passed over with a warning."""
    for path in _generations(folder):
        try:
            with hdf5.reading(path, _KIND) as file:
                centers, size = file["centroid"][:], file["size"][:]
                records = str(file.attrs["records"])
                if file.attrs["sha256"] != _digest(centers, size, records):
                    raise UserError(f"{path}: its checksum differs")
            return State(centers, size, json.loads(records))
        except (UserError, KeyError, OSError, RuntimeError, ValueError) as error:
            LOGGER.warning("damaged checkpoint, the one before is used: %s", error)
    return None


def _digest(centers: np.ndarray, size: np.ndarray, records: str) -> str:
    digest = hashlib.sha256(f"{centers.shape}{size.shape}{records}".encode())
    digest.update(np.ascontiguousarray(centers).data)
    digest.update(np.ascontiguousarray(size).data)
    return digest.hexdigest()


def _path(folder: Path, iteration: int) -> Path:
    return folder / f"iteration-{iteration:06d}.h5"


def _generations(folder: Path) -> list[Path]:
    """Return the checkpoints, newest first. Temporary files of a killed run are not among them."""
    return sorted(folder.glob("iteration-*.h5"), reverse=True)
