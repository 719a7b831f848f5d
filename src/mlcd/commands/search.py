"""`mlcd search IMAGE … --folder F --model M --output page.html`: the nearest images of a folder.

Exact: every image of the folder is compared, in blocks. Embeddings given by --embeddings are
made if the file is not there, so that the next search is quick. If it is there, the folder may have
changed since: what is new, gone or of another size is counted in a warning.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlcd.commands.encode import add_resources, model_of, write
from mlcd.data import hdf5
from mlcd.data.embeddings import KIND
from mlcd.data.image_folder import Loose, images
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claim

if TYPE_CHECKING:
    from markupsafe import Markup

    from mlcd.data.embeddings import Embeddings
    from mlcd.stages.export.loading import ImageModel

#: A query's name and its bytes.
Query = tuple[str, bytes]
#: Rows compared at once.
_BLOCK = 65536
_SIDE = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add queries, folder, page and embeddings."""
    parser.add_argument("queries", nargs="+", metavar="IMAGE", help="images to search for")
    parser.add_argument("--folder", required=True, metavar="DIR", help="images to search among")
    parser.add_argument("--output", required=True, metavar="FILE", help="the page, .html")
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="of the folder, by mlcd encode with the same model; made here if not there",
    )
    parser.add_argument("--count", type=int, default=24, help="images shown per query [24]")
    add_resources(parser)


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Write the page. Raises :class:`UserError`."""
    if not arguments.output.endswith(".html"):
        raise UserError(f"--output: {arguments.output}: end it with .html")
    if arguments.count < 1:
        raise UserError("--count: expected at least 1")
    if not Path(arguments.folder).is_dir():
        raise UserError(f"--folder: {arguments.folder}: no such folder")
    claim(arguments.output)
    queries = [_read(Path(query), arguments.max_pixels) for query in arguments.queries]
    model = model_of(arguments)
    with tempfile.TemporaryDirectory(prefix="mlcd-search-") as folder:
        path = Path(arguments.embeddings or Path(folder) / "embeddings.h5")
        if made := not path.exists():
            write([arguments.folder], model, path, arguments)
        _search(arguments, queries, model, path, made)


def _compare(path: Path, folder: str) -> None:
    """Warn if the images of `folder` are not those whose embeddings `path` holds."""
    with hdf5.reading(path, KIND) as file:
        keys = file["key"][:].tolist()
        # What an earlier version wrote has no sizes.
        sizes = file["file_size"][:].tolist() if "file_size" in file else [None] * len(keys)
        failed = set(file["failed_key"][:].tolist())
    known = dict(zip(keys, sizes, strict=True))
    new = changed = 0
    for one in images([folder]):
        if one.key in known:
            changed += known.pop(one.key) not in (None, one.size)
        elif one.key not in failed:
            new += 1
    if new or changed or known:
        LOGGER.warning(
            "%s: the folder changed since: %d new images are not searched, %d of another size "
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
    from mlcd.data.decode import decode
    from mlcd.data.embeddings import Embeddings, unusable

    file = Embeddings(path)
    if file.model != model.identity:
        raise UserError(
            f"{path}: made by another encoder than --model {arguments.model}; remove it, or give "
            "the encoder that made it"
        )
    if not file.n:
        raise UserError(f"{path}: holds no images; encode the folder again")
    if not made:
        _compare(path, arguments.folder)
    pixels = [model.pixels(decode(data, max_pixels=arguments.max_pixels)) for _, data in queries]
    vectors = model.encode(np.stack(pixels))
    for (name, _), reason in zip(queries, unusable(vectors), strict=True):
        if reason:
            raise UserError(f"{name}: cannot be searched for: the encoder gives a {reason}")
    rows, cosines = nearest(file, vectors, arguments.count)
    key_of = {row: bytes(file.keys(row, row + 1)[0]) for row in map(int, np.unique(rows))}
    wanted = set(key_of.values())
    # Names in a file are not opened: the folder is listed, and what has such a name is shown.
    found = {one.key: one for one in images([arguments.folder]) if one.key in wanted}
    if not found:
        raise UserError(
            f"{path}: none of the nearest images lies in {arguments.folder}; give the folder "
            "that was encoded"
        )
    keys = [[key_of[int(row)] for row in line] for line in rows]
    _page(arguments, queries, keys, cosines, found, file.n)
    LOGGER.info("%s: %d queries, %d images compared", arguments.output, len(queries), file.n)


def _page(
    arguments: argparse.Namespace,
    queries: list[Query],
    keys: list[list[bytes]],
    cosines: np.ndarray,
    found: dict[bytes, Loose],
    total: int,
) -> None:
    from mlcd.stages.report.gallery import tile
    from mlcd.stages.report.page import Drawing, render
    from mlcd.utils.files import write_text

    def shown(data: bytes, name: str) -> Markup:
        return tile(data, name, _SIDE, max_pixels=arguments.max_pixels)

    answers = []
    for (name, data), near, values in zip(queries, keys, cosines, strict=True):
        nearest = []
        for key, cosine in zip(near, values, strict=True):
            title = key.decode("utf-8", "replace")
            image = shown(_bytes(found.get(key)), title)
            nearest.append({"name": title, "tile": image, "cosine": cosine})
        answers.append({"name": name, "tile": shown(data, name), "nearest": nearest})
    lead = (
        f"The nearest of {total:,} images to each of {len(queries)}, by the cosine of their "
        "embeddings, nearest first."
    )
    body = render("nearest.html", queries=answers, side=_SIDE)
    write_text(arguments.output, Drawing("Nearest images", lead, body).html())


def _read(path: Path, max_pixels: int) -> Query:
    """Return a query's name and bytes; refuse it before the folder is encoded."""
    from mlcd.data.decode import BadImage, decode

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


def _bytes(image: Loose | None) -> bytes:
    """Return an image's bytes; none, which show as an empty tile, if it is gone."""
    try:
        return Path(image.path).read_bytes() if image else b""
    except OSError:
        return b""
