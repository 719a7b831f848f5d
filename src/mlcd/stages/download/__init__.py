"""Stage `download`: make the image store of one chunk: fetch its images and prove what arrived.

Images that are on disk already are not fetched: :mod:`.index` looks at each and stores where it
lies. The rest of this page is about URLs.

img2dataset knows how to fetch; it does not know whether it succeeded. Its exit status is 0 when
everything failed, a killed run leaves half tars, nothing is ever tried twice, and one server that
drips bytes holds a chunk for ever. This package wraps it in what a batch system needs:

- :mod:`.source` reads the chunk's list; nothing in it is trusted, neither URL nor caption.
- :mod:`.passes` fetches in passes; failures that may pass (:mod:`.reasons`) are tried again.
- :mod:`.child` runs each pass in a process group of its own, with a deadline for the chunk.
- :mod:`.fetch` is that child: img2dataset's downloader, with limits on each transfer
  (:mod:`.transport`) and every image decoded once before it counts (:mod:`.shards`).
- :mod:`.seal` rewrites what arrived as canonical tars, the table of rows and the manifest.

A list may name hosts of the local network, since the demo and many institutes serve from them; a
public host may not redirect there (download.private_addresses). A stranger's URL list can therefore
cause GET requests to hosts that this machine can reach, unless the key says refuse; what is not an
image is thrown away. URLs with a user and password are refused: they would be kept in every table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from mlcd.config import Download


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files and the width of the stage to `parser`."""
    parser.add_argument(
        "--urls",
        required=True,
        metavar="FILE",
        help="list of a chunk, as prepare writes it: parquet, column url; or images on disk",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of the chunk's tars and manifest"
    )
    parser.add_argument(
        "--processes", type=int, default=0, help="downloading processes; 0: one for each core"
    )
    parser.add_argument(
        "--threads", type=int, default=64, help="transfers at a time in each process [64]"
    )
    parser.add_argument(
        "--top-up",
        action="store_true",
        help="of a finished chunk: try rows again whose failure may have passed (server errors, "
        "time-outs, …), and add what arrives",
    )


def run(arguments: argparse.Namespace, section: Download) -> None:
    """Fetch `arguments.urls` into `arguments.output`; see
    :func:`mlcd.stages.download.job.download`.
    """
    from mlcd.stages.download.job import download
    from mlcd.utils.errors import UserError

    for name in ("processes", "threads"):
        if getattr(arguments, name) < (name == "threads"):
            raise UserError(f"--{name}: expected a positive number, got {getattr(arguments, name)}")
    download(
        arguments.urls,
        arguments.output,
        section,
        processes=arguments.processes,
        threads=arguments.threads,
        top_up=arguments.top_up,
    )
