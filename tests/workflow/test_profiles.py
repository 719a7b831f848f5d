"""The Slurm profiles: they plan, their first block reaches every job, and they stay alike."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yte

from helpers.paths import ROOT
from mlcd.config import registry
from mlcd.data.url_lists import Chunk

SLURM = ("slurm", "slurm-1gpu", "slurm-cpu")


def text(name: str) -> str:
    return (ROOT / "profiles" / name / "config.yaml").read_text()


def parsed(source: str) -> dict:
    return yte.process_yaml(io.StringIO(source), require_use_yte=True)


@pytest.mark.parametrize("name", SLURM)
def test_the_first_block_reaches_every_job(name):
    changed = re.sub(r'account: ""', "account: vision-7", text(name))
    changed = re.sub(r"( (?:gpu_)?partition): main", r"\1: big", changed)
    changed = re.sub(r"time_limit: \d+", "time_limit: 77", changed)
    profile = parsed(changed)
    assert profile["default-resources"]["slurm_account"] == "'vision-7'"
    assert profile["default-resources"]["slurm_partition"] == "'big'"
    assert profile["resources"]["runtime"] == 77
    assert "main" not in str(profile)
    gangs = {rule: keys for rule, keys in profile["set-resources"].items() if "launcher" in keys}
    assert set(gangs) == {
        "cluster", "train", "text", "ablate_cluster", "ablate_train", "curate_cluster",
    }  # fmt: skip
    for keys in gangs.values():
        found = [keys[name] for name in ("slurm_account", "slurm_partition", "runtime")]
        assert found == ["'vision-7'", "'big'", 77]


@pytest.mark.parametrize("name", SLURM)
def test_without_an_account_none_is_named(name):
    profile = parsed(text(name))
    assert "slurm_account" not in profile["default-resources"]
    assert "account" not in str(profile["set-resources"])


def test_the_profiles_differ_only_in_width_and_gpus():
    profiles = {name: parsed(text(name)) for name in SLURM}
    width = {"jobs", "cores", "resources", "set-threads", "set-resources"}
    alike = [{k: v for k, v in p.items() if k not in width} for p in profiles.values()]
    assert alike[0] == alike[1] == alike[2]
    assert "gres" not in str(profiles["slurm-cpu"])


def test_memory_and_time_grow_with_rows_threads_and_attempt():
    """rules/resources.smk holds functions alone: plain Python."""
    names = {
        "math": math,
        "CHUNKS": {"small": Chunk("a.parquet", 0, 600), "large": Chunk("a.parquet", 1, 2_000_000)},
        "CONFIG": SimpleNamespace(cluster=SimpleNamespace(k=1_000_000)),
    }
    exec((ROOT / "rules" / "resources.smk").read_text(), names)
    small, large = SimpleNamespace(chunk="small"), SimpleNamespace(chunk="large")
    asked = names["memory"](2000, row_bytes=500, thread_mb=750)
    assert asked(small, 1, 2) == 3500
    assert asked(large, 1, 2) == 4500
    assert asked(large, 1, 16) == 15000
    assert asked(large, 3, 16) == 45000
    limit = names["minutes"](15, rows_per_second=1000)
    assert (limit(small, 1, 8), limit(large, 1, 8), limit(large, 2, 8)) == (16, 49, 98)
    wide = names["minutes"](15, rows_per_second=100, by_threads=True)
    assert wide(large, 1, 8) == 15 + 42
    centers = names["memory_for_centers"](6000, 16)
    assert (centers(None, 1), centers(None, 2)) == (22000, 33000)
    names["CONFIG"].regions, names["REGIONS"] = SimpleNamespace(most=10), ["regions/large.h5"]
    of_images, of_regions = (SimpleNamespace(embeddings=f"{of}/large.h5")
                             for of in ("embeddings", "regions"))  # fmt: skip
    # 4.9 rows a second and thread at a million centers.
    assert names["label_minutes"](large, of_images, 1, 8) == 15 + 854
    assert names["label_minutes"](large, of_regions, 2, 8) == 2 * (15 + 8534)
    names |= {"registry": registry, "DATASETS": {"mine": None}}
    assert (names["scores_memory"](None, 1), names["scores_minutes"](None, 2)) == (8000, 480)
    names["DATASETS"] = {"mine": None, "imagenet": None, "dtd": None}
    # Four copies of 1,331,167 rows of 2,048 floats; in time the 5,640 of dtd come on top.
    assert names["scores_memory"](None, 1) == 8000 + 1_331_167 * 4 * 4 * 2048 // 1_000_000
    longest = 240 + (1_331_167 + 5_640) // 2000
    assert names["scores_minutes"](None, 1) == longest
    # Trainings of an ablation are fine-tuned in the same job.
    tuned, plain = (SimpleNamespace(tasks=tasks) for tasks in (["knn", "finetune"], ["knn"]))
    config = SimpleNamespace(evaluate=SimpleNamespace(finetune_epochs=50))
    names |= {"DATASETS": {"mine": tuned, "imagenet": tuned, "dtd": plain}, "CONFIG": config}
    assert names["cell_minutes"](None, 2) == 2 * (longest + 50 * 1_281_167 // 6000)
    own, known = SimpleNamespace(dataset="mine"), SimpleNamespace(dataset="imagenet")
    assert names["finetune_minutes"](own, 1) == names["features_minutes"](own, 1) == 240
    assert names["finetune_minutes"](known, 2) == 2 * (240 + 50 * 1_281_167 // 6000)
    assert names["features_minutes"](known, 1) == 240 + 1_331_167 // 6000


@pytest.mark.workflow
@pytest.mark.parametrize("name", SLURM)
def test_jobs_ask_for_what_their_chunk_and_threads_need(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--profile", f"profiles/{name}",
         "--config", f"results={tmp_path}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    profile = parsed(text(name))
    jobs = re.findall(r"^rule (\w+):$(.*?)^    resources: ([^\n]*)$", done.stdout, re.M | re.S)
    asked = {rule: dict(re.findall(r"(\w+)=(\S+?)(?:,|$)", told)) for rule, _, told in jobs}
    threads = profile["set-threads"]["embed"]
    # The demo's chunks hold 600 rows: less than a megabyte and a minute.
    assert int(asked["embed"]["mem_mb"]) == 5000 + 500 * threads
    limit = profile["resources"]["runtime"]
    assert int(asked["embed"]["runtime"]) == (limit if name == "slurm-cpu" else 16)
    # A GPU labels a chunk in minutes; so long a limit as a CPU's would wait in the queue.
    assert int(asked["label"]["runtime"]) == (16 if name == "slurm-cpu" else 60)
    for rule in ("embed", "evaluate"):
        assert ("gres" in asked[rule]) == (name != "slurm-cpu")
    assert all(int(keys["runtime"]) <= limit for keys in asked.values())
