"""Writing and reading a checkpoint of 454 MB, against torch.distributed.checkpoint.

    python benchmarks/checkpoint.py [--repeats 5] [--folder FOLDER]

Both write the same tensors, durably (fsync), and read them back into memory that is there. Ours
hashes what it writes, checks the hashes when it reads, and appears under its name at once; torch's
does neither. CPU seconds are those of all threads of this process. Wall-clock seconds show what
runs beside the disk. The goal is 1.2 times the peer's.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import goals
import machine
import measure
import spread
import torch
import torch.distributed.checkpoint as dcp

from mlcd.data.checkpoints import Checkpoint, CheckpointWriter, Snapshot, step_name

#: Rows and width of the centers, and values of an encoder's weight: with two moments 454 MB.
CLASSES, DIM, ENCODER = 50_000, 512, 12_230_000


def rows() -> dict[str, torch.Tensor]:
    made = {name: torch.randn(CLASSES, DIM) for name in ("weight", "exp_avg", "exp_avg_sq")}
    return made | {"row_step": torch.ones(CLASSES, dtype=torch.int64)}


def encoder() -> dict[str, torch.Tensor]:
    return {f"{name}/a": torch.randn(ENCODER) for name in ("weight", "exp_avg", "exp_avg_sq")}


def write_ours(folder: Path) -> Callable[[], object]:
    snapshot = Snapshot(1, 0, rows(), {}, encoder(), 224)

    def write() -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        writer = CheckpointWriter(folder / "ours", "run", {}, rank=0, world_size=1)
        writer.save(snapshot)
        writer.wait()

    return write


def write_torch(folder: Path) -> Callable[[], object]:
    state = rows() | encoder()

    def write() -> None:
        shutil.rmtree(folder / "torch", ignore_errors=True)
        dcp.save(state, checkpoint_id=folder / "torch", no_dist=True)

    return write


def read_ours(folder: Path) -> Callable[[], object]:
    write_ours(folder)()
    into = rows() | encoder()

    def read() -> None:
        checkpoint = Checkpoint(folder / "ours" / step_name(1), "run")
        for name, tensor in (checkpoint.rows(0, CLASSES) | checkpoint.encoder()).items():
            into[name].copy_(tensor)

    return read


def read_torch(folder: Path) -> Callable[[], object]:
    write_torch(folder)()
    into = rows() | encoder()
    return lambda: dcp.load(into, checkpoint_id=folder / "torch", no_dist=True)


PARTS = {
    "write": {"torch.distributed.checkpoint": write_torch, "ours": write_ours},
    "read": {"torch.distributed.checkpoint": read_torch, "ours": read_ours},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured [a new one]")
    arguments = parser.parse_args()
    print(machine.description())
    peer = "torch.distributed.checkpoint"
    with tempfile.TemporaryDirectory(prefix="mlcd-checkpoint-", dir=arguments.folder) as name:
        for part, builders in PARTS.items():
            contenders = {key: partial(build, Path(name)) for key, build in builders.items()}
            results = measure.compare(contenders, repeats=arguments.repeats, threads=1)
            print(f"\n{part}:\n")
            print(spread.table(results, peer, {"ours": 1.2}), end="\n\n")
            print(measure.table(results), flush=True)
            goals.state(
                f"checkpoint of 454 MB, {part}",
                results["ours"].cpus,
                {"torch.distributed.checkpoint": results[peer].cpus},
                1.2,
            )


if __name__ == "__main__":
    main()
