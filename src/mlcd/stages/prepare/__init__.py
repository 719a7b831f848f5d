"""Stage `prepare`: cut lists into chunks of a fixed number of rows, each the work of one job.

mlcd prepare --metadata LIST --chunk-index I --output urls/CHUNK.parquet
mlcd prepare --metadata LIST --output urls

LIST is a URL list, or images on disk: their folder or file, or the listing of it that a run keeps.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from mlcd.config.prepare import Prepare
from mlcd.data.url_lists import chunk_count, chunk_name, count_rows
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import file_identity
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

COLUMNS = ("url_column", "caption_column", "hash_column")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files of the stage."""
    parser.add_argument(
        "--metadata",
        required=True,
        metavar="LIST",
        help="URL list: parquet, csv or tsv with a header, or txt with a URL per line (or .gz); or "
        "images: a folder, tar, zip, or parquet with a column of images",
    )
    parser.add_argument(
        "--chunk-index",
        type=int,
        metavar="I",
        help="cut only chunk I (from 0); without it all chunks are cut",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="with --chunk-index the chunk's parquet file (its counts go to a .json beside it), "
        "else a folder for all chunks, named LIST-00000.parquet and so on",
    )


def run(arguments: argparse.Namespace, section: Prepare) -> None:
    """Cut one chunk, or all. Raises :class:`UserError`."""
    folder = Path(arguments.output)
    folder = folder if arguments.chunk_index is None else folder.parent
    if (path := _listing_of(arguments.metadata, folder, section)) is not None:
        _cut_local(path, arguments.chunk_index, Path(arguments.output), section)
    elif arguments.chunk_index is None:
        cut_all(arguments.metadata, Path(arguments.output), section)
    else:
        cut_one(arguments.metadata, arguments.chunk_index, Path(arguments.output), section)


def _listing_of(metadata: str, folder: Path, section: Prepare) -> Path | None:
    """Return the listing of images on disk, made below `folder` if there is none; None for a list.

    Raises :class:`UserError` if there are no images.
    """
    from mlcd.data.listing import kept
    from mlcd.data.listing_table import is_listing
    from mlcd.data.sources import split

    if is_listing(metadata):
        return Path(metadata)
    _, sources = split([metadata], section)
    return kept(sources[0], section, folder / "listings", look=True).path if sources else None


def _cut_local(path: Path, index: int | None, output: Path, section: Prepare) -> None:
    """Write one chunk, or all, of listed images on disk. Raises :class:`UserError`."""
    from mlcd.data.listing import chunks_of, summary
    from mlcd.stages.prepare.local import write_chunk

    about = summary(path)
    runs = chunks_of(about.images, section.chunk_rows)
    if index is not None and not 0 <= index < len(runs):
        raise UserError(
            f"{path}: has {about.images} images, so its chunks of {section.chunk_rows} are 0 to "
            f"{len(runs) - 1}; there is no chunk {index}"
        )
    parts = range(len(runs)) if index is None else range(index, index + 1)
    outputs = [
        output / f"{chunk_name(path, part)}.parquet" if index is None else output for part in parts
    ]
    claim(*outputs, *(target.with_suffix(".json") for target in outputs))
    for part, target in zip(parts, outputs, strict=True):
        counts = write_chunk(target, str(path), runs[part], about, section, part)
        LOGGER.info("%s: %d images", target, counts["kept"])


def cut_one(metadata: str, index: int, output: Path, section: Prepare) -> None:
    """Write chunk `index` of a list as `output`. Raises :class:`UserError`."""
    if output.suffix != ".parquet":
        raise UserError(f"{output}: with --chunk-index the output is a file ending in .parquet")
    rows = _rows_of(metadata)
    chunks = chunk_count(rows, section.chunk_rows)
    if not 0 <= index < chunks:
        raise UserError(
            f"{metadata}: has {rows} rows, so its chunks of {section.chunk_rows} are 0 to "
            f"{chunks - 1}; there is no chunk {index}"
        )
    _cut(metadata, range(index, index + 1), [output], rows, section)


def cut_all(metadata: str, folder: Path, section: Prepare) -> None:
    """Write every chunk of a list into `folder`, reading the list once. Raises UserError."""
    if folder.suffix == ".parquet" or folder.is_file():
        raise UserError(f"{folder}: without --chunk-index the output is a folder")
    rows = _rows_of(metadata)
    indexes = range(chunk_count(rows, section.chunk_rows))
    outputs = [folder / f"{chunk_name(metadata, index)}.parquet" for index in indexes]
    _cut(metadata, indexes, outputs, rows, section)


def _rows_of(metadata: str) -> int:
    rows = count_rows(metadata)
    if rows == 0:
        raise UserError(f"{metadata}: this list has no rows; give one with at least one row")
    return rows


def _cut(metadata: str, indexes: range, outputs: list[Path], rows: int, section: Prepare) -> None:
    from mlcd.stages.prepare.chunks import write_chunk
    from mlcd.stages.prepare.lists import read_rows

    claim(*outputs, *(output.with_suffix(".json") for output in outputs))
    size, identity = section.chunk_rows, file_identity(metadata)
    begin, end = indexes.start * size, min(indexes.stop * size, rows)
    columns = {key: getattr(section, key) for key in COLUMNS}
    stream = iter(
        progress(
            read_rows(metadata, columns, begin, end),
            total=end - begin,
            label=f"prepare {Path(metadata).name}",
            unit="rows",
        )
    )
    for index, output in zip(indexes, outputs, strict=True):
        start, stop = index * size, min((index + 1) * size, rows)
        counts = write_chunk(
            output,
            islice(stream, stop - start),
            section,
            source=Path(metadata).name,
            identity=identity,
            start=start,
            stop=stop,
        )
        refused = ", ".join(f"{name} {n}" for name, n in counts.items() if n and name != "kept")
        LOGGER.info("%s: %d rows kept; refused: %s", output, counts["kept"], refused or "none")
