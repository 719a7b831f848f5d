"""Stage `export`: the trained encoder as other libraries load it, each checked by equal outputs.

A format is a module with three functions: `write(encoder, folder)` writes weights and config and
says how they are used; `load(folder)` gives a module, images → embeddings, through the other
library alone; `pixels(folder)` reads the transform of images from the library's config.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Export
    from mlcd.models.region_layer import RegionLayer
    from mlcd.models.trainable import Encoder

_MODULES = {
    "timm": "mlcd.stages.export.to_timm",
    "open_clip": "mlcd.stages.export.to_open_clip",
    "transformers": "mlcd.stages.export.to_transformers",
}
CHECK = "check.json"
#: An empty file that says whose folder it is: of check.json and the card, Snakemake removes the one
#: before a rerun, and a user may have removed the other.
_OURS = ".mlcd"
#: Endings of weights and configs.
_KINDS = (".json", ".safetensors")
#: Random images that both sides see.
IMAGES = 4


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the encoder and the folder of exports."""
    parser.add_argument(
        "--encoder", required=True, metavar="DIR", help="results/train, which holds the encoder"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder that gets a folder per format"
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
        "--lists",
        nargs="+",
        default=[],
        metavar="NAME",
        help="lists and folders of images, for the model card",
    )


def run(arguments: argparse.Namespace, section: Export) -> None:
    """Export to every format of the section; see docs/reference/formats.md for the files.

    Raises :class:`UserError` if a format does not fit the encoder, or if the outputs differ.
    """
    from mlcd.models import region_layer, trainable
    from mlcd.stages.export import card
    from mlcd.utils.files import sha256_file
    from mlcd.utils.ownership import claimed_folder

    about = trainable.read_description(arguments.encoder)
    made_from = card.origin(
        arguments.lists, arguments.centroids, arguments.labels, arguments.summary, about
    )
    encoder, layer = trainable.load(arguments.encoder), region_layer.load(arguments.encoder)
    folders = {name: Path(arguments.output) / name for name in section.formats}
    with contextlib.ExitStack() as claims:
        # All of them before any work.
        for folder in folders.values():
            claims.enter_context(claimed_folder(folder, (CHECK, "README.md", _OURS)))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _OURS).touch()
        for name, folder in folders.items():
            module = module_of(name)
            (folder / CHECK).unlink(missing_ok=True)
            usage = module.write(encoder, folder)
            _write_regions(layer, folder)
            written = sorted(path for path in folder.iterdir() if path.suffix in _KINDS)
            files = {path.name: sha256_file(path) for path in written}
            card.write(folder, about, usage, made_from, section.license, files)
            _check(name, encoder, about, module.load, folder, section.tolerance, files)


def _write_regions(layer: RegionLayer | None, folder: Path) -> None:
    """Write the region layer beside the weights, with its description; or remove an earlier one."""
    from mlcd.models import region_layer
    from mlcd.utils.records import write_record

    description = folder / region_layer.OWN_DESCRIPTION
    if layer is not None:
        write_record(description, region_layer.save(layer, folder))
        return
    for path in (description, folder / region_layer.WEIGHTS):
        path.unlink(missing_ok=True)


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
    """Compare outputs on random images and write check.json, the last file of the export."""
    import torch

    from mlcd.utils.logging import LOGGER
    from mlcd.utils.records import write_record

    side = encoder.image_size
    images = torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
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
        "images": IMAGES,
        "image_size": side,
        "largest_output": float(f"{largest:.6g}"),
        "largest_difference": float(f"{difference:.3g}"),
        "tolerance": tolerance,
        "files": files,
        "bytes": {name: (folder / name).stat().st_size for name in files},
    }
    write_record(folder / CHECK, check)
    LOGGER.info("%s: outputs equal to %.2g of the largest", folder, difference)
