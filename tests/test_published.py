"""The paper's figures beside ours: which apply, and how they are shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from mlcd.cli import main
from mlcd.config import Config, published, registry
from mlcd.evaluate.measures import score_name, zero_shot_name
from mlcd.evaluate.summary import markdown, table

PRESETS = Path(__file__).parent.parent / "workflow" / "presets"


def preset(name: str, **changes) -> Config:
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    for section, keys in changes.items():
        values[section] |= keys
    return Config.model_validate(values)


def model(name: str, value: float, sets: list[str]) -> dict:
    """Metrics of one model with the same score on all sets."""
    found = {}
    for dataset in sets:
        score = score_name(registry.registry()[dataset]["metric"])
        found[dataset] = {
            "pictures": {"train": 5, "validation": 0, "test": 5, "failed": {}},
            "scores": {score: value},
            "chance": {score: 0.1 if dataset == "voc2007" else 0.01},
        }
    return {"model": name, "seed": 0, "datasets": found}


def test_a_preset_takes_the_figures_of_its_setting():
    found = published.figures(preset("laion400m-vit-l14"))
    assert {(figure["dataset"], figure["metric"], figure["value"]) for figure in found} == {
        ("mean_of_26", "linear_probe", 0.846),
        ("imagenet", "linear_probe", 0.846),
        ("imagenet", "zero_shot", 0.756),
        ("mean_of_25", "zero_shot", 0.675),
    }
    assert all("ViT-L/14" in figure["source"] for figure in found)
    assert published.figures(preset("laion400m-vit-l14", label={"top": 4})) == []
    assert published.figures(preset("laion400m-vit-l14", evaluate={"published": None})) == []
    assert published.figures(Config()) == []


@pytest.mark.parametrize(("k", "value"), [(500, 0.619), (8000, 0.675), (320000, 0.714)])
def test_the_figure_follows_k(k, value):
    [figure] = published.figures(preset("imagenet-rn50", cluster={"k": k}))
    assert (figure["dataset"], figure["value"]) == ("mean_of_27", value)
    assert published.figures(preset("imagenet-rn50", cluster={"k": k + 1})) == []


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
    assert published.figures(preset("imagenet-rn50", **changes)) == []


def test_l_is_what_training_takes():
    values = {"train": {"positives": 8}, "label": {"top": 32}}
    assert published.figures(preset("imagenet-rn50", **values))


def test_every_condition_is_a_key_of_the_config():
    config = Config()
    for run in published.runs().values():
        for figure in run["figures"]:
            wanted = {**run["config"], **figure.get("config", {})}
            assert published.differences(config, wanted)  # no AttributeError, and not the demo
            assert 0 < figure["value"] < 100


def test_the_means_are_over_all_sets_or_not_there():
    sets = registry.published_sets()
    rows = table([model("trained", 0.8, sets[:-1])])
    assert {row.dataset for row in rows if row.dataset.startswith("mean")} == {"mean_of_26"}
    assert not [row for row in table([model("trained", 0.8, sets[1:])]) if "mean" in row.dataset]
    # A set judged by another measure is not the paper's.
    other = model("trained", 0.8, sets[:-1])
    about = other["datasets"]["fgvc_aircraft"]
    about["scores"] = about["chance"] = {"linear_probe": 0.8}
    assert not [row for row in table([other]) if "mean" in row.dataset]
    figures = published.figures(preset("laion400m-vit-l14"))
    rows = table([model("random", 0.2, sets), model("trained", 0.8, sets)], figures)
    found = {(row.model, row.dataset): row for row in rows}
    assert found["trained", "mean_of_26"].difference == pytest.approx(0.8 - 0.846)
    assert found["trained", "mean_of_27"].value == pytest.approx(0.8)
    assert found["trained", "mean_of_27"].published is None
    assert found["random", "imagenet"].published is None
    assert found["chance", "mean_of_26"].value == pytest.approx((25 * 0.01 + 0.1) / 26)


def test_the_mean_of_zero_shot_is_over_25_sets():
    sets = registry.zero_shot_sets()
    assert len(sets) == 25
    one = model("trained", 0.7, sets)
    for name, dataset in one["datasets"].items():
        score = zero_shot_name(registry.registry()[name]["metric"])
        dataset["scores"] = dataset["chance"] = {score: 0.7}
    figures = published.figures(preset("laion400m-vit-l14"))
    rows = {row.dataset: row for row in table([one], figures) if row.model == "trained"}
    mean = rows["mean_of_25"]
    assert (mean.metric, mean.value) == ("zero_shot", pytest.approx(0.7))
    assert mean.difference == pytest.approx(0.7 - 0.675)
    assert "mean_of_26" not in rows
    del one["datasets"]["voc2007"]
    assert "mean_of_25" not in {row.dataset for row in table([one], figures)}


def test_the_summary_prints_them_beside_ours(tmp_path):
    figures = [{"dataset": "imagenet", "metric": "linear_probe", "value": 0.846, "source": "P (T)"}]
    for name, value in (("random", 0.2), ("trained", 0.85)):
        (tmp_path / f"{name}.json").write_text(json.dumps(model(name, value, ["imagenet", "dtd"])))
    out = tmp_path / "summary.csv"
    command = ["--part", "summary", "--output", str(out), "--figures", json.dumps(figures)]
    metrics = [str(tmp_path / f"{name}.json") for name in ("random", "trained")]
    assert main(["evaluate", *command, "--metrics", *metrics]) == 0
    with out.open() as handle:
        rows = {(row["model"], row["dataset"]): row for row in csv.DictReader(handle)}
    assert rows["trained", "imagenet"]["published"] == "0.8460"
    assert rows["trained", "imagenet"]["difference"] == "0.0040"
    assert rows["trained", "dtd"]["published"] == rows["random", "imagenet"]["published"] == ""
    text = out.with_suffix(".md").read_text()
    assert "| published | 0.8460 |\n| trained − published | +0.0040 |\n\npublished: P (T)." in text
    assert text.count("| published |") == 1


def test_the_lowest_rank_is_in_bold():
    models = []
    for name, rank in (("random", 40.0), ("trained", 7.0)):
        one = model(name, 0.5, ["mnist"])
        one["datasets"]["mnist"] |= {"scores": {"x_median_rank": rank},
                                     "chance": {"x_median_rank": 50.0}}  # fmt: skip
        models.append(one)
    text = markdown(models, table(models))
    assert "| trained | **7.0000** |" in text
    assert text.count("**") == 2


def test_figures_come_from_a_config_file(tmp_path, capsys):
    (tmp_path / "trained.json").write_text(json.dumps(model("trained", 0.85, ["imagenet"])))
    out = tmp_path / "summary.csv"
    command = ["evaluate", "--part", "summary", "--metrics", str(tmp_path / "trained.json")]
    command += ["--output", str(out), "--figures"]
    assert main([*command, str(PRESETS / "laion400m-vit-l14.yaml")]) == 0
    assert "| trained − published | +0.0040 |" in out.with_suffix(".md").read_text()
    assert main([*command, "[1"]) == 2
    assert "--figures: not readable as JSON" in capsys.readouterr().err
