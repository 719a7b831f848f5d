"""One rank's share of the classifier's work with W = 1, 2, 4 gloo ranks and one global batch.

python benchmarks/classifier_scaling.py [--repeats 5] [--worlds 1 2 4]

Each rank has one thread. The CPU seconds are of the slowest rank's process and leave out the time
in which it waits for the others; with more ranks than cores the wall-clock seconds hold that too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from mlcd.classifier import RowSparseAdamW, ShardedClassifier

NUM_CLASSES, DIM, BATCH, LABELS, RATIO = 100_000, 512, 1024, 8, 0.1


def rank_main(rank: int, world: int, folder: str, repeats: int) -> None:
    """Time forward, backward and optimizer step of one rank; write the medians to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world
    )
    classifier = ShardedClassifier(
        NUM_CLASSES, DIM, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
        negative_ratio=RATIO, seed=0,
    )  # fmt: skip
    optimizer = RowSparseAdamW(classifier, lr=1e-3)
    embedding = torch.randn(BATCH // world, DIM, requires_grad=True)
    labels = torch.randint(NUM_CLASSES, (BATCH // world, LABELS))
    wall, cpu = [], []
    for step in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter(), time.thread_time()
        classifier(embedding, labels, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.thread_time() - start[1])
    medians = torch.tensor([statistics.median(wall[1:]), statistics.median(cpu[1:])])
    dist.all_reduce(medians, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(medians, Path(folder) / "medians.pt")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    print(f"K = {NUM_CLASSES}, d = {DIM}, global B = {BATCH}, l = {LABELS}, r = {RATIO}")
    print("| W | wall s | CPU s of a rank | CPU over W = 1 |\n|---:|---:|---:|---:|")
    first = None
    for world in arguments.worlds:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(rank_main, (world, folder, arguments.repeats), nprocs=world)
            wall, cpu = torch.load(Path(folder) / "medians.pt", weights_only=True).tolist()
        first = first or cpu
        print(f"| {world} | {wall:.3f} | {cpu:.3f} | {cpu / first:.3f} × |", flush=True)


if __name__ == "__main__":
    main()
