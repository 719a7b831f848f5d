"""The store of checkpoints: atomic, verified, and readable at any number of ranks."""

import argparse
import json
import logging
import threading

import pytest
import torch

import mlcd.checkpoint
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
    parser = argparse.ArgumentParser()
    mlcd.checkpoint.add_arguments(parser)
    mlcd.checkpoint.run(parser.parse_args([str(word) for word in words]))


def test_command_inspect(tmp_path, capsys):
    write(tmp_path, [10, 20], 3)
    command("inspect", tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert (told["checkpoint"], told["step"], told["ranks"]) == ("step_00000020", 20, 3)
    assert told["rows_by_rank"] == [[0, 16], [16, 33], [33, 50]]
    assert told["section"] == {"seed": 5}
    assert told["tensors"]["rows/weight"] == "float32 [50, 4]"
    assert told["tensors"]["weight/a"] == "float32 [2, 3]"


def test_command_reshard_equals_what_those_ranks_write(tmp_path):
    write(tmp_path / "three", [10], 3)
    write(tmp_path / "two", [10], 2)
    command("reshard", tmp_path / "three", "--ranks", 2, "--output", tmp_path / "new")
    made = Checkpoint(tmp_path / "new" / "step_00000010", "run")
    expected = Checkpoint(tmp_path / "two" / "step_00000010")
    assert made.pieces == expected.pieces
    for name in ("weight", "row_step"):
        assert torch.equal(made.rows(0, 50)[name], expected.rows(0, 50)[name])
    assert made.buffers(1, 2)["mean"].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="is there already"):
        command("reshard", tmp_path / "three", "--ranks", 2, "--output", tmp_path / "new")


def test_command_refuses_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        command("inspect", tmp_path)
