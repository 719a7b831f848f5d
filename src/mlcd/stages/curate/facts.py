"""Part `facts`: what is known of each image of a chunk before images are compared."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mlcd.config import Curate
from mlcd.data import columns, hdf5
from mlcd.data.centroids import Centroids
from mlcd.data.curation import FACTS
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.data.own.join import rows_by_key, span_of
from mlcd.data.url_lists import count_rows
from mlcd.launch import lease
from mlcd.neighbors import memory
from mlcd.neighbors.exact import ExactSearch, search_bytes
from mlcd.neighbors.rows import Rows
from mlcd.stages.curate.conditions import refused, words
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import code_hash, file_identity
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

if TYPE_CHECKING:
    import pandas as pd

    from mlcd.data.own.rows import OwnRows


def write_facts(arguments: argparse.Namespace, section: Curate, limit: int) -> None:
    """Write the facts of one chunk within `limit` bytes. Raises :class:`UserError`."""
    claim(arguments.output)
    embeddings = Embeddings(arguments.embeddings[0])
    store, centers = ImageStore(arguments.images), Centroids(arguments.centroids)
    if embeddings.attributes.get("manifest") != store.fingerprint:
        raise UserError(
            f"{embeddings.path}: made from other images than {store.folder} now holds; "
            f"rerun embed for chunk {store.chunk}"
        )
    if embeddings.d != centers.d:
        raise UserError(
            f"{embeddings.path}: {embeddings.d} dimensions, but {centers.path} has {centers.d}; "
            "rerun curate"
        )
    parts = _parts(arguments, section)
    identity = [
        code_hash("curate"), section.for_facts(), embeddings.fingerprint, centers.fingerprint,
        [[file_identity(part.path), part.start, part.stop] for part in parts],
    ]  # fmt: skip
    with lease.writing(arguments.output, *identity) as wanted:
        if wanted:
            _write(arguments, section, limit, embeddings, store, centers, parts)


def _parts(arguments: argparse.Namespace, section: Curate) -> list[columns.Part]:
    """Return what holds the columns of the conditions."""
    if not section.where:
        return []
    if section.columns is not None:
        paths = columns.tables(section.columns)
        return [columns.Part(path, 0, count_rows(path)) for path in paths]
    if not arguments.metadata:
        raise UserError("--metadata: curate.where needs the chunk's list; give it, or --columns")
    return [columns.Part(arguments.metadata, *span_of(arguments.list_rows or "", "--list-rows"))]


def _write(
    arguments: argparse.Namespace,
    section: Curate,
    limit: int,
    embeddings: Embeddings,
    store: ImageStore,
    centers: Centroids,
    parts: list[columns.Part],
) -> None:
    images = _images(embeddings, store)
    conditions = section.conditions()
    bad = np.full(len(images), -1, np.int16)
    if conditions:
        key = section.key if section.columns is not None else arguments.url_column
        table = columns.Table(parts, key)
        # Of own rows a join asks for their names alone.
        named = cast("OwnRows", table)
        ids, _ = rows_by_key(named, key, images, arguments.urls, tar_keys=arguments.tar_keys)
        if len(ids) and (ids < 0).all():
            # A table may be of other chunks only; if it is of none, the choice stops.
            LOGGER.warning(
                "%s: no row is of any of the %d images of chunk %s; check that %r holds URLs, "
                "paths, tar keys or SHA-256 of them", parts[0].path, len(ids), store.chunk, key,
            )  # fmt: skip
        bad = refused(conditions, lambda name: table.take(name, ids), parts[0].path)
    probes = min(section.probes, centers.K)
    fixed = search_bytes(centers.K, centers.d, arguments.threads)
    plan = memory.plan_blocks(limit, embeddings.n, embeddings.d, probes, fixed)
    search = ExactSearch(
        centers.array, device=arguments.device, threads=arguments.threads, rows=embeddings.n
    )
    attributes = {
        "chunk": store.chunk,
        "manifest": store.fingerprint,
        "embeddings": embeddings.fingerprint,
        "centroids": centers.fingerprint,
        "clusters": centers.K,
        "reasons": json.dumps(words(conditions)),
        "section": section.for_facts(),
        "tables": json.dumps([[Path(part.path).name, file_identity(part.path)] for part in parts]),
    }
    rows = Rows([embeddings], plan.rows)
    with hdf5.writing(arguments.output, FACTS, attributes) as writer:
        writer.append("cluster", np.zeros((0, probes), np.int32))
        for _, block in progress(rows.blocks(), total=len(rows), label="clusters", unit="block"):
            writer.append("cluster", search.nearest(block, probes).astype(np.int32))
        writer.append("pixels", images["pixels"].to_numpy(np.int64))
        writer.append("refused", bad)
    LOGGER.info(
        "curate: %s: %d of %d images refused by conditions",
        store.chunk, int((bad >= 0).sum()), len(bad),
    )  # fmt: skip


def _images(embeddings: Embeddings, store: ImageStore) -> pd.DataFrame:
    """Return url, sha256 and pixels of each row of the embeddings, in their order."""
    found = store.rows_of(embeddings.keys(), ["url", "width", "height"]).reset_index(drop=True)
    found["pixels"] = found["width"].astype(np.int64) * found["height"].astype(np.int64)
    return found
