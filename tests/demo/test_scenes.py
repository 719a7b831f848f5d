"""Composed scenes: the same again, boxes that fit masks, nothing of train in test."""

from __future__ import annotations

import argparse
import io
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.paths import ROOT
from mlcd.config.labeled import Dataset
from mlcd.data.labeled.samples import samples
from mlcd.data.members import labeled_members
from mlcd.utils.errors import UserError

sys.path.insert(0, str(ROOT / "demo"))

import compose
import plain_png
import scenes

FILES = ("objects.parquet", "split.parquet", "evaluate.parquet", "train.tar", "manifest.json")


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    """Six photographs of noise, each of its own level."""
    folder = tmp_path_factory.mktemp("grounds")
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(30 * number, 30 * number + 40, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"ground-{number}.png")
    return folder


def arguments(output, grounds, **changed) -> argparse.Namespace:
    given = {
        "output": output, "grounds": grounds, "pack": scenes.PACK, "objects": [2, 4], "train": 30,
        "test": 20, "size": 64, "scale": [0.35, 0.5], "visible": 0.75, "contrast": 0.5, "seed": 7,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changed})


@pytest.fixture(scope="module")
def written(tmp_path_factory, grounds):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    scenes.write(arguments(folder, grounds))
    return folder


def test_the_same_again_after_a_kill(written, grounds, tmp_path, monkeypatch):
    again = tmp_path / "data"
    encode, left = plain_png.encode, [31]

    def dies(pixels):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(plain_png, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        scenes.write(arguments(again, grounds))
    monkeypatch.setattr(plain_png, "encode", encode)
    assert (again / "images").is_dir() and not (again / "manifest.json").exists()
    scenes.write(arguments(again, grounds))
    names = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(names) == 2 * 50 + len(FILES)
    assert all((written / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_boxes_fit_masks(written):
    objects = pq.read_table(written / "objects.parquet").to_pylist()
    whole = 0
    for row in objects:
        mask = np.asarray(Image.open(written / "masks" / f"{row['image']}.png"))
        assert mask.shape == (64, 64) and mask.dtype == np.uint8
        seen = mask == row["class_id"]
        assert scenes.CLASSES[row["class_id"] - 1] == row["class"]
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        given = tuple(row[name] for name in ("x0", "y0", "x1", "y1"))
        assert 0.75 <= row["visible"] <= 1
        assert given[0] <= box[0] and given[1] <= box[1]
        assert box[2] <= given[2] <= 64 and box[3] <= given[3] <= 64
        if row["visible"] == 1:
            whole += 1
            assert given == box
        # 22 to 32 pixels; a resized border may fall under half of its alpha.
        assert 17 <= max(given[2] - given[0], given[3] - given[1]) <= 32
    assert 0 < whole < len(objects)
    counts = {row["image"]: 0 for row in objects}
    for row in objects:
        counts[row["image"]] += 1
    assert set(counts.values()) == {2, 3, 4} and len(counts) == 50


def test_nothing_of_train_is_in_test(written):
    split = {row["image"]: row for row in pq.read_table(written / "split.parquet").to_pylist()}
    assert [row["split"] for row in split.values()] == ["train"] * 30 + ["test"] * 20
    of = {"train": set(), "test": set()}
    of_grounds = {"train": set(), "test": set()}
    for row in pq.read_table(written / "objects.parquet").to_pylist():
        of[split[row["image"]]["split"]].add(row["draw"])
        of_grounds[split[row["image"]]["split"]].add(split[row["image"]]["ground"])
    assert of["train"] and of["test"] and not of["train"] & of["test"]
    assert of_grounds["train"] and of_grounds["test"]
    assert not of_grounds["train"] & of_grounds["test"]
    # The pack's own word on each drawing: likes are in one split.
    told = {key: fields["split"] for key, _, fields in labeled_members(scenes.PACK)}
    assert all(told[key] == name for name, keys in of.items() for key in keys)
    with tarfile.open(written / "train.tar") as tar:
        assert tar.getnames() == [f"{number:05d}.png" for number in range(30)]
        data = tar.extractfile("00003.png").read()
    assert data == (written / "images" / "00003.png").read_bytes()


def test_evaluate_reads_them(written):
    dataset = Dataset(
        name="scenes", path=str(written / "evaluate.parquet"), label_field="label",
        tags_field="tags",
    )  # fmt: skip
    found = list(samples(dataset))
    assert len(found) == 50 and found[0].split == "train" and found[-1].split == "test"
    objects = pq.read_table(written / "objects.parquet").to_pylist()
    assert found[0].tags == sorted(row["class"] for row in objects if row["image"] == "00000")
    assert all(sample.label in sample.tags for sample in found)


def test_options_that_cannot_be_are_refused(written, grounds, tmp_path):
    for changed, told in (
        ({"objects": [0]}, "--objects: expected one or two of 1 to 5"),
        ({"objects": [4, 2]}, "--objects"),
        ({"scale": [0.5, 0.4]}, "--scale: objects of 32 to 25 of 64"),
        ({"visible": 0.0}, "--visible"),
        ({"contrast": 1.5}, "--contrast: expected a share of 0 to 1"),
        ({"size": 0}, "--size: expected 1 to 512"),
        ({"grounds": tmp_path / "none"}, "none: no such folder; unpack Debian's tuxpaint-data"),
        ({"objects": [5], "scale": [0.9, 1.0], "visible": 1.0}, "5 objects do not fit"),
    ):
        with pytest.raises(UserError, match=told):
            scenes.write(arguments(tmp_path / "refused", **{"grounds": grounds, **changed}))
    with pytest.raises(UserError, match="holds scenes of other options or sources"):
        scenes.write(arguments(written, grounds, seed=8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images").write_text("mine")
    with pytest.raises(UserError, match="was not written by mlcd"):
        scenes.write(arguments(tmp_path / "mine", grounds))


@pytest.mark.parametrize("shape", [(5, 7), (64, 64, 3), (200, 150, 3)])
def test_plain_pngs_are_pngs(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(plain_png.encode(pixels)))), pixels)


def test_pages_are_cut_and_holes_stay():
    levels = np.full((60, 60, 3), 255, np.uint8)
    levels[10:50, 20:50] = 100
    levels[20:30, 30:40] = 255  # white inside is not the page
    cut = compose.cut_out(Image.fromarray(levels))
    assert cut.size == (30, 40)
    assert np.asarray(cut)[:, :, 3].min() == 255
    levels[:, 20:50] = 100
    levels[:, 22:50] = 255  # 2 pixels wide: too long
    assert compose.cut_out(Image.fromarray(levels)) is None
    assert compose.cut_out(Image.new("RGB", (30, 30), "white")) is None


def test_draws_are_pythons_promise():
    draws = compose.Draws("scene 0 train 0")
    assert [draws.below(1000) for _ in range(4)] == [335, 809, 614, 362]
    assert sorted(compose.Draws("x").sample(5, 5)) == [0, 1, 2, 3, 4]
