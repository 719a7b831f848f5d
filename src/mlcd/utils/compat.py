"""Import torchvision beside any build of torch.

PyPI's torchvision fails to import beside a CPU-only torch that was built elsewhere, because its
compiled operators do not load and its Python code then registers shapes for operators that do not
exist. timm and open_clip import it for transforms only. Import this module before either of them;
where torchvision imports by itself, it changes nothing.

Also before img2dataset: its companion albumentations asks the network for a newer version of itself
at every import, and waits for an answer.
"""

from __future__ import annotations

import os
import sys

import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_LIBRARY: torch.library.Library | None = None


def import_torchvision() -> None:
    """Import torchvision; where its operators are missing, define their schemas and retry."""
    global _LIBRARY
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        # Kept alive for the life of the process: its end would take the definitions away.
        _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
        _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


import_torchvision()
