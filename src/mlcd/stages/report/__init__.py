"""Stage `report`: one page or chart for each part of a run, from the stores of the other stages.

Each part reads only what it shows, so that a new probe option redraws the results and leaves the
montages alone. Equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from mlcd.config import Report
from mlcd.utils.errors import UserError

#: Part → what it shows and the options it reads. The module of the same name draws it.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "overview": (
        "the run in a minute: the pipeline, scores, some clusters",
        (
            "images",
            "embeddings",
            "labels",
            "centroids",
            "summary",
            "metrics",
            "scores",
            "resolved",
            "jobs",
        ),
    ),
    "download": ("what arrived and why the rest did not", ("images",)),
    "curate": (
        "images left out before clustering, and why",
        ("images", "embeddings", "rows", "curation"),
    ),
    "cluster": ("objective and sizes of the k-means clusters", ("centroids",)),
    "label": ("how labels are used and how near they are", ("summary",)),
    "montage": (
        "images nearest to the centers of some clusters",
        ("images", "embeddings", "labels", "centroids"),
    ),
    "examples": (
        "images beside the clusters that are their labels",
        ("images", "embeddings", "labels"),
    ),
    "train": ("loss, similarity, gradients and speed by step", ("metrics",)),
    "text": ("loss and temperature of the text tower by step", ("metrics",)),
    "results": ("every model on every data set", ("scores",)),
    "efficiency": ("what the jobs took: queue, time, cores, memory, GPUs", ("folder", "snakemake")),
    "ablate": ("losses, l, r and K compared over seeds", ("ablation", "orders")),
    "figures": ("figures from outside of the run, those of report.figures", ()),
    "provenance": ("config, versions, revision and hashes", ("resolved", "files", "own")),
}

#: Part → options that it does without where nothing, or all, is people's own.
OPTIONAL = {
    "overview": ("embeddings", "centroids", "scores", "jobs"),
    "montage": ("embeddings", "centroids"),
    "examples": ("embeddings",),
    "provenance": ("own",),
}


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the part, its outputs and the files it may read."""
    about = "; ".join(f"{part}: {what}" for part, (what, _) in PARTS.items())
    parser.add_argument("--part", required=True, choices=PARTS, help=about)
    parser.add_argument(
        "--output",
        required=True,
        nargs="+",
        metavar="FILE",
        help=".html writes the whole page, .svg, .png or .pdf its chart alone, .json its numbers, "
        ".csv a row per job",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="MANIFEST",
        help="images/*/manifest.json [overview, download, curate, montage, examples]",
    )
    parser.add_argument(
        "--embeddings",
        nargs="+",
        metavar="H5",
        help="embeddings/*.h5 [overview, curate, montage, examples]",
    )
    parser.add_argument("--rows", nargs="+", metavar="H5", help="curate/rows/*.h5 [curate]")
    parser.add_argument("--curation", metavar="JSON", help="curate/summary.json [curate]")
    parser.add_argument(
        "--labels", nargs="+", metavar="H5", help="labels/*.h5 [overview, montage, examples]"
    )
    parser.add_argument(
        "--centroids", metavar="H5", help="clusters/centroids.h5 [overview, cluster, montage]"
    )
    parser.add_argument("--summary", metavar="JSON", help="labels/summary.json [overview, label]")
    parser.add_argument(
        "--metrics",
        metavar="JSONL",
        help="train/metrics.jsonl, text/metrics.jsonl [overview, train, text]",
    )
    parser.add_argument("--scores", metavar="CSV", help="evaluate/summary.csv [overview, results]")
    parser.add_argument("--ablation", metavar="CSV", help="ablate/table.csv [ablate]")
    parser.add_argument("--orders", metavar="CSV", help="ablate/orders.csv [ablate]")
    parser.add_argument(
        "--folder", metavar="RESULTS", help="the folder that the run wrote to [efficiency]"
    )
    parser.add_argument(
        "--jobs", metavar="CSV", help="efficiency.csv, what the jobs took [overview]"
    )
    parser.add_argument(
        "--snakemake",
        default=".snakemake",
        metavar="FOLDER",
        help="where Snakemake keeps its logs [.snakemake; efficiency]",
    )
    parser.add_argument(
        "--resolved",
        metavar="FILE",
        help="the resolved config, YAML or JSON [overview, provenance]",
    )
    parser.add_argument(
        "--files", nargs="+", metavar="FILE", help="main outputs to be hashed [provenance]"
    )
    parser.add_argument(
        "--own", nargs="+", metavar="FILE", help="own embeddings or labels to be named [provenance]"
    )


def run(arguments: argparse.Namespace, section: Report) -> None:
    """Draw one part. Raises :class:`UserError` for a missing option or a damaged input."""
    from mlcd.stages.report.page import check_outputs, write
    from mlcd.utils.ownership import claim

    about, options = PARTS[arguments.part]
    for option in options:
        if not getattr(arguments, option) and option not in OPTIONAL.get(arguments.part, ()):
            raise UserError(f"--{option}: needed for --part {arguments.part} ({about}); give it")
    check_outputs(arguments.output)
    claim(*arguments.output)
    module: Any = importlib.import_module(f"mlcd.stages.report.{arguments.part}")
    inputs = {option: getattr(arguments, option) for option in options}
    write(arguments.output, module.draw(section, **inputs))
