"""`mlcd publish RESULTS --output FOLDER --license SPDX`: centers and labels for others, no image.

    README.md                          the card, with the front matter of data set hubs
    data/train-00000-of-0000N.parquet  a row per image: URL, SHA-256, labels, similarities
    centers/centroids.h5               the centers, as stage cluster wrote them
    settings.yaml                      settings of the stages that made them
    croissant.json                     the same for catalogs
    publish.json                       all files by hash, the run's identity, the license

The folder is taken by `hf upload` as it is, and read back by a run anywhere. It appears whole or
not at all; a run that was killed continues, to the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, the folder, the license and what is left out."""
    parser.add_argument("results", metavar="RESULTS", help="folder of a sealed run's results")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--license", required=True, metavar="SPDX",
        help="license of labels and centers by its SPDX id, such as CC-BY-4.0",
    )  # fmt: skip
    parser.add_argument(
        "--without-urls", action="store_true",
        help="name images by their hashes alone, without URLs and paths",
    )  # fmt: skip
    parser.add_argument(
        "--captions", action="store_true", help="also publish captions, which are strangers' words"
    )
    parser.add_argument("--log", metavar="FILE", help="also append log lines to this file")


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Publish a run. Raises :class:`UserError` before any work where it cannot be."""
    from mlcd import __version__
    from mlcd.commands.publish import croissant, folder, licenses
    from mlcd.commands.publish.source import Options, Source
    from mlcd.launch import lease
    from mlcd.utils.files import checked_folder, sha256_json, state_dir

    license = licenses.parse(arguments.license)
    croissant.check()
    results = Path(arguments.results)
    output = checked_folder(arguments.output).resolve()
    if output.is_relative_to(results.resolve()) or results.resolve().is_relative_to(output):
        raise UserError(f"{arguments.output}: lies in the results, or holds them; name another")
    before = folder.ours(output)
    options = Options(urls=not arguments.without_urls, captions=arguments.captions)
    source = Source(results, options)
    identity = [folder.FORMAT, __version__, source.root, license.spdx, options.urls,
                options.captions]  # fmt: skip
    asked = sha256_json(identity)
    # A state folder beside it may be what a run left that was killed while it ended.
    if before == asked and not (output.parent / "state").exists():
        LOGGER.info("%s: published already, of the same run in the same way", output)
        return
    try:
        with lease.writing(output, identity, files=[output / folder.RECORD]) as wanted:
            if wanted:
                folder.settle(output)
                # Two folders whose names differ after a dot alone have states of their own.
                state = state_dir(output, identity, output.name)
                if before != asked:
                    folder.fill(state, source, license, asked)
                    folder.put(state, output)
                folder.end(state, output)
    finally:
        with contextlib.suppress(OSError):
            (output.parent / "state").rmdir()
    LOGGER.info(
        "%s: %d images, %d labels each, %d clusters, under %s, and no image; next: "
        "hf upload OWNER/NAME %s . --repo-type dataset",
        output, source.rows, source.l, source.K, license.spdx, arguments.output,
    )  # fmt: skip
