"""Options of a gang come from resources, and another width makes nothing stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT
from helpers.url_lists import write_list

SNAKEFILE = f"""
import shlex
include: "{ROOT}/rules/gang.smk"
rule work:
    output: "out.txt"
    threads: 2
    resources:
        **GANG,
        ranks_per_node=2,
        threads_per_rank=lambda wildcards, threads: threads // 2,
        mem_mb=100,
    params:
        gang=gang_options,
        cfg="one",
    shell: "printf '%s\\n' {{params.gang}} > {{output}}"
"""


def snakemake(folder: Path, *options: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.workflow
def test_resources_become_options_and_make_nothing_stale(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    width = ["--set-resources", "work:ranks_per_node=3", "work:slurm_account=a b"]
    snakemake(tmp_path, *width, "work:launch_options=--slurm-option constraint=a100")
    assert (tmp_path / "out.txt").read_text().splitlines() == [
        "--launcher=local", "--nodes=1", "--ranks-per-node=3", "--threads=1", "--device=auto",
        "--mem-mb=100", "--timeout-min=1440", "--requeues=50", "--partition=", "--account=a b",
        "--slurm-option", "constraint=a100",
    ]  # fmt: skip
    assert "Nothing to be done" in snakemake(tmp_path, "--dry-run")
    # The comparison works: another param of the same rule does make it stale.
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace('cfg="one"', 'cfg="two"'))
    assert "Nothing to be done" not in snakemake(tmp_path, "--dry-run")


@pytest.mark.parametrize(
    ("gpus", "batch", "ranks"),
    [(0, 15, 2), (1, 15, 1), (2, 16, 2), (3, 256, 2), (3, 15, 3), (8, 1024, 8), (5, 7, 1)],
)
def test_a_machine_with_gpus_has_a_rank_for_each(gpus, batch, ranks):
    text = (ROOT / "rules" / "gang.smk").read_text()
    names = {"gpus_here": None}
    exec(compile(text, "gang.smk", "exec"), names)  # of Python alone
    names["GPUS_HERE"] = gpus
    assert names["ranks_here"](batch) == ranks


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("batch", "resources", "line"),
    [
        (15, [], "train.batch_size: 15 does not divide by 1 × 2 ranks"),
        (16, ["train:micro_batch=3"], "train.batch_size: 16 gives each of 2 ranks 8 images"),
        (16, ["train:micro_batch=4"], ""),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused_before_any_work(
    tmp_path, batch, resources, line
):
    """By the shipped rule, whose micro-batch the ranks choose unless the profile names one."""
    write_list(tmp_path / "a.parquet", url=[f"http://host/{row}.jpg" for row in range(20)])
    config = {"metadata": ["a.parquet"], "prepare": {"caption_column": None, "hash_column": None},
              "cluster": {"k": 8}, "label": {"top": 2}, "train": {"batch_size": batch},
              "evaluate": {"datasets": []}}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    width = ["--set-resources", *resources] if resources else []
    told = snakemake(
        tmp_path, "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--configfile", "mine.yaml",
        "--dry-run", *width, code=1 if line else 0,
    )  # fmt: skip
    assert line in told and ("train" in told.split("Job stats")[-1] or line)
