"""All tasks of places, tags and fine-tuning run in the real workflow on composed scenes.

make test-long TESTS=tests/long/test_scenes_tasks.py
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from helpers.checkout import Checkout
from helpers.grounds import noise_grounds
from helpers.paths import ROOT

pytestmark = [pytest.mark.workflow, pytest.mark.long, pytest.mark.timeout(900)]

DENSE = {
    "segmentation_miou", "pointing_class", "pointing_object", "token_cosine",
    *(f"region_{how}_{view}" for how in ("knn", "probe") for view in ("crop", "roi", "image")),
}  # fmt: skip
LAYER = {"region_knn_layer", "region_probe_layer"}


def test_every_model_is_scored_by_every_task(tmp_path) -> None:
    folder = Checkout(tmp_path / "checkout").folder
    grounds = noise_grounds(tmp_path / "grounds")
    data = folder / "scenes"
    words = ["--objects=2", "--size=64", "--train=120", "--test=60", f"--grounds={grounds}"]
    script = ROOT / "demo" / "scenes.py"
    subprocess.run([sys.executable, script, "--output", data, *words], check=True, timeout=300)
    values = {
        "metadata": ["scenes/train.tar"],
        "prepare": {"chunk_rows": 120, "caption_column": None, "hash_column": None},
        "embed": {"image_size": 64},
        "cluster": {"k": 10, "iterations": 3},
        "label": {"top": 4},
        "train": {
            "model": "test_vit", "image_size": 64, "embedding_dim": 32, "epochs": 1,
            "batch_size": 16, "regions": "mosaic",
        },
        "evaluate": {
            "models": ["random", "trained", "frozen"],
            "datasets": [
                {
                    "name": "places", "path": "scenes", "tags_field": "class", "min_tag_count": 5,
                    "tasks": ["segmentation", "regions", "pointing", "token_spread"],
                },
                {
                    "name": "images", "path": "scenes/evaluate.parquet", "label_field": "label",
                    "tags_field": "tags", "min_tag_count": 5,
                    "tasks": ["knn", "tag_retrieval", "finetune"],
                },
            ],
            "knn_k": [3], "retrieval_k": [3], "finetune_epochs": 1,
        },
    }  # fmt: skip
    (folder / "scenes.yaml").write_text(yaml.safe_dump(values))
    run = subprocess.run(
        [sys.executable, "-m", "mlcd", "run", "--profile", "profiles/local", "--cores", "2",
         "--configfile", "scenes.yaml", "--", "results/evaluate/summary.csv"],
        cwd=folder, capture_output=True, text=True, timeout=850,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    for model in values["evaluate"]["models"]:
        found = json.loads((folder / f"results/evaluate/{model}.json").read_text())["datasets"]
        scores = {name: set(found[name]["scores"]) for name in found}
        assert scores["places"] >= DENSE | (LAYER if model == "trained" else set())
        assert bool(scores["places"] & LAYER) == (model == "trained")
        expected = {"knn_3", "shared_tags_3", "tags_map"}
        expected |= set() if model == "frozen" else {"finetune"}
        assert scores["images"] >= expected
        for name in found:
            assert all(0 <= value <= 1 for value in found[name]["scores"].values())
