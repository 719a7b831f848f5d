"""Planning: nothing heavy is imported, commands stay short."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.paths import ROOT

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


@pytest.mark.workflow
@pytest.mark.parametrize("preset", ["laion400m-vit-l14", "coyo700m-vit-l14"])
def test_presets_of_the_paper_are_planned(preset, tmp_path):
    """As many rows as there are classes, at least: of a list, planning reads the footer alone."""
    words = pa.array(["x"] * 1_000_000).dictionary_encode()
    names = ["url", "text"] if "coyo" in preset else ["URL", "TEXT"]
    pq.write_table(pa.table(dict.fromkeys(names, words)), tmp_path / "list.parquet")
    place = [f"metadata={tmp_path / 'list.parquet'}", f"results={tmp_path / 'results'}"]
    file = f"workflow/presets/{preset}.yaml"
    done = dry_run("--profile", "profiles/slurm", "--configfile", file, "--config", *place)
    assert done.returncode == 0, done.stdout


@pytest.mark.workflow
@pytest.mark.parametrize(("train", "asked"), [("regions: mosaic", True), ("epochs: 2", False)])
def test_a_region_layer_is_asked_for_where_one_is_trained(tmp_path, train, asked):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--config",
         f"train={{{train}}}", "ablate={grids: [{seeds: [3]}]}",
         f"results={tmp_path / 'results'}", "--", "all", "ablate"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if "train/regions.safetensors" in line]
    made = [line for line in lines if line.strip().startswith("output:")]
    # By the rule train, and by that of a cell.
    assert len(made) == (2 if asked else 0)
    # Read by features, a cell's scores, the export, the report and the seal.
    read = [line for line in lines if line.strip().startswith("input:")]
    assert len(read) >= 5 if asked else not read


@pytest.mark.workflow
def test_a_command_too_long_for_linux_stops_before_any_work():
    done = dry_run("--config", "prepare={chunk_rows: 3}", f"results={'far/' * 180}away")
    assert done.returncode == 1
    told = "prepare.chunk_rows: 794 chunks with paths as long as far/far/"
    assert told in done.stdout, done.stdout
    assert "Traceback" not in done.stdout


_LONG = """
rule:
    input:
        [f"{'a' * 120}/{number}" for number in range(3000)],
    output:
        "count",
    shell:
        "python -c 'import sys; print(len(sys.argv) - 1)' {input:q} > {output}"
"""


@pytest.mark.workflow
def test_snakemake_runs_a_command_beyond_one_argument_of_linux(tmp_path):
    """check_command_length rests on it: a command of 370 kB, where a word may have 128."""
    (tmp_path / "Snakefile").write_text(_LONG)
    (tmp_path / ("a" * 120)).mkdir()
    for number in range(3000):
        (tmp_path / ("a" * 120) / str(number)).touch()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "count").read_text() == "3000\n"
