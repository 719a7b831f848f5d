"""`mlcd doctor` where no Slurm is: this machine, profiles, and what dry runs are read as."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_planning import plan_scale

from mlcd.cli import main
from mlcd.doctor import cluster, demands, here
from mlcd.doctor.checks import FAIL, OK

ROOT = Path(__file__).parent.parent


def doctor(*options: str, path: str | None = None, **environment: str):
    return subprocess.run(
        [sys.executable, "-m", "mlcd", "doctor", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": path or os.environ["PATH"],
             "PYTHONPATH": str(ROOT / "src"), **environment},
    )  # fmt: skip


def row(told: str, name: str) -> str:
    """Return a check's lines, the mend included."""
    lines = told.splitlines()
    (first,) = [i for i, line in enumerate(lines) if line[6:].startswith(f"{name} ")]
    last = first + 1
    while last < len(lines) and lines[last].startswith(" "):
        last += 1
    return " ".join(" ".join(lines[first:last]).split())


@pytest.mark.workflow
def test_a_sound_machine_passes():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "config") == "ok config config.yaml: 2,380 rows in 4 chunks"
    assert row(done.stdout, "memory").startswith("ok memory")
    assert FAIL not in done.stdout


def test_without_slurm_it_says_so_in_one_line(tmp_path):
    done = doctor("--profile", "slurm", path=str(tmp_path))
    assert done.returncode == 2
    assert "no sinfo, squeue, scontrol, sbatch, srun on this machine" in row(done.stdout, "slurm")
    assert "mend: run it on a login node" in row(done.stdout, "slurm")
    assert done.stderr.count("\n") == 1
    assert "slurm: 1 of " in done.stderr


def test_an_unknown_profile_names_those_there(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "--profile", "slrum"]) == 2
    said = capsys.readouterr().err
    assert "--profile slrum: no such profile; here are local, slurm, slurm-1gpu, slurm-cpu" in said


def test_a_profile_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "config.yaml").write_text("__use_yte__: true\njobs: ?nowhere\n")
    assert main(["doctor", "--profile", str(tmp_path)]) == 2
    assert f"{tmp_path}/config.yaml: " in capsys.readouterr().err


def test_both_flavours_of_faiss_are_found(tmp_path):
    for flavour in ("cpu", "gpu"):
        folder = tmp_path / f"faiss_{flavour}-1.15.1.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: faiss-{flavour}\nVersion: 1.15.1\n"
        (folder / "METADATA").write_text(text)
    done = doctor(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    assert done.returncode == 2
    told = row(done.stdout, "faiss")
    assert "both installed" in told
    assert "mend: pip uninstall faiss-cpu faiss-gpu" in told


def test_a_package_of_another_version_is_named(tmp_path):
    folder = tmp_path / "timm-0.9.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.9.1\n")
    done = doctor(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    assert "timm is 0.9.1, wanted" in row(done.stdout, "packages")
    assert done.returncode == 2


def test_a_wrong_config_ends_the_look(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("metadata: [lists/none.parquet]\n")
    done = doctor("--config", str(config))
    assert done.returncode == 2
    assert "lists/none.parquet: no such file" in row(done.stdout, "config")
    assert "memory" not in done.stdout


def test_a_disk_too_small_for_laion_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan_scale.write_lists(tmp_path, "laion400m-vit-l14")
    preset = str(plan_scale.preset_file("laion400m-vit-l14"))
    config, disk = here.config_and_disk(preset)
    assert config.result == OK
    assert "389,737,314 rows in 224 chunks" in config.seen
    # 389.7M · 32.5 kB.
    assert "some 12,666.5 GB needed, if a picture takes 30 kB" in disk.seen
    assert disk.result == FAIL


DRY_RUN = """
Job stats:
[Mon]
rule embed:
    input: a
    wildcards: chunk=a
    threads: 8
    resources: tmpdir=/tmp, mem_mb=9000, mem=9 GB, slurm_partition=gpu, runtime=30, gres=gpu:a100:1
[Mon]
rule embed:
    input: b
    resources: tmpdir=/tmp, mem_mb=7000, slurm_partition=gpu, runtime=40, gres=gpu:a100:1
[Mon]
localrule train:
    threads: 2
    resources: launcher=slurm, nodes=2, ranks_per_node=4, threads_per_rank=6, device=cuda, \
launch_options=--slurm-option a=b, mem_mb=90000, runtime=1440, slurm_partition=gpu, slurm_account=x
[Mon]
rule all:
    input: c
    resources: mem_mb=1, runtime=1
"""


def test_demands_are_the_largest_of_each_rule():
    embed, train = demands.read(DRY_RUN)
    assert embed == demands.Demand("embed", 2, "gpu", "", 1, 8, 9000, 40, "gpu:a100:1")
    assert train == demands.Demand("train", 1, "gpu", "x", 2, 24, 90000, 1440, "gpu:4")
    assert cluster.partitions_to_try([train, embed], []) == [train]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("02:00:00", 120), ("1-12:30:00", 2190), ("UNLIMITED", None), ("INFINITE", None)],
)
def test_time_limits_of_slurm(text, expected):
    assert cluster.minutes(text) == expected
