"""Stage `regions`: boxes in the images of a chunk, and the frozen encoder's features of each.

The output has the format of embeddings, so that cluster and label read regions as rows among the
images. Main files: `proposals.py` (which boxes), `given.py` (people's own ones), `chunk.py` (the
flow and the output).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os

from mlcd.config import Embed, Regions, files, validate
from mlcd.utils.errors import UserError


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files of the stage and how wide it runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument(
        "--images", required=True, metavar="MANIFEST", help="the images of the chunk"
    )
    parser.add_argument(
        "--embeddings", required=True, metavar="E.h5",
        help="embeddings of the chunk, whose images are looked at",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="R.h5", help="regions to write")
    parser.add_argument(
        "--embed-config", default="", metavar="FILE|JSON",
        help="section embed, by which the embeddings were made",
    )  # fmt: skip
    parser.add_argument(
        "--metadata", metavar="LIST",
        help="with source column: the chunk's list, where it holds the column",
    )  # fmt: skip
    parser.add_argument(
        "--list-rows", metavar="START:STOP", help="rows of the list that are the chunk's"
    )
    parser.add_argument(
        "--url-column", default="url", metavar="NAME", help="column of URLs of the list [url]"
    )
    parser.add_argument(
        "--urls", metavar="FILE",
        help="with own tables: the chunk's table of images on disk, which tells where paths begin",
    )  # fmt: skip
    parser.add_argument(
        "--tar-keys", action="store_true", help="with own tables: the key may hold webdataset keys"
    )
    parser.add_argument(
        "--device", default="auto", help="torch's device; auto is cuda if there is one [auto]"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode and look for boxes; the output is the same for any number "
        "[with a GPU all of --threads but one, else half of them]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=cores or 1, metavar="N",
        help="cores to use: threads of the encoder on a CPU, and what --workers follows from "
        "[%(default)s]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Regions) -> None:
    """Write the regions of one chunk. Raises :class:`UserError`."""
    from mlcd.stages.regions.chunk import write_regions
    from mlcd.utils.device import decoders

    if section.source is None:
        raise UserError("regions.source: null, so there are no regions; name where they come from")
    if section.source == "felzenszwalb" and importlib.util.find_spec("skimage") is None:
        raise UserError(
            "regions.source: felzenszwalb needs scikit-image, which is not installed; "
            "pip install 'mlcd[regions]', or bring boxes"
        )
    embed = _embed(arguments.embed_config)
    workers = arguments.workers
    if workers is None:
        workers = decoders(arguments.device, arguments.threads)
    write_regions(arguments, section, embed, workers)


def _embed(text: str) -> Embed:
    """Return the section of JSON or of a config file. Raises :class:`UserError`.

    Not by way of the whole config, whose other sections decide no region.
    """
    if not text.lstrip().startswith("{"):
        values = files.read(text).get("embed") if text else None
        return validate(Embed, values or {}, text or "default", "embed")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"--embed-config: not readable as JSON ({error})") from None
    return validate(Embed, values, "--embed-config", "embed")
