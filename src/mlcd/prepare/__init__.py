"""Stage `prepare`: cut URL lists into chunks of a fixed number of rows, each the work of one job.

mlcd prepare --metadata LIST --chunk-index I --output urls/CHUNK.parquet
mlcd prepare --metadata LIST --output urls
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from mlcd.config.prepare import Prepare
from mlcd.errors import UserError
from mlcd.plan import chunk_count, chunk_name, count_rows
from mlcd.progress import LOGGER, progress

COLUMNS = ("url_column", "caption_column", "hash_column")


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files of the stage."""
    parser.add_argument(
        "--metadata",
        required=True,
        metavar="LIST",
        help="URL list: parquet, csv or tsv with a header, or txt with a URL a line (or .gz)",
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
    if arguments.chunk_index is None:
        cut_all(arguments.metadata, Path(arguments.output), section)
    else:
        cut_one(arguments.metadata, arguments.chunk_index, Path(arguments.output), section)


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
    from mlcd.prepare.chunks import write_chunk
    from mlcd.prepare.lists import read_rows

    size = section.chunk_rows
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
            start=start,
            stop=stop,
        )
        refused = ", ".join(f"{name} {n}" for name, n in counts.items() if n and name != "kept")
        LOGGER.info("%s: %d rows kept; refused: %s", output, counts["kept"], refused or "none")
