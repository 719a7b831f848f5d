"""`mlcd run` on this machine: a Snakemake that was killed, lives, or is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlcd.commands import run
from mlcd.commands.run.adopt_outputs import unrecorded
from mlcd.launch.snakemake import announced, locked, stale_lock
from mlcd.utils import project

pytestmark = pytest.mark.workflow

SNAKEFILE = """
from pathlib import Path
from mlcd.launch import snakemake as process
from mlcd.utils.fingerprint import file_identity
if workflow.is_main_process and (stale := process.stale_lock(Path.cwd())):
    print(stale, file=sys.stderr)
configfile: "config.yaml"
onstart:
    process.announce(Path.cwd(), config, {"read": file_identity("read")})
rule after:
    input: "first"
    output: "second"
    shell: "cp first second"
rule first:
    output: "first"
    params: word=config["word"]
    # The job may outlive its Snakemake: it must not hold the pipe that the test reads to its end.
    shell:
        "exec > job.log 2>&1; echo $$ >> pids; sleep $(cat seconds); "
        "cat read > first; echo {params.word} >> first"
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "seconds").write_text("60")
    (tmp_path / "config.yaml").write_text("word: one")
    (tmp_path / "read").write_text("a list\n")
    return tmp_path


def start(place: Path, *command: str, target: str = "second") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-m", *command, "--cores", "1", *target.split()],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A shell that runs the tests in its background has them ignore SIGINT, and it is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def working(place: Path, count: int = 1) -> list[int]:
    """Wait for the job of the `count`-th Snakemake; return the process ids of the jobs."""
    end = time.monotonic() + 120
    while not (place / "pids").exists() or len((place / "pids").read_text().split()) < count:
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(word) for word in (place / "pids").read_text().split()]


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def gone(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("program", ["mlcd run", "snakemake"])
def test_a_killed_snakemake_resumes_by_itself(place, program):
    first = start(place, *program.split())
    (job,) = working(place)
    killed = announced(place)
    first.kill()
    first.communicate()
    assert gone(killed["pid"])
    assert locked(place)
    (place / "seconds").write_text("0")
    if program == "snakemake":
        again = start(place, "snakemake")
        told = again.communicate()[0]
        assert again.returncode != 0
        assert "use `mlcd run` in place of `snakemake`" in told
    second = start(place, "mlcd", "run")
    told = second.communicate()[0]
    end(job)
    assert second.returncode == 0, told
    assert "unlocking" in told
    assert (place / "second").exists()
    assert not locked(place)
    assert not list((place / ".snakemake").glob("mlcd-run/*"))


@pytest.mark.parametrize("program", ["mlcd run", "snakemake"])
def test_a_live_snakemake_is_respected_and_an_interrupted_one_ends_its_jobs(place, program):
    first = start(place, *program.split())
    (job,) = working(place)
    second = start(place, "mlcd", "run")
    told = second.communicate()[0]
    assert second.returncode == 2
    assert f"{place}: Snakemake already works here, process " in told.splitlines()[-1]
    if program == "snakemake":
        first.kill()
        end(job)
        return
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode != 0
    assert gone(job)


def jobs_of(place: Path) -> int:
    """Run `mlcd run` to its end; return how often the rule `first` has begun since the start."""
    process = start(place, "mlcd", "run")
    told = process.communicate()[0]
    assert process.returncode == 0, told
    return len((place / "pids").read_text().split())


@pytest.fixture
def outlived(place):
    """A directory whose Snakemake was killed, and in which the job of `first` then ended well."""
    first = start(place, "mlcd", "run")
    (job,) = working(place)
    first.kill()
    first.communicate()
    end(job)
    # As the executors start a job; from the moment when the killed one submitted it.
    (place / "seconds").write_text("0")
    done = start(
        place, "snakemake", "--mode", "remote", "--target-jobs", "first:", "--allowed-rules",
        "first", "--force", "--nolock", "--ignore-incomplete", target="",
    )  # fmt: skip
    told = done.communicate()[0]
    assert done.returncode == 0, told
    assert (place / "first").read_text() == "a list\none\n"
    assert unrecorded(place) == ["first"]
    return place


def test_what_outlives_its_snakemake_is_kept_until_its_section_changes(outlived):
    assert jobs_of(outlived) == 2
    assert (outlived / "second").read_text() == "a list\none\n"
    assert jobs_of(outlived) == 2
    (outlived / "config.yaml").write_text("word: two")
    assert jobs_of(outlived) == 3
    assert (outlived / "second").read_text() == "a list\ntwo\n"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param("config.yaml", marks=pytest.mark.long),
        pytest.param("read", marks=pytest.mark.long),
    ],
)
def test_what_outlives_its_snakemake_is_made_again_if_all_has_changed(outlived, changed):
    text = {"config.yaml": "word: two", "read": "another list\n"}[changed]
    (outlived / changed).write_text(text)
    assert jobs_of(outlived) == 3
    assert (outlived / "second").read_text() == (
        "a list\ntwo\n" if changed == "config.yaml" else "another list\none\n"
    )


