"""Which images and objects the dense tasks learn from, choose by and are judged on."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.scene_sets import write_scenes
from mlcd.config import Evaluate
from mlcd.models import trainable
from mlcd.stages.evaluate import chosen, feature_models
from mlcd.stages.evaluate.dense import pointing, regions, store
from mlcd.stages.evaluate.dense.encode import DenseModel

IMAGES = 16


@pytest.fixture
def place(tmp_path):
    torch.set_num_threads(1)
    write_scenes(tmp_path / "shapes", IMAGES)
    trainable.save(trainable.build("mlcd_vit_tiny_patch8", 16, 24, seed=4), tmp_path / "train", {})
    return tmp_path


def splits(place, **by_name: range) -> None:
    """Say which images are of which split; the others are train."""
    rows = []
    for number in range(IMAGES):
        split = next((name for name, those in by_name.items() if number in those), "train")
        rows.append({"image": f"{number:05d}", "split": split})
    pq.write_table(pa.Table.from_pylist(rows), place / "shapes" / "split.parquet")


def without_truth(place, numbers: range) -> None:
    """Take masks and objects of some images away, as test images often come."""
    folder = place / "shapes"
    gone = {f"{number:05d}" for number in numbers}
    for stem in gone:
        (folder / "masks" / f"{stem}.png").unlink()
    rows = pq.read_table(folder / "objects.parquet").to_pylist()
    kept = [row for row in rows if row["image"] not in gone]
    pq.write_table(pa.Table.from_pylist(kept), folder / "objects.parquet")


def stored(place, **keys) -> tuple[Evaluate, store.Store]:
    dataset = {"name": "shapes", "path": str(place / "shapes"), "tasks": ["regions"]}
    section = Evaluate.model_validate(
        {"datasets": [dataset], "models": ["random"], "region_min_visible": 0, "region_k": 3} | keys
    )
    loaded = feature_models.load("random", section, place / "train", "", torch.device("cpu"))
    model = DenseModel(loaded, torch.device("cpu"))
    folder = place / "state"
    folder.mkdir()
    store.write(section, section.datasets[0], model, folder, regions=True, batch_size=8, workers=1)
    return section, store.Store(section, section.datasets[0], folder)


def test_validation_judges_where_test_images_have_neither_masks_nor_objects(place):
    """VOC's test.txt names images whose truth is not public."""
    splits(place, validation=range(8, 12), test=range(12, 16))
    without_truth(place, range(12, 16))
    _, kept = stored(place)
    assert kept.on("train").tolist() == list(range(8))
    assert kept.on("test").tolist() == list(range(8, 12))
    assert kept.counts() == {"train": 8, "validation": 0, "test": 4, "failed": {}}


def test_test_images_judge_where_some_of_them_are_known(place):
    splits(place, validation=range(8, 12), test=range(12, 16))
    without_truth(place, range(12, 15))
    _, kept = stored(place)
    assert kept.on("train").tolist() == list(range(12))
    assert kept.on("test").tolist() == list(range(12, 16))


def test_c_is_chosen_on_the_own_validation_split_and_regions_are_pooled_once(place, monkeypatch):
    splits(place, validation=range(6, 12), test=range(12, 16))
    section, kept = stored(place)
    objects = regions.Regions(section, kept, "random")
    seen, pooled = [], []
    fitted, mean = chosen.fitted_probe, regions.pooled

    def fit(section, data, rows, targets, held, scorer):
        seen.append(kept.split[kept.row[objects.train]][held].tolist())
        return fitted(section, data, rows, targets, held, scorer)

    monkeypatch.setattr(regions, "fitted_probe", fit)
    monkeypatch.setattr(regions, "pooled", lambda store: pooled.append(1) or mean(store))
    regions.judge(section, kept, objects, torch.device("cpu"))
    pointing.judge(kept, objects)
    assert pooled == [1]
    of_validation = (kept.split[kept.row[objects.train]] == "validation").sum()
    assert len(seen) == 3
    for held in seen:
        assert set(held) == {"validation"}
        assert len(held) == of_validation > 0


def test_without_a_validation_split_a_share_of_train_chooses_c(place):
    splits(place, test=range(12, 16))
    section, kept = stored(place, validation_share=0.5)
    objects = regions.Regions(section, kept, "random")
    targets = objects.label[objects.train]
    held = chosen.held_out(section, objects, objects.is_train, targets)
    images = kept.row[objects.train]
    assert 0 < held.sum() < len(held)
    assert not set(images[held].tolist()) & set(images[~held].tolist())
