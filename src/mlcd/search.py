"""`mlcd search IMAGE … --folder F --model M --output page.html`: the nearest pictures of a folder.

Exact: every picture of the folder is compared, in blocks. Embeddings given by --embeddings are
made if the file is not there, so that the next search is quick. If it is there, the folder may have
changed since: what is new, gone or of another size is counted in a warning.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlcd.encode import add_resources, model_of, write
from mlcd.errors import UserError
from mlcd.progress import LOGGER
from mlcd.stores import h5
from mlcd.stores.embeddings import KIND
from mlcd.stores.folder import Loose, pictures

if TYPE_CHECKING:
    from mlcd.export.loading import ImageModel
    from mlcd.stores.embeddings import Embeddings

#: A query's name and its bytes.
Query = tuple[str, bytes]
#: Rows compared at once.
_BLOCK = 65536
_SIDE = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add queries, folder, page and embeddings."""
    parser.add_argument("queries", nargs="+", metavar="IMAGE", help="pictures to search for")
    parser.add_argument("--folder", required=True, metavar="DIR", help="pictures to search among")
    parser.add_argument("--output", required=True, metavar="FILE", help="the page, .html")
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="of the folder, by mlcd encode with the same model; made here if not there",
    )
    parser.add_argument("--count", type=int, default=24, help="pictures shown a query [24]")
    add_resources(parser)


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Write the page. Raises :class:`UserError`."""
    if not arguments.output.endswith(".html"):
        raise UserError(f"--output: {arguments.output}: end it with .html")
    if arguments.count < 1:
        raise UserError("--count: expected at least 1")
    if not Path(arguments.folder).is_dir():
        raise UserError(f"--folder: {arguments.folder}: no such folder")
    queries = [_read(Path(query), arguments.max_pixels) for query in arguments.queries]
    model = model_of(arguments)
    with tempfile.TemporaryDirectory(prefix="mlcd-search-") as folder:
        path = Path(arguments.embeddings or Path(folder) / "embeddings.h5")
        if made := not path.exists():
            write([arguments.folder], model, path, arguments)
        _search(arguments, queries, model, path, made)


def _compare(path: Path, folder: str) -> None:
    """Warn if the pictures of `folder` are not those whose embeddings `path` holds."""
    with h5.reading(path, KIND) as file:
        keys = file["key"][:].tolist()
        # What an earlier version wrote has no sizes.
        sizes = file["file_size"][:].tolist() if "file_size" in file else [None] * len(keys)
        failed = set(file["failed_key"][:].tolist())
    known = dict(zip(keys, sizes, strict=True))
    new = changed = 0
    for one in pictures([folder]):
        if one.key in known:
            changed += known.pop(one.key) not in (None, one.size)
        elif one.key not in failed:
            new += 1
    if new or changed or known:
        LOGGER.warning(
            "%s: the folder changed since: %d new pictures are not searched, %d of another size "
            "stand at their old place, %d are gone; remove the file to embed the folder again",
            path, new, changed, len(known),
        )  # fmt: skip


def nearest(file: Embeddings, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows int64 [q, k] and cosines float32 [q, k], nearest first, ties by lower row.

    `file` has n unit rows; `queries` float32 [q, d] are unit rows; k = min(count, n).
    """
    rows = np.zeros((len(queries), 0), np.int64)
    cosines = np.zeros((len(queries), 0), np.float32)
    for start, block in file.blocks(_BLOCK):
        numbers = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        rows = np.concatenate([rows, numbers], axis=1)
        cosines = np.concatenate([cosines, queries @ block.T], axis=1)
        # Stable: what came before wins a tie.
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows = np.take_along_axis(rows, order, axis=1)
        cosines = np.take_along_axis(cosines, order, axis=1)
    return rows, cosines


def _search(
    arguments: argparse.Namespace,
    queries: list[Query],
    model: ImageModel,
    path: Path,
    made: bool,
) -> None:
    from mlcd.images import decode
    from mlcd.stores.embeddings import Embeddings

    file = Embeddings(path)
    if file.model != model.identity:
        raise UserError(
            f"{path}: made by another encoder than --model {arguments.model}; remove it, or give "
            "the encoder that made it"
        )
    if not file.n:
        raise UserError(f"{path}: holds no pictures; encode the folder again")
    if not made:
        _compare(path, arguments.folder)
    pixels = [model.pixels(decode(data, max_pixels=arguments.max_pixels)) for _, data in queries]
    rows, cosines = nearest(file, model.encode(np.stack(pixels)), arguments.count)
    key_of = {row: bytes(file.keys(row, row + 1)[0]) for row in map(int, np.unique(rows))}
    wanted = set(key_of.values())
    # Names in a file are not opened: the folder is listed, and what has such a name is shown.
    found = {one.key: one for one in pictures([arguments.folder]) if one.key in wanted}
    if not found:
        raise UserError(
            f"{path}: none of the nearest pictures lies in {arguments.folder}; give the folder "
            "that was encoded"
        )
    keys = [[key_of[int(row)] for row in line] for line in rows]
    _page(arguments, queries, keys, cosines, found, file.n)
    LOGGER.info("%s: %d queries, %d pictures compared", arguments.output, len(queries), file.n)


def _page(
    arguments: argparse.Namespace,
    queries: list[Query],
    keys: list[list[bytes]],
    cosines: np.ndarray,
    found: dict[bytes, Loose],
    total: int,
) -> None:
    from mlcd.files import write_text
    from mlcd.report.gallery import tile
    from mlcd.report.page import Drawing, text

    parts = []
    for (name, data), near, values in zip(queries, keys, cosines, strict=True):
        figures = []
        for key, cosine in zip(near, values, strict=True):
            shown = key.decode("utf-8", "replace")
            one = found.get(key)
            picture = tile(_bytes(one), shown, _SIDE, max_pixels=arguments.max_pixels)
            figures.append(
                f'<figure style="width:{_SIDE}px">{picture}<figcaption>{text(shown)}'
                f"<br><small>cosine {cosine:.3f}</small></figcaption></figure>"
            )
        query = tile(data, name, _SIDE, max_pixels=arguments.max_pixels)
        parts.append(
            f'<section>\n<h2>{text(name)}</h2>\n<div class="example">{query}\n'
            f'<div class="strip">{"".join(figures)}</div></div>\n</section>'
        )
    lead = (
        f"The nearest of {total:,} pictures to each of {len(queries)}, by the cosine of their "
        "embeddings, nearest first."
    )
    write_text(arguments.output, Drawing("Nearest pictures", lead, "\n".join(parts)).html())


def _read(path: Path, max_pixels: int) -> Query:
    """Return a query's name and bytes; refuse it before the folder is encoded."""
    from mlcd.images import BadImage, decode

    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if data is None:
        raise UserError(f"{path}: no such file")
    try:
        decode(data, max_pixels=max_pixels)
    except BadImage as error:
        raise UserError(f"{path}: cannot be searched for ({error})") from None
    return path.name.encode("utf-8", "replace").decode(), data


def _bytes(picture: Loose | None) -> bytes:
    """Return a picture's bytes; none, which show as an empty tile, if it is gone."""
    try:
        return Path(picture.path).read_bytes() if picture else b""
    except OSError:
        return b""
