"""The region layer: from an encoder's map and boxes to one vector per box.

A box's query is the mean of RoIAlign over it. One transformer block follows, normed before each
part: the query attends to the places of the map inside of the box and to no other, then an MLP. A
last norm gives features as wide as the map, a projection of its own their embedding.

Places outside of a box have no weight in it, neither in the mean nor in the attention. What they
say reaches it by the encoder alone, whose layers mix all places.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mlcd.models.trainable import DESCRIPTION, plain_state, read_description
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.records import read_record

#: Beside the encoder's weights in results/train, and in an export, which has a description of its.
WEIGHTS, OWN_DESCRIPTION = "regions.safetensors", "regions.json"
#: Cells of RoIAlign per side, and points per side of a cell.
_CELLS, _POINTS = 7, 2
#: Channels of a head of attention, and of the MLP's inside at most.
_HEAD, _MOST_HIDDEN = 64, 4096
#: Separates its random weights from the encoder's, of the same seed.
_STREAM = 11


class RegionLayer(nn.Module):
    """One transformer block from boxes to places; `width` channels in, `embedding_dim` out.

    `settings`: what :func:`load` builds it again by. Weights are drawn from `seed`; the global
    random state is left as it was.
    """

    def __init__(self, width: int, embedding_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.settings = {"width": width, "embedding_dim": embedding_dim}
        self.heads = next(n for n in range(max(1, width // _HEAD), 0, -1) if width % n == 0)
        hidden = min(4 * width, _MOST_HIDDEN)
        with torch.random.fork_rng(devices=[]):
            drawn = np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)[0]
            torch.default_generator.manual_seed(int(drawn >> np.uint64(1)))
            self.norm_query = nn.LayerNorm(width)
            self.norm_places = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.key_value = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, width)
            self.norm_mlp = nn.LayerNorm(width)
            self.fc_1 = nn.Linear(width, hidden)
            self.fc_2 = nn.Linear(hidden, width)
            self.norm_out = nn.LayerNorm(width)
            self.projection = nn.Linear(width, embedding_dim, bias=False)
            # As in the blocks of mlcd_vit_*.
            added = (2 * width) ** -0.5
            deviations = {self.query: width**-0.5, self.key_value: width**-0.5, self.out: added,
                          self.fc_1: added, self.fc_2: added,
                          self.projection: width**-0.5}  # fmt: skip
            for layer, deviation in deviations.items():
                nn.init.normal_(layer.weight, std=deviation)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
        """Return embeddings [m, embedding_dim] of boxes on maps [B, width, h, w].

        `boxes` float32 [m, 4]: x0, y0, x1, y1 as shares of width and height. `owner` int64 [m]: the
        image of each.
        """
        embeddings: Tensor = self.projection(self.features(maps, boxes, owner))
        return embeddings

    def features(self, maps: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
        """Return [m, width]: what :meth:`forward` projects."""
        count, (height, width) = len(boxes), maps.shape[2:]
        inside = places_inside(boxes, height, width).flatten(1)
        weights = roi_weights(boxes, height, width).flatten(1) * inside
        weights = weights / weights.sum(1, keepdim=True)
        places = maps.flatten(2).transpose(1, 2)
        # The gradient of index_select adds rows one after another on CPUs, in one order.
        mean = weights.to(places.dtype)[:, None] @ places.index_select(0, owner)
        x = mean[:, 0]
        keys_values = self.key_value(self.norm_places(places)).index_select(0, owner)
        key, value = keys_values.view(count, -1, 2, self.heads, x.shape[1] // self.heads).permute(
            2, 0, 3, 1, 4
        )
        query = self.query(self.norm_query(x)).view(count, self.heads, 1, -1)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=inside[:, None, None]
        )
        x = x + self.out(mixed.reshape(count, -1))
        x = x + self.fc_2(functional.gelu(self.fc_1(self.norm_mlp(x))))
        found: Tensor = self.norm_out(x)
        return found


def roi_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return [m, height, width] of the dtype of `boxes`: each place's weight in :func:`roi_mean`.

    The weights of a box sum to 1.
    """
    rows = _line_weights(boxes[:, 1], boxes[:, 3], height)
    columns = _line_weights(boxes[:, 0], boxes[:, 2], width)
    return rows[:, :, None] * columns[:, None, :]


