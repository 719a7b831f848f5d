"""The driver of a training: its options, and the gang of ranks whose final files it answers for."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.launch import lease, options, resume
from mlcd.launch.api import run_gang
from mlcd.launch.gang_files import gang_folder
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file, sha256_json
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record

if TYPE_CHECKING:
    from mlcd.data.checkpoints import Checkpoint
    from mlcd.training.arguments import RankArguments


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
    arguments: RankArguments,
    output: Path,
    names: Sequence[str],
    resources: options.Resources,
    write: Callable[[Checkpoint], None],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Train on a gang of ranks; the same call resumes after any interruption.

    `rank` is what each rank calls with the JSON values of `arguments`; it returns {"steps": …}.
    `names`: the final weights, their description, and further weights that this names by their
    stem, in the folder `output` (that of `arguments` as the user wrote it); metrics.jsonl follows.
    `write` makes all from the last checkpoint
    where the gang had finished before this call: Snakemake has removed them, or a run of another
    section has written over them, as is seen by what the description says. `prepare` writes what
    the ranks read in the state folder. Raises :class:`UserError`, for a checkpoint of other code
    too (:mod:`mlcd.launch.resume`).
    """
    files = [output / name for name in (*names, "metrics.jsonl")]
    # Code is no part of the identity: an accepted change of it resumes.
    work = sha256_json([code_hash(arguments.stage), arguments.identity])
    home = gang_folder(files[0])
    with lease.writing(output, work, files=files) as wanted:
        if not wanted:
            return
        resume.claim(arguments.state, arguments.stage, output, home, end_other=resources.end_other)
        prepare()
        before = [lease.stamp(path) for path in files[:-1]]
        result = run_gang(
            rank,
            {"arguments": arguments.model_dump(mode="json")},
            home,
            resources,
            stage=arguments.stage,
            work=work,
            progress=lambda: sorted(path.name for path in arguments.checkpoints.glob("step_*")),
        )
        after = [lease.stamp(path) for path in files[:-1]]
        if after == before or not _are_of(files[:-1], arguments):
            from mlcd.training.trainer import last_checkpoint

            try:
                last = last_checkpoint(arguments, result["steps"])
            except UserError:
                # A finished gang must not outlive what it made: the rerun would take its result.
                shutil.rmtree(home, ignore_errors=True)
                raise
            write(last)
            if not _are_of(files[:-1], arguments):
                raise UserError(
                    f"{files[1]}: not of the run that was asked for, although it was just written; "
                    "end the other program that writes here, and rerun"
                )
        from mlcd.training.metrics import all_lines

        with atomic_path(files[-1]) as temporary:
            temporary.write_text(all_lines(arguments.metrics, result["steps"]), encoding="utf-8")
        resume.finish(arguments.state)
    LOGGER.info("trained %d steps; wrote %s", result["steps"], files[0])


def _are_of(files: Sequence[Path], arguments: RankArguments) -> bool:
    """True if all files are there, belong together, and are of the section that was asked for."""
    weights, description, *others = files
    try:
        said = read_record(description, "its stage")
        same = said["section"] == arguments.section.model_dump(mode="json")
        same = same and said["sha256"] == sha256_file(weights)
        return bool(same and all(said[path.stem]["sha256"] == sha256_file(path) for path in others))
    except (UserError, OSError, KeyError, TypeError):
        return False
