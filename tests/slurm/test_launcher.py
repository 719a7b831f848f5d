"""The gang launcher on the real cluster: results, failures, requeues, interruptions."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from gangs import (
    FOUR,
    TWO,
    job_of,
    misbehave,
    places,
    slurm,
    start_driver,
    wait_for,
    with_a_wrong_clock,
)

from mlcd.launch.api import run_gang
from mlcd.slurm.client import Status, _from_database, ask
from mlcd.utils.errors import UserError

pytestmark = pytest.mark.timeout(600)


def counting(folder: Path, steps: int, seconds: float, **more) -> str:
    words = "".join(f", {key}={value}" for key, value in more.items())
    return f"count, dict(folder={str(folder)!r}, steps={steps}, seconds={seconds}{words})"


def step_of(folder: Path) -> int:
    path = folder / "step"
    return int(path.read_text() or 0) if path.exists() else 0


def starts(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "starts").read_text().split()]


def ended(process, folder: Path) -> str:
    process.wait(400)
    return (folder / "out").read_text() + (folder / "err").read_text()


def state_of(job: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()


def gone(folder: Path, seconds: float = 15) -> bool:
    """True once no rank that left its process id in `folder` lives."""
    pids = [int(path.read_text()) for path in folder.glob("rank-?")]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds)
    return bool(pids)


@pytest.mark.short
def test_two_nodes_of_two_ranks_meet_and_are_recorded(cluster, tmp_path):
    record = tmp_path / "logs" / "gang" / "test.jsonl"
    found, total = run_gang(places, {}, tmp_path, dataclasses.replace(FOUR, record=record))
    assert total == [6.0]
    assert [place["RANK"] for place in found] == ["0", "1", "2", "3"]
    assert [place["SLURMD_NODENAME"] for place in found] == ["node1", "node1", "node2", "node2"]
    assert {place["MASTER_ADDR"] for place in found} == {"node1"}
    (line,) = [json.loads(text) for text in record.read_text().splitlines()]
    assert line["state"] == "COMPLETED"
    assert line["nodes"] == ["node1", "node2"]
    assert line["submitted"] <= line["start"] <= line["end"]
    assert all(rank["max_rss_mb"] > 50 and rank["cpu_s"] > 0 for rank in line["ranks"])
    assert len(line["ranks"]) == 4


@pytest.mark.parametrize(
    "how, expected",
    [
        ("raise", r"rank 1 of 4 failed: ValueError: the second rank cannot continue"),
        ("killed", r"rank 1 of 4 was killed from outside on node1 \(Killed\)"),
        ("memory", r"ran out of memory .*raise --mem-mb"),
    ],
)
@pytest.mark.short
def test_the_rank_that_failed_first_is_named_and_the_others_end(cluster, tmp_path, how, expected):
    work = {"how": how, "folder": str(tmp_path)}
    with pytest.raises(UserError, match=expected) as caught:
        run_gang(misbehave, work, tmp_path, FOUR)
    assert how == "memory" or "rank 1 is about to fail" in str(caught.value)
    assert "Connection" not in str(caught.value).splitlines()[0]
    assert gone(tmp_path)
    last = max(path.stat().st_mtime for path in tmp_path.glob("rank-?"))
    assert time.time() - last < 60


@pytest.mark.short
def test_a_canceled_job_is_noticed_and_named(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 1000, 0.1), "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    start = time.monotonic()
    slurm("scancel", job_of(tmp_path))
    told = ended(driver, tmp_path)
    assert "was canceled" in told
    assert time.monotonic() - start < 60


def test_an_interrupted_driver_lets_its_job_save_and_ends_it(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 1000, 0.1), "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    driver.send_signal(signal.SIGINT)
    assert "the ranks save what they have" in ended(driver, tmp_path)
    assert state_of(job_of(tmp_path)) in ("FAILED", "CANCELLED")
    assert json.loads((tmp_path / "saved.json").read_text())["step"] == step_of(tmp_path)


def test_a_second_interrupt_cancels_the_job_at_once(cluster, tmp_path):
    driver = start_driver(tmp_path, f"misbehave, dict(how='stubborn', folder={str(tmp_path)!r})",
                          "TWO")  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("rank-?"))) == 2)
    driver.send_signal(signal.SIGINT)
    wait_for(lambda: "the ranks save" in (tmp_path / "err").read_text())
    driver.send_signal(signal.SIGINT)
    ended(driver, tmp_path)
    assert state_of(job_of(tmp_path)) == "CANCELLED"


def test_a_killed_driver_leaves_its_job_and_the_next_takes_it(cluster, tmp_path):
    work = counting(tmp_path, 120, 0.1)
    driver = start_driver(tmp_path, work, "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    driver.kill()
    job = job_of(tmp_path)
    told = ended(start_driver(tmp_path, work, "TWO"), tmp_path)
    assert f"job {job} of an earlier call is alive" in told
    assert "{'steps': 120}" in told
    # And once more, of the job that has finished.
    told = ended(start_driver(tmp_path, work, "TWO"), tmp_path)
    assert f"job {job} of an earlier call has finished" in told
    assert job_of(tmp_path) == job
    assert starts(tmp_path) == [0]


def test_a_driver_killed_while_submitting_leaves_a_job_that_is_found(cluster, tmp_path):
    work = counting(tmp_path, 100, 0.1)
    driver = start_driver(tmp_path, work, "TWO")
    job = job_of(tmp_path)
    driver.kill()
    record = tmp_path / "state" / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "job_id": None}))
    told = ended(start_driver(tmp_path, work, "TWO"), tmp_path)
    assert f"job {job} of an earlier call" in told
    assert starts(tmp_path) == [0]


def test_a_job_that_nobody_wants_any_more_ends_itself(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 1000, 0.1), "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    driver.kill()
    job = job_of(tmp_path)
    record = tmp_path / "state" / "job.json"
    other = {**json.loads(record.read_text()), "folder": str(tmp_path / "job-other")}
    record.write_text(json.dumps(other))
    wait_for(lambda: state_of(job) == "FAILED", 60)


def test_the_time_limit_saves_requeues_and_resumes(cluster, tmp_path):
    limit = dataclasses.replace(TWO, timeout_min=2)
    told = ended(start_driver(tmp_path, counting(tmp_path, 260, 0.5), repr(limit)), tmp_path)
    assert "{'steps': 260}" in told
    first, *later = starts(tmp_path)
    assert first == 0
    assert later
    # Saved at the notice, not at the last multiple of ten (one of ten times it is both).
    assert any(step % 10 for step in later) or len(later) == 1


def test_preemption_with_grace_saves_and_resumes(cluster, tmp_path):
    options = "dataclasses.replace(TWO, partition='grace')"
    driver = start_driver(tmp_path, counting(tmp_path, 200, 0.2), options)
    wait_for(lambda: step_of(tmp_path) > 13)
    other = slurm("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive",
                  "--wrap=sleep 5", "--output=/dev/null").strip()  # fmt: skip
    told = ended(driver, tmp_path)
    assert "{'steps': 200}" in told
    assert state_of(other) == "COMPLETED"
    assert len(starts(tmp_path)) == 2
    assert starts(tmp_path)[1] > 10


def test_a_requeued_job_resumes_from_its_last_save(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 150, 0.1), "TWO")
    wait_for(lambda: step_of(tmp_path) > 13)
    slurm("scontrol", "requeue", job_of(tmp_path))
    told = ended(driver, tmp_path)
    assert "{'steps': 150}" in told
    assert len(starts(tmp_path)) == 2
    assert starts(tmp_path)[1] >= 10
    sizes = [
        json.loads(path.read_text())["log_size"]
        for path in sorted(tmp_path.glob("state/job-*/try-*/rank-0.json"))
    ]
    assert sizes[0] < sizes[1]


def test_too_many_requeues_are_an_error(cluster, tmp_path):
    options = "dataclasses.replace(TWO, requeues=1)"
    driver = start_driver(tmp_path, counting(tmp_path, 5000, 0.1), options)
    job = job_of(tmp_path)
    for tries in (1, 2):
        wait_for(lambda n=tries: (tmp_path / "starts").exists() and len(starts(tmp_path)) == n)
        slurm("scontrol", "requeue", job)
    told = ended(driver, tmp_path)
    assert driver.returncode != 0
    assert "--requeues" in told


def test_a_lost_node_only_costs_time(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 150, 0.2), "TWO")
    wait_for(lambda: step_of(tmp_path) > 13)
    try:
        slurm("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        told = ended(driver, tmp_path)
    finally:
        # It may have come back by itself: its slurmd lives.
        subprocess.run(["scontrol", "update", "nodename=node2", "state=resume"])
    assert "{'steps': 150}" in told
    assert starts(tmp_path)[1] >= 10


def test_a_controller_that_is_away_is_waited_for(cluster, tmp_path):
    driver = start_driver(tmp_path, counting(tmp_path, 100, 0.2), "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    controller = cluster.controller()
    controller.kill()
    controller.wait(10)
    time.sleep(45)
    assert driver.poll() is None
    cluster.start_controller()
    told = ended(driver, tmp_path)
    assert "{'steps': 100}" in told
    assert starts(tmp_path) == [0]


def test_what_slurm_refuses_is_told_in_one_line(cluster, tmp_path):
    with pytest.raises(UserError, match=r"^sbatch refused the job: .*partition") as caught:
        run_gang(places, {}, tmp_path, dataclasses.replace(TWO, partition="nowhere"))
    assert "\n" not in str(caught.value)


def test_a_forgotten_job_is_gone_or_known_to_the_database(cluster, tmp_path):
    assert ask("987654") == Status("GONE")
    job = slurm("sbatch", "--parsable", "--wrap=sleep 60", "--output=/dev/null").strip()
    wait_for(lambda: state_of(job) == "RUNNING")
    slurm("scancel", job)
    wait_for(lambda: not ask(job).alive)
    assert ask(job).state == "CANCELLED"
    known = _from_database(job)
    if subprocess.run(["sacct"], capture_output=True).returncode == 0:
        wait_for(lambda: (_from_database(job) or Status("")).state == "CANCELLED", 60)
        assert _from_database(job).details["NodeList"].startswith("node")
    else:
        assert known is None


def test_a_node_with_a_wrong_clock_is_named_before_any_work(cluster, tmp_path):
    with pytest.raises(UserError, match=r"^rank 1 on node2: its clock is 36\d\d s ahead of others"):
        run_gang(with_a_wrong_clock, {}, tmp_path, TWO)


def test_a_login_node_that_shuts_down_leaves_the_job(cluster, tmp_path):
    work = counting(tmp_path, 100, 0.1)
    driver = start_driver(tmp_path, work, "TWO")
    wait_for(lambda: step_of(tmp_path) > 3)
    driver.terminate()
    ended(driver, tmp_path)
    assert "{'steps': 100}" in ended(start_driver(tmp_path, work, "TWO"), tmp_path)
    assert starts(tmp_path) == [0]
