"""A CLIP small enough for tests, registered with open_clip as `tiny-for-tests`.

`tiny-quickgelu` has OpenAI's activation instead.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import mlcd.utils.compat  # noqa: F401  (before open_clip)

NAME = "tiny-for-tests"
QUICK = "tiny-quickgelu"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


def register() -> None:
    """Make the names known to open_clip in this process."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        for name, config in ((NAME, CONFIG), (QUICK, {**CONFIG, "quick_gelu": True})):
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(config))
            open_clip.add_model_config(path)
