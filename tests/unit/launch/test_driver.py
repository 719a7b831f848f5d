"""The driver where Slurm, or another machine, says little: gangs found again, odd answers.

The programs of Slurm are scripts here: a real controller does not give such answers when asked to.
What it does in earnest is tested on a real cluster (tests/slurm).
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest

from helpers.local_gangs import TWO, place
from mlcd.launch import jobs_local, jobs_slurm, lease
from mlcd.launch.api import backends, run_gang
from mlcd.launch.call import Call
from mlcd.launch.diagnosis_slurm import Killed, end_message, killed_rank, ran_out_of_memory
from mlcd.launch.driver import Driver
from mlcd.launch.environment import rank_environment
from mlcd.launch.failures import Transient
from mlcd.launch.gang_files import Record
from mlcd.launch.jobs_local import LocalJob, controller_place
from mlcd.launch.jobs_slurm import SlurmJob
from mlcd.launch.lease import Lease
from mlcd.launch.options import Resources
from mlcd.slurm import client, submit
from mlcd.slurm.client import Status, ask
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json
from mlcd.utils.processes import this_process

SLURM = Resources(launcher="slurm", ranks_per_node=2)

HERE = {"pid": 1, "created": 1, "host": "h", "node": "n", "start": 0.0, "log_size": 0}


def planted(state: Path, launcher: str, **changes) -> Path:
    """Write down a gang of two started ranks in `state`; return the folder of its start."""
    folder = state / "job-000000000001"
    values = {"job_id": "77", "place": {"machine": "another", "host": "far", "created": 1}}
    values |= {"work": "same"} | changes
    record = Record(launcher, str(folder), "mlcd-test-1", 2, **values)
    files = folder / "try-0"
    files.mkdir(parents=True)
    for rank in range(2):
        write_json(files / f"rank-{rank}.json", HERE)
    record.write(state)
    return files


def driver(state: Path, kind: type[Driver] = Driver) -> Driver:
    return kind(Call(place, {}, "test"), state, SLURM, backends(SLURM), "same")


def finish(files: Path) -> None:
    for rank in (1, 0):
        write_json(files / f"rank-{rank}.done", {"result": "theirs"})


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder, first in PATH, for scripts named as Slurm's programs; `asked` grows at each."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(submit, "_PAUSE", 0.01)

    def write(**scripts: str) -> Path:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\ncd {folder}\necho {name} $* >> asked\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    write(scancel="echo CANCELLED > state")
    return write


def shows(name: str) -> str:
    return f'echo "JobId=77 JobName={name} JobState=$(cat state) Reason=None Restarts=0"'


# ---------------------------------------------------------------------------- other machines


def test_a_silent_gang_of_another_machine_is_given_up(tmp_path, monkeypatch):
    planted(tmp_path, "local")
    monkeypatch.setattr(jobs_local, "LEASE", 1.5)
    start = time.monotonic()
    assert run_gang(place, {"word": "new"}, tmp_path, TWO)["word"] == "new"
    assert time.monotonic() - start > 1.5


def test_a_gang_of_another_machine_that_shows_life_is_waited_for(tmp_path, monkeypatch):
    files = planted(tmp_path, "local")
    monkeypatch.setattr(jobs_local, "LEASE", 5.0)

    def live() -> None:
        for beat in range(10):
            time.sleep(0.2)
            write_json(files / "rank-0.usage.json", beat)
        finish(files)

    thread = threading.Thread(target=live)
    thread.start()
    assert run_gang(place, {"word": "new"}, tmp_path, TWO, work="same") == "theirs"
    thread.join()


def test_another_work_that_another_machine_has_finished_is_not_taken(tmp_path):
    finish(planted(tmp_path, "local"))
    assert run_gang(place, {"word": "new"}, tmp_path, TWO)["word"] == "new"


def test_a_live_gang_of_other_work_on_another_machine_is_named(tmp_path, monkeypatch):
    files = planted(tmp_path, "local")
    monkeypatch.setattr(jobs_local, "LEASE", 5.0)
    threading.Timer(0.5, write_json, [files / "rank-0.usage.json", 1]).start()
    two = dataclasses.replace(TWO, end_other=True)
    # It cannot be ended from here.
    with pytest.raises(UserError, match=r"process 77 on far, .* by `kill 77 \(on far\)`$"):
        run_gang(place, {"word": "new"}, tmp_path, two)


@pytest.mark.parametrize("end_other", [False, True])
def test_a_live_slurm_job_of_other_work_is_named_or_ended(tmp_path, programs, end_other):
    folder = programs(scontrol=shows("mlcd-test-1"))
    (folder / "state").write_text("RUNNING")
    planted(tmp_path, "slurm")
    one = Resources(launcher="inline", end_other=end_other)
    if end_other:
        assert run_gang(place, {"word": "new"}, tmp_path, one)["word"] == "new"
    else:
        with pytest.raises(UserError, match=r"Slurm job 77, .* `scancel 77`, or give --end-other"):
            run_gang(place, {"word": "new"}, tmp_path, one)
    assert ("scancel 77" in (folder / "asked").read_text()) is end_other


def test_a_controller_that_has_ended_meanwhile_is_no_error(tmp_path):
    gone = LocalJob("999999999", tmp_path, 2, controller_place(999999999))
    assert not gone.alive()


# ---------------------------------------------------------------------------- Slurm's answers


def test_without_an_answer_nothing_is_submitted_twice(programs):
    import submitit

    folder = programs(squeue="test -e once && echo 77 || { touch once; exit 1; }")
    sent = []

    def send() -> str:
        sent.append(1)
        raise submitit.core.utils.FailedJobError("error: Unable to contact slurm controller")

    assert submit.submit(send, "name") == "77"
    assert len(sent) == 1
    assert len((folder / "asked").read_text().split("squeue ")) == 3


@pytest.mark.parametrize("name, found", [("mlcd-test-1", True), ("another", False)])
def test_a_number_that_has_come_again_is_another_job(tmp_path, programs, name, found):
    (programs(scontrol=shows(name)) / "state").write_text("RUNNING")
    planted(tmp_path, "slurm")
    job = driver(tmp_path)._attach()
    assert bool(job) is found


def test_where_there_is_no_slurm_a_job_of_slurms_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for job_id in ("77", None):
        state = tmp_path / str(job_id)
        planted(state, "slurm", job_id=job_id)
        with pytest.raises(UserError, match=r"/job.json: .* or remove this file"):
            run_gang(place, {"word": "new"}, state, TWO)


@pytest.mark.parametrize(
    "database, expected", [("RUNNING", "GONE"), ("CANCELLED by 5", "CANCELLED"), ("", "GONE")]
)
def test_a_job_that_only_the_database_calls_alive_is_gone(programs, database, expected):
    programs(
        scontrol="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        sacct=f"echo '{database}|||||0:0|name'" if database else "exit 1",
    )
    assert ask("77").state == expected


def test_slurm_is_asked_seldom_about_a_silent_holder(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(lease, "_DOUBT", 0.0)
    folder = programs(scontrol=shows("name"))
    (folder / "state").write_text("RUNNING")
    (tmp_path / "lease").mkdir()
    holder = {**this_process(), "machine": "another", "job": "77"}
    (tmp_path / "lease" / "000001.json").write_text(json.dumps(holder))
    mine = Lease(tmp_path / "lease", "x", [tmp_path / "none"])
    for _ in range(20):
        assert mine.attempt()["job"] == "77"
    assert len((folder / "asked").read_text().splitlines()) <= 2


# ---------------------------------------------------------------------------- ends


def test_an_interrupt_while_it_is_submitted_again_ends_the_job(tmp_path, programs):
    folder = programs(scontrol=shows("mlcd-test-1"))
    (folder / "state").write_text("RUNNING")

    class Interrupted(Driver):
        """Its first job was preempted; the interrupt comes when sbatch has taken the second."""

        def _watch(self, job):
            raise Transient("preempted")

        def _submit(self):
            if not self.resubmitted:
                return SlurmJob("76", tmp_path, 2)
            planted(tmp_path, "slurm")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver(tmp_path, Interrupted).run()
    assert "scancel 77" in (folder / "asked").read_text()


def slurm_job(tmp_path: Path) -> SlurmJob:
    planted(tmp_path, "slurm")
    return SlurmJob("77", tmp_path / "job-000000000001", 2)


def test_a_job_that_lost_a_rank_is_left_to_slurm_which_starts_it_again(
    tmp_path, programs, monkeypatch
):
    folder = programs(scontrol=shows("mlcd-test-1"))
    (folder / "state").write_text("RUNNING")
    monkeypatch.setattr(jobs_slurm, "_SETTLE", 0.2)
    job = slurm_job(tmp_path)
    lost = {"rank": 0, "kind": "lost", "message": "Connection closed by peer"}
    write_json(job.files / "failed.json", lost)
    threading.Timer(2.0, (folder / "state").write_text, ["PENDING"]).start()
    job.check(alive=True)
    assert job.watch.status.state == "PENDING"
    assert "scancel" not in (folder / "asked").read_text()


def test_a_job_that_the_driver_ends_is_told_by_its_failure(tmp_path, programs, monkeypatch):
    folder = programs(scontrol=shows("mlcd-test-1"))
    (folder / "state").write_text("RUNNING")
    monkeypatch.setattr(jobs_slurm, "_SETTLE", 0.2)
    job = slurm_job(tmp_path)
    write_json(job.files / "failed.json", {"rank": 1, "kind": "error", "message": "KeyError: 3"})
    with pytest.raises(UserError, match="rank 1 of 2 failed: KeyError: 3"):
        job.check(alive=True)
    assert "scancel 77" in (folder / "asked").read_text()
    job.ended_here = False
    job.watch.status = Status("CANCELLED")
    assert "was canceled (scancel)" in end_message(job, job.explain(job.failure()))


def test_a_failure_that_shows_late_is_told(tmp_path):
    job = slurm_job(tmp_path)
    job.watch.status = Status("FAILED")
    late = {"rank": 1, "kind": "user", "message": "labels.h5: stale; rerun label"}
    threading.Timer(3.0, write_json, [job.files / "failed.json", late]).start()
    with pytest.raises(UserError, match=r"^labels.h5: stale; rerun label$"):
        job.check(alive=False)


def test_words_of_earlier_starts_do_not_count(tmp_path):
    job = slurm_job(tmp_path)
    log = job.folder / "77_0_log.out"
    log.write_text("srun: error: node1: task 1: Killed\nDetected 1 oom-kill event(s)\n")
    assert killed_rank(job.said(), (0, 1)) == Killed(1, "node1", "Killed")
    assert ran_out_of_memory(job.said())
    (job.folder / "try-1").mkdir()
    write_json(job.files / "rank-1.json", {**HERE, "log_size": log.stat().st_size})
    assert killed_rank(job.said(), (0, 1)) is None
    assert not ran_out_of_memory(job.said())
    with log.open("a") as handle:
        handle.write("srun: error: node2: task 0: Killed\n")
    assert killed_rank(job.said(), (0, 1)) == Killed(0, "node2", "Killed")


def test_a_result_is_read_before_slurm_starts_the_job_again(tmp_path, monkeypatch):
    job = slurm_job(tmp_path)
    job.watch.status = Status("COMPLETED")
    monkeypatch.setattr(client.Watch, "look", lambda self, now=False: self.status)
    monkeypatch.setattr(SlurmJob, "wait_end", lambda self, _: (self.folder / "try-1").mkdir())
    finish(job.files)
    assert driver(tmp_path)._watch(job) == "theirs"


def test_a_sites_default_partition_is_kept_and_gives_way(monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "site")
    monkeypatch.setenv("SBATCH_ACCOUNT", "group")
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    with rank_environment(Resources(launcher="slurm", partition="mine"), {}):
        assert "SBATCH_PARTITION" not in os.environ
        assert "SBATCH_EXPORT" not in os.environ
        assert os.environ["SBATCH_ACCOUNT"] == "group"
    with rank_environment(Resources(launcher="slurm", options={"account": "mine"}), {}):
        assert os.environ["SBATCH_PARTITION"] == "site"
        assert "SBATCH_ACCOUNT" not in os.environ


ABORTED = "srun: Terminating StepId=12.0"
STEP = "slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-01-31T12:00:00 ***"
LOST = "srun: error: node1: task 0: Exited with exit code 1"


@pytest.mark.parametrize(
    "lines, silent, expected",
    [
        (["srun: error: node2: task 1: Killed", ABORTED, STEP, LOST], [1], (1, "node2")),
        # srun learns of it late: rank 0, which lost rank 1, has exited by then.
        ([LOST, ABORTED, STEP, "srun: error: node2: task 1: Killed"], [1], (1, "node2")),
        # What srun itself ends is no cause: those ranks had left a word.
        ([LOST, ABORTED, STEP, "srun: error: node2: tasks 2-3: Killed"], [], None),
        ([LOST, ABORTED, "srun: error: node2: tasks 2-3: Terminated"], [3], (3, "node2")),
        (["srun: error: node3: tasks 4,6: Segmentation fault (core dumped)"], [], (4, "node3")),
        ([LOST], [0, 1], None),
        (["Training begins: task 1: Killed"], [1], None),
    ],
)
def test_the_rank_that_was_killed_is_found_in_what_srun_says(lines, silent, expected):
    found = killed_rank("\n".join(lines), silent)
    assert (found and (found.rank, found.node)) == expected


def test_a_killed_rank_is_named_with_its_node_though_its_peer_exited_first(tmp_path):
    job = slurm_job(tmp_path)
    (job.folder / "77_0_log.out").write_text(
        "\n".join([LOST, ABORTED, STEP, "srun: error: node2: task 1: Killed"])
    )
    (job.folder / "77_1_log.out").write_text("step 41\n")
    (job.files / "rank-0.left").touch()
    lost = {"rank": 0, "kind": "lost", "message": "Connection closed by peer"}
    write_json(job.files / "failed.json", lost)
    job.watch.status = Status("FAILED")
    with pytest.raises(UserError, match=r"^rank 1 of 2 was killed .* on node2 \(Killed\)") as told:
        job.check(alive=False)
    assert "step 41" in str(told.value)
    assert told.value.restartable
