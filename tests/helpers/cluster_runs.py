"""Embedding files for the stage cluster, and its runs in this process."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from helpers import builders
from helpers.builders import unit
from mlcd import cli


def files_of(folder: Path, vectors: np.ndarray, parts: int = 1, **keys) -> list[Path]:
    """Write `vectors` as `parts` embeddings files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        builders.embeddings_file(folder / f"e{index}.h5", part, **keys)
        for index, part in enumerate(np.array_split(vectors, parts))
    ]


def run(files: list[Path], output: Path, *options: object) -> int:
    words = ["cluster", "--embeddings", *files, "--output", output, *options]
    return cli.main([str(word) for word in words])


def stored(files: list[Path]) -> np.ndarray:
    """Return what the files hold as float64 unit rows."""
    return unit(np.concatenate([h5py.File(path)["embedding"][:] for path in files]).astype(float))
