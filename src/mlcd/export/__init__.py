"""Stage `export`: the trained encoder as other libraries load it, each checked by equal outputs.

A format is a module with two functions: `write(encoder, about, folder)` writes weights, config and
a model card, `load(folder)` gives back pictures → embeddings through the other library alone.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Export
    from mlcd.encoders.trainable import Encoder

_MODULES = {"timm": "mlcd.export.to_timm", "open_clip": "mlcd.export.to_open_clip"}
#: Random pictures that both sides see.
PICTURES = 4


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the encoder and the folder of exports."""
    parser.add_argument(
        "--encoder", required=True, metavar="DIR", help="results/train, which holds the encoder"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder that gets a folder a format"
    )


def run(arguments: argparse.Namespace, section: Export) -> None:
    """Export to every format of the section; see docs/formats.md for the files.

    Raises :class:`UserError` if a format does not fit the encoder, or if the outputs differ.
    """
    from mlcd.encoders import trainable

    about = trainable.read_description(arguments.encoder)
    encoder = trainable.load(arguments.encoder)
    for name in section.formats:
        module = importlib.import_module(_MODULES[name])
        folder = Path(arguments.output) / name
        (folder / "check.json").unlink(missing_ok=True)
        module.write(encoder, about, folder)
        _check(name, encoder, about, module.load, folder, section.tolerance)


def _check(
    name: str, encoder: Encoder, about: dict[str, Any], load: Any, folder: Path, tolerance: float
) -> None:
    """Compare outputs on random pictures and write check.json, the last file of the export."""
    import torch

    from mlcd.files import write_json
    from mlcd.progress import LOGGER

    side = encoder.image_size
    images = torch.randn(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = encoder(images), load(folder)(images)
    if ours.shape != theirs.shape:
        raise UserError(
            f"{folder}: {name} gives {tuple(theirs.shape)}, the encoder {tuple(ours.shape)}; "
            "choose another of export.formats"
        )
    largest = float(ours.abs().max())
    difference = float((ours - theirs).abs().max()) / max(largest, 1e-12)
    if not difference <= tolerance:
        raise UserError(
            f"{folder}: {name} gives other outputs (largest difference {difference:.3g} of the "
            f"largest output, export.tolerance {tolerance:g}); choose another of export.formats"
        )
    check = {
        "format": name,
        "model": encoder.model,
        "encoder_sha256": about["sha256"],
        "pictures": PICTURES,
        "image_size": side,
        "largest_output": float(f"{largest:.6g}"),
        "largest_difference": float(f"{difference:.3g}"),
        "tolerance": tolerance,
    }
    write_json(folder / "check.json", check)
    LOGGER.info("%s: outputs equal to %.2g of the largest", folder, difference)
