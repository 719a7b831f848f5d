"""Data sets and models that are not as they should be: one line, or the same scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from helpers.evaluate_runs import evaluate
from helpers.scene_sets import write_scenes
from mlcd.config import Evaluate
from mlcd.models import trainable
from mlcd.stages.evaluate import feature_models
from mlcd.stages.evaluate.dense import pointing, regions, segmentation, store
from mlcd.stages.evaluate.dense.encode import DenseModel
from mlcd.utils.errors import UserError

TASKS = ("segmentation", "regions", "pointing", "token_spread")


@pytest.fixture
def place(tmp_path):
    torch.set_num_threads(1)
    write_scenes(tmp_path / "shapes", 16)
    trainable.save(trainable.build("mlcd_vit_tiny_patch8", 16, 24, seed=4), tmp_path / "train", {})
    return tmp_path


def section_of(place, tasks=TASKS, **keys) -> Evaluate:
    dataset = {"name": "shapes", "path": str(place / "shapes"), "tasks": list(tasks)}
    values = {"datasets": [dataset], "region_k": 3, "region_min_visible": 0, "models": "random",
              "segmentation_steps": 20}  # fmt: skip
    return Evaluate.model_validate(values | keys)


def stored(place, section, name="state") -> store.Store:
    loaded = feature_models.load("random", section, place / "train", "", torch.device("cpu"))
    (place / name).mkdir()
    (chosen,) = section.datasets
    of_objects = bool({"regions", "pointing"} & set(chosen.tasks))
    store.write(section, chosen, DenseModel(loaded, torch.device("cpu")), place / name,
                regions=of_objects, batch_size=8, workers=1)  # fmt: skip
    return store.Store(section, chosen, place / name)


def scores(section, kept) -> dict:
    objects = regions.Regions(section, kept, "random")
    found = segmentation.judge(section, kept, torch.device("cpu"))["scores"]
    found |= regions.judge(section, kept, objects, torch.device("cpu"))["scores"]
    return found | pointing.judge(kept, objects)["scores"] | pointing.spread(kept)["scores"]


def change_objects(place, change) -> None:
    path = place / "shapes" / "objects.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_a_box_beyond_the_edge_is_that_up_to_the_edge(place):
    """Pillow would fill what lies beyond with black, in as much memory as the box is large."""
    section = section_of(place)
    expected = scores(section, stored(place, section))

    def beyond(rows):
        for row in rows:
            for side, edge, far in (("x0", 0, -3e4), ("y0", 0, -1e5), ("x1", 48, 1e5),
                                    ("y1", 48, 48.5)):  # fmt: skip
                row[side] = far if row[side] == edge else row[side]

    change_objects(place, beyond)
    assert scores(section, stored(place, section, "again")) == expected


@pytest.mark.parametrize("box", [(-50.0, -50.0, -10.0, -10.0), (60.0, 0.0, 90.0, 9.0)])
def test_a_box_outside_of_its_image_is_told(place, box):
    def outside(rows):
        rows[2].update(zip(("x0", "y0", "x1", "y1"), box, strict=True))

    change_objects(place, outside)
    with pytest.raises(UserError, match=r"0000\d: box .* lies outside of its image, 48 × 48"):
        stored(place, section_of(place))
    # Where nobody asks for boxes they do not matter.
    stored(place, section_of(place, ["segmentation"]), "masks")


def test_features_that_are_not_finite_are_told(place, monkeypatch):
    maps = DenseModel._maps

    def broken(self, batch):
        found = maps(self, batch)
        found[0, 0, 0, 0] = np.nan
        return found

    monkeypatch.setattr(DenseModel, "_maps", broken)
    with pytest.raises(UserError, match="on shapes: features that are not finite"):
        stored(place, section_of(place))


def test_pixels_that_a_header_turns_are_told(place):
    path = place / "shapes" / "images" / "00003.png"
    with Image.open(path) as image:
        about = Image.Exif()
        about[0x0112] = 3
        image.save(path, exif=about)
    with pytest.raises(UserError, match="00003: its header asks to turn its pixels"):
        stored(place, section_of(place))


def test_masks_in_which_no_pixel_counts_are_no_masks(place):
    for number in range(0, 16, 4):
        Image.new("L", (48, 48), 255).save(place / "shapes" / "masks" / f"{number:05d}.png")
    section = section_of(place)
    with pytest.raises(UserError, match="has no test image with a mask in which a pixel counts"):
        segmentation.judge(section, stored(place, section), torch.device("cpu"))


def test_spread_needs_test_images_and_looks_at_no_others(place, capsys):
    section = section_of(place, ["token_spread"])
    kept = stored(place, section)
    assert kept.counts() == {"train": 0, "validation": 0, "test": 4, "failed": {}}
    whole = pointing.spread(stored(place, section_of(place), "whole"))
    assert pointing.spread(kept) == whole
    rows = [{"image": f"{number:05d}", "split": "train"} for number in range(16)]
    pq.write_table(pa.Table.from_pylist(rows), place / "shapes" / "split.parquet")
    options = ("--part", "dense", "--model", "random", "--dataset", "shapes", "--device", "cpu",
               "--encoder", place / "train", "--output", place / "x.json")  # fmt: skip
    assert evaluate(*options, "--config", section.to_json()) == 2
    assert "no test images" in capsys.readouterr().err
    with pytest.raises(UserError, match="shapes has no test image"):
        pointing.spread(stored(place, section_of(place), "train only"))


def test_failed_images_are_told_by_name_and_reason(place):
    (place / "shapes" / "images" / "00005.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 16 images failed \(not_an_image 1\), the first 0"):
        stored(place, section_of(place, max_failed=0.0))


def test_scores_depend_on_neither_parts_nor_how_many_files_may_be_open(place, monkeypatch):
    section = section_of(place)
    expected = scores(section, stored(place, section))
    monkeypatch.setattr(store, "_OPEN", 2)
    monkeypatch.setattr(store, "PART", 5)
    assert scores(section, stored(place, section, "by count")) == expected
    # A part ends with the mask that passes the limit.
    monkeypatch.setattr(store, "_MASKS", 3 * 48 * 48)
    kept = stored(place, section, "by masks")
    assert len(list((place / "by masks").glob("*.h5"))) == 4
    assert scores(section, kept) == expected
    mapped = Path("/proc/self/maps").read_text().splitlines()
    assert 0 < sum("by masks" in line for line in mapped) <= 2


def test_classes_a_few_at_a_time_say_the_same(monkeypatch):
    logits = torch.randn(11, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = segmentation.largest(logits, 30, 50)
    wide = torch.nn.functional.interpolate(logits[None], (30, 50), mode="bilinear")
    np.testing.assert_array_equal(whole, wide.argmax(1)[0].numpy())
    truth = np.random.default_rng(0).integers(0, 256, (30, 50)).clip(0, 11).astype(np.uint8)
    counted = segmentation.confusion(truth, whole, 12)
    for at_once in (1, 1500, 4000):
        monkeypatch.setattr(segmentation, "_AT_ONCE", at_once)
        np.testing.assert_array_equal(segmentation.largest(logits, 30, 50), whole)
        np.testing.assert_array_equal(segmentation.confusion(truth, whole, 12), counted)


def test_a_fit_that_diverges_is_told(place):
    section = section_of(place, segmentation_lr=10.0, segmentation_weight_decay=1e30)
    with pytest.raises(UserError, match=r"the fit is not finite; lower evaluate.segmentation_lr"):
        segmentation.judge(section, stored(place, section), torch.device("cpu"))
