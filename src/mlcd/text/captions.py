"""Tokenise the captions of a chunk's embedded pictures, in the order of the embeddings."""

from __future__ import annotations

import os

import numpy as np

from mlcd.config.text import Text
from mlcd.encoders.text import tokenise
from mlcd.errors import UserError
from mlcd.progress import LOGGER, progress
from mlcd.stores import h5
from mlcd.stores.captions import KIND
from mlcd.stores.embeddings import Embeddings
from mlcd.stores.images import TABLE, ImageStore

_BLOCK = 8192


def write_captions(
    embeddings: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Text,
) -> None:
    """Write docs/formats.md's captions of one chunk; pictures without a caption have no row.

    Raises :class:`UserError` if the embeddings were made from other pictures.
    """
    vectors, store = Embeddings(embeddings), ImageStore(images)
    if vectors.attributes.get("manifest") != store.fingerprint:
        raise UserError(
            f"{vectors.path}: made from other pictures than {store.folder} now holds; "
            "rerun text_embed for this chunk"
        )
    caption = _captions(store)
    attributes = {
        "chunk": store.chunk,
        "embeddings": vectors.fingerprint,
        "context_length": section.context_length,
    }
    kept = 0
    with h5.writing(output, KIND, attributes) as writer:
        # Nothing to write still makes both datasets.
        for first in progress(range(0, max(1, vectors.n), _BLOCK), label="captions", unit="block"):
            keys = vectors.keys(first, first + _BLOCK)
            texts = [caption.get(key.decode(), "") for key in keys.tolist()]
            rows = [row for row, text in enumerate(texts) if text]
            writer.append("row", np.array(rows, np.int32) + np.int32(first))
            words = [texts[row] for row in rows]
            writer.append("token", tokenise(words, section.context_length))
            kept += len(rows)
    LOGGER.info("captions: %d of %d pictures of %s have one", kept, vectors.n, store.chunk)


def _captions(store: ImageStore) -> dict[str, str]:
    """Return key → caption, without blanks at its ends, of the pictures that arrived."""
    import pyarrow.parquet

    path = store.folder / TABLE
    try:
        table = pyarrow.parquet.read_table(path, columns=["key", "caption", "status"])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable ({reason}); rerun download") from None
    columns = (table.column(name).to_pylist() for name in ("key", "caption", "status"))
    return {
        key: (caption or "").strip()
        for key, caption, status in zip(*columns, strict=True)
        if status == "success"
    }
