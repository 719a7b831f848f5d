"""The store of checkpoints: atomic, verified, and readable at any number of ranks."""

import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

import mlcd.utils.files
from helpers.checkpoints import ROWS, bounds, save_all, snapshot, write
from mlcd.data import checkpoints
from mlcd.data.checkpoints import (
    Checkpoint,
    CheckpointWriter,
    HeadRows,
    Snapshot,
    newest,
    step_name,
    steps,
)
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER


@pytest.mark.parametrize("written", [1, 2, 3, 5])
@pytest.mark.parametrize("read", [1, 2, 3, 4, 60])
def test_rows_come_back_at_any_number_of_ranks(tmp_path, written, read):
    write(tmp_path, [10], written)
    checkpoint = Checkpoint(tmp_path / "step_00000010", "run")
    assert checkpoint.step == 10 and checkpoint.num_classes == 50
    for name, expected in ROWS.items():
        parts = [checkpoint.rows(*bounds(read, rank))[name] for rank in range(read)]
        assert torch.equal(torch.cat(parts), expected + 10)
        assert {part.dtype for part in parts} == {expected.dtype}


def with_head(step, classes, world_size, rank):
    """A snapshot with a further head of few `classes`."""
    start, stop = classes * rank // world_size, classes * (rank + 1) // world_size
    rows = {
        "weight": torch.arange(8.0).view(4, 2)[start:stop],
        "row_step": ROWS["row_step"][start:stop],
    }
    plain = snapshot(step, world_size, rank)
    return dataclasses.replace(plain, heads={"words": HeadRows(start, stop, rows)})


