"""Config files as they are written: one line that names the file that holds the mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from mlcd.config import Config, check_shape, validate
from mlcd.config.files import Origins, key_of, read
from mlcd.utils.errors import UserError

#: As the installed program `mlcd`.
PROGRAM = "import sys; from mlcd.cli import main; sys.exit(main())"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    (line,) = str(caught.value).splitlines()
    return line.removeprefix(f"{path}: ")


def test_values_of_yaml_and_json(tmp_path):
    path = tmp_path / "a.yaml"
    assert read(write(path, "cluster: {k: 3}\n")) == {"cluster": {"k": 3}}
    assert read(write(path, "# nothing yet\n")) == {}
    assert read(write(path, '{\n\t"cluster": {"k": 3}\n}')) == {"cluster": {"k": 3}}
    merged = "a: &a {k: 1, l: 2}\nb:\n  <<: *a\n  k: 3\n"
    assert read(write(path, merged))["b"] == {"k": 3, "l": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cluster: {k: 3\nlabel:\n", "not readable as YAML: line 2: "),
        ("cluster:\n\tk: 3\n", "not readable as YAML: line 2: "),
        ("cluster:\n  k: 3\n  seed: 1\n  k: 5\n", "line 4: the key k stands twice; keep one"),
        ("cluster: {}\nlabel: {}\ncluster: {}\n", "line 3: the key cluster stands twice"),
        ("ablate:\n  grids:\n    - {l: [1], l: [2]}\n", "line 3: the key l stands twice"),
        ("cluster: {k: 010}\n", "line 1: 010 is ambiguous in YAML; write a plain number"),
        ("download:\n  deadline: 1:30\n", "line 2: 1:30 is ambiguous in YAML"),
        ("a: &a [*a]\n", "line 1: an alias (*) stands within what it names"),
        ("a: 0x" + "f" * 5000, "line 1: '0xfff"),
        ("a: !!timestamp x\n", "not readable as YAML: "),
        ("[" * 3000, "not readable as YAML: lists or keys too deep"),
        ('{\n\t"a": 1,\n\t"a": 2}', "the key a stands twice; keep one"),
        ("- a\n", "expected keys such as 'cluster:', got list"),
        ("a: !!python/object/apply:os.getpid []\n", "not readable as YAML: line 1: "),
    ],
)
def test_a_file_that_says_nothing_certain_is_refused_in_one_line(tmp_path, text, expected):
    assert refused(write(tmp_path / "mine.yaml", text)).startswith(expected)


def test_a_file_in_another_encoding_or_without_rights_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("results: größe\n".encode("latin-1"))
    assert "no UTF-8" in refused(path)
    assert refused(tmp_path / "none.yaml") == "no such config file"
    assert "cannot be read" in refused(tmp_path)


def test_the_last_file_that_holds_a_key_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config.yaml", "cluster: {k: 0, seed: 1}\nlabel: {top: 9}\n")
    mine = write(tmp_path / "mine.yaml", "cluster: {k: 4}\n")
    # In Snakemake's own order, in which the options come first.
    origins = Origins.of_snakemake([mine, "config.yaml"], [mine], {"train": {"lr": 1}})
    assert origins(["cluster", "k"]) == "mine.yaml"
    assert origins(["cluster", "seed"]) == "config.yaml"
    assert origins(["train", "lr"]) == "--config"
    # A key that stands nowhere: whoever wrote the section.
    assert origins(["cluster", "init"]) == "mine.yaml"
    assert origins(["text", "heads"]) == "mine.yaml"
    with pytest.raises(UserError, match=r"^config\.yaml: label\.top: 9 labels of 4 clusters"):
        validate(Config, {"cluster": {"k": 4}, "label": {"top": 9}}, origins)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"cluster": {"k": {"a": 1}}}, "x: cluster.k: expected one value, got keys (a)"),
        ({"results": {"a": 1, "b": 2}}, "x: results: expected one value, got keys (a, b)"),
        ({"cluster": 3}, "x: cluster: expected keys, each with its value, got 3"),
        ({"metadata": 3}, "x: metadata: expected a valid list, got 3"),
        ({"evaluate": {"knn_k": True}}, "x: evaluate.knn_k: expected a number, got True"),
        ({"ablate": {"grids": "a"}}, "x: ablate.grids: expected a valid list, got 'a'"),
        (
            {"export": {"formats": "tim"}},
            "x: export.formats.0: expected 'timm', 'open_clip' or 'transformers', got 'tim'; did "
            "you mean timm?",
        ),
    ],
)
def test_a_value_of_the_wrong_shape_gets_one_line(values, expected):
    with pytest.raises(UserError) as caught:
        validate(Config, values, "x")
    assert str(caught.value) == expected


def test_one_stands_for_a_list_of_one_in_every_section():
    values = {
        "metadata": "folder",
        "evaluate": {"knn_k": 3, "retrieval_k": "5", "models": "trained"},
        "ablate": {"grids": [{"k": 4, "r": 1, "loss": "mlcd"}]},
        "regions": {"segment_scales": 100},
        "curate": {"where": "width > 9"},
    }
    found = validate(Config, values, "x")
    assert found.metadata == ["folder"] and found.curate.where == ["width > 9"]
    evaluate, (grid,) = found.evaluate, found.ablate.grids
    assert (evaluate.knn_k, evaluate.retrieval_k, evaluate.models) == ([3], [5], ["trained"])
    assert (grid.k, grid.r, grid.loss) == ([4], [1.0], ["mlcd"])
    assert found.regions.segment_scales == [100.0]


def test_the_key_that_a_message_begins_with():
    assert key_of("label.top: 9 labels") == ["label", "top"]
    assert key_of("nothing of the kind") == []


def snakemake(*options: str) -> list[str]:
    """Return what a dry run that must fail says, but for Snakemake's note on merged files."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--quiet", "all", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    return [line for line in done.stdout.splitlines() if " is extended by " not in line]


@pytest.mark.workflow
def test_snakemake_says_one_line_and_shows_no_traceback(tmp_path):
    mine = write(tmp_path / "mine.yaml", "cluster:\n  kk: 3\n")
    said = snakemake("--configfile", str(mine))
    assert said == [f"{mine}: cluster.kk: unknown key; did you mean cluster.k?"]
    write(mine, "cluster:\n  k: 3\n  k: 4\n")
    said = snakemake("--configfile", str(mine))
    assert said == [f"{mine}: line 3: the key k stands twice; keep one"]


@pytest.mark.workflow
def test_run_names_file_and_line_of_broken_yaml(tmp_path):
    mine = write(tmp_path / "mine.yaml", "cluster: {k: 3\nlabel:\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "run", "--dry-run", "--configfile", str(mine)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"{mine}: not readable as YAML: line 2: " in done.stdout


def test_aliases_that_stand_for_billions_are_refused(tmp_path):
    lines = ["a: &a0 [x]"] + [
        f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
    ]
    told = refused(write(tmp_path / "mine.yaml", "\n".join(lines)))
    assert "more than 100,000 values once its aliases (*) are written out" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cluster: {k: {a: 1}}", "cluster.k: expected one value, got keys (a)"),
        ("results: {a: 1}", "results: expected one value, got keys (a)"),
        ("train: 5", "train: expected keys, each with its value, got 5"),
        ("train:", "train: expected keys, each with its value, got None"),
    ],
)
def test_what_snakemake_cannot_merge_is_refused_before_it_tries(tmp_path, text, told):
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        check_shape(path)
    assert str(caught.value) == f"{path}: {told}"
    check_shape(ROOT / "config.yaml")
