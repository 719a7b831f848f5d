"""`mlcd init`: what it writes is a config that fits, and nothing is replaced."""

from __future__ import annotations

import pytest
import yaml

from helpers.paths import ROOT
from mlcd.cli import main
from mlcd.config import Config, load
from mlcd.config.generate import project_yaml
from mlcd.utils import project

PROFILES = ["local", "slurm", "slurm-1gpu", "slurm-cpu"]
PRESETS = ["coyo700m-vit-l14", "finetune", "imagenet-rn50", "laion400m-vit-l14", "small"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_project_has_a_config_and_the_profile_and_says_what_next(place, capsys):
    assert main(["init", "new/project"]) == 0
    assert files(place / "new/project") == ["config.yaml", "profiles/local/config.yaml"]
    config = load("new/project/config.yaml")
    assert config.metadata == ["lists/*.parquet"]
    profile = (place / "new/project/profiles/local/config.yaml").read_text()
    assert profile == (ROOT / "profiles/local/config.yaml").read_text()
    assert capsys.readouterr().out.splitlines() == [
        "1. Read and edit new/project/config.yaml (metadata: where the images are).",
        "2. cd new/project && mlcd run --profile profiles/local --dry-run",
        "3. mlcd run --profile profiles/local",
    ]


def test_on_a_cluster_the_next_step_is_the_doctor(place, capsys):
    assert main(["init", ".", "--profile", "slurm", "local"]) == 0
    assert files(place) == [
        "config.yaml", "profiles/local/config.yaml", "profiles/slurm/config.yaml",
    ]  # fmt: skip
    first, second, third = capsys.readouterr().out.splitlines()
    assert "and profiles/slurm/config.yaml (its first block)" in first
    assert second == "2. mlcd doctor --profile slurm"
    assert third == "3. mlcd run --profile profiles/slurm"


def test_images_and_lists_become_metadata_seen_from_the_project(place):
    (place / "photos").mkdir()
    (place / "p" / "lists").mkdir(parents=True)
    (place / "p" / "lists" / "a: b.txt").touch()
    assert main(["init", "p", "--images", "photos", "--list", "p/lists/a: b.txt"]) == 0
    expected = [str(place / "photos"), "lists/a: b.txt"]
    assert load("p/config.yaml").metadata == expected
    assert main(["init", "q", "--list", "p/lists/*.txt"]) == 0
    assert load("q/config.yaml").metadata == [f"{place}/p/lists/*.txt"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_taken_as_it_is_but_for_its_lists(place, preset):
    (place / "a.parquet").touch()
    assert main(["init", "p", "--preset", preset, "--list", "a.parquet"]) == 0
    values = yaml.safe_load((ROOT / f"workflow/presets/{preset}.yaml").read_text())
    text = (place / "p/config.yaml").read_text()
    assert yaml.safe_load(text) == {**values, "metadata": [str(place / "a.parquet")]}
    # The comments stay, but for the command that names the preset's own place.
    assert "# Result" in text and "workflow/presets" not in text
    assert main(["init", "q", "--preset", preset]) == 0
    assert yaml.safe_load((place / "q/config.yaml").read_text()) == values


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--images", "none"], "--images none: no such folder"),
        (["--images", ""], "--images : no such folder"),
        (["--list", "none.txt"], "--list none.txt: no such file"),
        (["--list", "."], "--list .: no such file"),
        (["--list", "*.parquet"], "*.parquet: no file is called so"),
        (["--profile", "test"], f"--profile test: no such name; there are {', '.join(PROFILES)}"),
        (["--preset", "../x"], f"--preset ../x: no such name; there are {', '.join(PRESETS)}"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(place, capsys, options, told):
    (place / "a.txt").touch()
    assert main(["init", "p", *options]) == 2
    assert told in capsys.readouterr().err
    assert not (place / "p").exists()


@pytest.mark.parametrize("name", ["config.yaml", "profiles/slurm/config.yaml"])
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_replaced(place, capsys, name, link):
    path = place / "p" / name
    path.parent.mkdir(parents=True)
    if link:
        path.symlink_to("nowhere")
    else:
        path.write_text("mine")
    assert main(["init", "p", "--profile", "local", "slurm"]) == 2
    assert f"p/{name}: is already there and is not replaced" in capsys.readouterr().err
    assert files(place / "p") == [name]
    assert path.is_symlink() if link else path.read_text() == "mine"


def test_the_config_of_a_project_fits_and_names_nothing_of_the_demo():
    config = Config.model_validate(yaml.safe_load(project_yaml()))
    assert config.train.model == "open_clip:ViT-B-32" and config.evaluate.datasets == []
    assert "demo" not in config.to_yaml()
    assert (ROOT / "config/config.yaml").read_text() == project_yaml()


def test_profiles_and_presets_are_those_of_the_repository():
    assert project.profiles() == PROFILES
    assert project.presets() == PRESETS
    assert project.SNAKEFILE == ROOT / "workflow/Snakefile"
