"""Steps of the acceptance that read or write files: data, embed, checkpoint."""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mlcd.utils.compat  # noqa: F401
from gpu.measuring import Outcome, Setting, seconds, significant, wait
from helpers import builders
from mlcd import cli
from mlcd.config import Embed
from mlcd.data.checkpoints import CheckpointWriter, Snapshot, newest
from mlcd.models import frozen
from mlcd.models.frozen.base import FrozenEncoder
from mlcd.stages.embed import chunk
from mlcd.training.tensors import cpu_copy

_CORES = len(os.sched_getaffinity(0))
#: Sides of the JPEGs, in pixels: what img2dataset keeps for the paper's runs.
_SIDE = 384
_DIFFERENT = 64


def _store(folder: Path, count: int, side: int) -> Path:
    """Write `count` JPEGs with some detail in them; return the manifest's path."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(min(count, _DIFFERENT)):
        small = Image.fromarray(rng.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    every = [images[number % len(images)] for number in range(count)]
    return builders.image_store(folder, every, rows_per_tar=1024)


def data(setting: Setting) -> Outcome:
    """Train a small encoder on JPEGs by `mlcd train`: images/s that decoding and cropping allow."""
    count, batch, side = setting.of((8192, 512, 224), (48, 16, 32))
    model = setting.of("vit_tiny_patch16_224", "test_vit")
    classes, dim = 64, 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = _store(folder / "images" / "c-00000", count, setting.of(_SIDE, 64))
        vectors = builders.unit_vectors(count, dim)
        for part in ("embeddings", "labels"):
            (folder / part).mkdir()
        embeddings = folder / "embeddings/c-00000.h5"
        builders.embeddings_file(embeddings, vectors, manifest=manifest)
        nearest = np.arange(count * 3).reshape(count, 3) % classes
        labels = builders.labels_file(folder / "labels/c-00000.h5", nearest, classes, embeddings)
        centers = builders.unit_vectors(classes, dim, seed=1)
        centroids = builders.centroids_file(folder / "centroids.h5", centers)
        workers = setting.of(max(1, _CORES - 1), 0)
        words: list[object] = [
            "train", "--labels", labels, "--embeddings", embeddings, "--images", manifest,
            "--centroids", centroids, "--output", folder / "train", "--device", setting.device,
            "--threads", _CORES, "--workers", workers, "--model", model, "--embedding-dim", dim,
            "--image-size", side, "--batch-size", batch, "--epochs", setting.of(4, 1),
            "--log-every", 4, "--precision", "bf16" if setting.cuda else "fp32",
            "--warmup-steps", 2, "--ranks-per-node", 1,
            *setting.of((), ("--launcher", "inline", "--micro-batch", batch)),
        ]  # fmt: skip
        status = cli.main([str(word) for word in words])
        lines = [json.loads(line) for path in folder.rglob("metrics.jsonl")
                 for line in path.read_text().splitlines()]  # fmt: skip
    if status or not lines:
        return Outcome(False, {"exit_status": status, "lines": len(lines)})
    # The first lines hold the start of the workers.
    late = lines[len(lines) // 2 :]
    rate = statistics.median(line["images_per_s"] for line in late)
    return Outcome(
        setting.tiny or rate >= 900,
        {
            "images_per_s": significant(rate), "per_core": significant(rate / _CORES),
            "cores": _CORES, "workers": workers,
            "data_wait_share": significant(statistics.median(x["data_wait_share"] for x in late)),
        },
    )  # fmt: skip


def embed(setting: Setting) -> Outcome:
    """Time stage embed: against its decoding with an encoder that takes no time, and against the
    encoder with images that are there.
    """
    model, batch = setting.of(("ViT-L-14", 512), ("tiny-for-tests", 8))
    few, many = setting.of((1024, 9216), (8, 24))
    if setting.tiny:
        from helpers.open_clip_tiny import register

        register()
    precision = "bf16" if setting.cuda else "fp32"
    encoder = frozen.load(model, None, None, setting.device, precision)
    side = encoder.image_size if hasattr(encoder, "image_size") else setting.of(224, 32)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    pure = batch / seconds(lambda: encoder.encode_images(images), setting,
                           repeats=setting.of(5, 1))[1]  # fmt: skip
    section = Embed(model=model, batch_size=batch, precision=precision)
    workers = setting.of(max(1, _CORES - 1), 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = [_store(folder / f"c-{count}", count, setting.of(_SIDE, 64))
                  for count in (few, many)]  # fmt: skip

        def rate() -> float:
            """Return images/s without start and end, by two runs of different length."""
            taken = []
            for store in stores:
                output = folder / "e.h5"
                output.unlink(missing_ok=True)
                began = time.perf_counter()
                chunk.embed(store, output, section, device=setting.device, workers=workers)
                taken.append(time.perf_counter() - began)
            if setting.tiny:
                return many / taken[1]
            return (many - few) / (taken[1] - taken[0])

        real = _with_encoder(encoder, rate)
        fixed = encoder.encode_images(images)
        encoder.encode_images = lambda batch, **_: fixed[: len(batch)]  # type: ignore[method-assign]
        decode = _with_encoder(encoder, rate)
    share = real / min(pure, decode)
    figures = {"images_per_s": real, "encoder_images_per_s": pure, "decoder_images_per_s": decode,
               "share_of_slower": share}  # fmt: skip
    found: dict[str, Any] = {key: significant(value) for key, value in figures.items()}
    return Outcome(setting.tiny or share >= 0.87, {**found, "workers": workers})


def _with_encoder(encoder: FrozenEncoder, work: Callable[[], float]) -> float:
    """Do `work` while every encoder that is loaded is `encoder`: loading is not timed."""
    load = frozen.load
    frozen.load = lambda *_, **__: encoder  # type: ignore[assignment]
    try:
        return work()
    finally:
        frozen.load = load


def checkpoint(setting: Setting) -> Outcome:
    """Save ViT-L/14 and a shard of a million classes: how long training stands still."""
    numbers = setting.of(304_000_000, 1 << 20)
    classes = setting.of(125_000, 500)
    device = setting.device
    parts = [f"weight/{number}" for number in range(30)]
    encoder = {f"{kind}/{part}": torch.randn(numbers // 30, device=device)
               for part in parts for kind in ("encoder", "exp_avg", "exp_avg_sq")}  # fmt: skip
    rows = {name: torch.randn(classes, 768, device=device)
            for name in ("weight", "exp_avg", "exp_avg_sq")}  # fmt: skip
    wait(setting)
    began = time.perf_counter()
    copies = {name: cpu_copy(tensor) for name, tensor in encoder.items()}
    mine = {name: cpu_copy(tensor) for name, tensor in rows.items()}
    still = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), "acceptance", {}, rank=0, world_size=1)
        began = time.perf_counter()
        writer.save(Snapshot(1, 0, mine, {}, copies, 224))
        still += time.perf_counter() - began
        writer.wait()
        written = time.perf_counter() - began
        found = newest(Path(folder), "acceptance")
        assert found is not None
        same = all(torch.equal(found.rows(0, classes)[name], mine[name]) for name in mine)
    size = sum(tensor.nbytes for tensor in (*encoder.values(), *rows.values())) / 1e9
    return Outcome(
        same and (setting.tiny or still < 1.5),
        {
            "gb": significant(size), "still_s": significant(still), "same": same,
            "write_s": significant(written),
        },
    )  # fmt: skip
