"""URL lists as strangers write them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.cli import main
from mlcd.data.url_lists import chunk_name

NO_HASH = ["--hash-column", "null"]


def write_list(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def bad_strings(values: list[bytes]) -> pa.Array:
    """Return a string array whose bytes nobody checked, as other writers produce."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def parquet(path: Path, columns: dict, **options) -> Path:
    """Write a parquet list."""
    pq.write_table(pa.table(columns), path, **options)
    return path


def urls(n: int) -> list[str]:
    """Return n different URLs."""
    return [f"http://example.org/{i}.jpg" for i in range(n)]


def prepare(capsys, *arguments: object) -> str:
    """Run the program; return '' on success or the one line it printed."""
    code = main(["prepare", *map(str, arguments)])
    error = capsys.readouterr().err.splitlines()
    if code == 0:
        return ""
    assert code == 2
    assert sum("ERROR" in line for line in error) == 1
    assert not any("Traceback" in line for line in error)
    return error[-1]


def cut(capsys, metadata: Path, *options: object, index: int = 0) -> tuple[list[dict], dict]:
    """Cut one chunk; return its rows and its JSON."""
    output = metadata.parent / "urls" / f"{chunk_name(metadata, index)}.parquet"
    problem = prepare(
        capsys, "--metadata", metadata, "--chunk-index", index, "--output", output, *options
    )
    assert problem == ""
    return pq.read_table(output).to_pylist(), json.loads(output.with_suffix(".json").read_text())
