"""The summary: means over data sets, and the paper's figures beside ours."""

from __future__ import annotations

import csv
import json

import pytest

from helpers.published import PRESETS, model, preset
from mlcd.cli import main
from mlcd.config import comparison, registry
from mlcd.stages.evaluate.measures import zero_shot_name
from mlcd.stages.evaluate.summary import markdown, table
from mlcd.utils.records import read_csv, write_record


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
    figures = comparison.figures(preset("laion400m-vit-l14"))
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
    figures = comparison.figures(preset("laion400m-vit-l14"))
    rows = {row.dataset: row for row in table([one], figures) if row.model == "trained"}
    mean = rows["mean_of_25"]
    assert (mean.metric, mean.value) == ("zero_shot", pytest.approx(0.7))
    assert mean.difference == pytest.approx(0.7 - 0.675)
    assert "mean_of_26" not in rows
    del one["datasets"]["voc2007"]
    assert "mean_of_25" not in {row.dataset for row in table([one], figures)}


def test_the_spread_of_tokens_has_neither_a_better_side_nor_a_best_model(tmp_path):
    paths = []
    for name, value in (("random", 0.1), ("trained", 0.4)):
        scores = {"token_cosine": value, "image_to_text_median_rank": value, "finetune": value}
        images = {"train": 5, "validation": 0, "test": 5, "failed": {}}
        few = {"images": images, "scores": scores, "chance": {}}
        about = {"model": name, "seed": 0, "datasets": {"few": few}}
        paths.append(tmp_path / f"{name}.json")
        write_record(paths[-1], about)
    words = ["evaluate", "--part", "summary", "--output", str(tmp_path / "summary.csv")]
    assert main([*words, "--metrics", *map(str, paths)]) == 0
    found = {row["metric"]: row["better"] for row in read_csv(tmp_path / "summary.csv", "evaluate")}
    assert found == {
        "token_cosine": "", "image_to_text_median_rank": "lower", "finetune": "higher",
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in rows_of((tmp_path / "summary.md").read_text())}
    assert rows["mean cosine of tokens"] == ["0.1000", "0.4000"]
    assert rows["image to text, median rank"] == ["**0.1000**", "0.4000"]
    assert rows["fine-tuned accuracy"] == ["0.1000", "**0.4000**"]


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the first table, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_summary_prints_them_beside_ours(tmp_path):
    figures = [{"dataset": "imagenet", "metric": "linear_probe", "value": 0.846, "source": "P (T)"}]
    for name, value in (("random", 0.2), ("trained", 0.85)):
        write_record(tmp_path / f"{name}.json", model(name, value, ["imagenet", "dtd"]))
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
    assert rows_of(text)[0][-2:] == ["published", "trained − published"]
    assert rows_of(text)[1][-2:] == ["0.8460", "+0.0040"]
    assert "\n\npublished: P (T)." in text
    assert text.count("| published |") == 1


def test_the_lowest_rank_is_in_bold():
    models = []
    for name, rank in (("random", 40.0), ("trained", 7.0)):
        one = model(name, 0.5, ["mnist"])
        one["datasets"]["mnist"] |= {"scores": {"x_median_rank": rank},
                                     "chance": {"x_median_rank": 50.0}}  # fmt: skip
        models.append(one)
    text = markdown(models, table(models))
    assert rows_of(text)[1] == ["x_median_rank", "50.0000", "40.0000", "**7.0000**"]
    assert text.count("**") == 2


def test_figures_come_from_a_config_file(tmp_path, capsys):
    write_record(tmp_path / "trained.json", model("trained", 0.85, ["imagenet"]))
    out = tmp_path / "summary.csv"
    command = ["evaluate", "--part", "summary", "--metrics", str(tmp_path / "trained.json")]
    command += ["--output", str(out), "--figures"]
    assert main([*command, str(PRESETS / "laion400m-vit-l14.yaml")]) == 0
    assert rows_of(out.with_suffix(".md").read_text())[1][-1] == "+0.0040"
    assert main([*command, "[1"]) == 2
    assert "--figures: not readable as JSON" in capsys.readouterr().err


def test_a_model_is_given_once(tmp_path, capsys):
    paths = [tmp_path / "trained.json", tmp_path / "trained-old.json"]
    for path in paths:
        write_record(path, model("trained", 0.5, registry.published_sets()[:1]))
    words = ["evaluate", "--part", "summary", "--metrics", *map(str, paths)]
    assert main([*words, "--output", str(tmp_path / "summary.csv")]) == 2
    assert "trained-old.json: scores of trained, as " in capsys.readouterr().err
    assert not (tmp_path / "summary.csv").exists()
