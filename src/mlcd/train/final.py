"""The trained encoder as the files that later stages read."""

from __future__ import annotations

from pathlib import Path

import torch

from mlcd.config.train import Train
from mlcd.encoders import trainable
from mlcd.stores.checkpoints import Checkpoint, mean_buffers


@torch.no_grad()
def write_encoder(checkpoint: Checkpoint, section: Train, output: Path) -> None:
    """Write encoder.safetensors and encoder.json from a checkpoint of the run of `section`.

    The ranks' running statistics (of batch norm) are averaged.
    """
    encoder = trainable.build(
        section.model, section.embedding_dim, section.image_size, section.drop_path
    )
    weights = checkpoint.encoder("weight/")
    for name, weight in encoder.named_parameters():
        weight.copy_(weights[f"weight/{name}"])
    ranks = len(checkpoint.pieces)
    set_buffers(encoder, mean_buffers([checkpoint.buffers(rank, ranks) for rank in range(ranks)]))
    extra = {
        "steps": checkpoint.step,
        "num_classes": checkpoint.num_classes,
        "section": section.model_dump(mode="json"),
    }
    trainable.save(encoder, output, extra)


@torch.no_grad()
def set_buffers(encoder: trainable.Encoder, buffers: dict[str, torch.Tensor]) -> None:
    """Copy in the encoder's buffers by name."""
    for name, buffer in encoder.named_buffers():
        buffer.copy_(buffers[name])
