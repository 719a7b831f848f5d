"""Tokenize the captions of a chunk's embedded images, in the order of the embeddings."""

from __future__ import annotations

import os

import numpy as np

from mlcd.config.text import Text
from mlcd.data import hdf5
from mlcd.data.captions import KIND
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.models.text_tower import tokenize
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress

_BLOCK = 8192


def write_captions(
    embeddings: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Text,
) -> None:
    """Write the captions of one chunk (formats.md); images without a caption have no row.

    Raises :class:`UserError` if the embeddings were made from other images.
    """
    vectors, store = Embeddings(embeddings), ImageStore(images)
    if vectors.attributes.get("manifest") != store.fingerprint:
        raise UserError(
            f"{vectors.path}: made from other images than {store.folder} now holds; "
            "rerun text_embed for this chunk"
        )
    caption = _captions(store)
    attributes = {
        "chunk": store.chunk,
        "embeddings": vectors.fingerprint,
        "context_length": section.context_length,
    }
    kept = 0
    with hdf5.writing(output, KIND, attributes) as writer:
        # Nothing to write still makes both datasets.
        for first in progress(range(0, max(1, vectors.n), _BLOCK), label="captions", unit="block"):
            keys = vectors.keys(first, first + _BLOCK)
            texts = [_text(caption, key.decode(), vectors) for key in keys.tolist()]
            rows = [row for row, text in enumerate(texts) if text]
            writer.append("row", np.array(rows, np.int32) + np.int32(first))
            words = [texts[row] for row in rows]
            writer.append("token", tokenize(words, section.context_length))
            kept += len(rows)
    LOGGER.info("captions: %d of %d images of %s have one", kept, vectors.n, store.chunk)


def _text(caption: dict[str, str], key: str, vectors: Embeddings) -> str:
    if key not in caption:
        raise UserError(f"{vectors.path}: image {key} is none of its chunk; rerun text_embed")
    return caption[key]


def _captions(store: ImageStore) -> dict[str, str]:
    """Return key → caption, without blanks at its ends, of the images that arrived."""
    table = store.arrived(["caption"])
    texts = table["caption"].fillna("")
    return {key: text.strip() for key, text in zip(table["key"], texts, strict=True)}
