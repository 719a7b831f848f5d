"""Chunks of labeled images for the tests of training, small and of known content."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from helpers.builders import (
    centroids_file,
    embeddings_file,
    image_store,
    labels_file,
    set_attributes,
    unit_vectors,
)

CLASSES = 12


def stores(root: Path, sizes: tuple[int, ...] = (40, 24), dim: int = 16) -> dict[str, Any]:
    """Write chunks of `sizes` images with 3 nearest centers each; return the file options."""
    centers = unit_vectors(CLASSES, dim, seed=99)
    paths: dict[str, Any] = {"labels": [], "embeddings": [], "images": []}
    for folder in ("labels", "embeddings"):
        (root / folder).mkdir(parents=True)
    for index, size in enumerate(sizes):
        chunk = f"c-{index:05d}"
        manifest = image_store(root / "images" / chunk, size, rows_per_tar=9, seed=index + 1)
        vectors = unit_vectors(size, dim, seed=index)
        embeddings = root / "embeddings" / f"{chunk}.h5"
        embeddings_file(embeddings, vectors, manifest=manifest)
        nearest = np.argsort(-(vectors @ centers.T), axis=1)[:, :3]
        labels = labels_file(root / "labels" / f"{chunk}.h5", nearest, CLASSES, embeddings)
        for name, path in (("labels", labels), ("embeddings", embeddings), ("images", manifest)):
            paths[name].append(str(path))
    paths["centroids"] = str(centroids_file(root / "centroids.h5", centers))
    return paths


def arguments(paths: dict[str, Any], output: Path, **options: Any) -> argparse.Namespace:
    """Return what `mlcd train` parses, at its defaults but for `options`."""
    from mlcd.stages.train import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parsed = parser.parse_args(file_options(paths, output))
    for name, value in {"workers": 0, "threads": 1, **options}.items():
        setattr(parsed, name, value)
    return parsed


def file_options(paths: dict[str, Any], output: Path) -> list[str]:
    """Return the file options of `mlcd train`."""
    words = ["--output", str(output)]
    for name, value in paths.items():
        words += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
    return words


def mlcd_train(
    paths: dict[str, Any], output: Path, *options: str, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `mlcd train` as its own process; stderr goes to `log`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "mlcd", "train", *file_options(paths, output), *options]
    with (log or Path(os.devnull)).open("wb") as stderr:
        return subprocess.Popen(command, env=environment, stderr=stderr)


def words_file(
    path: Path, words: np.ndarray, classes: int, rows: str, vocabulary: str = "v"
) -> str:
    """Write `words` [n, M] as stage ocr does, of the rows of the embeddings in `rows`."""
    labels_file(path, words, classes, Path(rows))
    set_attributes(path, vocabulary=vocabulary)
    return str(path)
