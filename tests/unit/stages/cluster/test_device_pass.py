"""Passes on a device, held to those in main memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from helpers import builders
from helpers.cluster_runs import files_of
from mlcd.data.embeddings import Embeddings
from mlcd.neighbors.engine import Engine
from mlcd.neighbors.ordered_sums import unit_rows
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster.device_pass import DevicePass
from mlcd.stages.cluster.kmeans import HostPass
from mlcd.stages.cluster.sums import ClusterSums
from mlcd.utils.errors import UserError

HALF = Engine("cpu", "float16")


def files(folder: Path) -> list[Embeddings]:
    """Write float16 and float32 rows, not of unit length, with copies; return the files."""
    rows = builders.unit_vectors(900, 24, groups=60)
    rows[40:60] = rows[3]
    with h5py.File(folder / "single.h5", "w") as file:
        file["embedding"] = (rows[:300] * 3).astype(np.float32)
    paths = [folder / "single.h5", *files_of(folder, rows[300:], 2)]
    return [Embeddings(path) for path in paths]


@pytest.mark.parametrize("room", ["all", "no sums", "no rows"])
def test_sums_are_those_of_main_memory(tmp_path: Path, room: str) -> None:
    part = Rows(files(tmp_path), 128, part=(1, 2))
    host = HostPass(part, 50, "cpu", 1, None, 1, False)
    device = DevicePass(part, 50, HALF)
    if room == "no sums":
        device.sums = device._on_host = ClusterSums(50, part.d, part.n)
    if room == "no rows":
        device._keep = False
    for step in (3, 7, 11):
        centers = part.take(np.arange(0, 50 * step, step))
        for passes in (host, device):
            passes.run(centers, None, "pass")
        np.testing.assert_array_equal(np.asarray(device.sums.total), host.sums.total)
        np.testing.assert_array_equal(device.sums.size, host.sums.size)
        assert host.sums.size.sum() == part.share[1]
    # Later passes read nothing where the rows fit.
    kept = sum(len(block) for _, block in device._kept or [])
    assert kept == (0 if room == "no rows" else part.share[1])


def test_unit_rows_are_those_of_main_memory_and_zeros_are_named(tmp_path: Path) -> None:
    rows = Rows(files(tmp_path), 1000)
    pairs = zip(rows.blocks(), rows.stored_blocks(), strict=True)
    for (start, block), (first, stored) in pairs:
        found, zero = unit_rows(torch.from_numpy(stored))
        assert (start, zero) == (first, -1)
        np.testing.assert_array_equal(found.numpy(), block)
    assert {stored.dtype for _, stored in rows.stored_blocks()} == {
        np.dtype("f2"), np.dtype("f4"),
    }  # fmt: skip
    with h5py.File(tmp_path / "zero.h5", "w") as file:
        file["embedding"] = np.eye(12, 24, dtype=np.float16) * (np.arange(12) != 7)[:, None]
    bad = Rows([rows.files[0], Embeddings(tmp_path / "zero.h5")], 100)
    with pytest.raises(UserError, match=r"zero\.h5: row 7 of embedding is all zeros"):
        DevicePass(bad, 5, HALF).run(bad.take(np.arange(5)), None, "pass")
