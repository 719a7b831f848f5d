"""Shards of what is published: bounded, and the same bytes after any kill."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.commands.publish import shards


def plain_table(sizes: list[int]):
    rng = np.random.default_rng(0)
    schema = pa.schema([("url", pa.string()), ("label", pa.list_(pa.int32(), 2))])
    tables = [
        pa.table(
            [
                [f"http://{number}/" + "x" * int(rng.integers(0, 50)) for number in range(size)],
                pa.FixedSizeListArray.from_arrays(
                    pa.array(rng.integers(0, 9, 2 * size).astype(np.int32)), 2
                ),
            ],
            schema=schema,
        )
        for size in sizes
    ]
    return schema, tables, np.cumsum([0, *sizes]).tolist()


def test_shards_are_bounded_and_resumed_to_the_same_bytes(tmp_path):
    schema, tables, starts = plain_table([7, 0, 1, 50, 23, 3])
    options = {"shard_bytes": 900, "group_rows": 8}
    found = shards.write(tmp_path / "a", schema, tables.__getitem__, starts, **options)
    assert len(found) > 3
    whole = pa.concat_tables([pq.read_table(path) for path, _ in found])
    assert whole.equals(pa.concat_tables(tables).replace_schema_metadata(whole.schema.metadata))
    for path, _ in found:
        assert pq.read_table(path).nbytes <= 1000
        assert pq.ParquetFile(path).metadata.row_group(0).num_rows <= 8
    for kept in range(len(found)):
        other = tmp_path / f"b{kept}"
        shutil.copytree(tmp_path / "a", other)
        (other / f"{kept:05d}.parquet").write_bytes(b"cut off")
        asked = []

        def table(number: int, asked: list[int] = asked) -> pa.Table:
            asked.append(number)
            return tables[number]

        again = shards.write(other, schema, table, starts, **options)
        assert [digest for _, digest in again] == [digest for _, digest in found]
        assert len(asked) < len(tables) or kept == 0
