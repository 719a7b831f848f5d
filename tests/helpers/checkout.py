"""A small checkout of the project that runs the real workflow on a few dozen real images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import yaml

from helpers.paths import ROOT
from mlcd.data.members import labeled_members

PARTS = ["src", "workflow", "rules", "profiles", "config.yaml", "environment.yml"]
ROWS = 16  # a chunk

#: Small enough for a minute or two, large enough that every stage does its real work.
CONFIG = {
    "metadata": ["lists/first.parquet", "lists/second.parquet"],
    "prepare": {"chunk_rows": ROWS, "hash_column": None},
    "download": {"rows_per_tar": 10},
    "embed": {"image_size": 64},
    "cluster": {"k": 8, "iterations": 4},
    "label": {"top": 2},
    "train": {
        "image_size": 32,
        "embedding_dim": 32,
        "epochs": 2,
        "batch_size": 16,
        "warmup_steps": 1,
        "log_every": 1,
    },
    "evaluate": {
        "datasets": [
            {
                "name": "few",
                "path": "few.tar",
                "label_field": "top",
                "tags_field": "tags",
                "min_tag_count": 5,
            }
        ],
        "knn_k": [3],
    },
    "report": {"montage_clusters": 2, "montage_images": 3, "label_examples": 2},
}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder: Path, port: int = 0):
    """Serve `folder` on a loopback port, 0: of the system's choice; yields the base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Checkout:
    """A copy of the project in `folder`, with its own small config and lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / part)
        self.configure()

    def configure(self, **changes: dict) -> None:
        """Write config.yaml: the small config, with some sections' keys changed."""
        values = {name: dict(v) if isinstance(v, dict) else v for name, v in CONFIG.items()}
        for name, keys in changes.items():
            if isinstance(keys, dict):
                values.setdefault(name, {}).update(keys)
            else:
                values[name] = keys
        (self.folder / "config.yaml").write_text(yaml.safe_dump(values))

    def write_images(self, base_url: str, site: Path, most: int = 30) -> None:
        """Put images of the demo on the site, list the train ones, pack a few with labels.

        At most `most` of each folder and split.
        """
        site.mkdir(parents=True, exist_ok=True)
        images = labeled_members(ROOT / "demo" / "openclipart.tar")
        chosen, tops = [], {"animals", "food", "people"}
        counts: dict[str, int] = {}
        for key, data, fields in images:
            group = f"{fields['top']}-{fields['split']}"
            if fields["top"] in tops and counts.get(group, 0) < most:
                counts[group] = counts.get(group, 0) + 1
                chosen.append((key, data, fields))
        train = [item for item in chosen if item[2]["split"] == "train"]
        rows = []
        for key, data, fields in train[: 5 * ROWS]:
            (site / f"{key}.jpg").write_bytes(data)
            rows.append({"url": f"{base_url}/{key}.jpg", "caption": fields["title"]})
        lists = self.folder / "lists"
        lists.mkdir(exist_ok=True)
        half = 2 * ROWS
        for name, part in [
            ("first", rows[:half]),
            ("second", rows[half : 2 * half]),
            ("third", rows[2 * half :]),
        ]:
            pd.DataFrame(part).to_parquet(lists / f"{name}.parquet", index=False)
        self._pack(chosen)

    def _pack(self, chosen: list) -> None:
        import json
        import tarfile

        from helpers.builders import add_member

        with tarfile.open(self.folder / "few.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, data, fields in chosen:
                add_member(tar, f"{key}.jpg", data)
                add_member(tar, f"{key}.json", json.dumps(fields).encode())

    def snakemake(self, *options: str, timeout: float = 600) -> subprocess.CompletedProcess:
        """Run snakemake in the checkout with the local profile; both streams in `stdout`."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", "profiles/local", *options],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def stale(self, *options: str) -> dict[str, int]:
        """Return rule → number of jobs that a run would make now (a dry run's table)."""
        done = self.snakemake("--dry-run", *options)
        assert done.returncode == 0, done.stdout
        if "Nothing to be done" in done.stdout:
            return {}
        table = done.stdout[done.stdout.rindex("Job stats") :]
        found = dict(re.findall(r"^([a-z_]+) +(\d+)$", table, re.MULTILINE))
        return {name: int(n) for name, n in found.items() if name not in ("total", "all")}
