"""`mlcd checkpoint inspect|reshard|export`: look into training checkpoints and take them elsewhere.

Training itself resumes from a checkpoint at any number of ranks; `reshard` is for moving one to a
machine whose disks or tools expect a piece per rank.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from mlcd.utils.errors import UserError
from mlcd.utils.files import checked_folder, state_dir
from mlcd.utils.ownership import claim


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = "print what a checkpoint, or the newest of a folder, holds, as JSON"
    inspect = actions.add_parser("inspect", help=about, description=about)
    about = "write a checkpoint again as that many ranks would have written it"
    reshard = actions.add_parser("reshard", help=about, description=about)
    about = "write a checkpoint's encoder as training's final files, encoder.safetensors and others"
    export = actions.add_parser("export", help=about, description=about)
    for action in (inspect, reshard, export):
        action.add_argument(
            "checkpoint",
            metavar="DIR",
            help="a step_NNNNNNNN folder, or one with such folders: its newest whole checkpoint",
        )
    reshard.add_argument("--ranks", type=int, required=True, metavar="N")
    for action in (reshard, export):
        action.add_argument("--output", required=True, metavar="DIR")


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Do what the command line asks. Raises :class:`UserError`."""
    from mlcd.data.checkpoints import Checkpoint, newest

    path = Path(arguments.checkpoint)
    found = Checkpoint(path) if path.name.startswith("step_") else newest(path)
    if found is None:
        raise UserError(f"{path}: holds no whole checkpoint; name a step_NNNNNNNN folder")
    if arguments.action == "inspect":
        print(json.dumps(inspect_checkpoint(found), indent=1))
    elif arguments.action == "reshard":
        if arguments.ranks < 1:
            raise UserError(f"--ranks: expected ≥ 1, got {arguments.ranks}")
        reshard_checkpoint(found, Path(arguments.output), arguments.ranks)
    else:
        export_encoder(found, Path(arguments.output))


def inspect_checkpoint(checkpoint: Any) -> dict[str, Any]:
    """Return step, image size, identity, classes, ranks, and shape and dtype of each tensor."""
    rows = checkpoint.rows(0, checkpoint.num_classes)
    tensors = {**checkpoint.encoder(), **{f"rows/{name}": rows[name] for name in sorted(rows)}}
    more: dict[str, Any] = {}
    for name, classes in checkpoint.heads.items():
        mine = checkpoint.rows(0, classes, name)
        more[name] = {"num_classes": classes, "rows_touched": int((mine["row_step"] > 0).sum())}
        tensors |= {f"heads/{name}/{key}": mine[key] for key in sorted(mine)}
    return {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "image_size": checkpoint.image_size,
        "identity": checkpoint.identity,
        "section": checkpoint.section,
        "num_classes": checkpoint.num_classes,
        "ranks": len(checkpoint.pieces),
        "rows_by_rank": [[piece["start"], piece["stop"]] for piece in checkpoint.pieces],
        "bytes": sum(path.stat().st_size for path in checkpoint.path.iterdir()),
        # A text tower has no classes.
        **({"rows_touched": int((rows["row_step"] > 0).sum())} if "row_step" in rows else {}),
        **({"heads": more} if more else {}),
        "tensors": {
            name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            for name, tensor in tensors.items()
        },
    }


def reshard_checkpoint(checkpoint: Any, output: Path, ranks: int) -> None:
    """Write `checkpoint` into the folder `output` in `ranks` pieces."""
    from mlcd.classifier import shard_bounds
    from mlcd.data.checkpoints import CheckpointWriter, HeadRows, Snapshot

    checked_folder(output)
    if (output / checkpoint.path.name).exists():
        raise UserError(f"{output / checkpoint.path.name}: is there already; name another folder")
    writers = [
        CheckpointWriter(
            output, checkpoint.identity, checkpoint.section, rank=rank, world_size=ranks,
            provenance=checkpoint.provenance,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    # The first rank waits for the parts of the others: they come before it, one after another.
    for rank in (*range(1, ranks), 0):
        start, stop = shard_bounds(checkpoint.num_classes, ranks, rank)
        heads = {}
        for name, classes in checkpoint.heads.items():
            ends = shard_bounds(classes, ranks, rank)
            heads[name] = HeadRows(*ends, checkpoint.rows(*ends, name))
        snapshot = Snapshot(
            checkpoint.step,
            start,
            checkpoint.rows(start, stop),
            checkpoint.buffers(rank, ranks),
            checkpoint.encoder() if rank == 0 else None,
            checkpoint.image_size,
            heads,
        )
        writers[rank].save(snapshot)
        writers[rank].wait()


def export_encoder(checkpoint: Any, output: Path) -> None:
    """Write the encoder as training's final files, for evaluation before training has ended."""
    from mlcd.config import validate
    from mlcd.config.train import Train
    from mlcd.stages.train.final import write_encoder

    weights = output / "encoder.safetensors"
    if not checkpoint.num_classes:
        raise UserError(f"{checkpoint.path}: of a text tower; only encoders are exported")
    section = validate(Train, checkpoint.section, str(checkpoint.path), "train")
    layer = [output / "regions.safetensors"] if section.regions else []
    claim(weights, output / "encoder.json", *layer)
    # By it the weights are known as ours if this process is killed before it describes them.
    mark = state_dir(weights, "export", checkpoint.identity, checkpoint.step)
    write_encoder(checkpoint, section, output)
    with contextlib.suppress(OSError):
        mark.rmdir()
        mark.parent.rmdir()
