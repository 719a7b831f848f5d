"""Part `efficiency` of the report: Snakemake's logs, benchmarks, gang records, sacct's words."""

from __future__ import annotations

import csv
import io
import json

import pytest

from helpers.report_stores import CHUNKS
from mlcd.stages.report.accounts import (
    _duration,
    _megabytes,
    ask_slurm,
    gang_jobs,
    split_nodes,
)
from mlcd.stages.report.runlog import Job, read_logs


def rows_of(stores, tmp_path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(stores.draw("efficiency", tmp_path / "e.csv"))))


def test_a_row_per_job_with_failed_attempts(stores, tmp_path):
    failed, first, second = rows_of(stores, tmp_path)
    # 00:01:00 to 00:05:30: not measured, only timed.
    assert (failed["state"], failed["run"], failed["cpu"]) == ("failed", "270.0", "")
    assert (first["state"], first["run"], first["cpu"]) == ("done", "175.0", "262.5")
    assert (first["memory"], first["memory_asked"], first["threads"]) == ("800.0", "1000.0", "2")
    assert first["wildcards"] == f"chunk={CHUNKS[0]}"
    assert second["wildcards"] == f"chunk={CHUNKS[1]}"
    assert (second["run"], second["queue"]) == ("115.0", "")


def test_the_table_adds_up(stores, tmp_path):
    page = stores.draw("efficiency", tmp_path / "e.html")
    # 2 threads for 270 + 175 + 115 s. Of the two measured, 262.5 + 23 s of 580 at work.
    assert "2 jobs in 3 tries held 19 core minutes, and worked 49% of them" in page
    cells = [cell.split("</td>")[0] for cell in page.split('<td class="number">')[1:]]
    assert cells == ["2", "3", "1", "–", "–", "2 min 55 s (4 min 30 s)", "18 min 40 s", "49%",
                     "800.0 MB", "80%", "–"]  # fmt: skip


def test_jobs_of_another_results_folder_do_not_count(stores, tmp_path):
    logs = list((stores.snakemake / "log").glob("*.log"))
    assert len(read_logs(logs, str(stores.folder))) == 3
    assert read_logs(logs, str(stores.folder)[:-1]) == []


def test_without_logs_the_page_says_so(stores, tmp_path):
    from mlcd.cli import main

    page = tmp_path / "e.html"
    words = ["report", "--part", "efficiency", "--folder", str(stores.folder)]
    assert main([*words, "--snakemake", str(tmp_path), "--output", str(page)]) == 0
    assert "No job of this run is known here" in page.read_text()


SLURM_LOG = """SLURM run ID: 1234-abcd
[Mon Nov 23 00:01:00 2026]
rule embed:
    output: results/embeddings/a.h5
    jobid: 7
    threads: 4
    resources: mem_mb=2000, slurm_partition=main, runtime=60, gres=gpu:a100:1
Job 7 has been submitted with SLURM jobid 42 (log: {log}).
[Mon Nov 23 00:09:00 2026]
Finished jobid: 7 (Rule: embed)
"""


@pytest.fixture
def slurm_job(tmp_path):
    kept = tmp_path / "42.log"
    kept.write_text("host: node1\n[Mon Nov 23 00:03:00 2026]\nlocalrule embed:\n")
    log = tmp_path / "head.log"
    log.write_text(SLURM_LOG.format(log=kept))
    (job,) = read_logs([log], "results")
    return job


def test_a_slurm_jobs_queue_ends_where_its_own_log_begins(slurm_job):
    assert (slurm_job.slurm_id, slurm_job.slurm_name) == ("42", "1234-abcd")
    assert slurm_job.queue == 120
    assert slurm_job.run == 360
    assert (slurm_job.gpus, slurm_job.threads, slurm_job.memory_asked) == (1, 4, 2000)


KILLED = """SLURM run ID: 1234-abcd
[Mon Nov 23 00:01:00 2026]
rule embed:
    output: {a}
    jobid: 7
    threads: 4
Job 7 has been submitted with SLURM jobid 42 (log: {log}).
[Mon Nov 23 00:01:00 2026]
rule embed:
    output: {b}
    jobid: 8
    threads: 4
Job 8 has been submitted with SLURM jobid 43 (log: {log}).
[Mon Nov 23 00:01:00 2026]
rule embed:
    output: {c}
    jobid: 9
    threads: 4
Job 9 has been submitted with SLURM jobid 44 (log: {log}).
"""
TOUCHED = """[Mon Nov 23 00:20:00 2026]
rule embed:
    output: {b}
    jobid: 1
    threads: 1
[Mon Nov 23 00:20:01 2026]
Finished jobid: 1 (Rule: embed)
"""
AGAIN = """SLURM run ID: 5678-efgh
[Mon Nov 23 00:21:00 2026]
rule embed:
    output: {c}
    jobid: 2
    threads: 4
Job 2 has been submitted with SLURM jobid 50 (log: {log}).
[Mon Nov 23 00:29:00 2026]
Finished jobid: 2 (Rule: embed)
"""


