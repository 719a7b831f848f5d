"""`mlcd status`: what a run is doing, from its files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from helpers.refusals import refused
from helpers.tracked import Results
from mlcd import cli
from mlcd.commands.status import look
from mlcd.commands.status.alive import worker
from mlcd.launch.gang_files import Record, report_failure, try_folder
from mlcd.launch.lease import LEASE, Lease
from mlcd.utils.files import write_json

PLAN = """Building DAG of jobs...
Job stats:
job           count
----------  -------
embed             2
train             1
audit             1
all               1
total             5

"""


def block(rule: str, number: int, output: str, chunk: str = "") -> str:
    """Return what Snakemake logs of a job that it starts now."""
    wildcards = f"    wildcards: chunk={chunk}\n" if chunk else ""
    return (
        f"[{time.strftime('%a %b %d %H:%M:%S %Y')}]\nlocalrule {rule}:\n    output: {output}\n"
        f"    log: results/logs/{rule}{chunk}.log\n    jobid: {number}\n{wildcards}"
        "    threads: 1\n    resources: mem_mb=1000\n"
    )


def finished(rule: str, number: int) -> str:
    stamp = time.strftime("%a %b %d %H:%M:%S %Y")
    return f"[{stamp}]\nFinished jobid: {number} (Rule: {rule})\n"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A run that embeds its second chunk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "logs").mkdir(parents=True)
    (tmp_path / ".snakemake" / "log").mkdir(parents=True)
    say(tmp_path, PLAN + block("embed", 1, "results/embeddings/a.h5", "a") + finished("embed", 1)
        + block("embed", 2, "results/embeddings/b.h5", "b"))  # fmt: skip
    return tmp_path


def say(project: Path, text: str) -> None:
    log = project / ".snakemake" / "log" / "2026-11-29T100000.000000.snakemake.log"
    with log.open("a") as file:
        file.write(text)


def status(*words: str) -> int:
    """Run `mlcd status`; return its exit status."""
    try:
        return cli.main(["status", *words])
    except SystemExit as end:
        return int(end.code or 0)


def told(capsys, *words: str) -> tuple[int, str]:
    """Run `mlcd status`; return its exit status and what it printed."""
    capsys.readouterr()
    return status(*words), capsys.readouterr().out


@pytest.fixture
def alive(project):
    """Hold what `mlcd run` holds while it works."""
    lease = Lease(project / ".snakemake" / "mlcd-run", [], [project])
    assert lease.attempt() is None
    yield
    lease.release()


def test_a_running_job_is_shown_with_its_progress(project, alive, capsys):
    log = project / "results" / "logs" / "embedb.log"
    log.write_text("10:00:00 embed INFO embed: 300 of 900 images, 20 images/s, 30 s left\n")
    before = sorted(path for path in project.rglob("*") if path.is_file())
    code, text = told(capsys)
    assert code == 3
    assert f"running: process {os.getpid()}" in text
    assert "▶ embed     running, 1 of 2 jobs" in text
    assert "30 s left" in text
    assert "· train     waiting" in text
    assert sorted(path for path in project.rglob("*") if path.is_file()) == before


def test_the_same_as_json_from_another_folder(project, alive, capsys, tmp_path_factory):
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    code, text = told(capsys, str(project / "results"), "--json")
    assert code == 3
    stages = {stage["name"]: stage for stage in json.loads(text)["stages"]}
    assert (stages["embed"]["finished"], stages["embed"]["jobs"]) == (1, 2)
    assert stages["train"]["state"] == "waiting"


def test_a_failure_is_told_with_its_last_word(project, capsys):
    log = project / "results" / "logs" / "embedb.log"
    log.write_text("10:00:00 embed ERROR b.tar: \x1b[31mdamaged; remove it\n10:00:01 bye\n")
    say(project, f"[{time.strftime('%a %b %d %H:%M:%S %Y')}]\nError in rule embed:\n    jobid: 2\n")
    code, text = told(capsys)
    assert code == 1
    assert "failed: embed chunk=b: b.tar: ?[31mdamaged; remove it" in text
    assert "results/logs/embedb.log" in text
    assert "\x1b" not in text


def test_a_failure_that_was_made_good_is_none(project, alive, capsys):
    stamp = time.strftime("%a %b %d %H:%M:%S %Y")
    say(project, f"[{stamp}]\nError in rule embed:\n    jobid: 2\n"
        + block("embed", 2, "results/embeddings/b.h5", "b") + finished("embed", 2))  # fmt: skip
    code, text = told(capsys)
    assert (code, "failed" in text) == (3, False)
    assert "✓ embed     2 of 2 jobs" in text


def test_what_stopped_is_not_said_to_run(project, capsys):
    code, text = told(capsys)
    assert code == 4
    assert "not running" in text
    assert "▶" not in text


def test_a_whole_run_is_complete(project, capsys):
    say(project, finished("embed", 2))
    for number, rule in ((3, "train"), (4, "audit")):
        say(project, block(rule, number, f"results/{rule}/done") + finished(rule, number))
    code, text = told(capsys)
    assert (code, "complete" in text) == (0, True)


def test_a_gang_shows_its_ranks_and_its_failure(project, alive, capsys):
    home = project / "results" / "train" / "state" / "encoder.safetensors.gang"
    home.mkdir(parents=True)
    record = Record.new(home, "local", "train", 2, "0" * 16)
    record.job_id = "4711"
    record.write(home)
    files = try_folder(Path(record.folder), 0)
    files.mkdir(parents=True)
    for rank in range(2):
        write_json(files / f"rank-{rank}.json", {"rank": rank, "node": f"n\x1b{rank}"})
        write_json(files / f"rank-{rank}.usage.json", {})
    text = told(capsys)[1]
    assert (
        "gang of encoder.safetensors: local job 4711, running: on n?0, n?1, 2 of 2 ranks started"
        in text
    )
    assert "sign of life" in text
    for path in files.glob("*.usage.json"):
        os.utime(path, (time.time() - 600,) * 2)
    assert "local job 4711, silent: " in told(capsys)[1]
    report_failure(files, {"rank": 1, "kind": "error", "message": "no room on the disk"})
    assert "failed: on n?0, n?1, 2 of 2 ranks started" in told(capsys)[1]
    assert "rank 1: no room on the disk" in told(capsys)[1]


def test_the_newest_metrics_are_shown(project, capsys):
    (project / "results" / "train").mkdir()
    lines = [json.dumps({"step": step, "loss": 9 - step, "checksum": "x"}) for step in (1, 2)]
    # A line that is being written.
    (project / "results" / "train" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3,']))
    assert "training: step 2, loss 7" in told(capsys)[1]


def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status() == 2
    refused(capsys, "results: no such folder")
    assert status("--watch", "0") == 2
    refused(capsys, "--watch: expected 1 to 3600 seconds")
    (tmp_path / "results").mkdir()
    assert told(capsys)[0] == 4


def test_a_training_is_told_while_it_runs_and_its_live_scores(tmp_path, capsys):
    results = Results(tmp_path)
    results.log(5, 10)
    results.score(10)
    (results.state / "live.failed").write_text("few.tar: gone\n")
    said = told(capsys, str(results.path))[1]
    assert "training: step 10, loss 90" in said
    assert "live scores: step 10 on few: knn_5 0.1" in said
    assert "live scores: none any more: few.tar: gone" in said


def test_a_training_by_hand_and_a_gang_without_its_snakemake_run(project, capsys):
    """As `mlcd track` sees them, which follows them; other jobs are not said to run."""
    results = project / "results"
    assert (status(), worker(results, project)) == (4, "")
    lease = Lease(results / "state" / "train.lease", [], [results / "train"])
    assert lease.attempt() is None
    try:
        code, text = told(capsys)
        assert (code, f"running: process {os.getpid()}" in text) == (3, True)
        assert worker(results, project) in text
        assert "▶" not in text
    finally:
        lease.release()
    home = results / "train" / "state" / "encoder.safetensors.gang"
    gang = Record.new(home, "local", "train", 1, "0" * 16)
    gang.job_id = "4711"
    files = try_folder(Path(gang.folder), 0)
    files.mkdir(parents=True)
    gang.write(home)
    beat = files / "rank-0.usage.json"
    write_json(beat, {})
    for silence, code, state in ((LEASE - 20, 3, "running"), (LEASE + 20, 4, "silent")):
        os.utime(beat, (time.time() - silence,) * 2)
        found, text = told(capsys)
        assert (found, f"local job 4711, {state}: " in text) == (code, True)
        assert worker(results, project) == ("local job 4711" if code == 3 else "")


def test_a_run_below_the_results_does_not_speak_for_these(project):
    """All presets have their results below results/."""
    later = project / ".snakemake" / "log" / "2026-11-29T110000.000000.snakemake.log"
    later.write_text(block("prepare", 1, "results/small/urls/a.parquet"))
    results = project / "results"
    assert look.newest_log(project, results).name.startswith("2026-11-29T10")
    assert look.newest_log(project, results / "small") == later
