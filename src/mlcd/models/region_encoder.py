"""An encoder with a region layer: one module and one pass, for whole images and for boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcd.models.feature_maps import feature_map, pooled_and_map, trunk_of
from mlcd.models.region_layer import RegionLayer
from mlcd.models.trainable import Encoder
from mlcd.utils.errors import UserError


class RegionEncoder(Encoder):
    """An :class:`Encoder` with `regions`; trunk and projection are the encoder's own, not copies.

    So their weights keep their names, and those of the region layer begin with ``regions.``.
    """

    def __init__(self, encoder: Encoder, regions: RegionLayer) -> None:
        super().__init__(
            encoder.trunk,
            encoder.projection,
            model=encoder.model,
            embedding_dim=encoder.embedding_dim,
            image_size=encoder.image_size,
            mean=encoder.mean,
            std=encoder.std,
        )
        self.regions = regions
        self.train(encoder.training)

    def forward(
        self,
        images: Tensor,
        boxes: Tensor | None = None,
        owner: Tensor | None = None,
        whole: int | None = None,
    ) -> Tensor:
        """Return embeddings [whole + m, d]: of the first `whole` images, then of m `boxes`.

        `boxes` float32 [m, 4] as shares of width and height, `owner` int64 [m]: the image of each.
        Without boxes as :class:`Encoder`.
        """
        if boxes is None or owner is None:
            return super().forward(images)
        pooled, maps = pooled_and_map(self.trunk, images)
        rows = [self.projection(pooled[:whole]), self.regions(maps, boxes, owner)]
        # Under autocast both are of one precision, unless a tower ends in a norm.
        return torch.cat([row.float() for row in rows])


def with_regions(encoder: Encoder, seed: int = 0) -> RegionEncoder:
    """Return `encoder` with a region layer of weights from `seed`.

    Raises :class:`UserError` if the encoder has no map that is known.
    """
    width, _, _ = map_shape(encoder)
    with torch.device(next(encoder.parameters()).device):
        layer = RegionLayer(width, encoder.embedding_dim, seed)
    return RegionEncoder(encoder, layer)


def map_shape(encoder: Encoder) -> tuple[int, int, int]:
    """Return channels, height and width of an encoder's map, by shapes alone where it can be.

    Raises :class:`UserError` if it has none that is known.
    """
    side, training = encoder.image_size, encoder.training
    weights = {
        f"encoder.{name}": value.to("meta")
        for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]
    }
    maps = _Map(encoder.eval())
    try:
        with torch.no_grad():
            try:
                images = torch.empty(2, 3, side, side, device="meta")
                found = torch.func.functional_call(maps, weights, (images,))
            except NotImplementedError:  # an operator without a shape rule
                found = maps(torch.zeros(2, 3, side, side))
    except UserError:
        raise _no_map(encoder.model) from None
    except Exception as error:  # each architecture refuses in its own way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise _no_map(encoder.model, f" ({first})") from None
    finally:
        encoder.train(training)
    if found.ndim != 4:
        raise _no_map(encoder.model)
    _, channels, height, width = found.shape
    return channels, height, width


class _Map(nn.Module):
    """An encoder's map as the output of a module, for which other weights can stand in."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        pooled_and_map(self.encoder.trunk, images)  # refuses what has a map and no pooling of it
        return feature_map(trunk_of(self.encoder), images)


def _no_map(model: str, why: str = "") -> UserError:
    return UserError(
        f"train.regions: {model} has no map of features that is known here{why}; set it to null, "
        "or choose another train.model"
    )
