"""Where a search runs, and what its products are: one word such as 'auto' or 'cuda/float16'.

The word is a device (cpu, cuda, or auto). After a slash it may name the products that choose
candidates:

- ``float32``: those of faiss, on a CPU or a GPU;
- ``float16``, ``bfloat16``: those of torch (:mod:`mlcd.neighbors.half`). A GPU's tensor cores do
  them many times faster. A CPU gives the same results, slowly: that is for tests.

Labels and centers are the same bytes whatever the word.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import faiss

from mlcd.utils.device import has_gpu
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import torch


class Engine(NamedTuple):
    """A device, 'cpu' or 'cuda', and products, 'float32', 'float16' or 'bfloat16'."""

    device: str
    products: str

    @property
    def half(self) -> bool:
        """True if products are of half precision, by torch."""
        return self.products != "float32"


def engine(where: str) -> Engine:
    """Return what the word `where` means here. Raises :class:`UserError` if there is no such GPU.

    On a GPU that torch can use products are float16 unless the word says otherwise; on a CPU they
    are float32.
    """
    device, _, products = where.partition("/")
    if device == "cpu":
        return Engine("cpu", products or "float32")
    if products != "float32" and has_gpu():
        return Engine("cuda", products or "float16")
    if faiss.get_num_gpus() and products in ("", "float32"):
        return Engine("cuda", "float32")
    if device == "cuda":
        library = {"": "neither torch nor faiss", "float32": "no faiss"}.get(products, "no torch")
        raise UserError(
            f"--device cuda: {library} sees a GPU here; install mlcd[gpu] on a machine that has "
            "one, or use --device cpu"
        )
    return Engine("cpu", products or "float32")


def torch_device(device: str) -> torch.device:
    """Return torch's name of this rank's `device`, 'cpu' or 'cuda'."""
    import torch

    if device == "cpu":
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", rank % torch.cuda.device_count())


def torch_dtype(products: str) -> torch.dtype:
    """Return torch's type of half-precision `products`."""
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[products]