@pytest.mark.parametrize(
    "options",
    [
        ["-np"],
        pytest.param(["--summary"], marks=pytest.mark.long),
        pytest.param(["-pn", "-q"], marks=pytest.mark.long),
        ["--rulegraph"],
    ],
)
def test_looking_is_allowed_while_another_works(place, options):
    first = start(place, "mlcd", "run")
    (job,) = working(place)
    looking = start(place, "mlcd", "run", *options)
    told = looking.communicate()[0]
    first.kill()
    first.communicate()
    end(job)
    assert "already works here" not in told
    assert looking.returncode == 0, told


def test_a_lock_of_an_unknown_snakemake_is_left_alone(place):
    locks = place / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("second\n")
    process = start(place, "mlcd", "run")
    told = process.communicate()[0]
    assert process.returncode == 2
    assert "snakemake --unlock" in told
    assert locked(place)
    elsewhere = {"host": "node9", "machine": "another", "pid": 5, "created": 0, "job": None,
                 "restarts": "0", "by_run": False}  # fmt: skip
    (place / ".snakemake" / "mlcd-process.json").write_text(json.dumps(elsewhere))
    process = start(place, "mlcd", "run")
    assert "process 5 on node9" in process.communicate()[0]
    assert process.returncode == 2


def test_it_works_from_a_folder_below_and_from_anywhere(place, tmp_path_factory):
    (place / "seconds").write_text("0")
    below = place / "results" / "deep"
    below.mkdir(parents=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder, options in (below, []), (elsewhere, ["--directory", str(place)]):
        process = start(folder, "mlcd", "run", *options)
        told = process.communicate()[0]
        assert process.returncode == 0, told
        assert (place / "second").read_text() == "a list\none\n"
        assert not (folder / ".snakemake").exists()
    process = start(elsewhere, "mlcd", "run")
    told = process.communicate()[0]
    assert process.returncode == 2
    assert "no Snakefile and no project here or above" in told
    assert "mlcd init DIR" in told


@pytest.mark.parametrize(
    ("where", "options", "directory"),
    [
        ("project", "", "project"),
        ("project/below", "", "project"),
        ("", "--directory project", "project"),
        ("plain", "", "plain"),
        ("", "--configfile plain/config.yaml", ""),
        # A project in a checkout of something else that has a Snakefile.
        ("checkout/project", "", "checkout/project"),
    ],
)
def test_without_a_snakefile_a_project_is_run_by_that_of_mlcd(
    tmp_path, monkeypatch, where, options, directory
):
    for name in ("project", "checkout/project"):
        (tmp_path / name / "profiles" / "local").mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "checkout" / "Snakefile").touch()
    (tmp_path / "project" / "below").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path / where)
    found = run._find_snakefile(run._options(options.split()))
    assert found[:3] == ["--snakefile", str(project.SNAKEFILE), "--directory"]
    assert Path(found[3]).resolve() == tmp_path / directory


@pytest.mark.parametrize("record", ["[]", "7", "{", '{"machine": 1}'])
def test_a_damaged_record_of_snakemake_is_none(place, record):
    (place / ".snakemake").mkdir()
    (place / ".snakemake" / "mlcd-process.json").write_text(record)
    assert announced(place) is None
    (place / ".snakemake" / "locks").mkdir()
    (place / ".snakemake" / "locks" / "0.output.lock").touch()
    assert stale_lock(place) == ""
