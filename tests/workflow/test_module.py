"""The rules in another workflow: imported from the package, and as snakedeploy deploys them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT
from mlcd.launch.snakemake import announced

pytestmark = pytest.mark.workflow

#: Another workflow, whose rule `mine` takes the encoder, and the page that comes last in a run.
IMPORTING = """
from mlcd.utils import project

configfile: "settings.yaml"
shell.prefix("own=prefix; ")
rule mine:
    input: "run/train/encoder.safetensors", "run/report/overview.html"
    output: "mine.txt"
    shell: "touch {output}"
rule own:
    output: "own.txt"
    shell: "echo $own > {output}"
module mlcd:
    snakefile: str(project.SNAKEFILE)
    config: config["encoder"]
use rule * from mlcd as mlcd_*
onstart: mlcd.onstart()
"""

#: Every rule has work: text tower, ablation with another K and a larger l, labeled images.
CONFIG = {
    "metadata": ["list.txt"],
    "results": "run",
    "text": {"enabled": True},
    "curate": {"enabled": True},
    "ocr": {"enabled": True},
    "train": {"ocr_weight": 0.5},
    "evaluate": {
        "datasets": [
            {
                "name": "digits",
                "path": "sklearn:digits",
                "tasks": ["knn", "finetune", "segmentation"],
            }
        ],
    },
    "ablate": {"grids": [{"k": [256, 64], "l": [4, 5]}]},
}

#: What `snakedeploy deploy-workflow https://github.com/owner/mlcd . --branch main` writes.
DEPLOYED = """
configfile: "config/config.yaml"
module mlcd:
    snakefile: github("owner/mlcd", path="workflow/Snakefile", branch="main")
    config: config
use rule * from mlcd
"""

#: As many as K and a batch need.
URLS = "".join(f"https://example.org/{number}.jpg\n" for number in range(1000))


def snakemake(place: Path, *options: str, **environment: str) -> str:
    """Run snakemake in `place`; return what it said. It must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *options, "--cores", "1"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def rules_of(plan: str) -> set[str]:
    """Return the rules of the table of jobs that a dry run ends with."""
    table = plan[plan.rindex("Job stats") :].split("total")[0]
    return set(re.findall(r"^(\w+) +\d+$", table, re.M))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def defined_rules() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    return set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", text, re.M))


@pytest.fixture
def importing(tmp_path):
    write(tmp_path / "Snakefile", IMPORTING)
    write(tmp_path / "list.txt", URLS)
    write(tmp_path / "settings.yaml", yaml.safe_dump({"encoder": CONFIG, "other": 1}))
    # None of ours: not read, and so not refused.
    write(tmp_path / "config.yaml", "one: 1\none: 2\n")
    return tmp_path


@pytest.mark.parametrize("program", ["snakemake", "mlcd run"])
def test_config_files_of_the_other_workflow_hold_what_it_likes(importing, program):
    """A section that is called as one of ours, too."""
    text = yaml.safe_dump({"encoder": CONFIG, "train": {"sizes": {"a": 1}}, "results": {"b": 2}})
    write(importing / "other.yaml", text)
    done = subprocess.run(
        [sys.executable, "-m", *program.split(), "own.txt", "--dry-run", "--cores", "1",
         "--configfile", "other.yaml"],
        cwd=importing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_rules_imported_under_a_prefix_make_what_the_workflow_asks_for(importing):
    found = rules_of(snakemake(importing, "--dry-run"))
    # Its own target stays the default one.
    assert {name for name in found if not name.startswith("mlcd_")} == {"mine"}
    # No captions are asked for, and no seal.
    left_out = {"mlcd_evaluate_texts", "mlcd_audit"}
    assert found >= {f"mlcd_{name}" for name in defined_rules()} - left_out
    assert {"mlcd_report_montage", "mlcd_report_results"} <= found


def test_imported_rules_run_announced_beside_those_of_the_workflow(importing):
    """The environment is not activated: the rules find its programs."""
    targets = "mlcd_report_config", "run/urls/list-00000.parquet", "own"
    snakemake(importing, *targets, PATH="/usr/bin:/bin")
    assert (importing / "run/urls/list-00000.parquet").exists()
    assert (importing / "own.txt").read_text() == "prefix\n"
    text = (importing / "run/report/config.yaml").read_text()
    assert yaml.safe_load(text)["results"] == "run"
    record = announced(importing)
    assert record["config"]["metadata"] == ["list.txt"]
    rules = {str(path) for path in (ROOT / "rules").glob("*.smk")}
    assert rules < set(record["files"]) and str(importing / "Snakefile") in record["files"]


@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_what_snakedeploy_deploys_runs(tmp_path):
    """The repository stands in for the one on GitHub; git is told where it is."""
    remote, place = tmp_path / "owner" / "mlcd", tmp_path / "place"
    for name in ("workflow", "rules"):
        shutil.copytree(ROOT / name, remote / name)
    git = ["git", "-C", str(remote), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    settings = f'[url "file://{tmp_path}/owner/"]\n\tinsteadOf = https://github.com/owner/\n'
    write(tmp_path / "gitconfig", settings + "[safe]\n\tdirectory = *\n")
    # It copies config/ and profiles/.
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    write(place / "config/config.yaml", yaml.safe_dump({**config, "metadata": ["list.txt"]}))
    shutil.copytree(ROOT / "profiles", place / "profiles")
    write(place / "workflow/Snakefile", DEPLOYED)
    write(place / "list.txt", URLS)
    plan = snakemake(
        place, "--profile", "profiles/local", "--dry-run",
        GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig"), XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert {"prepare", "train", "export", "report_montage", "all"} <= rules_of(plan)
