"""Steps of the acceptance that compute: classifier, ZeRO, training step, search, probe."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch

import mlcd.utils.compat  # noqa: F401
from gpu.measuring import (
    Outcome,
    Setting,
    alone,
    milliseconds,
    peak_gb,
    seconds,
    significant,
    tflops,
    wait,
)
from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.config.train import Train
from mlcd.launch.process_group import RankPlace
from mlcd.losses import cluster_loss
from mlcd.models import footprint, trainable
from mlcd.neighbors.half import HalfSearch
from mlcd.stages.evaluate import probe
from mlcd.stages.train.engine import EncoderEngine
from mlcd.training.zero import ZeroEngine

#: Settings of the paper's classifier.
_PAPER: dict[str, Any] = {
    "kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface", "negative_ratio": 0.1,
    "seed": 0,
}  # fmt: skip
#: Classes of the paper, and ranks that share them in the step `classifier_speed`.
_K, _RANKS, _DIM = 1_000_000, 8, 768


def ceilings(setting: Setting) -> Outcome:
    """Measure what the hardware gives: products by type, and copies within its memory."""
    n = setting.of(8192, 256)
    found: dict[str, Any] = {"torch": torch.__version__}
    found["device"] = torch.cuda.get_device_name() if setting.cuda else "cpu"
    for name in ("bfloat16", "float16", "float32"):
        left, right = (torch.randn(n, n, device=setting.device) for _ in range(2))
        kind = getattr(torch, name)
        left, right = left.to(kind), right.to(kind)
        work = lambda left=left, right=right: left @ right  # noqa: E731
        found[name] = tflops(2 * n**3, seconds(work, setting, repeats=setting.of(9, 1)))
    source = torch.empty(setting.of(2 << 30, 1 << 20), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), setting, repeats=setting.of(5, 1))
    found["copy_gb_per_s"] = significant(2 * source.numel() / copy[1] / 1e9)
    return Outcome(True, found)


def _classifier(
    classes: int, dim: int, device: torch.device | str, kind: torch.dtype | None
) -> tuple[ShardedClassifier, RowSparseAdamW]:
    classifier = ShardedClassifier(classes, dim, device=device, compute_dtype=kind, **_PAPER)
    return classifier, RowSparseAdamW(classifier, 1e-3)


def classifier_exact(setting: Setting) -> Outcome:
    """Loss and gradients of the classifier against those in float64 on the CPU."""
    classes, dim, batch = setting.of((20_000, 768, 256), (500, 32, 16))
    random = torch.Generator().manual_seed(0)
    met, found = True, {}
    for kind, most in ((torch.float32, 2e-5), (torch.bfloat16, 8e-3)):
        classifier, _ = _classifier(classes, dim, setting.device, kind)
        labels = torch.randint(0, classes, (batch, 8), generator=random)
        weight = classifier.weight.detach().cpu()
        rows = torch.randn(batch, dim, generator=random) / dim**0.5 + weight[labels].sum(1) / 2
        mine = rows.clone().to(setting.device).requires_grad_()
        loss = classifier(mine, labels.to(setting.device), 3)
        loss.backward()
        assert classifier.gradient is not None and mine.grad is not None
        centers = torch.zeros(classes, dim)
        centers[classifier.gradient.rows.cpu()] = classifier.gradient.values.cpu()
        plain, centers64 = rows.double().requires_grad_(), weight.double().requires_grad_()
        negatives = classifier.sampled_rows(3).cpu()
        options = {name: _PAPER[name] for name in ("kind", "scale", "margin", "margin_type")}
        expected = cluster_loss(plain, centers64, labels, negatives, **options)
        expected.backward()
        assert plain.grad is not None and centers64.grad is not None
        errors = [
            abs(loss.item() - expected.item()) / expected.item(),
            _error(mine.grad, plain.grad),
            _error(centers, centers64.grad),
        ]
        found[str(kind)] = [significant(one) for one in errors]
        met &= max(errors) < most
    return Outcome(met, found)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())


def classifier_speed(setting: Setting) -> Outcome:
    """Time forward, backward and the optimizer's step of a rank's shard of a million classes."""
    classes, rows, dim = setting.of((_K // _RANKS, 32_768, _DIM), (2000, 64, 32))
    kind = torch.bfloat16 if setting.cuda else None
    classifier, optimizer = _classifier(classes, dim, setting.device, kind)
    # 8 labels per image over 8 ranks: one lies here.
    labels = torch.randint(0, classes, (rows, 1), device=setting.device)
    embeddings = torch.randn(rows, dim, device=setting.device, requires_grad=True)
    steps = iter(range(1000))

    def step() -> None:
        classifier(embeddings, labels, next(steps)).backward()
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    times = seconds(step, setting, repeats=setting.of(9, 1))
    found = {"ms": milliseconds(times), "peak_gb": peak_gb(setting)}
    found["tflops"] = tflops(8 * rows * 0.1 * classes * dim, times)
    return Outcome(setting.tiny or times[1] < 0.035, found)


def zero(setting: Setting) -> Outcome:
    """Losses under ZeRO 0 to 3, with and without accumulation, against those of stage 0."""
    met, found = True, {}
    with alone(setting) as place:
        expected = _losses(place, 0, 32, "fp32")
        for stage in (0, 1, 2, 3):
            for micro_batch in setting.of((32, 16), (16,)):
                for precision in ("fp32", "bf16") if setting.cuda else ("fp32",):
                    got = _losses(place, stage, micro_batch, precision)
                    error = max(abs(a - b) / b for a, b in zip(got, expected, strict=True))
                    met &= error < (1e-5 if precision == "fp32" else 3e-2)
                    found[f"stage {stage}, {micro_batch}, {precision}"] = significant(error)
    return Outcome(met, found)


def _losses(place: RankPlace, stage: int, micro_batch: int, precision: str) -> list[float]:
    section = Train(batch_size=32, precision=precision, zero_stage=stage)
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
    engine = ZeroEngine(network, section, place, micro_batch)
    random = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(4):
        batch, total = torch.randn(32, 64, generator=random), 0.0
        for part in batch.split(micro_batch):
            loss = engine(part.to(place.device)).float().square().mean()
            total += loss.item() * micro_batch / 32
            engine.backward(loss)
            engine.step(1e-3)
        losses.append(total)
    engine.destroy()
    return losses


def training_step(setting: Setting) -> Outcome:
    """Time ViT-L/14 and a million classes on one GPU: images/s, share of the measured peak."""
    model, dim, side = setting.of(("open_clip:ViT-L-14", _DIM, 224), ("test_vit", 16, 32))
    sizes = setting.of(((False, 128), (False, 256), (True, 256)), ((False, 4),))
    classes = setting.of(_K, 2000)
    peak = setting.ceilings.get("bfloat16", 0.0)
    found: dict[str, Any] = {}
    best = 0.0
    with alone(setting) as place:
        kind = torch.bfloat16 if setting.cuda else None
        classifier, optimizer = _classifier(classes, dim, place.device, kind)
        flop = 3 * footprint.measure(trainable.build(model, dim, side), bf16=setting.cuda).flop
        for compiled, batch in sizes:
            section = Train(
                model=model, embedding_dim=dim, image_size=side, batch_size=batch, zero_stage=1,
                precision="bf16" if setting.cuda else "fp32", compile=compiled, scale=64.0,
            )  # fmt: skip
            name = f"{'compiled' if compiled else 'eager'}, {batch} images"
            # What the last one held goes first.
            gc.collect()
            try:
                times = _step_times(setting, place, section, classifier, optimizer)
            except torch.OutOfMemoryError:
                found[name] = "out of memory"
                continue
            rate = tflops(batch * flop, times)
            share = significant(rate / peak) if peak else None
            best = max(best, share or 0.0)
            found[name] = {
                "images_per_s": significant(batch / times[1]), "tflops": rate,
                "share_of_peak": share, "peak_gb": peak_gb(setting),
            }  # fmt: skip
    return Outcome(setting.tiny or best >= 0.5, {"gflop_per_image": flop / 1e9, **found})


def _step_times(
    setting: Setting, place: RankPlace, section: Train, classifier: ShardedClassifier,
    optimizer: RowSparseAdamW,
) -> list[float]:  # fmt: skip
    encoder = trainable.build(section.model, section.embedding_dim, section.image_size)
    engine = EncoderEngine(encoder, section, place, section.batch_size)
    side = section.image_size
    images = torch.randint(0, 256, (section.batch_size, 3, side, side), dtype=torch.uint8)
    if setting.cuda:
        images = images.pin_memory()
        torch.cuda.reset_peak_memory_stats()
    labels = torch.randint(0, classifier.num_classes, (section.batch_size, 8)).to(place.device)
    steps = iter(range(1000))

    def step() -> None:
        loss = classifier(engine.forward(images), labels, next(steps))
        engine.backward(loss)
        engine.step(1e-4)
        optimizer.clip(1.0)
        optimizer.step(1e-4)
        optimizer.zero_grad()

    times = seconds(step, setting, repeats=setting.of(5, 1), warm_up=setting.of(3, 1))
    engine.destroy()
    return times


def search(setting: Setting) -> Outcome:
    """Time the search among a million centers on tensor cores, and hold it to float64 scores."""
    classes, count, dim = setting.of((_K, 32_768, _DIM), (4096, 256, 64))
    torch.manual_seed(0)
    device = torch.device(setting.device)
    centers = _unit(torch.randn(classes, dim, device=device))
    mine = torch.randint(0, classes, (count,), device=device)
    rows = _unit(centers[mine] + 0.6 * torch.randn(count, dim, device=device) / dim**0.5)
    met, found = True, {}
    for kind in (torch.float16, torch.bfloat16):
        engine = HalfSearch(centers.cpu().numpy(), device, kind)
        some = rows[:64]
        every = some.double() @ centers.double().T if not setting.cuda else None
        if every is None:
            parts = [some.double() @ part.double().T for part in centers.split(1 << 16)]
            every = torch.cat(parts, dim=1)
        same = bool((engine.nearest_of(some, 8) == every.topk(8, dim=1).indices).all())
        met &= same
        for l in (1, 9):
            times = seconds(
                lambda l=l, engine=engine: engine.nearest_of(rows, l), setting,
                repeats=setting.of(3, 1), warm_up=1,
            )  # fmt: skip
            rate = tflops(2 * count * classes * dim, times)
            share = rate / setting.ceilings.get(str(kind)[6:], np.inf)
            found[f"{str(kind)[6:]}, {l} nearest"] = {
                "rows_per_s": significant(count / times[1]), "tflops": rate,
                "share_of_peak": significant(share), "same_as_float64": same,
            }  # fmt: skip
            if (kind, l) == (torch.float16, 1):
                met &= setting.tiny or share >= 0.6
    return Outcome(met, found)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def linear_probe(setting: Setting) -> Outcome:
    """Fit a probe here and on the CPU, and time one of ImageNet's size."""
    random = torch.Generator().manual_seed(0)

    def data(n: int, d: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        label = torch.randint(0, classes, (n,), generator=random)
        means = torch.randn(classes, d, generator=random)
        return torch.randn(n, d, generator=random) + 0.3 * means[label], label

    rows, label = data(*setting.of((4000, 64, 20), (400, 16, 5)))
    there = probe.fit(probe.Rows(rows), label, 1.0, 200)
    device = setting.device
    here = probe.fit(probe.Rows(rows.to(device)), label.to(device), 1.0, 200)
    error = abs(there.loss - here.loss) / there.loss
    rows, label = data(*setting.of((1_281_167, 1024, 1000), (400, 16, 5)))
    rows, label = rows.to(device), label.to(device)
    began = time.perf_counter()
    turned = probe.Rows(rows)
    wait(setting)
    axes = time.perf_counter() - began
    began = time.perf_counter()
    fit = probe.fit(turned, label, 1.0, setting.of(30, 3))
    wait(setting)
    each = (time.perf_counter() - began) / max(1, fit.iterations)
    return Outcome(
        error < 1e-4,
        {
            "loss_error": significant(error), "axes_s": significant(axes),
            "s_per_iteration": significant(each), "peak_gb": peak_gb(setting),
        },
    )  # fmt: skip
