"""Every stage on a full disk and on one for reading alone: python stages_on_disks.py FOLDER.

FOLDER/disk is a mounted disk. Prints a JSON object per stage: its name, status and lines of stderr.
Stages run as forks of one process that has imported what all need.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import mlcd.utils.compat  # noqa: F401
from helpers.builders import jpeg
from helpers.train_stores import file_options, stores
from mlcd.cli import main
from mlcd.models import trainable


def stages(folder: Path, disk: Path) -> Iterator[list[str]]:
    """Iterate over commands that write to `disk` what their inputs in `folder` give."""
    paths = stores(folder / "in")
    one = {name: values if isinstance(values, str) else values[0] for name, values in paths.items()}
    urls = pd.DataFrame({"url": ["http://127.0.0.1:9/a.jpg"], "caption": ["a"]})
    urls.to_parquet(folder / "list.parquet")
    trainable.save(trainable.build("test_vit", 16, 32, seed=2), folder / "train", {})
    (folder / "loose").mkdir()
    (folder / "loose" / "a.jpg").write_bytes(jpeg(1))
    model = ["--model", str(folder / "train")]
    yield ["prepare", "--metadata", str(folder / "list.parquet"), "--chunk-index", "0",
           "--hash-column", "null", "--output", str(disk / "urls/list-00000.parquet")]  # fmt: skip
    yield ["download", "--urls", str(folder / "list.parquet"), "--output", str(disk / "images/a")]
    yield ["embed", "--images", one["images"], "--output", str(disk / "embeddings/a.h5")]
    yield ["cluster", "--embeddings", *paths["embeddings"], "--k", "4",
           "--output", str(disk / "clusters/centroids.h5")]  # fmt: skip
    yield ["label", "--embeddings", one["embeddings"], "--centroids", one["centroids"],
           "--output", str(disk / "labels/a.h5")]  # fmt: skip
    yield ["train", *file_options(paths, disk / "train"), "--ranks-per-node", "1"]
    yield ["text", "--part", "captions", "--embeddings", one["embeddings"],
           "--images", one["images"], "--output", str(disk / "captions/a.h5")]  # fmt: skip
    yield ["evaluate", "--part", "features", "--model", "pixels", "--dataset", "digits",
           "--output", str(disk / "features/pixels.h5")]  # fmt: skip
    yield ["export", "--encoder", str(folder / "train"), "--output", str(disk / "export")]
    yield ["report", "--part", "cluster", "--centroids", one["centroids"],
           "--output", str(disk / "report/cluster.html")]  # fmt: skip
    yield ["encode", str(folder / "loose"), *model, "--output", str(disk / "loose.h5")]
    yield ["search", str(folder / "loose/a.jpg"), "--folder", str(folder / "loose"), *model,
           "--output", str(disk / "page.html")]  # fmt: skip


def run(words: list[str], log: Path) -> tuple[int, str]:
    """Run a command in a fork; return its status and what it wrote."""
    sys.stdout.flush()
    if not (child := os.fork()):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        status = 99
        with contextlib.suppress(BaseException):
            status = main(words)
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for command in stages(place, place / "disk"):
        code, text = run(command, place / "log")
        lines = [line for line in text.splitlines() if " INFO " not in line]
        print(json.dumps({"stage": command[0], "status": code, "lines": lines}))
