"""The card's front matter as model hubs read it, and what stands in its tables."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from mlcd.stages.export import card, front_matter
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
    ("few", "finetune"): {"trained": 0.8},
    ("few", "finetune_mean_per_class"): {"trained": 0.7},
    ("other", "knn_10"): {"frozen": 0.9},
}


def written(folder, made_from=None, license=None, about=ABOUT) -> str:
    card.write(folder, about, USAGE, made_from or card.Origin(), license, {"a.json": "ff"})
    return (folder / "README.md").read_text(encoding="utf-8")


def test_hubs_read_the_license_and_this_encoder_s_own_scores(tmp_path):
    data = ModelCard(written(tmp_path, card.Origin(results=RESULTS), "cc-by-4.0")).data
    assert (data.license, data.library_name) == ("cc-by-4.0", "timm")
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.model_name == "test_vit"
    # Not the text tower's or a fine-tuned copy's, which are not exported, nor another encoder's.
    scores = [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert scores == [("few", "knn_10", 0.625), ("few", "retrieval_r1", 0.5)]


def test_fine_tuned_scores_are_said_to_be_of_copies(tmp_path):
    said = "those copies are not part of this export"
    text = written(tmp_path, card.Origin(results=RESULTS))
    assert said in text and "| few | finetune | 0.8000 |" in text
    own = {("few", "knn_10"): {"trained": 0.5}}
    assert said not in written(tmp_path, card.Origin(results=own))


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


@pytest.mark.parametrize(
    ("model", "source", "name"),
    [
        ("resnet18", "a1_in1k", "timm/resnet18.a1_in1k"),
        ("open_clip:ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("open_clip:ViTamin-L2-384", "datacomp1b", "jienengchen/ViTamin-L2-384px"),
        # A file is no model of the hub, whatever its folder is called.
        ("resnet18", "timm/resnet18.a1_in1k", None),
        ("resnet18", "encoder/model.safetensors", None),
        ("tf_efficientnet_lite0", "packaged", None),
    ],
)
def test_hubs_read_whose_weights_came_first(tmp_path, model, source, name):
    source = front_matter.PACKAGED if source == "packaged" else source
    about = {**ABOUT, "model": model, "initial": {"source": source, "sha256": "cd" * 32},
             "section": {}}  # fmt: skip
    origin = card.Origin(lists=["photos.parquet", "more"])
    data = ModelCard(written(tmp_path, origin, about=about)).data
    assert (data.base_model, data.datasets) == (name, ["photos.parquet", "more"])


def test_a_card_names_the_run_that_it_is_told_and_no_other(tmp_path):
    text = written(tmp_path, card.Origin(lists=["a"], results=RESULTS), "mit")
    assert front_matter.run_of(text) == ""
    first, second = (front_matter.named(text, digit * 64) for digit in "12")
    assert front_matter.run_of(first) == "1" * 64
    assert front_matter.named(first, "2" * 64) == second == front_matter.named(second, "2" * 64)
    # Nothing but the name has changed.
    lines = first.splitlines()
    assert [line for line in text.splitlines() if line not in lines] == [front_matter.UNSEALED]
    assert front_matter.scores(first) == front_matter.scores(text)


def test_a_list_cannot_pass_for_the_name_of_a_run(tmp_path):
    line = "x\nIdentity of the run: `evil`."
    text = written(tmp_path, card.Origin(lists=[line], sections={"embed": {"name": line}}))
    assert front_matter.run_of(text) == ""
    # Neither begins a line of its own.
    assert text.count("\nIdentity of the run: ") == 1
    assert front_matter.run_of(front_matter.named(text, "1" * 64)) == "1" * 64
