"""`mlcd score CHECKPOINTS`: k-NN of the encoders in a training's checkpoints, on a small data set.

    mlcd score results/train --config config.yaml --output scores.jsonl    what stands

`mlcd train --live` starts it beside rank 0 (`--follow`): it then waits for checkpoints until its
standard input says `end`, or is closed. It reads the files of the training and nothing else of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcd.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoints, the output and how to score."""
    add = parser.add_argument
    add("checkpoints", metavar="DIR", help="folder of step_NNNNNNNN, or results/train")
    add("--output", required=True, metavar="FILE.jsonl", help="a line per step; those that stand "
        "there are not computed again")  # fmt: skip
    add("--config", default="", metavar="FILE|JSON",
        help="config.yaml, or the section evaluate as JSON: live_dataset, live_images, knn_k, "
        "knn_temperature, seed")  # fmt: skip
    add("--every", type=int, default=1, metavar="N",
        help="score the checkpoints whose step is a multiple of this [1: all]")  # fmt: skip
    add("--follow", action="store_true",
        help="wait for more checkpoints until standard input says `end`; end at once where it is "
        "closed before")  # fmt: skip
    add("--nice", type=int, default=0, metavar="N",
        help="lower the priority by so much, 0 to 19 [0]")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes cuda if there is [auto]")
    add("--threads", type=int, default=1, metavar="N",
        help="CPU threads; the last bits of scores may depend on it [1]")  # fmt: skip


def run(arguments: argparse.Namespace, section: None) -> None:
    """Score. Raises :class:`UserError`."""
    if arguments.every < 1 or arguments.threads < 1:
        raise UserError("--every, --threads: expected at least 1")
    if not 0 <= arguments.nice <= 19:
        raise UserError("--nice: expected 0 to 19")
    from mlcd.commands.score.follow import Told, leave_warnings, lower_priority

    # Before the heavy imports: the training may end meanwhile, and they take the processor, too.
    lower_priority(arguments.nice)
    if arguments.follow:
        told = Told()
        leave_warnings()
    import torch

    from mlcd.commands.score.scorer import Scorer
    from mlcd.config import Evaluate, parse_section
    from mlcd.utils.device import pick_device
    from mlcd.utils.ownership import claim

    torch.set_num_threads(arguments.threads)
    evaluate = parse_section("evaluate", arguments.config, {})
    assert isinstance(evaluate, Evaluate)
    claim(arguments.output)
    scorer = Scorer(
        evaluate, _folder(Path(arguments.checkpoints)), Path(arguments.output),
        every=arguments.every, device=pick_device(arguments.device), threads=arguments.threads,
    )  # fmt: skip
    if arguments.follow:
        scorer.follow(told)
    elif not scorer.score_all() and not scorer.lines:
        raise UserError(
            f"{arguments.checkpoints}: holds no checkpoint after a multiple of {arguments.every} "
            "steps; name a folder with step_NNNNNNNN, or lower --every"
        )


def _folder(given: Path) -> Path:
    """Return the folder of the checkpoints: `given`, or that of the newest training in it."""
    from mlcd.data.trainings import newest

    if not given.is_dir():
        raise UserError(f"{given}: no such folder; give results/train, or its checkpoints")
    place = newest(given, "train")
    return given if place is None else place / "checkpoints"
