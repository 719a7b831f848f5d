"""`mlcd track RESULTS --to trackio|wandb|mlflow|tensorboard`: a training's numbers for such a tool.

    mlcd track results --to tensorboard          follow a run until it has ended
    mlcd track results --to mlflow --once        ship what stands, and end

It reads the run's files from outside, on any machine that sees the disk (a login node, a laptop):
the nodes need no network, and the training does not know of it. Killed and started again, it ships
each step once. It ends with 0 if the trainings have reached their end, else with 4, as `mlcd
status` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcd.commands.track.target import TOOLS
from mlcd.data.trainings import STAGES
from mlcd.utils.errors import UserError

_NOT_AT_ITS_END = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, the tool, and how to follow."""
    add = parser.add_argument
    add("results", metavar="RESULTS", help="folder of a run's results")
    add("--to", required=True, choices=TOOLS, help="the tool; each but tensorboard needs its "
        "library: pip install 'mlcd[NAME]'")  # fmt: skip
    add("--once", action="store_true", help="ship what stands and end; do not follow the run")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
        help="whose numbers: train, text [both]")  # fmt: skip
    add("--output", metavar="DIR",
        help="folder for the tool's files and what was shipped [track beside RESULTS]")  # fmt: skip
    add("--every", type=float, default=10.0, metavar="SECONDS", help="between looks [10]")


def run(arguments: argparse.Namespace, section: None) -> None:
    """Ship it. Raises :class:`UserError`, and SystemExit if a training is not at its end."""
    from mlcd.commands.track.follow import Follower, follow
    from mlcd.commands.track.target import target_of
    from mlcd.launch.environment import interruptible
    from mlcd.utils.files import checked_folder

    results = Path(arguments.results)
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give that of a run's results")
    if not 0.1 <= arguments.every <= 3600:
        raise UserError("--every: expected 0.1 to 3600 seconds")
    output = arguments.output or results.resolve().parent / "track"
    folder = checked_folder(output).resolve() / arguments.to
    kind = target_of(arguments.to)
    follower = Follower(results, list(dict.fromkeys(arguments.stages)), kind, folder)
    with interruptible():
        try:
            done = follow(follower, once=arguments.once, every=arguments.every)
        finally:
            follower.close()
    if not done:
        raise SystemExit(_NOT_AT_ITS_END)
