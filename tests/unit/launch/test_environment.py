"""What ranks are given: the user's own GPUs, an allocator's setting, and the patience of groups."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mlcd.launch import diagnosis
from mlcd.launch.environment import rank_environment
from mlcd.launch.jobs_local import LocalBackend
from mlcd.launch.options import Resources
from mlcd.launch.process_group import RankPlace, process_group, share_timeout
from mlcd.training import trainer


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [(None, 2, "0,1"), ("3,1,2", 2, "3,1"), ("GPU-8f3a,GPU-91bc", 1, "GPU-8f3a"), ("5", 1, "5")],
)
def test_the_local_launcher_takes_of_the_users_own_gpus(monkeypatch, given, ranks, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert LocalBackend(Resources(ranks_per_node=ranks, gpus=True))._visible_gpus() == expected
    assert LocalBackend(Resources(ranks_per_node=ranks))._visible_gpus() == ""


def test_memory_in_pieces_is_used_unless_the_user_says_otherwise(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    gpus = Resources(gpus=True)
    with rank_environment(gpus, {}):
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    with rank_environment(Resources(), {}):
        assert "PYTORCH_ALLOC_CONF" not in os.environ
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    with rank_environment(gpus, {}):
        assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_a_collective_that_times_out_says_so():
    """Two members of a group in threads, of which one never comes."""
    store = dist.HashStore()
    groups: dict[int, dist.ProcessGroupGloo] = {}

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=5))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    options = dist.AllreduceOptions()
    options.timeout = timedelta(milliseconds=50)
    with pytest.raises(RuntimeError) as error:
        groups[0].allreduce([torch.zeros(4)], options).wait()
    said = SimpleNamespace(ranks=1, output=lambda rank: f"noise\n{error.value}\n")
    assert diagnosis.timed_out(said)
    assert not diagnosis.timed_out(SimpleNamespace(ranks=1, output=lambda rank: "ValueError: 7"))


def test_groups_of_libraries_wait_as_long(monkeypatch):
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with process_group("cpu", timeout_min=42) as where:
        assert isinstance(where, RankPlace) and where.timeout == timedelta(minutes=42)
        other = dist.new_group([0])
        backend = other._get_backend(torch.device("cpu"))
        assert backend.options._timeout != where.timeout
        share_timeout(where)
        assert backend.options._timeout == where.timeout


def test_patience_grows_with_the_checkpoint(tmp_path):
    arguments = SimpleNamespace(checkpoints=tmp_path)
    assert trainer.patience(arguments) == 30
    folder = tmp_path / "step_00000010"
    folder.mkdir()
    with (folder / "encoder.safetensors").open("wb") as file:
        file.truncate(6 * 10**9)
    assert trainer.patience(arguments) == pytest.approx(32)
