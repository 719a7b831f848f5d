"""The model card beside exported weights: what it is, how to load it, what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.files import write_text


def write(folder: Path, about: dict[str, Any], library: str, example: str, remark: str) -> None:
    """Write README.md with the front matter that model hubs read."""
    mean, std = (", ".join(f"{value:.4f}" for value in about[key]) for key in ("mean", "std"))
    facts = {
        "Architecture": f"`{about['model']}`",
        "Embedding": f"{about['embedding_dim']} numbers, not normalised; compare by cosine",
        "Input": f"RGB, {about['image_size']} × {about['image_size']} pixels: shorter side resized "
        "(bicubic), centre cropped",
        "Normalisation": f"mean {mean}; standard deviation {std}",
        "Weights before export": f"SHA-256 `{about['sha256']}`",
    }
    if "steps" in about:
        facts["Training steps"] = str(about["steps"])
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-feature-extraction",
        "---",
        "",
        "# A vision encoder trained by Multi-Label Cluster Discrimination",
        "",
        "Trained with [MLCD](https://arxiv.org/abs/2407.17331): pictures are clustered by frozen "
        "features, and the encoder learns to tell each picture's nearest clusters from the rest.",
        "",
        "| | |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in facts.items()],
        "",
        "## Use",
        "",
        "With this folder as the working directory:",
        "",
        "```python",
        example.strip(),
        "```",
        "",
        remark,
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
