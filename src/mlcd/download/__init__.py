"""Stage `download`: fetch the pictures of one chunk with img2dataset and prove what arrived.

img2dataset knows how to fetch; it does not know whether it succeeded. Its exit status is 0 when
everything failed, a killed run leaves half tars, nothing is ever tried twice, and one server that
drips bytes holds a chunk for ever. This package wraps it in what a batch system needs:

- :mod:`.source` reads the chunk's list; nothing in it is trusted, neither URL nor caption.
- :mod:`.passes` fetches in passes; failures that may pass (:mod:`.reasons`) are tried again.
- :mod:`.child` runs each pass in a process group of its own, with a deadline for the chunk.
- :mod:`.fetch` is that child: img2dataset's downloader, with limits on each transfer
  (:mod:`.transport`) and every picture decoded once before it counts (:mod:`.shards`).
- :mod:`.seal` rewrites what arrived as canonical tars, the table of rows and the manifest.

Not refused: addresses of the local network, since the demo and many institutes serve from them.
A stranger's URL list can therefore cause GET requests to hosts that this machine can reach; what
is not a picture is thrown away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from mlcd.config import Download


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files and the width of the stage to `parser`."""
    parser.add_argument(
        "--urls", required=True, metavar="FILE", help="URL list of a chunk: parquet, column url"
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


def run(arguments: argparse.Namespace, section: Download) -> None:
    """Fetch `arguments.urls` into `arguments.output`; see :func:`mlcd.download.job.download`."""
    from mlcd.download.job import download
    from mlcd.errors import UserError

    for name in ("processes", "threads"):
        if getattr(arguments, name) < (name == "threads"):
            raise UserError(f"--{name}: expected a positive number, got {getattr(arguments, name)}")
    download(
        arguments.urls,
        arguments.output,
        section,
        processes=arguments.processes,
        threads=arguments.threads,
    )
