"""The store of checkpoints: atomic, verified, and readable at any number of ranks."""

import json
import logging
import threading
import time

import pytest
import torch

import mlcd.files
from mlcd.cli import main
from mlcd.config.train import Train
from mlcd.encoders import trainable
from mlcd.errors import UserError
from mlcd.progress import LOGGER
from mlcd.stores.checkpoints import Checkpoint, Snapshot, Writer, newest, steps

ROWS = {
    "weight": torch.arange(50 * 4, dtype=torch.float32).view(50, 4),
    "row_step": torch.arange(50),
}


def bounds(world_size, rank):
    return 50 * rank // world_size, 50 * (rank + 1) // world_size


def snapshot(step, world_size, rank):
    start, stop = bounds(world_size, rank)
    return Snapshot(
        step,
        start,
        {name: (rows[start:stop] + step).clone() for name, rows in ROWS.items()},
        {"mean": torch.full((3,), float(rank)), "count": torch.tensor(7)},
        {"weight/a": torch.ones(2, 3), "exp_avg/a": torch.zeros(2, 3)} if rank == 0 else None,
        64,
    )


def write(folder, saved, world_size=3, *, keep=9, resumed=0):
    """Write checkpoints as `world_size` ranks (threads here) do."""
    writers = [
        Writer(
            folder, "run", {"seed": 5}, rank=rank, world_size=world_size, keep=keep, resumed=resumed
        )
        for rank in range(world_size)
    ]
    for step in saved:
        threads = [
            threading.Thread(target=writer.save, args=(snapshot(step, world_size, rank),))
            for rank, writer in enumerate(writers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for writer in writers:
            writer.wait()


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
    # A run that goes on from step 10 writes step 20 anew.
    write(tmp_path, [20], resumed=10)
    assert newest(tmp_path, "run").step == 20


def test_a_slow_rank_does_not_look_for_the_folder_once_it_is_renamed(tmp_path, monkeypatch):
    """Rank 0 renames it as soon as the others have spoken."""

    def slow(folder, sync=mlcd.files.fsync_directory):
        if not (folder / "complete.json").exists():  # rank 0, which ends the checkpoint, is fast
            time.sleep(0.3)
        sync(folder)

    monkeypatch.setattr(mlcd.files, "fsync_directory", slow)
    write(tmp_path, [10, 20], 3)
    assert newest(tmp_path, "run").step == 20


def test_what_a_killed_run_left_is_not_seen_and_is_cleared(tmp_path):
    write(tmp_path, [10])
    (tmp_path / ".step_00000020").mkdir()
    (tmp_path / ".step_00000020" / "1.json").write_text("{}")
    assert newest(tmp_path, "run").step == 10
    write(tmp_path, [20], resumed=10)
    assert newest(tmp_path, "run").step == 20 and not list(tmp_path.glob(".step*"))


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
    writer = Writer(tmp_path / "c", "run", {}, rank=0, world_size=1, keep=1, resumed=0)
    (tmp_path / "c").rmdir()
    writer.save(snapshot(10, 1, 0))
    with pytest.raises(FileNotFoundError):
        writer.wait()


def command(*words):
    """Run `mlcd checkpoint …` as the shell does; return its exit code."""
    return main(["checkpoint", *(str(word) for word in words)])


def test_command_inspect(tmp_path, capsys):
    write(tmp_path, [10, 20], 3)
    assert command("inspect", tmp_path) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["checkpoint"], told["step"], told["ranks"]) == ("step_00000020", 20, 3)
    assert told["rows_by_rank"] == [[0, 16], [16, 33], [33, 50]]
    assert (told["section"], told["image_size"]) == ({"seed": 5}, 64)
    assert told["tensors"]["rows/weight"] == "float32 [50, 4]"
    assert told["tensors"]["weight/a"] == "float32 [2, 3]"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (3, 2), (3, 3)])
def test_command_reshard_equals_what_those_ranks_write(tmp_path, capsys, before, after):
    write(tmp_path / "old", [5, 10], before)
    write(tmp_path / "expected", [10], after)
    words = ("reshard", tmp_path / "old", "--ranks", after, "--output", tmp_path / "new")
    assert command(*words) == 0
    made = newest(tmp_path / "new", "run")
    expected = Checkpoint(tmp_path / "expected" / "step_00000010")
    assert made.pieces == expected.pieces and len(made.pieces) == after
    assert (made.step, made.image_size, made.section) == (10, 64, {"seed": 5})
    for name in ("weight", "row_step"):
        assert torch.equal(made.rows(0, 50)[name], expected.rows(0, 50)[name])
    for name, tensor in expected.encoder().items():
        assert torch.equal(made.encoder()[name], tensor)
    for rank in range(after):
        mean = [float(rank)] if before == after else [(before - 1) / 2]
        assert made.buffers(rank, after)["mean"].tolist() == mean * 3
    assert command(*words) == 2 and "is there already" in capsys.readouterr().err
    if before == after:
        for path in (tmp_path / "old" / "step_00000010").iterdir():
            assert path.read_bytes() == (made.path / path.name).read_bytes()


@pytest.mark.parametrize("image_size", [32, 48])
def test_command_export_writes_the_encoder_of_its_phase(tmp_path, image_size):
    """In the middle of training, from two ranks whose running statistics differ."""
    section = Train(model="test_resnet", embedding_dim=8, image_size=32, high_res_image_size=48)
    encoder = trainable.build("test_resnet", 8, image_size, seed=3)
    weights = {f"weight/{name}": weight.data for name, weight in encoder.named_parameters()}
    buffers = dict(encoder.named_buffers())
    folder, recorded = tmp_path / "checkpoints", section.model_dump(mode="json")
    writers = [Writer(folder, "run", recorded, rank=rank, world_size=2) for rank in range(2)]
    for rank, writer in enumerate(writers):
        start, stop = bounds(2, rank)
        found = {
            name: value + rank if value.is_floating_point() else value
            for name, value in buffers.items()
        }
        rows = {"weight": ROWS["weight"][start:stop]}
        writer.save(Snapshot(10, start, rows, found, weights if rank == 0 else None, image_size))
    for writer in writers:
        writer.wait()
    assert command("export", folder / "step_00000010", "--output", tmp_path / "out") == 0
    again = trainable.load(tmp_path / "out")
    assert again.image_size == image_size
    assert trainable.read_description(tmp_path / "out")["steps"] == 10
    for name, weight in encoder.named_parameters():
        assert torch.equal(again.get_parameter(name), weight)
    for name, value in buffers.items():
        shift = 0.5 if value.is_floating_point() else 0
        torch.testing.assert_close(again.get_buffer(name), value + shift)


def test_command_refuses_what_it_cannot_do(tmp_path, capsys):
    assert command("inspect", tmp_path) == 2
    assert "holds no whole checkpoint" in capsys.readouterr().err
    write(tmp_path, [10], 2)
    assert command("reshard", tmp_path, "--ranks", 0, "--output", tmp_path / "new") == 2
    assert "--ranks: expected" in capsys.readouterr().err
