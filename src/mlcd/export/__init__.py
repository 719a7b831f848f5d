"""Stage `export`: the trained encoder as other libraries load it, each checked by equal outputs.

A format is a module with three functions: `write(encoder, folder)` writes weights and config and
says how they are used; `load(folder)` gives a module, pictures → embeddings, through the other
library alone; `pixels(folder)` reads the transform of pictures from the library's config.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlcd.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Export
    from mlcd.encoders.trainable import Encoder

_MODULES = {
    "timm": "mlcd.export.to_timm",
    "open_clip": "mlcd.export.to_open_clip",
    "transformers": "mlcd.export.to_transformers",
}
CHECK = "check.json"
#: Endings of weights and configs.
_KINDS = (".json", ".safetensors")
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
    parser.add_argument(
        "--centroids", metavar="FILE", help="clusters/centroids.h5, for the model card"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="labels/CHUNK.h5 of any chunk, for the model card"
    )
    parser.add_argument(
        "--summary", metavar="FILE", help="evaluate/summary.csv, for the model card"
    )
    parser.add_argument(
        "--lists", nargs="+", default=[], metavar="NAME", help="URL lists, for the model card"
    )


def run(arguments: argparse.Namespace, section: Export) -> None:
    """Export to every format of the section; see docs/formats.md for the files.

    Raises :class:`UserError` if a format does not fit the encoder, or if the outputs differ.
    """
    from mlcd.encoders import trainable
    from mlcd.export import card
    from mlcd.files import sha256_file

    about = trainable.read_description(arguments.encoder)
    made_from = card.origin(
        arguments.lists, arguments.centroids, arguments.labels, arguments.summary, about
    )
    encoder = trainable.load(arguments.encoder)
    for name in section.formats:
        module = module_of(name)
        folder = Path(arguments.output) / name
        (folder / CHECK).unlink(missing_ok=True)
        usage = module.write(encoder, folder)
        written = sorted(path for path in folder.iterdir() if path.suffix in _KINDS)
        files = {path.name: sha256_file(path) for path in written}
        card.write(folder, about, usage, made_from, section.license, files)
        _check(name, encoder, about, module.load, folder, section.tolerance, files)


def module_of(name: str) -> ModuleType:
    """Return the module of a format."""
    return importlib.import_module(_MODULES[name])


def _check(
    name: str,
    encoder: Encoder,
    about: dict[str, Any],
    load: Any,
    folder: Path,
    tolerance: float,
    files: dict[str, str],
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
        "files": files,
    }
    write_json(folder / CHECK, check)
    LOGGER.info("%s: outputs equal to %.2g of the largest", folder, difference)
