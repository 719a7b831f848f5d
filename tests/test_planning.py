"""Planning: nothing heavy is imported, presets stay at a thousand jobs, commands stay short."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcd.config import load
from mlcd.plan import plan

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("plan_scale", ROOT / "benchmarks" / "plan_scale.py")
plan_scale = importlib.util.module_from_spec(_spec)
sys.modules["plan_scale"] = plan_scale
_spec.loader.exec_module(plan_scale)

#: Each costs seconds and hundreds of megabytes, and every Slurm job reads the Snakefile again.
HEAVY = {
    "torch", "torchvision", "deepspeed", "faiss", "open_clip", "timm", "transformers", "sklearn",
    "scipy", "img2dataset", "cv2", "h5py", "matplotlib", "submitit",
}  # fmt: skip

_DRY_RUN = """
import sys
from snakemake.cli import main
try:
    main(["--dry-run", "--quiet", "all", *sys.argv[1:]])
except SystemExit as end:
    if end.code:
        raise
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def dry_run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", _DRY_RUN, *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


@pytest.mark.workflow
@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_planning_imports_nothing_heavy(profile):
    done = dry_run("--profile", f"profiles/{profile}")
    assert done.returncode == 0, done.stdout
    imported = set(done.stdout.rpartition("imported:")[2].split())
    assert "snakemake" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("preset", plan_scale.SIZES)
def test_presets_make_at_most_about_a_thousand_jobs(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan_scale.write_lists(tmp_path, preset)
    config = load(plan_scale.preset_file(preset))
    chunks = plan(config.metadata, config.prepare.chunk_rows)
    assert sum(chunk.rows for chunk in chunks.values()) == plan_scale.SIZES[preset][2]
    # prepare, download, embed, label a chunk, and some twenty others.
    assert 4 * len(chunks) + 25 <= 1100


@pytest.mark.workflow
def test_a_command_too_long_for_linux_stops_before_any_work():
    done = dry_run("--config", "prepare={chunk_rows: 3}", f"results={'far/' * 20}away")
    assert done.returncode == 1
    told = "prepare.chunk_rows: 794 chunks with paths as long as far/far/"
    assert told in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