def test_jobs_that_outlived_their_snakemake_keep_their_ids(tmp_path):
    """One was found whole, one touched by the next run, one had to be made again."""
    kept = tmp_path / "job.log"
    kept.write_text("host: node7\n[Mon Nov 23 00:03:00 2026]\nlocalrule embed:\n")
    names = {name: tmp_path / "results" / "embeddings" / f"{name}.h5" for name in "abc"}
    (tmp_path / "results" / "embeddings").mkdir(parents=True)
    for name in "abc":
        names[name].touch()
    logs = []
    for number, text in enumerate((KILLED, TOUCHED, AGAIN)):
        logs.append(tmp_path / f"{number}.log")
        logs[-1].write_text(text.format(log=kept, **names))
    jobs = read_logs(logs, str(tmp_path / "results"))
    told = [(job.outputs[-4:], job.slurm_id, job.state, job.nodes) for job in jobs]
    assert told == [
        ("a.h5", "42", "done", "node7"),
        ("b.h5", "43", "done", "node7"),
        ("c.h5", "44", "unknown", "node7"),
        ("c.h5", "50", "done", "node7"),
    ]


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("node1,node2", ["node1", "node2"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]-gpu", ["r1-gpu", "r2-gpu"]),
    ],
)
def test_lists_of_nodes_as_slurm_writes_them(nodes, names):
    assert list(split_nodes(nodes)) == names


SACCT = """#!/bin/sh
cat <<END
42|1234-abcd|COMPLETED|2026-11-23T00:01:01|2026-11-23T00:02:31|2026-11-23T00:08:31|18:00.000|||node1
42.batch|batch|COMPLETED|2026-11-23T00:02:31|2026-11-23T00:02:31|2026-11-23T00:08:31|18:00.000|1500M||node1
42.0|python|COMPLETED|2026-11-23T00:02:31|2026-11-23T00:02:31|2026-11-23T00:08:31|18:00|100K|gres/gpuutil=63|node1
43|another|COMPLETED|2026-11-23T00:02:31|2026-11-23T00:02:31|2026-11-23T00:08:31|00:00:01|||node2
END
"""


def test_sacct_is_believed_where_it_answers(slurm_job, tmp_path, monkeypatch):
    """Words as the real sacct's; tests/slurm asks that one."""
    program = tmp_path / "bin" / "sacct"
    program.parent.mkdir()
    program.write_text(SACCT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert ask_slurm([slurm_job]) == "sacct"
    assert (slurm_job.queue, slurm_job.run, slurm_job.cpu) == (90, 360, 1080)
    assert slurm_job.memory == pytest.approx(1572.864)
    assert (slurm_job.gpu_busy, slurm_job.nodes) == (0.63, "node1")


def test_a_later_job_of_the_same_number_is_another(slurm_job, tmp_path, monkeypatch):
    program = tmp_path / "sacct"
    program.write_text(SACCT.replace("1234-abcd", "5678-efgh").replace("42.", "44."))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ask_slurm([slurm_job])
    assert (slurm_job.queue, slurm_job.cpu) == (120, None)


def test_gang_records_become_jobs(tmp_path):
    line = {
        "stage": "train", "launcher": "slurm", "job_id": "9", "state": "COMPLETED", "tries": 2,
        "submitted": "2026-11-23T00:00:00", "start": "2026-11-23T00:10:00",
        "end": "2026-11-23T01:10:00", "nodes": ["node1", "node2", "node3"],
        "asked": {"cpus": "16", "tres": "cpu=16,mem=8G,node=2,billing=16,gres/gpu=2"},
        "ranks": [
            {"try": 1, "rank": 0, "node": "node3", "cpu_s": 100.0, "max_rss_mb": 7000,
             "start": 1000.0, "wall_s": 900.0},
            # Then half an hour in the queue.
            {"try": 2, "rank": 0, "node": "node1", "cpu_s": 500.0, "max_rss_mb": 900,
             "gpu_busy": 0.9, "start": 3700.0, "wall_s": 895.0},
            {"try": 2, "rank": 1, "node": "node2", "cpu_s": 400.0, "max_rss_mb": 800,
             "gpu_busy": 0.7, "start": 3702.0, "wall_s": 898.0},
        ],
    }  # fmt: skip
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(line) + "\nnot json\n")
    (job,) = gang_jobs([path])
    assert (job.rule, job.state, job.queue, job.run) == ("train", "done", 600, 1800)
    assert (job.threads, job.gpus, job.cpu, job.memory, job.tries) == (16, 2, 1000, 1700, 2)
    # An account of all starts names the nodes of all; the job's are those of the last.
    assert (job.wildcards, job.nodes) == ("2 ranks on 2 nodes", "node1,node2")
    assert (job.slurm_id, job.gpu_busy) == ("9", pytest.approx(0.8))
    assert job.memory_asked == pytest.approx(8589.9, abs=0.1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:18", 18), ("18:00.5", 1080.5), ("1-02:00:03", 93603), ("", 0)]
)
def test_durations_of_sacct(text, seconds):
    assert _duration(text) == seconds


def test_sizes_of_sacct():
    assert _megabytes("1500M") == pytest.approx(1572.864)
    assert _megabytes("") == 0
    assert Job("a").queue is None


def test_another_run_below_the_results_is_not_of_these(tmp_path):
    """All presets have their results below results/."""
    log = tmp_path / "1.log"
    text = TOUCHED.format(b="results/embeddings/a.h5") + TOUCHED.format(b="results/small/urls/b.h5")
    log.write_text(text)
    for results, expected in (("results", "results/embeddings/a.h5"),
                              ("results/small", "results/small/urls/b.h5")):  # fmt: skip
        assert [job.outputs for job in read_logs([log], results)] == [expected]
