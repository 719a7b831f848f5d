"""The trained encoder as the files that later stages read."""

from __future__ import annotations

from pathlib import Path

import torch

from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint, mean_buffers
from mlcd.launch import resume
from mlcd.models import initial, region_layer, trainable
from mlcd.models.region_encoder import with_regions
from mlcd.models.resize_weights import fitted
from mlcd.utils.ownership import is_ours


@torch.no_grad()
def write_encoder(
    checkpoint: Checkpoint,
    section: Train,
    output: Path,
    made_from: dict[str, list[str]] | None = None,
) -> None:
    """Write encoder.safetensors and encoder.json from a checkpoint of the run of `section`.

    Before these regions.safetensors, where it trains regions; else one that is left of an earlier
    run is removed.

    `made_from`: kind of input → fingerprints, where the caller knows them.

    The ranks' running statistics (of batch norm) are averaged. Changes of code that were accepted
    while the run was unfinished stand in encoder.json.
    """
    encoder = trainable.build(
        section.model, section.embedding_dim, checkpoint.image_size, section.drop_path
    )
    ranks = len(checkpoint.pieces)
    statistics = mean_buffers([checkpoint.buffers(rank, ranks) for rank in range(ranks)])
    weights = checkpoint.encoder("weight/")
    whole = with_regions(encoder) if section.regions else None
    set_weights(encoder if whole is None else whole, weights, statistics)
    about = checkpoint.provenance.get("initial", {})
    initial.normalize(encoder, about)
    extra = {
        "steps": checkpoint.step,
        "num_classes": checkpoint.num_classes,
        # Sums over ranks round as their number says.
        "ranks": ranks,
        "section": section.model_dump(mode="json"),
    }
    if checkpoint.heads:
        extra["heads"] = checkpoint.heads
    if made_from:
        extra["made_from"] = made_from
    if about:
        extra["initial"] = about
    if changes := resume.accepted(checkpoint.path.parents[1]):
        extra["accepted_code"] = changes
    if whole is not None:
        extra["regions"] = region_layer.save(whole.regions, output)
    elif (left := output / region_layer.WEIGHTS).exists() and is_ours(left):
        left.unlink()
    trainable.save(encoder, output, extra)


@torch.no_grad()
def set_weights(
    encoder: trainable.Encoder,
    weights: dict[str, torch.Tensor],
    statistics: dict[str, torch.Tensor],
) -> None:
    """Copy in weights (``weight/NAME``) and running statistics (NAME).

    Position embeddings of another image size are interpolated; see
    :mod:`mlcd.models.resize_weights`.
    """
    for name, weight in encoder.named_parameters():
        weight.copy_(fitted(name, weights[f"weight/{name}"], weight.shape))
    for name, buffer in running_statistics(encoder).items():
        buffer.copy_(fitted(name, statistics[name], buffer.shape))


def running_statistics(encoder: trainable.Encoder) -> dict[str, torch.Tensor]:
    """Return the buffers that training changes: those that belong to the encoder's state.

    Others (grids of coordinates, masks) follow from the architecture and the image size.
    """
    kept = encoder.state_dict().keys()
    return {name: buffer for name, buffer in encoder.named_buffers() if name in kept}
