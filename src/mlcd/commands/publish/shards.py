"""Tables as parquet shards of bounded size, in the names that data set hubs read; resumable.

A shard ends before the block of rows with which it would exceed its size, so which rows it holds
follows from the rows alone: a run that was killed continues with the next shard, to equal bytes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.logging import progress
from mlcd.utils.ownership import PARQUET_KEY
from mlcd.utils.records import read_record, write_record

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a row group, what a reader needs in memory at once.
GROUP_ROWS = 1 << 16
#: Bytes of a shard before it is compressed; hubs advise up to 500 MB.
SHARD_BYTES = 480 << 20


def blocks(
    table: Callable[[int], pa.Table], starts: list[int], first: int, group_rows: int
) -> Iterator[pa.Table]:
    """Iterate over the rows from `first` on, `group_rows` at a time, one table per block.

    `table(i)` has the rows `starts[i]` … `starts[i + 1]` − 1. It is asked for once, in order.
    `first` is a multiple of `group_rows`, so that blocks do not depend on where one starts.
    """
    import pyarrow as pa

    held: list[pa.Table] = []
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        if stop <= first:
            continue
        held.append(table(number).slice(max(0, first - start)))
        while sum(map(len, held)) >= group_rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, group_rows).combine_chunks()
            held = [whole.slice(group_rows)]
    if sum(map(len, held)):
        yield pa.concat_tables(held).combine_chunks()


def write(
    folder: Path,
    schema: pa.Schema,
    table: Callable[[int], pa.Table],
    starts: list[int],
    *,
    shard_bytes: int = SHARD_BYTES,
    group_rows: int = GROUP_ROWS,
) -> list[tuple[Path, str]]:
    """Write all rows as `folder`/00000.parquet, …; those that are there already are kept.

    Returns the shards in order, each with its SHA-256. Raises :class:`UserError` for a full disk.
    """
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    schema = schema.with_metadata({PARQUET_KEY: "published"})
    found = list(_whole(folder))
    first = found[-1][2] if found else 0
    shards = [(path, digest) for path, digest, _ in found]
    rest = blocks(table, starts, first, group_rows)
    rest = progress(rest, total=starts[-1], initial=first, label="publish", unit="row", size=len)
    block = next(rest, None)
    while block is not None or not shards:
        path = folder / f"{len(shards):05d}.parquet"
        size = 0
        with (
            atomic_path(path) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            while block is not None and (not size or size + _bytes(block) <= shard_bytes):
                size += _bytes(block)
                first += len(block)
                writer.write_table(block.cast(schema), row_group_size=group_rows)
                block = next(rest, None)
        digest = sha256_file(path)
        write_record(path.with_suffix(".json"), {"stop": first, "sha256": digest})
        shards.append((path, digest))
    return shards


def name(number: int, shards: int) -> str:
    """Return the path of a shard in a data set: hubs know splits and order by it."""
    return f"data/train-{number:05d}-of-{shards:05d}.parquet"


def _bytes(block: pa.Table) -> int:
    """Return the bytes of the values of a block, however its columns lie in memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for column in block.columns:
        if pa.types.is_string(column.type):
            total += int(pc.sum(pc.binary_length(column)).as_py() or 0) + 4 * len(block)
        else:
            total += 4 * len(block) * getattr(column.type, "list_size", 1)
    return total


def _whole(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Iterate over the shards that are as their records say, with hash and where rows stop."""
    number = 0
    while (path := folder / f"{number:05d}.parquet").is_file():
        with contextlib.suppress(UserError, KeyError):
            about: dict[str, Any] = read_record(path.with_suffix(".json"), "publish")
            if about["sha256"] == sha256_file(path):
                yield path, about["sha256"], int(about["stop"])
                number += 1
                continue
        return
