"""How many images fit a GPU at once where nothing is trained: by shapes, and by what is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from mlcd.models.footprint import measure
from mlcd.training.memory import usable
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.units import decimal_size

if TYPE_CHECKING:
    from mlcd.models.frozen.base import FrozenEncoder

#: Bytes of a pixel's channel: as it arrives, as a float, and normalized.
_CHANNEL = 1 + 4 + 4


def bytes_of(network: nn.Module, size: tuple[int, int], *, halves: bool) -> Callable[[int], int]:
    """Return the bytes of a forward pass as a function of the number of images of `size` pixels.

    halves: under autocast, unless the weights are in half precision themselves. 0 for any number
    where the shapes of a network cannot be found.
    """
    height, width = size
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    try:
        found = measure(
            network,
            bf16=halves and dtype == torch.float32,
            inputs=lambda count: torch.empty(count, 3, height, width, dtype=dtype, device="cpu"),
            backward=False,
        )
    except Exception as error:  # an operator without shapes of its own, or one that data decide
        LOGGER.warning("the memory of a batch cannot be found by shapes (%s)", error)
        return lambda count: 0
    return lambda count: found.peak(count) + count * 3 * height * width * _CHANNEL


def free(device: torch.device) -> int:
    """Return the bytes of a GPU that are still free, and may be planned for."""
    return usable(torch.cuda.mem_get_info(device)[0])


def largest(taken: Callable[[int], int], room: int, most: int) -> int:
    """Return the largest power of two up to `most` that fits `room` bytes; 0 if one does not."""
    size = 1 << (most.bit_length() - 1)
    while size and taken(size) > room:
        size //= 2
    return size


def check_batch(encoder: FrozenEncoder, batch: int, room: int) -> None:
    """Raise :class:`UserError`, before any work, if a `batch` does not fit `room` bytes.

    It is not chosen here: which images are encoded together moves the last bits of a feature.
    """
    halves = encoder.precision != "fp32"
    taken = bytes_of(encoder.network, encoder.pixels.size, halves=halves)
    require("embed.batch_size", batch, taken, room)


def require(key: str, batch: int, taken: Callable[[int], int], room: int) -> None:
    """Raise :class:`UserError` with the largest that fits if a `batch` does not fit `room` bytes.

    key: the setting that holds the batch.
    """
    if taken(batch) <= room:
        return
    told = (
        f"{key}: {batch} images at once take {decimal_size(taken(batch))}, but "
        f"{decimal_size(room)} of the GPU are free for them"
    )
    if size := largest(taken, room, batch):
        raise UserError(f"{told}; set it to {size}")
    raise UserError(f"{told}; take a GPU with more memory, or end what else runs on it")
