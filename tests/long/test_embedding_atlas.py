"""embedding-atlas shows the tables of a run. It needs a newer pandas: an environment of its own.

python -m pytest -m long tests/long/test_embedding_atlas.py     takes some minutes, and the network
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from helpers.explored_runs import write_run
from mlcd.commands.explore import tables
from mlcd.commands.explore.index import open_index
from mlcd.commands.explore.runs import Run

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

#: What its command line imports. All that it names, for encoders of its own, would be 7 GB.
NEEDED = (
    "click", "inquirer", "duckdb", "pandas", "pyarrow", "fastapi", "uvicorn", "narwhals",
    "platformdirs", "cryptography",
)  # fmt: skip
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with embedding-atlas."""
    folder = tmp_path_factory.mktemp("atlas")
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", folder],
        [*pip, "--no-deps", "embedding-atlas>=0.26,<0.27"],
        [*pip, *NEEDED],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            pytest.skip(f"embedding-atlas cannot be installed here: {lines[-1]}")
    return python


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = Run(write_run(folder / "results", (40, 60), k=12))
    tables.write(run, open_index(run, folder / "index"), folder, images=50)
    return folder


def ask(port: int, path: str, query: dict | None = None) -> bytes:
    data = json.dumps(query).encode() if query else None
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with OPENER.open(request, timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize(
    ("name", "options"),
    [("clusters", ["--neighbors", "neighbors"]), ("images", [])],
)
def test_it_serves_the_rows_on_our_map(python, written, tmp_path, name, options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = written / f"{name}.parquet"
    command = [python, "-m", "embedding_atlas.cli", path, "--x", "x", "--y", "y", "--text",
               "caption", *options, "--host", "127.0.0.1", "--port", str(port),
               "--no-auto-port"]  # fmt: skip
    # No model is fetched where the places are given: any try would fail.
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path
        )
    try:
        end = time.monotonic() + 180
        while True:
            assert server.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            try:
                props = json.loads(ask(port, "/data/metadata.json"))["props"]["data"]
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        assert props["projection"] == {"x": "x", "y": "y"} and props["text"] == "caption"
        assert props.get("neighbors") == (options[1] if options else None)
        sql = 'SELECT x, y, caption FROM dataset ORDER BY "__row_index__"'
        rows = json.loads(ask(port, "/data/query", {"type": "json", "sql": sql}))
        wanted = pd.read_parquet(path)
        assert [row["caption"] for row in rows] == wanted["caption"].where(
            wanted["caption"].notna(), None
        ).tolist()
        assert [row["x"] for row in rows] == pytest.approx(wanted["x"].tolist(), abs=1e-6)
        assert b"Embedding Atlas" in ask(port, "/")
    finally:
        server.terminate()
        server.wait(30)
