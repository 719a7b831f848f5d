"""The study of regions trains and scores both arms in the real workflow, and needs only its table.

make test-long TESTS=tests/long/test_regions_study.py
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import yaml

from helpers.benchmark_scripts import regions_rows, regions_study
from helpers.checkout import Checkout
from helpers.grounds import noise_grounds
from mlcd.config import load

pytestmark = [pytest.mark.workflow, pytest.mark.long, pytest.mark.timeout(900)]

SMALL = {
    "prepare": {"chunk_rows": 200, "caption_column": None, "hash_column": None},
    "embed": {"image_size": 64},
    "cluster": {"k": 12, "iterations": 3},
    "label": {"top": 4},
    "train": {"image_size": 64, "embedding_dim": 32, "epochs": 1, "batch_size": 16},
}


def test_both_arms_are_made_in_the_workflow_and_not_again(tmp_path, monkeypatch) -> None:
    folder = Checkout(tmp_path / "checkout").folder
    grounds = noise_grounds(tmp_path / "grounds")
    values = yaml.safe_load(regions_study.CONFIG.read_text())
    for name, keys in SMALL.items():
        values[name] = {**values[name], **keys}
    values["evaluate"]["datasets"][0]["min_tag_count"] = 5
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(regions_study, "CONFIG", small)
    scenes = {"objects": (2, 3), "size": (64,), "train": (160,), "test": (40,)}
    monkeypatch.setattr(regions_study, "SCENES", scenes)
    monkeypatch.setattr(regions_study, "_LOOK", 0.5)
    table = tmp_path / "regions.csv"
    study = regions_study.Study(load(small), folder / "results", 0, (0,), table)
    setting = regions_study.setting_of(small, 0)
    options = SimpleNamespace(limit=None, until=None, grounds=grounds, cores=2)
    plain, mosaic = regions_study.run(study, options, setting)
    assert (plain.arm, mosaic.arm) == ("plain", "mosaic")
    assert set(mosaic.scores) == set(regions_rows.METRICS)
    assert set(mosaic.scores) - set(plain.scores) == {"region_knn_layer", "region_probe_layer"}
    assert mosaic.scores["region_probe_layer"] > 0
    trained = study.output(regions_study.Job("mosaic", 0)).parents[1] / "train"
    assert (trained / "regions.safetensors").exists() and (trained / "encoder.json").exists()
    # Another machine: nothing is there but the table.
    shutil.rmtree(folder / "results")
    assert regions_study.run(study, options, setting) == [plain, mosaic]
    assert not (folder / "results").exists()
