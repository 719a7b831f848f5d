"""The study of scenes trains and scores cells in the real workflow, and needs only its table.

make test-long TESTS=tests/long/test_scenes_study.py
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import yaml

from helpers.benchmark_scripts import scenes_rows, scenes_study
from helpers.checkout import Checkout
from helpers.grounds import noise_grounds
from mlcd.config import load

pytestmark = [pytest.mark.workflow, pytest.mark.long, pytest.mark.timeout(900)]

SMALL = {
    "prepare": {"chunk_rows": 100, "caption_column": None, "hash_column": None},
    "embed": {"image_size": 64},
    "cluster": {"k": 12, "iterations": 3},
    "label": {"top": 8},
    "train": {"image_size": 32, "embedding_dim": 32, "epochs": 1, "batch_size": 16},
}


def test_cells_are_made_in_the_workflow_and_not_again(tmp_path, monkeypatch) -> None:
    folder = Checkout(tmp_path / "checkout").folder
    grounds = noise_grounds(tmp_path / "grounds")
    values = yaml.safe_load(scenes_study.CONFIG.read_text())
    for name, keys in SMALL.items():
        values[name] = {**values[name], **keys}
    values["evaluate"]["datasets"][0]["min_tag_count"] = 5
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(scenes_study, "CONFIG", small)
    monkeypatch.setattr(scenes_study, "SCENES", {"train": 160, "test": 60})
    monkeypatch.setattr(scenes_study, "_LOOK", 0.5)
    table = tmp_path / "scenes.csv"
    study = scenes_study.Study(load(small), folder / "results", 0, (0,), table)
    setting = scenes_study.setting_of(small, 0)
    options = SimpleNamespace(limit=1, until=None, grounds=grounds, cores=2)
    scenes_study.run(study, options, setting, scenes_study.batches(study))
    first = table.read_text().splitlines()
    assert len(first) == 2 and first[1].startswith("1,mlcd-l8-r0.1-k12,0,")
    # Another machine: nothing is there but the table.
    shutil.rmtree(folder / "results")
    scenes_study.run(study, options, setting, scenes_study.batches(study))
    assert table.read_text().splitlines()[:2] == first
    assert [row.name for row in scenes_rows.read_rows(table, setting)] == [
        "mlcd-l8-r0.1-k12", "mlcd-l1-r0.1-k12",
    ]  # fmt: skip
    assert not (folder / "results/objects-1/ablate/mlcd-l8-r0.1-k12").exists()
