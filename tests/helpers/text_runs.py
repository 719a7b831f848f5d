"""Captioned chunks with planted meaning, and trainings of the text tower on them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlcd.stages.text
from helpers.builders import embeddings_file, image_store, unit_vectors
from mlcd.config.text import Text
from mlcd.launch.options import Resources
from mlcd.utils.files import write_json

WORDS = ("red", "green", "blue", "cat", "dog", "tree", "house", "boat")
#: A tower of 0.4 M parameters in its vocabulary and next to nothing above it.
TINY: dict[str, Any] = {
    "width": 8, "layers": 1, "heads": 2, "context_length": 6, "epochs": 3, "batch_size": 12,
    "lr": 1e-2, "warmup_steps": 2, "log_every": 1, "shuffle_block": 4, "shuffle_window": 16,
}  # fmt: skip


def chunks(root: Path, sizes: tuple[int, ...] = (21, 14), dim: int = 8) -> dict[str, list[str]]:
    """Write chunks of images that each show two words; every seventh has no caption."""
    directions = unit_vectors(len(WORDS), dim, seed=5)
    paths: dict[str, list[str]] = {"embeddings": [], "captions": []}
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        chunk = f"c-{index:05d}"
        shown = [rng.choice(len(WORDS), 2, replace=False) for _ in range(size)]
        captions = [
            "" if row % 7 == 3 else f" a {WORDS[a]} and {WORDS[b]}\n"
            for row, (a, b) in enumerate(shown)
        ]
        manifest = image_store(root / "images" / chunk, size, captions=captions, seed=index)
        rows = np.stack([directions[a] + directions[b] for a, b in shown])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        (root / "embeddings").mkdir(parents=True, exist_ok=True)
        embeddings = embeddings_file(
            root / "embeddings" / f"{chunk}.h5", rows.astype(np.float32), manifest=manifest
        )
        output = root / "captions" / f"{chunk}.h5"
        parsed = arguments("captions", [str(embeddings)], output)
        parsed.images = str(manifest)
        mlcd.stages.text.run(parsed, Text(**TINY))
        paths["embeddings"].append(str(embeddings))
        paths["captions"].append(str(output))
    return paths


def arguments(part: str, embeddings: list[str], output: Path, **options: Any) -> argparse.Namespace:
    """Return what `mlcd text` parses, at its defaults but for `options`."""
    parser = argparse.ArgumentParser()
    mlcd.stages.text.add_arguments(parser)
    words = ["--part", part, "--embeddings", *embeddings, "--output", str(output)]
    parsed = parser.parse_args(words)
    for name, value in {"threads": 1, **options}.items():
        setattr(parsed, name, value)
    return parsed


def planned(
    paths: dict[str, list[str]], output: Path, *, ranks: int = 1, options: dict[str, Any], **section
) -> dict[str, Any]:
    """Return the JSON values that each rank of `mlcd text` would be given."""
    parsed = arguments("tower", paths["embeddings"], output, captions=paths["captions"], **options)
    resources = Resources(ranks_per_node=ranks)
    run = mlcd.stages.text.plan(parsed, Text(**{**TINY, **section}), resources)
    return run.model_dump(mode="json")


def train_many(runs: list[dict[str, Any]], folder: str) -> None:
    """Train several runs in one process group; each rank notes its part of a loss, too."""
    from mlcd.launch.process_group import process_group
    from mlcd.stages.text.arguments import TextArguments
    from mlcd.stages.text.task import TextTask
    from mlcd.training.trainer import Trainer

    with process_group("cpu") as place:
        for run in runs:
            Trainer(TextArguments.model_validate(run), place, TextTask).run()
        write_json(
            Path(folder) / f"loss-{place.rank}.json", loss_part(place.rank, place.world_size)
        )


def loss_pairs(n: int = 12, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random pairs [n, dim], not normalized."""
    rng = torch.Generator().manual_seed(3)
    return torch.randn(n, dim, generator=rng), 3 * torch.randn(n, dim, generator=rng)


def loss_part(rank: int, world_size: int) -> dict[str, Any]:
    """Return a rank's part of the contrastive loss of :func:`loss_pairs` and its gradients."""
    from mlcd.classifier.collectives import Exchange
    from mlcd.stages.text.contrastive import contrastive_loss

    image, text = (rows.chunk(world_size)[rank] for rows in loss_pairs())
    text.requires_grad_(True)
    scale = torch.tensor([7.0], requires_grad=True)
    loss, found = contrastive_loss(image, text, scale, Exchange())
    loss.backward()
    assert text.grad is not None and scale.grad is not None
    return {
        "loss": loss.item(), "found": found.item(), "text": text.grad.tolist(),
        "scale": scale.grad.item(),
    }  # fmt: skip


def lines(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    text = (Path(run["state"]) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
