"""The state of a k-means run between iterations, kept on disk in two generations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlcd.errors import UserError
from mlcd.progress import LOGGER
from mlcd.stores import h5

_KIND = "cluster-state"
#: Newest checkpoints kept: one may be damaged by the disk.
_KEPT = 2


class State(NamedTuple):
    """Centres float32 [K, d] after `len(records)` iterations, sizes int64 [K] in the last one.

    `records` holds one dict an iteration, as written to iterations.jsonl.
    """

    centres: np.ndarray
    size: np.ndarray
    records: list[dict[str, Any]]


def save(folder: Path, state: State) -> None:
    """Write the state atomically as a new generation and remove the ones before the last two."""
    records = json.dumps(state.records)
    h5.write(
        _path(folder, len(state.records)),
        _KIND,
        {"centroid": state.centres, "size": state.size},
        {"records": records, "sha256": _digest(state.centres, state.size, records)},
    )
    for path in _generations(folder)[_KEPT:]:
        path.unlink()


def load(folder: Path) -> State | None:
    """Return the newest whole state, or None. A damaged one is passed over with a warning."""
    for path in _generations(folder):
        try:
            with h5.reading(path, _KIND) as file:
                centres, size = file["centroid"][:], file["size"][:]
                records = str(file.attrs["records"])
                if file.attrs["sha256"] != _digest(centres, size, records):
                    raise UserError(f"{path}: its checksum differs")
            return State(centres, size, json.loads(records))
        except (UserError, KeyError, OSError, RuntimeError, ValueError) as error:
            LOGGER.warning("damaged checkpoint, the one before is used: %s", error)
    return None


def _digest(centres: np.ndarray, size: np.ndarray, records: str) -> str:
    digest = hashlib.sha256(f"{centres.shape}{size.shape}{records}".encode())
    digest.update(np.ascontiguousarray(centres).data)
    digest.update(np.ascontiguousarray(size).data)
    return digest.hexdigest()


def _path(folder: Path, iteration: int) -> Path:
    return folder / f"iteration-{iteration:06d}.h5"


def _generations(folder: Path) -> list[Path]:
    """Return the checkpoints, newest first. Temporary files of a killed run are not among them."""
    return sorted(folder.glob("iteration-*.h5"), reverse=True)
