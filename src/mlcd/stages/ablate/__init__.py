"""Stage `ablate`: trainings that differ in loss, l, r or K, compared over seeds.

The trainings and their scores are made by the stages train and evaluate (rules/ablate.smk); this
stage reads what they left and writes

    table.csv, table.md   a row per cell, data set and metric: mean, 95 % interval, seeds,
    difference orders.csv            pairs of cells that differ in one thing, and what the paper
    found
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlcd.config import Ablate


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the runs, the baselines and the table."""
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="DIR",
        help="finished runs: folders with train/encoder.json and evaluate/trained.json",
    )  # fmt: skip
    parser.add_argument(
        "--baseline-scores", nargs="*", default=[], metavar="JSON",
        help="scores without training, from evaluate --part metrics",
    )  # fmt: skip
    parser.add_argument(
        "--reference", metavar="CELL",
        help="the cell that the others are compared with, such as mlcd-l8-r0.1-k256 "
        "[the first of --runs]",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="CSV",
        help="table.csv to write; table.md and orders.csv beside it",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Ablate) -> None:
    """Write the tables. Raises :class:`UserError` if runs are missing or do not fit together."""
    from mlcd.stages.ablate.runs import read_baselines, read_runs
    from mlcd.stages.ablate.tables import write_tables
    from mlcd.utils.ownership import claim

    target = Path(arguments.output)
    claim(target, target.with_name("orders.csv"), target.with_suffix(".md"))
    runs = read_runs(arguments.runs)
    baselines = read_baselines(arguments.baseline_scores)
    write_tables(runs, baselines, arguments.reference, arguments.output)
