"""Products of half precision against faiss: candidates that the bound leaves, and the same ids.

    python benchmarks/crops.py --rows 20000 --output crops.h5
    python benchmarks/half_precision.py --embeddings crops.h5 --k 2000

K of the rows, evenly spaced, are centers. On a CPU the products are emulated, so that times say
nothing; `make test-gpu GPU="--only ceilings,search"` has those of a GPU. Peer: faiss.knn in
float32, whose close calls are settled as in stage label.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from mlcd.data.embeddings import Embeddings
from mlcd.neighbors import half
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.half import HalfSearch, rounded
from mlcd.neighbors.rows import Rows


class Counted(HalfSearch):
    """A search that counts what its bound leaves."""

    groups = 0

    def _settle(self, rows, halves, least, row, group, l, out):
        self.groups += len(row)
        super()._settle(rows, halves, least, row, group, l, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embeddings", required=True, nargs="+")
    parser.add_argument("--k", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = Rows([Embeddings(path) for path in arguments.embeddings], 4096)
    every = np.concatenate([block for _, block in rows.blocks()])
    centers = every[np.linspace(0, len(every) - 1, arguments.k).astype(int)]
    faiss = ExactSearch(centers, threads=1, prune=False)
    dots = half.dots
    print(f"{len(every):,} rows of {rows.d}, {arguments.k:,} centers, {arguments.device}")
    print("| products | l | error bound (median) | groups per row | scored per row | "
          "rows with more than l candidates | same ids |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---|")
    for kind in (torch.float16, torch.bfloat16):
        search = Counted(centers, torch.device(arguments.device), kind)
        bound = float(search.error(rounded(torch.from_numpy(every[:4096]), kind)).median())
        for l in (1, 9):
            scored = np.zeros(2, np.int64)

            def counted(left, right, left_ids, right_ids, scored=scored, l=l):
                number = torch.bincount(left_ids, minlength=len(left))
                scored += [len(left_ids), int((number > l).sum())]
                return dots(left, right, left_ids, right_ids)

            search.groups, half.dots = 0, counted
            found = search.nearest(every, l)
            half.dots = dots
            same = np.array_equal(found, faiss.nearest(every, l))
            n = len(every)
            print(f"| {str(kind)[6:]} | {l} | {bound:.1e} | {search.groups / n:.2f} | "
                  f"{scored[0] / n:.2f} | {scored[1] / n:.1%} | {'yes' if same else 'NO'} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
