"""People's own boxes: a column of lists or tables, joined to the images of a chunk.

As the columns of stage curate: the chunk's own rows of its list, or tables with a key.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlcd.config import Regions
from mlcd.data import columns
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.data.own.join import by_key
from mlcd.data.url_lists import count_rows
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

if TYPE_CHECKING:
    from mlcd.data.own.rows import OwnRows


def parts_of(arguments: argparse.Namespace, section: Regions) -> list[columns.Part]:
    """Return what holds the column; nothing for another source. Raises :class:`UserError`."""
    if section.source != "column":
        return []
    if section.tables is not None:
        paths = columns.box_tables(section.tables)
        return [columns.Part(path, 0, count_rows(path)) for path in paths]
    if not arguments.metadata:
        raise UserError("--metadata: regions.column needs the chunk's list; give it, or --tables")
    found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", arguments.list_rows or "")
    if found is None:
        raise UserError("--list-rows: expected START:STOP, the rows of the list that are the chunk")
    return [columns.Part(arguments.metadata, int(found[1]), int(found[2]))]


def boxes_of(
    arguments: argparse.Namespace,
    section: Regions,
    parts: list[columns.Part],
    embeddings: Embeddings,
    store: ImageStore,
) -> list[np.ndarray]:
    """Return the boxes of each row of `embeddings`, float64 [n, 4] in section.unit.

    An image without a row, or with an empty value, has none. Raises :class:`UserError` for values
    that are no boxes.
    """
    assert section.column is not None, "source column has its name"
    key = section.key if section.tables is not None else arguments.url_column
    table = columns.Table(parts, key)
    images = store.arrived(["url"]).set_index("key")
    keys = [name.decode() for name in embeddings.keys().tolist()]
    if missing := set(keys) - set(images.index):
        raise UserError(
            f"{embeddings.path}: row {min(missing)} is of no image of {store.folder}; rerun embed "
            f"for chunk {store.chunk}"
        )
    images = images.loc[keys].reset_index()
    # Of own rows a join asks for their names alone.
    named = cast("OwnRows", table)
    ids = by_key(named, key, images, arguments.urls, tar_keys=arguments.tar_keys)
    if len(ids) and (ids < 0).all():
        LOGGER.warning(
            "%s: no row is of any of the %d images of chunk %s; check that %r holds URLs, "
            "paths, tar keys or SHA-256 of them", parts[0].path, len(ids), store.chunk, key,
        )  # fmt: skip
    values = table.take(section.column, ids).to_pylist()
    path, name = parts[0].path, section.column
    return [
        read_boxes(value, f"{path}: {name} of {image}")
        for value, image in zip(values, images["url"], strict=True)
    ]


def read_boxes(value: Any, where: str) -> np.ndarray:
    """Return boxes float64 [n, 4] of a value of a column. Raises :class:`UserError` for another.

    `where` begins the message. A list of four numbers is one box; null, '' and [] are none.
    """
    try:
        if isinstance(value, (bytes, str)):
            value = json.loads(value) if value.strip() else None
        found = np.array([] if value is None else value, np.float64)
    except (ValueError, TypeError, RecursionError):
        raise _none(where, value) from None
    if not found.size:
        return np.zeros((0, 4))
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all():
        raise _none(where, value)
    if (found[:, 2:] < found[:, :2]).any():
        raise _none(where, value)
    return found


def _none(where: str, value: Any) -> UserError:
    return UserError(
        f"{where}: {str(value)[:60]!r} is no list of boxes [x0, y0, x1, y1] with x0 ≤ x1 and "
        "y0 ≤ y1; correct it"
    )