def _line_weights(low: Tensor, high: Tensor, places: int) -> Tensor:
    """Return [m, places]: along one axis, the mean of linear interpolation at RoIAlign's points."""
    count = _CELLS * _POINTS
    share = (torch.arange(count, dtype=low.dtype, device=low.device) + 0.5) / count
    points = low[:, None] + share * (high - low)[:, None]
    # In places from the center of the first; points beyond the outermost take the nearest's value.
    at = (points * places - 0.5).clamp(0, places - 1)
    center = torch.arange(places, dtype=low.dtype, device=low.device)
    return (1 - (at[:, :, None] - center).abs()).clamp(min=0).mean(1)


def roi_mean(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return float32 [m, C]: the mean of RoIAlign's cells over one box in each map [m, C, h, w].

    `boxes` [m, 4]: x0, y0, x1, y1 as shares of width and height. As torchvision's roi_align with
    aligned=True, 7 × 7 cells of 2 × 2 points, each interpolated between the centers of places; but
    points beyond the outermost centers take the nearest place's value. (torchvision's own needs
    compiled operators, which are missing beside some builds of torch.)
    """
    weights = roi_weights(boxes, *maps.shape[2:]).to(maps.dtype)
    return (maps.flatten(2) @ weights.flatten(1)[:, :, None])[:, :, 0]


def places_inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return bool [m, height, width]: the places whose center lies in a box.

    Always the one that is nearest to the box's own center, so that no box is empty.
    """
    y0, y1 = boxes[:, 1], boxes[:, 3]
    x0, x1 = boxes[:, 0], boxes[:, 2]
    rows, columns = _inside(y0, y1, height), _inside(x0, x1, width)
    nearest = _nearest(y0, y1, height)[:, :, None] & _nearest(x0, x1, width)[:, None, :]
    return (rows[:, :, None] & columns[:, None, :]) | nearest


def _inside(low: Tensor, high: Tensor, places: int) -> Tensor:
    center = (torch.arange(places, dtype=low.dtype, device=low.device) + 0.5) / places
    return (center >= low[:, None]) & (center < high[:, None])


def _nearest(low: Tensor, high: Tensor, places: int) -> Tensor:
    at = ((low + high) / 2 * places).floor().clamp(0, places - 1)
    return at[:, None] == torch.arange(places, dtype=low.dtype, device=low.device)


def save(layer: RegionLayer, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write regions.safetensors (float32), and return what encoder.json says of it."""
    path = Path(folder) / WEIGHTS
    with atomic_path(path) as temporary:
        save_file(plain_state(layer), temporary)
    return {"file": WEIGHTS, "sha256": sha256_file(path), **layer.settings}


def load(folder: str | os.PathLike[str]) -> RegionLayer | None:
    """Load the region layer of results/train or of an export, in evaluation mode, on the CPU.

    None where the encoder has none. Raises :class:`UserError` if it is missing or damaged.
    """
    about = described(folder)
    if about is None:
        return None
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; rerun train")
    if sha256_file(path) != about["sha256"]:
        raise UserError(f"{path}: not the region layer that is described beside it; rerun train")
    try:
        weights = load_file(path)
        # Before a layer is built: a description from elsewhere may name any size.
        found = tuple(weights["projection.weight"].shape)
        if found != (about["embedding_dim"], about["width"]):
            raise RuntimeError(f"its projection has the shape {found}")
        layer = RegionLayer(about["width"], about["embedding_dim"])
        layer.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: is no region layer ({first}); rerun train") from None
    return layer.eval()


def described(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what is said of a folder's region layer: file, sha256, width, embedding_dim.

    None where the encoder has none. Raises :class:`UserError` if it is incomplete.
    """
    own = Path(folder) / OWN_DESCRIPTION
    if (Path(folder) / DESCRIPTION).exists():
        about = read_description(folder).get("regions")
        own = Path(folder) / DESCRIPTION
    else:
        about = read_record(own, "export") if own.exists() else None
    if about is None:
        return None
    keys = {"sha256": str, "width": int, "embedding_dim": int}
    for key, form in keys.items():
        if not isinstance(about, dict) or not isinstance(about.get(key), form):
            raise UserError(f"{own}: {key} of the region layer is missing or wrong; rerun train")
    found: dict[str, Any] = about
    return found
