"""Which GPU is a rank's, under every way in which a site hands them out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mlcd.utils import device
from mlcd.utils.device import keep_products_exact, take_gpu
from mlcd.utils.errors import UserError


@pytest.mark.parametrize(
    ("files", "visible", "expected"),
    [
        ((), None, 0),
        ((), "0,1", 0),  # a name without a GPU
        (("nvidia0", "nvidiactl", "nvidia-uvm"), None, 1),
        (("nvidia0", "nvidia1", "nvidia2"), None, 3),
        (("nvidia0", "nvidia1", "nvidia2"), "2", 1),
        (("nvidia0", "nvidia1"), "", 0),
        (("nvidia0", "nvidia1"), "1,-1,0", 1),
        (("nvidia0", "nvidia1"), "GPU-8932f937, GPU-a1b2c3d4", 2),
    ],
)
def test_gpus_of_the_machine_are_counted_without_torch(
    tmp_path, monkeypatch, files, visible, expected
):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(device, "_DEVICES", tmp_path)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.gpus_here() == expected


@pytest.fixture
def node(monkeypatch):
    """Return a function that sets the place of a rank, and what torch sees of the node's GPUs."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def place(local_rank: int, ranks: int, seen: int) -> list[int]:
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        return taken

    return place


@pytest.mark.parametrize(
    ("local_rank", "ranks", "seen", "taken"),
    [
        (0, 8, 8, 0), (7, 8, 8, 7),  # gpus_per_node: every rank sees all
        (5, 8, 1, 0),  # gpus_per_task, or a mask of the site: each sees its own
        (1, 2, 8, 1),  # more GPUs than ranks
        (0, 1, 1, 0),
    ],
)  # fmt: skip
def test_each_rank_takes_its_own(node, local_rank, ranks, seen, taken):
    asked = node(local_rank, ranks, seen)
    assert take_gpu() == taken
    assert asked == [taken]
    # DeepSpeed takes the number from here.
    assert os.environ["LOCAL_RANK"] == str(taken)


def test_ranks_that_would_share_a_gpu_are_refused(node):
    node(3, 4, 2)
    with pytest.raises(UserError, match=r"4 ranks of this node see 2 GPUs.*--ranks-per-node 2"):
        take_gpu()


def test_a_rank_without_a_gpu_is_told_what_it_was_given(node, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    node(0, 1, 0)
    with pytest.raises(UserError, match=r"sees no GPU.*NoDevFiles"):
        take_gpu()


def test_a_tf32_override_is_not_heeded(monkeypatch, caplog):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0")
    with caplog.at_level("WARNING", logger="mlcd"):
        keep_products_exact()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    assert [record.message for record in caplog.records] == [
        "NVIDIA_TF32_OVERRIDE is set here and would change labels: not heeded"
    ]


def test_importing_it_loads_no_torch():
    code = "import mlcd.utils.device, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