@pytest.mark.parametrize("written", [1, 3, 5])
@pytest.mark.parametrize("read", [1, 2, 5])
def test_further_heads_come_back_at_any_number_of_ranks(tmp_path, written, read):
    """Also where a head has fewer classes than there are ranks."""
    save_all(tmp_path, [with_head(10, 4, written, rank) for rank in range(written)])
    checkpoint = Checkpoint(tmp_path / "step_00000010", "run")
    assert checkpoint.heads == {"words": 4} and checkpoint.num_classes == 50
    parts = [
        checkpoint.rows(4 * rank // read, 4 * (rank + 1) // read, "words") for rank in range(read)
    ]
    assert torch.equal(torch.cat([p["weight"] for p in parts]), torch.arange(8.0).view(4, 2))
    assert {part["row_step"].dtype for part in parts} == {torch.int64}
    # The first head's are as ever.
    assert torch.equal(checkpoint.rows(0, 50)["weight"], ROWS["weight"] + 10)
    with pytest.raises(UserError, match="has no head 'tokens'"):
        checkpoint.rows(0, 4, "tokens")


def test_without_further_heads_files_name_none(tmp_path):
    write(tmp_path, [10], 2)
    record = json.loads((tmp_path / "step_00000010" / "complete.json").read_text())
    assert record["format"] == 2
    assert record["pieces"] == [{"start": 0, "stop": 25}, {"start": 25, "stop": 50}]
    with safe_open(tmp_path / "step_00000010" / "rank_00001.safetensors", "pt") as file:
        assert set(file.keys()) == {"rows/weight", "rows/row_step", "buffers/mean", "buffers/count"}
    assert Checkpoint(tmp_path / "step_00000010").heads == {}


def test_buffers_are_each_ranks_own_or_the_mean(tmp_path):
    write(tmp_path, [10], 3)
    checkpoint = Checkpoint(tmp_path / "step_00000010")
    assert [float(checkpoint.buffers(rank, 3)["mean"][0]) for rank in range(3)] == [0, 1, 2]
    assert [float(checkpoint.buffers(rank, 2)["mean"][0]) for rank in range(2)] == [1, 1]
    assert int(checkpoint.buffers(0, 2)["count"]) == 7


def test_encoder_tensors_by_prefix(tmp_path):
    write(tmp_path, [10])
    checkpoint = Checkpoint(tmp_path / "step_00000010")
    assert set(checkpoint.encoder()) == {"weight/a", "exp_avg/a"}
    assert set(checkpoint.encoder("exp_avg/")) == {"exp_avg/a"}


def test_the_newest_are_kept(tmp_path):
    write(tmp_path, [10, 20, 30, 40], keep=2)
    assert [path.name for path in steps(tmp_path)] == ["step_00000030", "step_00000040"]
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000030", "step_00000040"}


def test_a_copy_beside_them_is_its_owners(tmp_path):
    write(tmp_path, [10, 20], keep=2)
    copy = tmp_path / "step_00000010_keep"
    shutil.copytree(tmp_path / "step_00000010", copy)
    write(tmp_path, [30, 40], keep=2)
    assert [path.name for path in steps(tmp_path)] == ["step_00000030", "step_00000040"]
    assert copy.is_dir() and newest(tmp_path, "run").step == 40
    CheckpointWriter(tmp_path, "run", {}, rank=0, world_size=1, resumed=5)
    assert copy.is_dir() and steps(tmp_path) == []


def test_two_that_somebody_wants_stay_beside_the_newest(tmp_path):
    for step in range(1, 8):
        (tmp_path / step_name(step)).mkdir()
    checkpoints.prune(tmp_path, 1, lambda step: step % 2 == 1)
    assert [path.name for path in steps(tmp_path)] == [step_name(step) for step in (3, 5, 7)]
    checkpoints.prune(tmp_path, 1)
    assert [path.name for path in steps(tmp_path)] == [step_name(7)]


def test_what_is_being_removed_is_no_checkpoint_any_more(tmp_path, monkeypatch):
    """A scorer that looks at that moment, or a start after a kill then, finds the others alone."""
    write(tmp_path, [10, 20])

    def killed(path):
        (path / "complete.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("shutil.rmtree", killed)
        checkpoints.prune(tmp_path, 1)
    assert [path.name for path in steps(tmp_path)] == ["step_00000020"]
    CheckpointWriter(tmp_path, "run", {}, rank=0, world_size=1, resumed=20)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000020"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "record", "piece", "empty record"])
def test_a_broken_newest_is_skipped_with_a_warning(tmp_path, caplog, harm):
    write(tmp_path, [10, 20])
    broken = tmp_path / "step_00000020"
    piece = broken / "rank_00002.safetensors"
    if harm == "truncate":
        piece.write_bytes(piece.read_bytes()[:-10])
    elif harm == "flip":
        data = bytearray(piece.read_bytes())
        data[-1] ^= 1
        piece.write_bytes(data)
    elif harm == "record":
        (broken / "complete.json").unlink()
    elif harm == "piece":
        piece.unlink()
    else:
        (broken / "complete.json").write_text("{}")
    LOGGER.propagate = True
    with caplog.at_level(logging.WARNING, "mlcd"):
        assert newest(tmp_path, "run").step == 10
    assert "step_00000020" in caplog.text and "the checkpoint before" in caplog.text
    # A run that resumes from step 10 writes step 20 anew.
    write(tmp_path, [20], resumed=10)
    assert newest(tmp_path, "run").step == 20


def test_a_slow_rank_does_not_look_for_the_folder_once_it_is_renamed(tmp_path, monkeypatch):
    """Rank 0 renames it as soon as the others have spoken."""

    def slow(folder, sync=mlcd.utils.files.fsync_directory):
        if not (folder / "complete.json").exists():  # rank 0, which ends the checkpoint, is fast
            time.sleep(0.3)
        sync(folder)

    monkeypatch.setattr(mlcd.utils.files, "fsync_directory", slow)
    write(tmp_path, [10, 20], 3)
    assert newest(tmp_path, "run").step == 20


def test_what_a_killed_run_left_is_not_seen_and_is_cleared(tmp_path):
    write(tmp_path, [10])
    (tmp_path / ".step_00000020").mkdir()
    (tmp_path / ".step_00000020" / "1.json").write_text("{}")
    assert newest(tmp_path, "run").step == 10
    write(tmp_path, [20], resumed=10)
    assert newest(tmp_path, "run").step == 20 and not list(tmp_path.glob(".step*"))


_KILLED = """
import sys
from pathlib import Path
import torch
from mlcd.data.checkpoints import CheckpointWriter, Snapshot
writer = CheckpointWriter(Path(sys.argv[1]), "run", {}, rank=0, world_size=1)
encoder = {"weight/a": torch.ones(16_000_000)}
for step in range(1, 1000):
    writer.save(Snapshot(step, 0, {"weight": torch.ones(2, 3)}, {}, encoder, 64))
"""


def test_killed_in_the_middle_of_a_write_the_one_before_is_whole(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", _KILLED, tmp_path])
    try:
        # The second is being written: its encoder is there, and its last file is not.
        begun = tmp_path / ".step_00000002" / "encoder.safetensors"
        end = time.monotonic() + 120
        while not begun.exists() or not begun.stat().st_size:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.001)
    finally:
        child.kill()
        child.wait()
    finished = [path.name for path in steps(tmp_path)]
    assert finished[0] == "step_00000001"
    found = newest(tmp_path, "run")
    assert found is not None and step_name(found.step) == finished[-1]
    CheckpointWriter(tmp_path, "run", {}, rank=0, world_size=1, resumed=found.step)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert torch.equal(found.encoder()["weight/a"], torch.ones(16_000_000))


def test_hashes_written_are_those_of_the_files(tmp_path):
    """Of all kinds of tensors: halves, counters, without values, without axes, in any memory."""
    encoder = {
        "weight/a": torch.randn(7, 5).T,
        "weight/b": torch.randn(3, 3).bfloat16(),
        "weight/c": torch.zeros(0, 4),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
    }
    writer = CheckpointWriter(tmp_path, "run", {}, rank=0, world_size=1)
    writer.save(Snapshot(1, 0, {"weight": torch.randn(6, 4)[::2]}, {}, encoder, 64))
    writer.wait()
    folder = tmp_path / step_name(1)
    for name, digest in json.loads((folder / "complete.json").read_text())["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    plain = {name: tensor.contiguous() for name, tensor in sorted(encoder.items())}
    assert (folder / "encoder.safetensors").read_bytes() == save(plain)


def test_another_runs_checkpoint_is_not_taken(tmp_path):
    write(tmp_path, [10])
    assert newest(tmp_path, "another run") is None
    with pytest.raises(UserError, match="another config"):
        Checkpoint(tmp_path / "step_00000010", "another run")
    assert newest(tmp_path / "nowhere", "run") is None


def test_equal_states_give_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, [10])
    for path in (tmp_path / "a" / "step_00000010").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "step_00000010" / path.name).read_bytes()
    record = json.loads((tmp_path / "a" / "step_00000010" / "complete.json").read_text())
    assert len(record["files"]) == 4


def test_an_error_in_writing_reaches_the_training_loop(tmp_path):
    writer = CheckpointWriter(tmp_path / "c", "run", {}, rank=0, world_size=1, keep=1, resumed=0)
    (tmp_path / "c").rmdir()
    writer.save(snapshot(10, 1, 0))
    with pytest.raises(FileNotFoundError):
        writer.wait()


class _Counting:
    """safe_open that counts the bytes of what is taken out."""

    taken = 0

    def __init__(self, *arguments):
        self._file = safe_open(*arguments)

    def __enter__(self):
        self._inner = self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def keys(self):
        return self._inner.keys()

    def get_tensor(self, name):
        return self._count(self._inner.get_tensor(name))

    def get_slice(self, name):
        part = self._inner.get_slice(name)
        return type("Slice", (), {"__getitem__": lambda _, key: self._count(part[key])})()

    def _count(self, tensor):
        _Counting.taken += tensor.nbytes
        return tensor


def test_a_rank_reads_its_own_rows_alone(tmp_path, monkeypatch):
    """64 ranks wrote, 80 read: together the rows once, and of every piece the few buffers."""
    write(tmp_path, [1], 64)
    checkpoint = Checkpoint(tmp_path / "step_00000001")
    monkeypatch.setattr(checkpoints, "safe_open", _Counting)
    monkeypatch.setattr(_Counting, "taken", 0)
    for rank in range(80):
        checkpoint.rows(*bounds(80, rank))
    assert _Counting.taken == sum(rows.nbytes for rows in ROWS.values())
    _Counting.taken = 0
    found = checkpoint.buffers(0, 80)
    assert _Counting.taken == 64 * sum(value.nbytes for value in found.values())
