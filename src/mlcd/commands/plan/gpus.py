"""GPUs by name: memory, and products in bfloat16, as the makers' data sheets give them."""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from mlcd.utils.errors import UserError
from mlcd.utils.units import parse_size

#: Part of the peak that training reaches without torch.compile: a plain assumption.
EFFICIENCY = 0.4


class Gpu(NamedTuple):
    """`memory` in bytes, `peak` in FLOP/s of dense products in bfloat16 (float16 before Ampere)."""

    memory: float
    peak: float


GPUS = {
    "v100": Gpu(32e9, 125e12),
    "rtx3090": Gpu(24e9, 71e12),
    "rtx4090": Gpu(24e9, 165e12),
    "l4": Gpu(24e9, 121e12),
    "a10": Gpu(24e9, 125e12),
    "l40s": Gpu(48e9, 362e12),
    "a100-40": Gpu(40e9, 312e12),
    "a100": Gpu(80e9, 312e12),
    "h100": Gpu(80e9, 989e12),
    "h200": Gpu(141e9, 989e12),
}


def asked(arguments: argparse.Namespace) -> tuple[int, float, str]:
    """Return memory in bytes and FLOP/s of the GPU that --gpu, --gpu-memory and --flops describe,
    and where the FLOP/s are from. Raises :class:`UserError`.
    """
    gpu = None
    if arguments.gpu is not None:
        gpu = GPUS.get(arguments.gpu.lower())
        if gpu is None:
            raise UserError(
                f"--gpu: {arguments.gpu!r} is none of {', '.join(GPUS)}; "
                "give --gpu-memory and --flops instead"
            )
    if arguments.gpu_memory:
        memory = parse_size(arguments.gpu_memory, "--gpu-memory")
    elif gpu:
        memory = int(gpu.memory)
    else:
        raise UserError("--gpu: --plan needs a name such as a100, or --gpu-memory and --flops")
    if arguments.flops is not None:
        if not (math.isfinite(arguments.flops) and arguments.flops > 0):
            raise UserError(f"--flops: expected a rate such as 1e14, got {arguments.flops}")
        return memory, float(arguments.flops), "as given"
    if gpu is None:
        raise UserError("--flops: --plan needs it, or --gpu with a name such as a100")
    words = f"{EFFICIENCY:.0%} of the bfloat16 peak of {arguments.gpu.lower()}: assumed"
    return memory, gpu.peak * EFFICIENCY, words
