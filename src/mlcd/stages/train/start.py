"""What can be refused before a rank starts: the encoder as it would be built and begun."""

from __future__ import annotations

import torch

from mlcd.config.train import Train
from mlcd.models import initial, layers, resize_weights, trainable
from mlcd.models.initial import Source, sources
from mlcd.models.region_encoder import map_shape, with_regions
from mlcd.utils.errors import UserError


def check_encoder(section: Train) -> None:
    """Build the encoder, its layers and the second size of `section`, without numbers.

    Raises :class:`UserError`.
    """
    side = section.image_size
    if section.high_res_image_size is not None:
        # Now, and not after days at the first size.
        resize_weights.check(
            section.model, section.embedding_dim, side, section.high_res_image_size
        )
    encoder = without_numbers(section.model, section.embedding_dim, side, section.drop_path)
    if section.regions:
        encoder = with_regions(encoder)
    if section.mosaic:
        _check_map(encoder, section)
    layers.lr_scales(encoder, section.layer_decay)
    layers.freeze(encoder, section.freeze_layers)


def _check_map(encoder: trainable.Encoder, section: Train) -> None:
    """Raise :class:`UserError` if a tile would not be a whole number of the map's places."""
    grid = section.mosaic_grid
    found = {"image_size": map_shape(encoder)[1:]}
    if section.high_res_image_size is not None:
        larger = without_numbers(
            section.model, section.embedding_dim, section.high_res_image_size, section.drop_path
        )
        found["high_res_image_size"] = map_shape(larger)[1:]
    for key, (height, width) in found.items():
        if height % grid or width % grid:
            raise UserError(
                f"train.mosaic_grid: {grid} tiles per side do not divide the {height} × {width} "
                f"places of {section.model} at train.{key}: {getattr(section, key)}; change one of "
                "them"
            )


def source_of(section: Train) -> Source | None:
    """Return where the first weights come from; None if they are random.

    Raises :class:`UserError`.
    """
    return sources.find(section.model, section.initial) if section.initial else None


def check_all(section: Train) -> None:
    """Do all that needs no file of an earlier stage. Raises :class:`UserError`."""
    check_encoder(section)
    if source := source_of(section):
        initial.tell(initial.read(source, section).about)


def without_numbers(model: str, dim: int, side: int, drop_path: float) -> trainable.Encoder:
    """Build an encoder on the device `meta` where it can be. Raises :class:`UserError`."""
    try:
        with torch.device("meta"):
            return trainable.build(model, dim, side, drop_path)
    except UserError:
        # Some architectures compute with their weights while they are built.
        return trainable.build(model, dim, side, drop_path)
