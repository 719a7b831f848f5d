"""`mlcd explore RESULTS`: look at the clusters of a run, of any K, in a browser on this machine.

    mlcd explore results                                   serve the page; the address is printed
    mlcd explore results --export pages --clusters 3 17 200-300     write chosen clusters as pages
    mlcd explore results --tables atlas                    write tables for embedding-atlas

Main files: `build.py` (the index of a run, made once), `index.py` and `answers.py` (what the page
asks), `server.py`, and `static/`, the page itself. The run is only read; the index lies in
RESULTS/state/explore, or in the folder that --index names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcd.utils.errors import UserError

#: Where the index of a run lies, below its results: among the working files.
INDEX = Path("state") / "explore"
#: Images of a cluster that are written, if nothing is said.
_IMAGES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, how it is served, and what is written instead."""
    parser.add_argument("results", metavar="RESULTS", help="folder of a run's results")
    parser.add_argument(
        "--port", type=int, default=0, help="of the loopback interface; 0: any that is free [0]"
    )
    parser.add_argument(
        "--index", metavar="FOLDER",
        help="where the index is kept [RESULTS/state/explore]; for disks that may only be read",
    )  # fmt: skip
    parser.add_argument(
        "--pretrained", metavar="FILE|TAG",
        help="weights of the run's frozen encoder, for a search by image or words, where they lie "
        "elsewhere than when it was embedded",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="of this encoder [cpu]")
    parser.add_argument(
        "--threads", type=int, default=0, help="to build the index and to encode [all cores]"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=50_000_000,
        help="larger images are not decoded [50000000]",
    )  # fmt: skip
    parser.add_argument("--export", metavar="FOLDER", help="write pages there, and do not serve")
    parser.add_argument(
        "--clusters", nargs="+", metavar="N|N-M", help="with --export: clusters to write"
    )
    parser.add_argument(
        "--tables", metavar="FOLDER",
        help="write clusters.parquet and images.parquet there, with columns for embedding-atlas, "
        "and do not serve",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N",
        help="with --export: images per cluster at most [200]; with --tables: images drawn by "
        "chance [all]",
    )  # fmt: skip
    parser.add_argument("--log", metavar="FILE", help="also append log lines to this file")


def run(arguments: argparse.Namespace, section: None) -> None:
    """Serve, or write pages. Raises :class:`UserError`."""
    _check(arguments)
    from mlcd.commands.explore.answers import Answers
    from mlcd.commands.explore.encoder import QueryEncoder
    from mlcd.commands.explore.images import Thumbnails
    from mlcd.commands.explore.index import open_index
    from mlcd.commands.explore.runs import Run

    results = Path(arguments.results)
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give the folder of a run's results")
    looked_at = Run(results)
    folder = Path(arguments.index) if arguments.index else results / INDEX
    if arguments.tables:
        from mlcd.commands.explore import tables

        tables.check(looked_at, Path(arguments.tables))
        index = open_index(looked_at, folder, threads=arguments.threads)
        tables.write(looked_at, index, Path(arguments.tables), images=arguments.images)
        return
    if arguments.export:
        from mlcd.commands.explore.export import export, parse_clusters

        chosen = parse_clusters(arguments.clusters, looked_at.K)
        index = open_index(looked_at, folder, threads=arguments.threads)
        export(
            looked_at, index, Path(arguments.export), chosen,
            images=arguments.images or _IMAGES, max_pixels=arguments.max_pixels,
        )  # fmt: skip
        return
    from mlcd.commands.explore.server import Server, serve

    index = open_index(looked_at, folder, threads=arguments.threads)
    encoder = QueryEncoder(
        looked_at, arguments.pretrained, device=arguments.device, threads=arguments.threads,
        max_pixels=arguments.max_pixels,
    )  # fmt: skip
    server = Server(
        Answers(looked_at, index, encoder), Thumbnails(looked_at, index, arguments.max_pixels),
        arguments.port,
    )  # fmt: skip
    serve(server)


def _check(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.port < 1 << 16:
        raise UserError("--port: expected 0 to 65535")
    if arguments.threads < 0:
        raise UserError("--threads: expected 0 for all cores, or more")
    for name in ("images", "max_pixels"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1")
    if arguments.export and arguments.tables:
        raise UserError("--tables: without --export; run the command for each")
    if arguments.images and not (arguments.export or arguments.tables):
        raise UserError("--images: needs --export or --tables as well")
    if bool(arguments.export) != bool(arguments.clusters):
        given, other = ("export", "clusters") if arguments.export else ("clusters", "export")
        raise UserError(f"--{given}: needs --{other} as well")
