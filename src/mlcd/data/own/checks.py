"""What can be known of own embeddings, centers and labels before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mlcd.config import Config, encoders
from mlcd.config.files import quoted
from mlcd.data.own import rows
from mlcd.data.own.arrays import opened
from mlcd.data.own.base import CENTROID, EMBEDDING, LABEL
from mlcd.data.own.rows import Share
from mlcd.data.url_lists import Chunk
from mlcd.utils.errors import UserError


def embedding_shares(config: Config, chunks: Mapping[str, Chunk]) -> dict[str, Share]:
    """Return chunk → its part of embed.embeddings; empty if there are none. Raises UserError."""
    section = config.embed
    if section.embeddings is None or config.label.labels is not None:
        return {}
    return rows.shares(section.embeddings, EMBEDDING, section.key, chunks, "embed.embeddings")


def label_shares(config: Config, chunks: Mapping[str, Chunk]) -> dict[str, Share]:
    """Return chunk → its part of label.labels; empty if there are none. Raises UserError."""
    section = config.label
    if section.labels is None:
        return {}
    return rows.shares(section.labels, LABEL, section.key, chunks, "label.labels")


def kept_centers(config: Config) -> bool:
    """True if the run keeps the centers that it has itself found before."""
    centers = config.cluster.centers
    own = Path(config.results, "clusters", "centroids.h5")
    return centers is not None and Path(centers).resolve() == own.resolve()


def check(config: Config, chunks: Mapping[str, Chunk]) -> None:
    """Raise :class:`UserError`, which begins with a key or a file, for what does not fit.

    Without `chunks`, which could not be told, rows are not counted.
    """
    if chunks:
        label_shares(config, chunks)
        embedding_shares(config, chunks)
    if config.label.labels is not None:
        paths = rows.expand(config.label.labels, "label.labels", config.label.key)
        if (width := rows.OwnRows(paths, LABEL).width) < config.label.top:
            raise UserError(
                f"label.top: {config.label.top} labels per image, but {paths[0]} has {width}; "
                "lower it"
            )
    dim = _dimensions(config)
    for key in ("initial", "centers"):
        path = getattr(config.cluster, key)
        if path is not None:
            _check_centers(f"cluster.{key}", path, config.cluster.k, dim)


def _dimensions(config: Config) -> int | None:
    """Return the dimensions of the embeddings, None where they are not known or not needed."""
    if config.label.labels is not None:
        return None
    section = config.embed
    if section.embeddings is None:
        return encoders.frozen_dim(section.model)
    paths = rows.expand(section.embeddings, "embed.embeddings", section.key)
    return rows.OwnRows(paths, EMBEDDING).width


def _check_centers(key: str, path: str, k: int, dim: int | None) -> None:
    if not _readable(path):
        raise UserError(f"{key}: {quoted(path)} is no file that can be read; give one")
    try:
        found = opened(path, CENTROID)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if found.rows != k:
        raise UserError(
            f"{key}: {path} has {found.rows} centers, and cluster.k is {k}; set it to that"
        )
    if dim is not None and found.width != dim:
        raise UserError(
            f"{key}: {path} has {found.width} dimensions, but the embeddings have {dim}; give "
            "centers of embeddings of the same encoder"
        )


def _readable(path: str) -> bool:
    try:
        return Path(path).is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False
