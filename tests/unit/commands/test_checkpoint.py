"""`mlcd checkpoint`: inspect, reshard, export."""

import dataclasses
import errno
import json
import time

import pytest
import torch

from helpers.checkpoints import ROWS, bounds, save_all, snapshot, write
from mlcd.cli import main
from mlcd.config.train import Train
from mlcd.data import checkpoints
from mlcd.data.checkpoints import Checkpoint, CheckpointWriter, HeadRows, Snapshot, newest
from mlcd.models import trainable


def interrupt(*arguments):
    raise KeyboardInterrupt


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


def test_a_text_towers_checkpoint_has_no_classes(tmp_path, capsys):
    one = dataclasses.replace(snapshot(10, 1, 0), rows={})
    save_all(tmp_path / "text", [one])
    assert command("inspect", tmp_path / "text") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_classes"] == 0 and "rows_touched" not in told
    assert command("export", tmp_path / "text", "--output", tmp_path / "out") == 2
    assert "of a text tower; only encoders are exported" in capsys.readouterr().err


def test_a_full_disk_ends_a_reshard_at_once(tmp_path, capsys, monkeypatch):
    write(tmp_path / "old", [10], 2)
    saved = checkpoints._save

    def full(tensors, path):
        if path.name == "rank_00002.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return saved(tensors, path)

    monkeypatch.setattr(checkpoints, "_save", full)
    start = time.monotonic()
    words = ("reshard", tmp_path / "old", "--ranks", 4, "--output", tmp_path / "new")
    assert command(*words) == 2
    assert "space" in capsys.readouterr().err.lower()
    assert time.monotonic() - start < checkpoints._PATIENCE / 10


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


def test_further_heads_are_told_and_resharded(tmp_path, capsys):
    rows = {"weight": torch.arange(6.0).view(3, 2), "row_step": torch.tensor([0, 2, 1])}
    one = dataclasses.replace(snapshot(10, 1, 0), heads={"ocr": HeadRows(0, 3, rows)})
    save_all(tmp_path / "old", [one])
    assert command("inspect", tmp_path / "old") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["heads"] == {"ocr": {"num_classes": 3, "rows_touched": 2}}
    assert told["tensors"]["heads/ocr/weight"] == "float32 [3, 2]"
    words = ("--ranks", 2, "--output", tmp_path / "new")
    assert command("reshard", tmp_path / "old", *words) == 0
    made = newest(tmp_path / "new", "run")
    assert [piece["heads"] for piece in made.pieces] == [{"ocr": [0, 1]}, {"ocr": [1, 3]}]
    assert torch.equal(made.rows(0, 3, "ocr")["weight"], rows["weight"])


@pytest.mark.parametrize("image_size", [32, 48])
def test_command_export_writes_the_encoder_of_its_phase(tmp_path, image_size, monkeypatch):
    """In the middle of training, from two ranks whose running statistics differ."""
    section = Train(model="test_resnet", embedding_dim=8, image_size=32, high_res_image_size=48)
    encoder = trainable.build("test_resnet", 8, image_size, seed=3)
    weights = {f"weight/{name}": weight.data for name, weight in encoder.named_parameters()}
    buffers = dict(encoder.named_buffers())
    folder, recorded = tmp_path / "checkpoints", section.model_dump(mode="json")
    writers = [
        CheckpointWriter(folder, "run", recorded, rank=rank, world_size=2) for rank in range(2)
    ]
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
    out = tmp_path / "out"
    # The second one finds what a kill between the two files leaves.
    with monkeypatch.context() as patch:
        patch.setattr(trainable, "write_record", interrupt)
        assert command("export", folder / "step_00000010", "--output", out) != 0
    assert (out / "encoder.safetensors").exists() and not (out / "encoder.json").exists()
    assert command("export", folder / "step_00000010", "--output", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["encoder.json", "encoder.safetensors"]
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
