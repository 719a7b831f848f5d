"""Config: generated files agree with the models, mistakes are named with their fix."""

import json
import re

import pytest
import yaml

from helpers.paths import ROOT
from mlcd.config import SECTIONS, Config, load, parse_section, validate
from mlcd.config.generate import GENERATED
from mlcd.utils.errors import UserError


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_current(name):
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), (
        "run python -m mlcd.config.generate"
    )


def test_config_yaml_holds_every_key_at_its_default():
    assert load(ROOT / "config.yaml") == Config()
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert {name: set(values[name]) for name in SECTIONS} == {
        name: set(model.model_fields) for name, model in SECTIONS.items()
    }


def test_every_key_is_described_by_a_sentence():
    for name, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            assert field.description and field.description.rstrip()[-1] in ".!?", f"{name}.{key}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"scal": 1}}, "train.scal: unknown key; did you mean train.scale?"),
        ({"scale": 1}, "scale: unknown key; did you mean train.scale?"),
        ({"clutser": {}}, "clutser: unknown key; did you mean cluster?"),
        ({"train": {"scale": "wide"}}, "train.scale: expected a valid number"),
        ({"train": {"scale": -1}}, "train.scale: expected more than 0.0, got -1"),
        ({"download": {"min_success": 2}}, "download.min_success: expected at most 1.0, got 2"),
        ({"train": {"loss": "mlcdd"}}, "got 'mlcdd'; did you mean mlcd?"),
        ({"evaluate": {"datasets": [{"name": "x"}]}}, "evaluate.datasets.0.path: this key is"),
        (
            {"evaluate": {"datasets": [{"name": "mnist"}]}},
            "evaluate.datasets.0: path: this key is required; get mnist from http",
        ),
        (
            {"evaluate": {"datasets": [{"name": "x", "path": "y", "lable_field": "z"}]}},
            "did you mean evaluate.datasets.0.label_field?",
        ),
        ({"label": {"top": 9}, "cluster": {"k": 8}}, "label.top: 9 labels of 8 clusters"),
        (
            {"train": {"model": "open_clip:ViT-B-32"}},
            "export.formats: timm does not fit train.model open_clip:ViT-B-32",
        ),
        ({"train": {"lr": float("inf")}}, "train.lr: expected a finite number, got inf"),
        ({"train": {"margin": float("nan")}}, "train.margin: expected a finite number, got nan"),
        ({"train": {"margin": "nan"}}, "train.margin: expected a finite number, got 'nan'"),
        ({"cluster": {"k": float("inf")}}, "cluster.k: expected a finite number, got inf"),
        ({"cluster": {"k": True}}, "cluster.k: expected a number, got True"),
        ({"label": {"threshold": False}}, "label.threshold: expected a number, got False"),
        ({"train": {"zero_stage": True}}, "train.zero_stage: expected a number, got True"),
        ({"evaluate": {"knn_k": [10, True]}}, "evaluate.knn_k: expected a number, got [10, True]"),
        (
            {"evaluate": {"probe_c_max": float("inf")}},
            "evaluate.probe_c_max: expected a finite number, got inf",
        ),
        ({"train": {"image_size": 4097}}, "train.image_size: expected at most 4096, got 4097"),
        ({"embed": {"image_size": 10**6}}, "embed.image_size: expected at most 4096"),
        ({"download": {"image_size": 10**6}}, "download.image_size: expected at most 4096"),
        ({"train": {"seed": 2**32}}, "train.seed: expected at most 4294967295"),
        ({"train": {"epochs": 10**30}}, "train.epochs: expected a number of at most"),
        ({"cluster": {"k": {"a": 1}}}, "cluster.k: expected one value, got keys (a)"),
        ({"results": "a{"}, "results: expected a path without braces"),
        ({"results": "~/a"}, "results: ~/a: ~ is not expanded here"),
        ({"train": {"model": ["x" * 10_000]}}, "train.model: expected a valid string, got ['xxx"),
        ({"metadata": []}, "metadata: expected List should have at least 1 item"),
    ],
)
def test_mistakes_are_one_line_with_the_key_and_the_fix(values, message):
    with pytest.raises(UserError) as caught:
        validate(Config, values, "config.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("config.yaml: ")
    assert message in line


def test_several_mistakes_are_all_told():
    with pytest.raises(UserError) as caught:
        validate(Config, {"train": {"scal": 1}, "cluster": {"k": 0}}, "config.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: [1, 2")
    with pytest.raises(UserError, match=r"mine\.yaml: not readable as YAML"):
        load(path)
    with pytest.raises(UserError, match="no such config file"):
        load(tmp_path / "none.yaml")


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("cluster: {k: 10, iterations: 3}\n")
    section = parse_section("cluster", str(path), {"k": "12"})
    assert (section.k, section.iterations, section.seed) == (12, 3, Config().cluster.seed)


def test_section_survives_json():
    for name in SECTIONS:
        section = getattr(Config(), name)
        assert parse_section(name, section.to_json(), {}) == section
        # What is off is left out, so that runs are known as by releases without these keys.
        off = {"ocr_weight", "regions", "regions_per_image", "mosaic_grid", "mosaic_share"}
        others = {"train": off, "report": {"figures"}}.get(name, set())
        keys = type(section).model_fields.keys() - others
        assert json.loads(section.to_json()).keys() == keys
    for regions, idle in (
        ("mosaic", {"regions_per_image"}),
        ("boxes", {"mosaic_grid", "mosaic_share"}),
    ):
        on = Config().train.changed(regions=regions, ocr_weight=0.5)
        assert json.loads(on.to_json()).keys() == type(on).model_fields.keys() - idle


@pytest.mark.parametrize("word", ["{x}", "{ x }", "{chunk,.+}"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("metadata", lambda path: {"metadata": ["lists", path]}),
        ("results", lambda path: {"results": path}),
        ("embed.embeddings", lambda path: {"embed": {"embeddings": [path]}}),
        ("cluster.initial", lambda path: {"cluster": {"initial": path}}),
        ("train.initial", lambda path: {"train": {"initial": path}}),
        ("report.figures", lambda path: {"report": {"figures": path}}),
        ("evaluate.datasets.0.path", lambda path: {
            "evaluate": {"datasets": [{"name": "a", "path": path}]}
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_word_in_braces_is_no_value_of_any_key(key, values, word):
    """Snakemake takes it for a wildcard, and names neither the key nor the value."""
    told = re.escape(f"rules take {word} for a wildcard; write it without braces, or rename")
    with pytest.raises(UserError, match=f"mine.yaml: {re.escape(key)}: .*{told}"):
        validate(Config, values(f"folder/{word}/a.svg"), "mine.yaml")


def test_other_braces_are_values_as_others():
    for name in ("a{}.svg", "a{b-c}.svg", "{.svg", "a}{b"):
        assert validate(Config, {"report": {"figures": name}}, "x").report.figures == [name]


def test_a_second_head_needs_the_words_that_it_is_of():
    assert "ocr" not in yaml.safe_load(Config().to_yaml())
    with pytest.raises(UserError, match=r"train.ocr_weight: no words are read without ocr.enabled"):
        validate(Config, {"train": {"ocr_weight": 0.5}}, "my.yaml")
    config = validate(Config, {"train": {"ocr_weight": 0.5}, "ocr": {"enabled": True}}, "my")
    assert json.loads(config.train.for_encoder())["ocr_weight"] == 0.5
    again = validate(Config, yaml.safe_load(config.to_yaml()), "again")
    assert again == config and again.ocr.enabled


@pytest.mark.parametrize("preset", sorted((ROOT / "workflow" / "presets").glob("*.yaml")))
def test_presets_are_valid(preset):
    load(preset)


def test_the_lines_that_switch_the_text_tower_on_are_valid(tmp_path):
    assert load(ROOT / "demo" / "text.yaml").text.enabled
    values = yaml.safe_load((ROOT / "workflow/presets/laion400m-vit-l14.yaml").read_text())
    (lines,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs/how-to/text-tower.md").read_text(), re.DOTALL
    )
    for section, keys in yaml.safe_load(lines).items():
        values[section] = values.get(section, {}) | keys
    checked = validate(Config, values, "text.yaml")
    tasks = [task for dataset in checked.evaluate.datasets for task in dataset.tasks]
    assert checked.text.width == 768 and {"zero_shot", "image_text_retrieval"} <= set(tasks)


def test_numbers_may_be_words_of_the_command_line():
    train = parse_section("train", "", {"lr": "1e-3", "batch_size": "32", "flip": False})
    assert (train.lr, train.batch_size, train.flip) == (1e-3, 32, False)
