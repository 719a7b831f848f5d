"""`mlcd doctor` where no Slurm is: this machine, profiles, and what dry runs are read as."""

from __future__ import annotations

import os
import re

import pytest
import yaml

from helpers.benchmark_scripts import plan_scale
from helpers.doctor import doctor, row
from helpers.footprints import recorded
from helpers.paths import ROOT
from mlcd.cli import main
from mlcd.commands.doctor import demands, here, node, slurm_cluster, training
from mlcd.commands.doctor.checks import FAIL, OK, WARN
from mlcd.config import Text, load
from mlcd.stages.train import fit


def test_without_slurm_it_says_so_in_one_line(tmp_path):
    done = doctor("--profile", "slurm", path=str(tmp_path))
    assert done.returncode == 2
    assert "no sinfo, squeue, scontrol, sbatch, srun on this machine" in row(done.stdout, "slurm")
    assert "fix: run it on a login node" in row(done.stdout, "slurm")
    assert done.stderr.count("\n") == 1
    assert "slurm: 1 of " in done.stderr


def test_an_unknown_profile_names_those_there(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "--profile", "slrum"]) == 2
    said = capsys.readouterr().err
    assert "--profile slrum: no such profile; there are local, slurm, slurm-1gpu, slurm-cpu" in said


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
    assert "fix: pip uninstall faiss-cpu faiss-gpu" in told


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


def test_outside_of_a_project_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 2
    told = row(capsys.readouterr().out, "project")
    assert f"{tmp_path}: no config.yaml here" in told and "go to the folder of your config" in told


def test_a_disk_too_small_for_laion_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan_scale.write_lists(tmp_path, "laion400m-vit-l14")
    values = yaml.safe_load(plan_scale.preset_file("laion400m-vit-l14").read_text())
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump({**values, "evaluate": {"datasets": []}}))
    config, disk = here.config_and_disk(str(preset))
    assert config.result == OK
    assert "389,737,314 rows in 224 chunks" in config.seen
    # 389.7M · 32.5 kB.
    assert "some 12.7 TB needed, if an image takes 30.0 kB" in disk.seen
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
    assert train == demands.Demand("train", 1, "gpu", "x", 2, 24, 90000, 1440, "gpu:4", ranks=8)
    assert slurm_cluster.partitions_to_try([train, embed], []) == [train]
    # Whatever job comes first, the look at a node has the memory of the largest.
    (tried,) = slurm_cluster.partitions_to_try([embed, train], [])
    assert (tried.rule, tried.memory) == ("embed", 90000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("02:00:00", 120), ("1-12:30:00", 2190), ("UNLIMITED", None), ("INFINITE", None)],
)
def test_time_limits_of_slurm(text, expected):
    assert slurm_cluster.minutes(text) == expected


def test_two_cuda_stacks_are_found():
    torch = {"nvidia-cublas": "13.1.1.3", "nvidia-cuda-runtime": "13.0.96", "torch": "2.14.1"}
    faiss = {"nvidia-cublas-cu12": "12.9.3.13", "nvidia-cuda-runtime-cu12": "12.9.79"}
    (one,) = here._cuda_stacks(torch)
    assert (one.result, one.seen) == (OK, "one stack, of CUDA 13")
    (two,) = here._cuda_stacks(torch | faiss)
    assert two.result == WARN and "nvidia-cublas-cu12 12.9.3.13" in two.seen
    assert "mlcd doctor --profile" in two.fix
    assert not list(here._cuda_stacks({"torch": "2.14.1+cpu"}))


@pytest.mark.skipif(here.gpu_memory() is not None, reason="has a GPU, so that they do compute")
def test_what_does_not_compute_together_is_told():
    assert node.together().startswith("torch before faiss: ")
    check = node._together("n1", node.together())
    assert check.result == FAIL and "in a fresh environment" in check.fix


@pytest.mark.gpu
@pytest.mark.skipif(here.gpu_memory() is None, reason="needs a CUDA device")
def test_torch_and_faiss_compute_together():
    assert node.together() == ""


def asked(ranks: int, gres: str = "gpu:8") -> list[demands.Demand]:
    return [demands.Demand("train", 1, "", "", 1, 8, 1, 1, gres, ranks=ranks)]


def test_the_training_is_held_against_the_gpus(monkeypatch):
    monkeypatch.setattr(fit, "footprint", recorded)
    config = load(ROOT / "workflow" / "presets" / "laion400m-vit-l14.yaml")
    first, second = training.checks(config, asked(8), 80 * 10**9)
    assert first.result == second.result == OK
    assert first.seen.startswith("256 of a rank's 4096 images at once: 6")
    assert "of 80.0 GB on each of 8 GPUs" in first.seen and second.name == "training, 336 px"
    (small,) = training.checks(config, asked(8), 7 * 10**9)
    assert small.result == FAIL and small.fix.startswith("set train.zero_stage: 3 (")
    # Where no GPU was seen: the least that it takes. Nothing of gangs on CPUs.
    least, _ = training.checks(config, asked(8), None)
    assert least.seen.startswith("1 of a rank's") and " at least on each of 8" in least.seen
    (odd,) = training.checks(config, asked(7), None)
    assert odd.result == FAIL and "7 ranks" in odd.seen
    assert not list(training.checks(config, asked(8, ""), None))
    # A million words beside a million clusters take their room twice.
    ocr = config.ocr.changed(enabled=True, most_words=1_000_000)
    wordy = config.model_copy(
        update={"ocr": ocr, "train": config.train.changed(ocr_weight=0.5)}
    )  # fmt: skip
    more, _ = training.checks(wordy, asked(8), None)
    shares = [float(re.search(r"centers ([\d.]+) GB", found.seen)[1]) for found in (least, more)]
    assert shares[1] == pytest.approx(2 * shares[0], abs=0.15)


def test_the_text_tower_is_held_against_the_gpus_too(monkeypatch):
    monkeypatch.setattr(fit, "footprint", recorded)
    config = load(ROOT / "workflow" / "presets" / "laion400m-vit-l14.yaml")
    config = config.model_copy(update={"text": Text(enabled=True, layers=1, batch_size=4096)})
    gangs = [*asked(8), demands.Demand("text", 1, "", "", 1, 8, 1, 1, "gpu:8", ranks=8)]
    *_, text = training.checks(config, gangs, 80 * 10**9)
    assert (text.name, text.result) == ("text tower", OK) and "512 pairs at once" in text.seen
    (*_, text) = training.checks(config, [gangs[1]], 17 * 10**8)
    assert text.result == FAIL and text.fix == "take GPUs with more memory"
