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
from mlcd.data.own.join import rows_by_key
from mlcd.data.url_lists import count_rows
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

if TYPE_CHECKING:
    from mlcd.data.own.rows import OwnRows

#: A box may end somewhat beyond its image, but not so far.
_MOST_SHARE = 2.0


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
    that are no boxes, and for an image of which two rows of tables say different things.
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
    ids, others = rows_by_key(
        named, key, images, arguments.urls, tar_keys=arguments.tar_keys,
        twice_at_most=section.tables is not None,
    )  # fmt: skip
    if len(ids) and (ids < 0).all():
        LOGGER.warning(
            "%s: no row is of any of the %d images of chunk %s; check that %r holds URLs, "
            "paths, tar keys or SHA-256 of them", parts[0].path, len(ids), store.chunk, key,
        )  # fmt: skip
    name, urls = section.column, images["url"].tolist()

    def boxes(rows: np.ndarray) -> list[np.ndarray]:
        values = table.take(name, rows)
        return [
            read_boxes(value, f"{table.path_of(row) if row >= 0 else ''}: {name} of {image}")
            for value, image, row in zip(values, urls, rows.tolist(), strict=True)
        ]

    found = boxes(ids)
    if section.tables is not None and (others >= 0).any():
        # In a list, an image that is there twice is one of its rows, as prepare takes it.
        for place, more in enumerate(boxes(others)):
            if others[place] >= 0 and not np.array_equal(found[place], more):
                raise UserError(
                    f"{table.path_of(int(others[place]))}: {name} of {urls[place]}: another row "
                    "has other boxes of it; give all boxes of an image in one row, as a list"
                )
    _look_at_unit(section, found, parts[0].path)
    return found


def _look_at_unit(section: Regions, found: list[np.ndarray], path: str) -> None:
    """Warn where boxes seem to count something else than section.unit says."""
    ends = [boxes.max() for boxes in found if len(boxes)]
    if not ends:
        return
    if section.unit == "shares" and max(ends) > _MOST_SHARE:
        LOGGER.warning("%s: boxes up to %g are no shares, and are cut at the image; if they count "
                       "pixels, set regions.unit to pixels", path, max(ends))  # fmt: skip
    if section.unit == "pixels" and max(ends) <= 1:
        LOGGER.warning("%s: no box reaches beyond the first pixel, so none is a region; if they "
                       "are shares, set regions.unit to shares", path)  # fmt: skip


def read_boxes(value: Any, where: str) -> np.ndarray:
    """Return boxes float64 [n, 4] of a value of a column. Raises :class:`UserError` for another.

    `where` begins the message. `value`: of Python's or of pyarrow's, which are made the former one
    at a time: those of a chunk take ten times the memory. A list of four numbers is one box; null,
    '' and [] are none.
    """
    try:
        value = value.as_py() if hasattr(value, "as_py") else value
        if isinstance(value, (bytes, str)):
            value = json.loads(value) if value.strip() else None
        found = np.array([] if value is None else value, np.float64)
    except UnicodeDecodeError:  # in a list; nor can it be shown
        raise _none(where, "bytes") from None
    except (ValueError, TypeError, OverflowError, RecursionError):
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
