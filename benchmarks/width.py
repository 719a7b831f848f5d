"""A whole training step as rank 0 of 80 and of 128 GPUs, simulated in one process by shapes.

    python benchmarks/width.py [--ranks 80 128] [--classes 1000000 10000000] [--stage 1]
        [--model open_clip:ViT-L-14] [--memory 80GB]

Nothing is computed: floats have shapes alone (mlcd.training.width), labels and negatives are real,
and the process group is torch's `fake` one. The step is that of `mlcd train`: DeepSpeed's engine,
the sharded classifier, both optimizers. The peer of each simulated figure is the model by which
`--micro-batch auto` and `mlcd train --plan` go (mlcd.training.memory).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from dataclasses import dataclass

import torch

from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.classifier.sharded import CUDA_BLOCK
from mlcd.config.train import Train
from mlcd.models import trainable
from mlcd.models.footprint import Footprint, LiveBytes
from mlcd.stages.train import fit
from mlcd.stages.train.engine import EncoderEngine
from mlcd.training.memory import Job, largest, need
from mlcd.training.traffic import Traffic
from mlcd.training.width import Shapes, rank_of
from mlcd.utils.units import decimal_size, parse_size

#: Images per step, as near to the paper's as the ranks divide.
_BATCH = 32_768


@dataclass(frozen=True)
class Step:
    """What one rank holds and exchanges in a step, in bytes.

    `peak`: all that is alive at once. `state`: what stays between steps. `traffic`: of the step.
    """

    peak: int
    state: int
    traffic: Traffic


def step(section: Train, job: Job, micro_batch: int) -> Step:
    """Simulate the second step of a training, in which all buffers are there."""
    # DeepSpeed looks at addresses, which shapes do not have.
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    parts = job.share // micro_batch
    live, traffic = LiveBytes([]), Traffic()
    with rank_of(job.ranks) as place, Shapes(job.classes), live:
        encoder = trainable.build(section.model, job.dim, job.side).train()
        engine = EncoderEngine(encoder, section, place, micro_batch)
        classifier = _Classifier(
            job.classes, job.dim, kind=section.loss, scale=section.scale, margin=section.margin,
            margin_type=section.margin_type, negative_ratio=section.negative_ratio, seed=0,
            memory_limit=job.block, compute_dtype=torch.bfloat16 if job.halves else torch.float32,
        )  # fmt: skip
        optimizer = RowSparseAdamW(classifier, section.classifier_lr)
        for number in range(2):
            traffic, live.peak = Traffic(), live.now
            with traffic:
                for _ in range(parts):
                    images = torch.zeros(micro_batch, 3, job.side, job.side, dtype=torch.uint8)
                    labels = torch.randint(job.classes, (micro_batch, job.labels))
                    loss = classifier(engine.forward(images), labels, number)
                    engine.backward(loss)
                    engine.step(section.lr)
                    del images, labels, loss
                optimizer.clip(1.0)
                optimizer.step()
                optimizer.zero_grad()
        state = live.now
        engine.destroy()
    return Step(live.peak, state, traffic)


class _Classifier(ShardedClassifier):
    def reset_parameters(self) -> None:
        """Shapes have no values."""


def planned(section: Train, ranks: int, classes: int, memory: int) -> tuple[Job, Footprint, int]:
    """Return a job, its footprint, and the micro-batch that `--micro-batch auto` takes."""
    job = fit.job(
        section, ranks=ranks, side=section.image_size, classes=classes, labels=8,
        memory_limit=CUDA_BLOCK,
    )  # fmt: skip
    found = fit.footprint_of(section, section.image_size)
    size = largest(job, found, memory)
    if size is None:
        raise SystemExit(fit.refusal(section, job, memory, 1))
    return job, found, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[80, 128])
    parser.add_argument("--classes", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--model", default="open_clip:ViT-L-14")
    parser.add_argument("--memory", default="80GB")
    arguments = parser.parse_args()
    memory = parse_size(arguments.memory)
    print("| GPUs | K | images at once | memory, planned | simulated | sent per step, planned "
          "| simulated | collectives |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|---:|---|")
    for ranks in arguments.ranks:
        for classes in arguments.classes:
            section = Train.model_validate({
                "model": arguments.model, "embedding_dim": 768, "image_size": 224,
                "batch_size": ranks * (-(-_BATCH // ranks)), "negative_ratio": 0.1, "scale": 64,
                "precision": "bf16", "zero_stage": arguments.stage,
            })  # fmt: skip
            print(row(section, ranks, classes, memory), flush=True)


def row(section: Train, ranks: int, classes: int, memory: int) -> str:
    """Return a line of the table."""
    from mlcd.training.memory import CONTEXT, network_bytes

    job, found, size = planned(section, ranks, classes, memory)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's words
        seen = step(section, job, size)
    parts = job.share // size
    calls = ", ".join(
        f"{count} {name} of {kind}" for (name, kind), count in sorted(seen.traffic.calls.items())
    )
    return (
        f"| {ranks} | {classes:,} | {size} | "
        f"{decimal_size(need(job, found, size).total - CONTEXT)} | {decimal_size(seen.peak)} | "
        f"{decimal_size(network_bytes(job, found.weights, parts))} | "
        f"{decimal_size(seen.traffic.sent(ranks))} | {calls} |"
    )


if __name__ == "__main__":
    main()
