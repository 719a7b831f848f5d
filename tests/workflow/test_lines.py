"""`snakemake --logger mlcd`: a line per job, all else as Snakemake shows it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.workflow

SNAKEFILE = """
rule all:
    input: "one.txt", "two.txt"
rule copy:
    output: "{word}.txt"
    log: "{word}.log"
    shell: "{{ test {wildcards.word} = one && touch {output} || test -e {output}; }} 2> {log}"
"""


@pytest.fixture
def snakemake(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(*options: str) -> tuple[int, list[str]]:
        words = [sys.executable, "-m", "snakemake", "--logger", "mlcd", "--cores", "1", "-k"]
        done = subprocess.run(
            [*words, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


def test_a_job_takes_a_line_and_a_failure_its_details(snakemake, tmp_path):
    code, lines = snakemake()
    assert code == 1
    assert sum("3 jobs: copy 2" in line for line in lines) == 1
    assert sum(line.endswith("▶ copy one") for line in lines) == 1
    assert sum("✓ copy one: " in line and "of 3 jobs" in line for line in lines) == 1
    assert sum(line.endswith("✗ copy two") for line in lines) == 1
    assert "Error in rule copy:" in lines
    assert any("two.log (check log file(s)" in line for line in lines)
    assert not any("Select jobs" in line or line.startswith("    jobid: 1") for line in lines)
    # What `mlcd status` and the report read.
    (log,) = (tmp_path / ".snakemake" / "log").glob("*.log")
    assert "Job stats:" in log.read_text()
    assert "Finished jobid" in log.read_text()
    assert "    wildcards: word=one" in log.read_text()


def test_a_dry_run_and_the_end_of_all_are_as_ever(snakemake, tmp_path):
    (tmp_path / "two.txt").touch()
    code, lines = snakemake("--dry-run")
    assert code == 0
    assert "rule copy:" in lines
    assert snakemake()[0] == 0
    assert any("Nothing to be done" in line for line in snakemake()[1])
