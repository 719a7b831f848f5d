"""The driver of a training: its options, and the gang of ranks whose final files it answers for."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd import launch, lease
from mlcd.errors import UserError
from mlcd.files import atomic_path
from mlcd.progress import LOGGER

if TYPE_CHECKING:
    from mlcd.stores.checkpoints import Checkpoint


def add_arguments(parser: argparse.ArgumentParser, *, checkpoint_every: int) -> None:
    """How often to save, `checkpoint_every` by default, and how many checkpoints to keep."""
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=checkpoint_every,
        metavar="N",
        help=f"steps between checkpoints [{checkpoint_every}]",
    )
    parser.add_argument("--keep", type=int, default=2, metavar="N", help="checkpoints kept [2]")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise :class:`UserError` for numbers of :func:`add_arguments` that are too low."""
    for option in ("checkpoint_every", "keep"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option.replace('_', '-')}: expected ≥ 1")


def check_share(stage: str, batch_size: int, ranks: int) -> None:
    """Raise :class:`UserError` if the ranks of a stage would take different shares of a step."""
    if batch_size % ranks:
        raise UserError(
            f"{stage}.batch_size: {batch_size} does not divide by {ranks} ranks; "
            "change it, or --ranks-per-node"
        )


def run(
    rank: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    output: Path,
    names: Sequence[str],
    resources: launch.Resources,
    write: Callable[[Checkpoint], None],
) -> None:
    """Train on a gang of ranks; the same call goes on after any interruption.

    `rank` is what each rank calls with `run` = `arguments`, among them identity and state; it
    returns {"steps": …}. `names`: the final weights and their description in the folder `output`,
    which metrics.jsonl follows. `write` makes both from the last checkpoint where the gang had
    finished before this call: Snakemake has removed them, or a run of another section has written
    over them.
    """
    state = Path(arguments["state"])
    files = [output / name for name in (*names, "metrics.jsonl")]
    with lease.writing(output, arguments["identity"], files=files) as wanted:
        if not wanted:
            return
        before = [lease.stamp(path) for path in files[:2]]
        result = launch.run_gang(rank, {"run": arguments}, state, resources)
        after = [lease.stamp(path) for path in files[:2]]
        if None in after or after == before:
            write(_last(state, arguments["identity"]))
        with atomic_path(files[2]) as temporary:
            shutil.copyfile(state / "metrics.jsonl", temporary)
    LOGGER.info("trained %d steps; wrote %s", result["steps"], files[0])


def _last(state: Path, identity: str) -> Checkpoint:
    from mlcd.stores.checkpoints import newest

    checkpoint = newest(state / "checkpoints", identity)
    if checkpoint is None:
        raise UserError(f"{state}: the last checkpoint is gone; remove this folder and rerun")
    return checkpoint
