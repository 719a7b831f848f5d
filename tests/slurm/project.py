"""A small copy of the project on the test cluster: started, watched, disturbed, compared."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from pathlib import Path

import psutil

from helpers.checkout import CONFIG, ROOT, Checkout
from mlcd.utils.files import sha256_file

#: The users' profile, with the names and sizes of the test cluster.
VARIABLES = {
    "partition": "main",
    "nodes": 2,
    "ranks": 1,
    "cores": 1,
    "time_limit": 10,
    "node_memory": 1900,
}

#: Long enough in training to be disturbed there, quick elsewhere.
SMALL = {
    "prepare": CONFIG["prepare"],
    "download": {**CONFIG["download"], "passes": 1, "backoff": 0.1},
    "train": {**CONFIG["train"], "epochs": 20},
    "evaluate": {**CONFIG["evaluate"], "models": ["pixels", "random", "trained"]},
}

#: Results that must not depend on what happened to the jobs.
OUTPUTS = {
    "prepare": ["urls/*.parquet"],
    "download": ["images/*/*.tar", "images/*/rows.parquet", "images/*/manifest.json"],
    "embed": ["embeddings/*.h5"],
    "cluster": ["clusters/centroids.h5"],
    "label": ["labels/*.h5"],
    "train": ["train/encoder.safetensors", "train/encoder.json"],
}
STAGES = list(OUTPUTS)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> object:
    """Return the condition's first true value. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for: {what}"
        time.sleep(0.1)
    return value


def scontrol(*words: str) -> str:
    """Run scontrol and return what it says; for orders that may fail, see the caller."""
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60).stdout


