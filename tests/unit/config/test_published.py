"""The paper's figures: which apply."""

from __future__ import annotations

import pytest

from helpers.published import preset
from mlcd.config import Config, comparison, published


def test_a_preset_takes_the_figures_of_its_setting():
    found = comparison.figures(preset("laion400m-vit-l14"))
    assert {(figure["dataset"], figure["metric"], figure["value"]) for figure in found} == {
        ("mean_of_26", "linear_probe", 0.846),
        ("imagenet", "linear_probe", 0.846),
        ("imagenet", "zero_shot", 0.756),
        ("imagenet", "finetune", 0.871),
        ("mean_of_25", "zero_shot", 0.675),
    }
    assert all("ViT-L/14" in figure["source"] for figure in found)
    assert comparison.figures(preset("laion400m-vit-l14", label={"top": 4})) == []
    assert comparison.figures(preset("laion400m-vit-l14", evaluate={"published": None})) == []
    assert comparison.figures(Config()) == []


@pytest.mark.parametrize(("k", "value"), [(500, 0.619), (8000, 0.675), (320000, 0.714)])
def test_the_figure_follows_k(k, value):
    [figure] = comparison.figures(preset("imagenet-rn50", cluster={"k": k}))
    assert (figure["dataset"], figure["value"]) == ("mean_of_27", value)
    assert comparison.figures(preset("imagenet-rn50", cluster={"k": k + 1})) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"epochs": 1}},
        {"train": {"negative_ratio": 1.0}},
        {"train": {"positives": 1}},
        {"label": {"top": 1}},
        {"label": {"threshold": 0.5}},
    ],
)
def test_another_setting_has_no_figure(changes):
    assert comparison.figures(preset("imagenet-rn50", **changes)) == []


def test_l_is_what_training_takes():
    values = {"train": {"positives": 8}, "label": {"top": 32}}
    assert comparison.figures(preset("imagenet-rn50", **values))


def test_every_condition_is_a_key_of_the_config():
    config = Config()
    for run in published.runs().values():
        for figure in run["figures"]:
            wanted = {**run["config"], **figure.get("config", {})}
            assert comparison.differences(config, wanted)  # no AttributeError, and not the demo
            assert 0 < figure["value"] < 100
