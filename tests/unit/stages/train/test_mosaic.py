"""Trainings with tiles of canvases beside whole images: batches, ranks, stages, resume, files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from helpers.exports import export
from helpers.open_clip_tiny import register
from helpers.train_runs import (
    CHECKED,
    STAGES,
    TWO,
    checkpoint_of,
    lines,
    losses,
    norms,
    planned,
    train,
    without_timing,
)
from helpers.train_stores import CLASSES, mlcd_train, stores
from mlcd.cli import main
from mlcd.commands.audit.nodes import collect
from mlcd.commands.checkpoint import export_encoder
from mlcd.config.mosaic import mosaic_of
from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint
from mlcd.launch.api import run_gang
from mlcd.models import region_layer, trainable
from mlcd.stages.train import fit, inputs
from mlcd.stages.train.images import Steps
from mlcd.training.crops import Augment
from mlcd.training.memory import need
from mlcd.training.read_ahead import batches
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, sha256_file

#: Groups of one canvas and four whole images; two micro-batches of a group for each of two ranks.
MOSAIC = {"regions": "mosaic", "batch_size": 32, "epochs": 2, "center_init": "random"}
TINY = {"model": "open_clip:tiny-for-tests"}
CNN = {"model": "test_resnet", "image_size": 64, "drop_path": 0.2}
FILES = ("encoder.safetensors", "regions.safetensors", "encoder.json")


def train_and_resume(runs, pairs):
    """Train `runs`, then of each pair the second from the checkpoint of the first after 2 steps."""
    from mlcd.launch.process_group import process_group

    register()
    with process_group("cpu") as place:
        for run in runs:
            train(run, place)
        for whole, again in pairs:
            if place.is_main:
                shutil.copytree(checkpoint_of(whole, 2), checkpoint_of(again, 2))
            dist.barrier()
            train(again, place)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("runs")

    def one(name, options=None, **section):
        return planned(paths, root / name, options=options, **{**MOSAIC, **section})

    high = {"model": "mlcd_vit_tiny_patch8", "high_res_image_size": 48, "layer_decay": 0.8,
            "freeze_layers": 1}  # fmt: skip
    made = {
        **{f"stage {stage}": one(f"s{stage}", CHECKED, zero_stage=stage) for stage in STAGES},
        **{f"tiny, stage {stage}": one(f"t{stage}", zero_stage=stage, **TINY) for stage in (0, 3)},
        "tiny, activations": one("ta", zero_stage=3, activation_checkpointing=True, **TINY),
        "accumulated": one("acc", {"micro_batch": 8}),
        "workers": one("workers", {"workers": 2}),
        "plain": one("plain", regions=None),
        "cnn": one("cnn", CHECKED, **CNN),
        "high": one("high", CHECKED, **high),
        "bf16": one("bf16", precision="bf16", zero_stage=3),
    }
    again = {"stage 3": one("again3", CHECKED, zero_stage=3), "cnn": one("cnna", CHECKED, **CNN),
             "high": one("higha", CHECKED, **high)}  # fmt: skip
    pairs = [(made[name], run) for name, run in again.items()]
    run_gang(train_and_resume, {"runs": list(made.values()), "pairs": pairs}, root, TWO)
    return {**made, **{f"{name} again": run for name, run in again.items()}}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_alike(runs, stage):
    assert len(losses(runs["stage 0"])) == 4
    assert losses(runs[f"stage {stage}"]) == pytest.approx(losses(runs["stage 0"]), rel=1e-5)
    assert norms(runs[f"stage {stage}"]) == pytest.approx(norms(runs["stage 0"]), rel=1e-3)


@pytest.mark.parametrize("name", ["tiny, stage 3", "tiny, activations"])
def test_towers_of_open_clip_train_alike_when_divided(runs, name):
    assert losses(runs[name]) == pytest.approx(losses(runs["tiny, stage 0"]), rel=1e-5)
    assert norms(runs[name]) == pytest.approx(norms(runs["tiny, stage 0"]), rel=1e-3)


def test_micro_batches_and_workers_change_no_row(runs):
    assert losses(runs["workers"]) == losses(runs["stage 1"])
    # The negatives are drawn once per step, and the loss is a mean over rows.
    assert losses(runs["accumulated"]) == pytest.approx(losses(runs["stage 1"]), rel=1e-5)


def test_bf16_trains_and_is_near(runs):
    assert losses(runs["bf16"]) == pytest.approx(losses(runs["stage 3"]), rel=0.05)


@pytest.mark.parametrize("name", ["stage 3", "cnn", "high"])
def test_a_resumed_run_ends_with_the_same_bytes(runs, name):
    whole, again = runs[name], runs[f"{name} again"]
    assert without_timing(lines(again)) == without_timing(lines(whole))[2:]
    for file in FILES:
        assert Path(again["output"], file).read_bytes() == Path(whole["output"], file).read_bytes()


def test_the_files_of_the_encoder_are_as_ever_and_the_layer_lies_beside(runs, tmp_path):
    run = runs["stage 1"]
    output = Path(run["output"])
    about = read_json(output / "encoder.json")
    plain = load_file(Path(runs["plain"]["output"], "encoder.safetensors"))
    weights = load_file(output / "encoder.safetensors")
    assert weights.keys() == plain.keys() and about["section"]["regions"] == "mosaic"
    assert "regions" not in read_json(Path(runs["plain"]["output"], "encoder.json"))
    assert not Path(runs["plain"]["output"], "regions.safetensors").exists()
    assert about["regions"] == {
        "file": "regions.safetensors", "sha256": sha256_file(output / "regions.safetensors"),
        "width": 64, "embedding_dim": 16,
    }  # fmt: skip
    last = load_file(checkpoint_of(run, 4) / "encoder.safetensors")
    layer = region_layer.load(output)
    for name, weight in layer.named_parameters():
        assert torch.equal(weight, last[f"weight/regions.{name}"])
        assert last[f"exp_avg_sq/regions.{name}"].max() > 0, "it has learned"
    with torch.no_grad():
        assert trainable.load(output)(torch.zeros(1, 3, 32, 32)).shape == (1, 16)
    # A checkpoint alone has it too, and so has an export.
    export_encoder(Checkpoint(checkpoint_of(run, 4)), tmp_path / "out")
    export(output, tmp_path / "export", "timm")
    for folder in (tmp_path / "out", tmp_path / "export" / "timm"):
        again = region_layer.load(folder)
        assert torch.equal(again.query.weight, layer.query.weight)
    assert (
        "| Region layer | `regions.safetensors`"
        in (tmp_path / "export" / "timm" / "README.md").read_text()
    )
    # An encoder without one takes its place.
    export(Path(runs["plain"]["output"]), tmp_path / "export", "timm")
    assert not list((tmp_path / "export" / "timm").glob("regions.*"))


def test_layers_that_stand_still_do_so_and_the_region_layer_does_not(runs):
    run = runs["high"]
    first, last = (load_file(checkpoint_of(run, step) / "encoder.safetensors") for step in (1, 5))
    still = "weight/trunk.patches.weight"
    assert torch.equal(first[still], last[still])
    for name in ("weight/trunk.blocks.0.qkv.weight", "weight/regions.query.weight"):
        assert not torch.equal(first[name], last[name])
    assert read_json(Path(run["output"], "encoder.json"))["image_size"] == 48


def test_what_is_lost_or_not_ours_is_seen(paths, tmp_path):
    words = ["--model", "test_vit", "--image-size", "32", "--embedding-dim", "16", "--epochs", "1",
             "--regions", "mosaic", "--batch-size", "32", "--ranks-per-node", "1"]  # fmt: skip
    output, log = tmp_path / "train", tmp_path / "log"
    output.mkdir()
    layer = output / "regions.safetensors"
    layer.write_bytes(b"somebody's")
    assert mlcd_train(paths, output, *words, log=log).wait(100) == 2
    assert "regions.safetensors: is there and was not written by mlcd" in log.read_text()
    layer.unlink()
    assert mlcd_train(paths, output, *words, log=log).wait(200) == 0, log.read_text()
    whole = [(output / name).read_bytes() for name in FILES]
    for damage in (layer.unlink, lambda: layer.write_bytes(whole[1][:-1] + b"?")):
        damage()
        assert mlcd_train(paths, output, *words, log=log).wait(200) == 0, log.read_text()
        assert [(output / name).read_bytes() for name in FILES] == whole
    nodes, problems, others = collect(tmp_path)
    assert not problems and not [name for name in others if "regions" in name]
    assert nodes["train/regions.safetensors"].hash == sha256_file(layer)
    assert sha256_file(layer) in nodes["train/encoder.json"].inputs
    # A later run without regions leaves none behind.
    plain = [word for word in words if word not in ("--regions", "mosaic")]
    assert mlcd_train(paths, output, *plain, log=log).wait(200) == 0, log.read_text()
    assert not layer.exists() and region_layer.load(output) is None


# ------------------------------------------------------------------------------- batches


def steps(folder, *, rank=0, world_size=1, micro_batches=1, side=24, mosaic=None, batch=16):
    index = inputs.Index(folder)
    order = Order(index.counts, batch=batch, block=4, window=16, seed=0)
    return Steps(
        index, order, Augment(side, 0.5, True, 0), rank=rank, world_size=world_size,
        micro_batches=micro_batches, mosaic=mosaic,
    )  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("index")
    checked = inputs.check(
        paths["labels"], paths["embeddings"], paths["images"], paths["centroids"]
    )
    inputs.build_index(checked, folder)
    return folder


@pytest.mark.parametrize(("grid", "share", "batch"), [(2, 0.5, 16), (3, 0.9, 20), (2, 0.25, 32)])
def test_a_batch_is_what_a_plain_composition_gives(index, grid, share, batch):
    """Each tile by itself is the crop that a training at a tile's size would see of the image."""
    mosaic = mosaic_of(grid, share)
    found = steps(index, mosaic=mosaic, batch=batch, side=24)[1]
    whole, small = (steps(index, batch=batch, side=side)[1] for side in (24, 24 // grid))
    images, labels, owners, boxes = [], [], [], []
    for group in range(batch // mosaic.rows):
        start = group * mosaic.rows
        for row in range(start, start + mosaic.whole):
            images.append(whole.images[row])
            labels.append(whole.labels[row])
    count = len(images)
    for group in range(batch // mosaic.rows):
        row = group * mosaic.rows + mosaic.whole
        for _ in range(mosaic.canvases):
            canvas = torch.zeros(3, 24, 24, dtype=torch.uint8)
            for y in range(grid):
                for x in range(grid):
                    size = 24 // grid
                    area = slice(y * size, (y + 1) * size), slice(x * size, (x + 1) * size)
                    canvas[:, *area] = small.images[row]
                    labels.append(whole.labels[row])
                    owners.append(len(images))
                    boxes.append([x / grid, y / grid, (x + 1) / grid, (y + 1) / grid])
                    row += 1
            images.append(canvas)
    assert torch.equal(found.images, torch.stack(images))
    assert torch.equal(found.labels, torch.stack(labels))
    assert found.boxes.whole == count and found.boxes.owner.tolist() == owners
    torch.testing.assert_close(found.boxes.box, torch.tensor(boxes))
    assert len(found.labels) == batch and found.boxes.box.dtype == torch.float32


def test_batches_do_not_depend_on_workers_ranks_or_micro_batches(index):
    mosaic = mosaic_of(2, 0.5)
    whole = list(batches(steps(index, mosaic=mosaic), 2, 6, workers=0, pin=False))
    for workers in (1, 2):
        ahead = batches(steps(index, mosaic=mosaic), 2, 6, workers=workers, pin=False)
        for one, other in zip(whole, ahead, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert torch.equal(one.boxes.box, other.boxes.box)
    halves = [steps(index, mosaic=mosaic, micro_batches=2)[item] for item in (4, 5)]
    ranks = [steps(index, mosaic=mosaic, rank=rank, world_size=2)[2] for rank in (0, 1)]
    for parts in (halves, ranks):
        # A group each: four whole images and a canvas of four tiles.
        assert [len(part.images) for part in parts] == [5, 5]
        assert torch.equal(torch.cat([part.images[:4] for part in parts]), whole[0].images[:8])
        assert torch.equal(torch.cat([part.images[4:] for part in parts]), whole[0].images[8:])
        assert torch.equal(torch.cat([part.labels[4:] for part in parts]), whole[0].labels[8:])


def test_only_the_files_of_the_asked_images_are_read_ahead(index, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    asked = []
    dataset = steps(index, mosaic=mosaic_of(2, 0.5), rank=1, world_size=2)
    monkeypatch.setattr(
        dataset._tars,
        "advise",
        lambda path, spans: asked.extend(end - start for start, end in spans),
    )
    dataset.advise(0, range(3, 5))
    rows = dataset._rows(0)[3:]
    assert len(rows) == 5 and sorted(asked) == sorted(dataset._index.place["size"][rows].tolist())


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("grid", "share", "expected"),
    [(2, 0.5, (4, 1)), (2, 0.25, (12, 1)), (3, 0.9, (1, 1)), (3, 0.5, (9, 1)), (2, 0.8, (1, 1)),
     (4, 1 / 3, (32, 1)), (2, 0.001, (396, 1))],
)  # fmt: skip
def test_the_least_group_has_the_share(grid, share, expected):
    found = mosaic_of(grid, share)
    assert (found.whole, found.canvases) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch-size", "12"], "batch_size 12 is no multiple of 8 (4 whole images and 1 canvas"),
        (["--mosaic-grid", "3", "--batch-size", "72"],
         "image_size 32 is no multiple of mosaic_grid 3"),
        (["--high-res-image-size", "49"], "high_res_image_size 49 is no multiple of mosaic_grid"),
        (["--high-res-image-size", "48"], "2 tiles per side do not divide the 3 × 3 places of "
         "test_vit at train.high_res_image_size: 48"),
        (["--mosaic-grid", "4", "--batch-size", "32"], "4 tiles per side do not divide the 2 × 2"),
        (["--mosaic-share", "1"], "train.mosaic_share: expected less than 1"),
        (["--regions", "mosaics"], "train.regions: expected 'mosaic'"),
    ],
)  # fmt: skip
def test_check_refuses_what_does_not_fit(words, told, capsys):
    plain = ["--model", "test_vit", "--image-size", "32", "--regions", "mosaic"]
    assert main(["train", "--check", *plain, *words]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resources": 4}, r"train.batch_size: 32 does not divide by 3 ranks|a rank's 4 images"),
        ({"micro_batch": 4}, r"--micro-batch: 4 images are no multiple of 8 .*train.mosaic_grid"),
    ],
)
def test_shares_that_are_no_whole_groups_are_refused(paths, tmp_path, options, told):
    from mlcd.launch.options import Resources

    ranks = Resources(ranks_per_node=options.pop("resources", 2))
    batch = {"batch_size": 16} if ranks.ranks == 4 else {}
    with pytest.raises(UserError, match=told):
        planned(paths, tmp_path, ranks, options, **{**MOSAIC, **batch})


def test_memory_counts_the_region_layer_and_whole_groups():
    section = Train(**{"model": "test_vit", "image_size": 32, **MOSAIC, "batch_size": 256})
    plain = section.changed(regions=None)
    found, other = fit.footprint_of(section, 32), fit.footprint_of(plain, 32)
    layer = region_layer.RegionLayer(64, section.embedding_dim)
    assert found.weights - other.weights == sum(weight.numel() for weight in layer.parameters())
    # Of five images for eight rows, and the layer's own.
    assert 0.6 * other.flop < found.flop < 0.8 * other.flop
    job = fit.job(section, ranks=2, side=32, classes=CLASSES, labels=2, memory_limit=None)
    assert job.unit == 8
    sizes = {
        size
        for memory in np.linspace(0.9, 1.5, 40)
        if (size := fit.largest(job, found, int(memory * need(job, found, 16).total)))
    }
    assert sizes and all(size % 8 == 0 for size in sizes)
