"""The card's front matter as model hubs read it, and what stands in its tables."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from mlcd.stages.export import card
from mlcd.utils.files import read_json, write_json

ABOUT = {
    "model": "test_vit", "embedding_dim": 8, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    "image_size": 32, "sha256": "ab" * 32,
}  # fmt: skip
USAGE = card.Usage("timm", "import timm", "A remark.")
RESULTS = {
    ("few", "knn_10"): {"trained": 0.625, "random": 0.1},
    ("few", "retrieval_r1"): {"trained": 0.5},
    ("few", "zero_shot"): {"trained": 0.4},
    ("other", "knn_10"): {"frozen": 0.9},
}


def written(folder, made_from=None, license=None) -> str:
    card.write(folder, ABOUT, USAGE, made_from or card.Origin(), license, {"a.json": "ff"})
    return (folder / "README.md").read_text(encoding="utf-8")


def test_hubs_read_the_license_and_this_encoder_s_own_scores(tmp_path):
    data = ModelCard(written(tmp_path, card.Origin(results=RESULTS), "cc-by-4.0")).data
    assert (data.license, data.library_name) == ("cc-by-4.0", "timm")
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.model_name == "test_vit"
    # Not the text tower's, which is not exported, and not another encoder's.
    scores = [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert scores == [("few", "knn_10", 0.625), ("few", "retrieval_r1", 0.5)]


def test_without_scores_or_license_neither_is_claimed(tmp_path):
    text = written(tmp_path)
    data = ModelCard(text).data
    assert data.license is None and data.eval_results is None
    assert "None was chosen for the weights" in text and "Not recorded" in text
    assert "## Results" not in text and "## Training\n" not in text


def test_equal_runs_give_equal_cards(tmp_path):
    origin = card.Origin(results=RESULTS, sections={"embed": {"name": "clip"}})
    assert written(tmp_path, origin) == written(tmp_path, origin)


@pytest.mark.parametrize("name", ["few|more", "{{ 7 * 7 }}", "a: b #c"])
def test_odd_names_stay_words(tmp_path, name):
    text = written(tmp_path, card.Origin(lists=[name], results={(name, "knn"): {"trained": 0.5}}))
    assert ModelCard(text).data.eval_results[0].dataset_name == name
    cell = name.replace("|", r"\|")
    assert f"| {cell} | knn | 0.5000 |" in text and f"`{cell}`" in text


def test_settings_read_from_a_file_are_written(tmp_path):
    write_json(tmp_path / "encoder.json", {**ABOUT, "section": {"model": "test_vit", "lr": 0.5}})
    about = read_json(tmp_path / "encoder.json")
    card.write(tmp_path, about, USAGE, card.Origin(), None, {})
    assert "lr: 0.5" in (tmp_path / "README.md").read_text(encoding="utf-8")
