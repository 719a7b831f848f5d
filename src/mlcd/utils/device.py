"""Which device a name means here."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

if TYPE_CHECKING:
    import torch


#: Files of the drivers of NVIDIA (also under WSL) and AMD. Without any of them torch sees no GPU.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
#: Where NVIDIA's driver has a file per GPU: nvidia0, nvidia1.
_DEVICES = Path("/dev")
#: Variables by which a site may turn every float32 product into one of ten bits of mantissa,
#: whatever a program asks for. Labels are found by exact products.
_TF32 = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def gpus_here() -> int:
    """Return the NVIDIA GPUs of this machine that this process may use, as the driver's files say.

    Cheap: torch is not imported. It counts as torch does, but for what the site's variable names
    by words, of which each is taken to be there.
    """
    there = len([path for path in _DEVICES.glob("nvidia*") if path.name[6:].isdigit()])
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not there:
        return there
    words = [word.strip() for word in named.split(",")]
    # CUDA looks no further than the first that is not there.
    seen = itertools.takewhile(lambda word: word and not word.startswith("-"), words)
    return len(list(seen))


def has_gpu() -> bool:
    """True if torch sees a GPU here. torch, which takes 100 MB, is imported only where it may."""
    if not any(path.exists() for path in _DRIVERS):
        return False
    return pick_device("auto").type == "cuda"


def pick_device(name: str) -> torch.device:
    """Return torch's device; `auto` is cuda if there is one. Raises :class:`UserError`."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: cannot be used ({reason}); try cpu") from None
    return device


def decoders(device: str, threads: int) -> int:
    """Return the number of decoding processes: a GPU leaves all cores but its own to them."""
    gpu = pick_device(device).type == "cuda"
    return max(1, threads - 1 if gpu else (threads + 1) // 2)


def take_gpu() -> int:
    """Choose this rank's GPU, make it torch's current one, and return its number.

    A rank may see all GPUs of its node, or its own alone (Slurm's --gpus-per-task, masks of a
    site), which is then number 0. LOCAL_RANK is set to the number, since DeepSpeed takes that.
    Raises :class:`UserError` where ranks would share a GPU.
    """
    import torch

    found = torch.cuda.device_count()
    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not found:
        raise UserError(
            "--device cuda: this rank sees no GPU (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); ask for one per rank"
        )
    if 1 < found < ranks:
        raise UserError(
            f"{ranks} ranks of this node see {found} GPUs, and each needs its own: ask for {ranks} "
            f"GPUs per node, or give --ranks-per-node {found}"
        )
    os.environ["LOCAL_RANK"] = str(rank % found)
    torch.cuda.set_device(rank % found)
    return rank % found


def keep_products_exact() -> None:
    """Undo what a site may have set to let CUDA's libraries compute with fewer bits than asked.

    To be called before the first use of CUDA; processes started later inherit it.
    """
    for name in _TF32:
        if os.environ.pop(name, "0") not in ("", "0"):
            LOGGER.warning("%s is set here and would change labels: not heeded", name)
