"""A CLIP of a few thousand weights, registered with open_clip for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import mlcd.utils.compat  # noqa: F401

NAME = "tiny-clip"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def register(folder: Path) -> str:
    """Make open_clip know the model; return its name."""
    import open_clip

    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return NAME
