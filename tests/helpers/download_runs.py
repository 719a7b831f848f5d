"""Stage download run in the test's own process, and what it leaves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from mlcd.config import Download
from mlcd.data.image_store import ImageStore
from mlcd.stages.download import run
from mlcd.utils.files import sha256_file


def download(
    urls: Path, output: Path, processes: int = 1, top_up: bool = False, **keys: Any
) -> ImageStore:
    """Run the stage in this process (img2dataset in its own) and open the result."""
    arguments = argparse.Namespace(
        urls=str(urls), output=str(output), processes=processes, threads=8, top_up=top_up
    )
    run(arguments, Download(**{"timeout": 5, "backoff": 0.1, "passes": 2, **keys}))
    return ImageStore(output)


def image_of(store: ImageStore, row: Any) -> bytes:
    """Return the image of a row of the table."""
    return store.read(row.tar, row.offset, row["size"] if isinstance(row, pd.Series) else row.size,
                      int(row.sha256[:16], 16))  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of each file of `folder` by its name."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def states(output: Path) -> list[Path]:
    """Return the folders of unfinished work for `output`."""
    return sorted((output.parent / "state").glob(f"{output.name}-*"))
