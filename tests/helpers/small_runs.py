"""A run from a list, or a folder, to labels: every stage in the test's own process, then sealed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from helpers import tiny_clip
from mlcd import cli
from mlcd.config import SECTIONS, parse_section
from mlcd.data.sources import plan
from mlcd.utils.records import read_record


def mlcd(*words: object) -> None:
    """Run a command, which must succeed."""
    assert cli.main([str(word) for word in words]) == 0, words


class Run:
    """The results of one run, in `folder`/results, of `metadata` and sections of a config."""

    def __init__(self, folder: Path, metadata: list[str], **sections: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        self.results, self.metadata = folder / "results", metadata
        sections["embed"] = {"model": tiny_clip.register(folder), **sections.get("embed", {})}
        sections["download"] = {"passes": 1, "timeout": 5, **sections.get("download", {})}
        self.sections = {
            name: parse_section(name, json.dumps(sections.get(name, {})), {}) for name in SECTIONS
        }
        self.chunks = plan(metadata, self.sections["prepare"], self.results / "listings")

    def config(self, stage: str) -> list[str]:
        return ["--config", self.sections[stage].to_json()]

    def fetch(self) -> None:
        """Prepare and download all chunks."""
        for name, chunk in self.chunks.items():
            table = self.results / "urls" / f"{name}.parquet"
            mlcd("prepare", "--metadata", chunk.list, "--chunk-index", chunk.part, "--output",
                 table, *self.config("prepare"))  # fmt: skip
            mlcd("download", "--urls", table, "--output", self.results / "images" / name,
                 "--processes", 1, *self.config("download"))  # fmt: skip

    def label(self) -> None:
        """Embed, cluster and label all images; or take centers and labels of others."""
        own = self.sections["label"].labels is not None
        centers = self.results / "clusters" / "centroids.h5"
        files = []
        for name in [] if own else self.chunks:
            files.append(self.results / "embeddings" / f"{name}.h5")
            mlcd("embed", "--images", self.manifest(name), "--output", files[-1], "--threads", 1,
                 *self.config("embed"))  # fmt: skip
        given = self.sections["cluster"].centers
        if given:
            mlcd("cluster", "--centers", given, "--output", centers, *self.config("cluster"))
        elif not own:
            mlcd("cluster", "--embeddings", *files, "--output", centers, *self.config("cluster"))
        for name in self.chunks:
            what: list[object] = ["--embeddings", self.results / "embeddings" / f"{name}.h5"]
            what += ["--centroids", centers]
            if own:
                what = ["--images", self.manifest(name), "--classes", self.sections["cluster"].k]
                what += ["--urls", self.results / "urls" / f"{name}.parquet"]
            mlcd("label", *what, "--output", self.labels(name), *self.config("label"))

    def seal(self) -> str:
        """Seal the run; return its identity."""
        stages = {
            name: {"section": section.model_dump(mode="json"), "code": "a" * 16}
            for name, section in self.sections.items()
            if name != "ablate"
        }
        lists = sorted({chunk.list for chunk in self.chunks.values()})
        mlcd("audit", "seal", self.results, "--stages", json.dumps(stages), "--inputs", *lists)
        return str(read_record(self.results / "audit" / "lock.json", "audit")["root"])

    def manifest(self, chunk: str) -> Path:
        return self.results / "images" / chunk / "manifest.json"

    def labels(self, chunk: str) -> Path:
        return self.results / "labels" / f"{chunk}.h5"
