"""A finished chunk of a run is topped up, and exactly what rests on it is stale."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

from helpers.checkout import Checkout
from helpers.hostile_server import HostileServer
from mlcd.data.image_store import ImageStore

pytestmark = [pytest.mark.workflow, pytest.mark.long, pytest.mark.timeout(900)]

#: Images of a list; a server error at the first request, on one of the first list alone.
ROWS = 12


def test_a_top_up_makes_its_chunk_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    checkout = Checkout(tmp_path / "checkout")
    (checkout.folder / "lists").mkdir()
    with HostileServer() as server:
        for name in ("a", "b"):
            kinds = ["flaky" if name == "a" and not row else "ok" for row in range(ROWS)]
            urls = [server.url(f"{kind}/{name}{row}.jpg") for row, kind in enumerate(kinds)]
            pd.DataFrame({"url": urls}).to_parquet(checkout.folder / f"lists/{name}.parquet")
        checkout.configure(
            metadata=["lists/*.parquet"],
            download={"passes": 1},
            evaluate={"datasets": []},
            prepare={"caption_column": None},
            cluster={"k": 8},
        )
        done = checkout.snakemake("--cores", "2", "--until", "embed")
        assert done.returncode == 0, done.stdout[-6000:]
        assert checkout.stale("--until", "embed") == {}
        command = [
            sys.executable, "-m", "mlcd", "download", "--urls", "results/urls/a-00000.parquet",
            "--output", "results/images/a-00000", "--config", "config.yaml", "--top-up",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(checkout.folder / "src")}
        told = subprocess.run(
            command, cwd=checkout.folder, env=environment, capture_output=True, text=True
        )
    assert told.returncode == 0, told.stderr
    assert "1 of 1 rows arrived now" in told.stderr and "stale are" in told.stderr
    store = ImageStore(checkout.folder / "results/images/a-00000")
    assert store.manifest["counts"] == {"success": ROWS}
    assert checkout.stale("--until", "embed") == {"embed": 1}