class Project(Checkout):
    """A checkout whose profile fits the test cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.configure(**SMALL)
        self.write_profile()

    def copy(self, folder: Path, again_from: str | None) -> Project:
        """Return a copy in which the stage `again_from`, if any, and all later are not done."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = object.__new__(Project)
        other.folder = folder
        for name in ("locks", "slurm_logs", "log", "incomplete"):
            shutil.rmtree(folder / ".snakemake" / name, ignore_errors=True)
        for stage in STAGES[STAGES.index(again_from) :] if again_from else []:
            made = Path(OUTPUTS[stage][0]).parts[0]
            shutil.rmtree(folder / "results" / made)
            # Else the record of the first making would pass for one of the next.
            for note in (folder / ".snakemake" / "metadata").iterdir():
                if urlsafe_b64decode(note.name).startswith(f"results/{made}/".encode()):
                    note.unlink()
        shutil.rmtree(folder / "results" / "logs")
        return other

    def write_profile(self, resources: dict[str, str] | None = None, **changes: object) -> None:
        """Fill in the names at the top of profiles/slurm-cpu, as a user does.

        `resources`: rule → a line that is added to, or replaces one of, the rule's resources.
        """
        text = (ROOT / "profiles" / "slurm-cpu" / "config.yaml").read_text()
        for name, value in {**VARIABLES, **changes}.items():
            text, found = re.subn(rf"(?m)^  {name}: .*$", f"  {name}: {value}", text, count=1)
            assert found, f"profiles/slurm-cpu has no variable {name}"
        before, section, after = text.partition("set-resources:\n")
        for rule, line in (resources or {}).items():
            # The name may carry an anchor, for rules that are to have the same.
            named = re.search(rf"(?m)^  {rule}:(| &\w+)\n", after)
            if named is None:
                start, name, rest = "", f"  {rule}:\n", after
            else:
                start, name, rest = after[: named.start()], named[0], after[named.end() :]
            block = re.match(r"(    .*\n)*", rest)[0]
            key = line.partition(":")[0]
            kept = re.sub(rf"(?m)^    {key}:.*\n", "", block)
            after = f"{start}{name}    {line}\n{kept}{rest[len(block) :]}"
        text = before + section + after
        (self.folder / "profiles" / "slurm-cpu" / "config.yaml").write_text(text)
        shutil.copytree(
            ROOT / "tests" / "slurm" / "profile", self.folder / "overlay", dirs_exist_ok=True
        )

    def start(self, *options: str, program: str = "snakemake") -> SnakemakeRun:
        """Start snakemake, or ``mlcd run``, on the cluster; targets are files, or a rule."""
        return SnakemakeRun(self, program, options)

    def run(self, *options: str, seconds: float = 480) -> SnakemakeRun:
        """Run snakemake on the cluster to its end. Raises AssertionError if it fails."""
        return self.start(*options).finish(seconds)

    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """Return this project's Slurm jobs as scontrol shows them, first submitted first.

        `rule`: only those of this rule.
        """
        found = []
        for line in scontrol("--oneliner", "show", "jobs").splitlines():
            job = dict(re.findall(r"(\S+?)=(\S*)", line))
            if Path(job.get("WorkDir", "/")) != self.folder:
                continue
            # The executor names the rule in the comment, the gang launcher in the job's name.
            named = re.match(r"rule_(.+?)(?:_wildcards_|$)", job.get("Comment", ""))
            gang = re.match(r"mlcd-([a-z_]+)-", job["JobName"])
            job["Rule"] = named[1] if named else gang[1] if gang else "train"
            if rule in ("", job["Rule"]):
                found.append(job)
        return sorted(found, key=lambda job: int(job["JobId"]))

    def running(self, rule: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job of `rule` runs and return it."""

        def first():
            return next((job for job in self.jobs(rule) if job["JobState"] == "RUNNING"), None)

        return wait_for(first, f"a running job of {rule}", seconds)

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks of this project's gangs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                # srun has the same words after its own name.
                is_rank = "submitit.core._submit" in words and "python" in Path(words[0]).name
                # Other clusters on this machine have jobs of the same numbers.
                if is_rank and words[-1].startswith(f"{self.folder}/"):
                    found.append(process)
        # Not a rank's own helpers.
        return [process for process in found if process.parent() not in found]

    def steps_trained(self) -> int:
        """Return the number of steps that the running training has reported."""
        files = list((self.folder / "results" / "train" / "state").glob("*/metrics.jsonl"))
        return max((path.read_bytes().count(b"\n") for path in files), default=0)

    def hashes(self, *stages: str) -> dict[str, str]:
        """Return file → SHA-256 of the results of some stages."""
        results = self.folder / "results"
        return {
            str(path.relative_to(results)): sha256_file(path)
            for stage in stages
            for pattern in OUTPUTS[stage]
            for path in sorted(results.glob(pattern))
        }


class SnakemakeRun:
    """A started snakemake: the process on the login node that submits jobs and waits."""

    def __init__(self, project: Project, program: str, options: tuple[str, ...]) -> None:
        self.project = project
        runs = len(list(project.folder.glob("snakemake-*.log")))
        self.log = project.folder / f"snakemake-{runs + 1}.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(project.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [
            sys.executable, "-m", *program.split(),
            "--profile", "profiles/slurm-cpu", "--workflow-profile", "overlay", *options,
        ]  # fmt: skip
        with self.log.open("wb") as handle:
            self.process = subprocess.Popen(
                command, cwd=project.folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 480) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {seconds:.0f} s:\n{self.text[-6000:]}") from None

    def finish(self, seconds: float = 480) -> SnakemakeRun:
        """Wait for its end. Raises AssertionError with what it said if it failed."""
        code = self.wait(seconds)
        assert code == 0, self.text[-6000:]
        return self

    def kill(self) -> None:
        """SIGKILL to it and all it has started on the login node, as at a power cut there."""
        helpers = psutil.Process(self.process.pid).children(recursive=True)
        for process in [self.process, *helpers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End it whatever state it is in; used when a test is over."""
        if self.process.poll() is None:
            self.kill()
