"""The jobs of a small real run, as Snakemake would start them, and what each of them makes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
from cases import LIMIT, Ended, begin, finish, run

from helpers.checkout import Checkout
from mlcd.training.metrics import TIMING

#: The checkout's small config with less of everything. Retries wait for nothing.
CHANGES = {
    "metadata": ["lists/first.parquet"],
    "download": {"timeout": 3, "transfer_timeout": 5, "passes": 2, "backoff": 0.1},
    "train": {"model": "test_vit", "log_every": 2},
    "text": {"width": 16, "layers": 1, "heads": 2, "epochs": 2, "batch_size": 16, "log_every": 1,
             "warmup_steps": 1, "enabled": True},
    "evaluate": {"datasets": [{"name": "few", "path": "few.tar", "label_field": "top"}],
                 "models": ["pixels", "trained"], "probe_max_iterations": 20},
    "export": {"formats": ["timm"]},
}  # fmt: skip
#: Seconds for a job whose time is not known yet.
START_LIMIT = 5 * LIMIT
#: Images of each folder and split that are evaluated on.
MOST = 12
#: Times, states, and temporary files.
VOLATILE = re.compile(r"(^|/)(logs|benchmarks|state|tensorboard|\.snakemake)(/|$)|/\.[^/]*$")
#: Pages that show times of a run: equal for equal files, but no two runs have these.
TIMES = re.compile(r"report/(efficiency|overview|provenance|train|text|download|results)|audit/")
#: Jobs whose results are times and versions.
UNLIKE = ("report_efficiency", "report_overview", "report_provenance", "audit")


@dataclass
class Job:
    """A job of the workflow: its rule, its command, the files it reads and makes."""

    rule: str
    argv: list[str]
    inputs: list[str]
    outputs: list[str]
    seconds: float = 0.0
    #: Path below the checkout → hash, of what the job makes; see :func:`contents`.
    made: dict[str, str] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """The files that it makes, or the folder where there are more than it declares."""
        whole = {"manifest.json", "check.json"}
        folders = {str(Path(name).parent) for name in self.outputs if Path(name).name in whole}
        return sorted(
            folders | {name for name in self.outputs if str(Path(name).parent) not in folders}
        )

    @property
    def limit(self) -> float:
        """Seconds after which a start hangs: generous, also on a machine that is busy."""
        return max(LIMIT, 20 * self.seconds)

    def states(self, folder: Path) -> list[Path]:
        """What it resumes from."""
        found = []
        for name in self.outputs:
            found += [folder / Path(name).parent / "state"]
            if Path(name).name == "manifest.json":
                found += [folder / Path(name).parent.parent / "state"]
        return found

    def clear(self, folder: Path) -> None:
        """Remove what the job makes and resumes from: as it was before its first start."""
        for path in [*(folder / place for place in self.places), *self.states(folder)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def work(self, folder: Path) -> int:
        """Do the job's work in this process; return the exit status."""
        os.chdir(folder)
        # Its workers are started anew, and import what is the main program.
        sys.modules["__main__"] = ModuleType("__main__")
        from mlcd.cli import main

        return main(self.argv[1:])

    def run(self, folder: Path, said: Path) -> Ended:
        """Do the job's work in a child of this process, which is ended at the limit."""
        return run(lambda: self.work(folder), said, self.limit)

    @property
    def gang(self) -> bool:
        """Whether its ranks are processes of their own."""
        return "--launcher=local" in self.argv

    def inline(self) -> Job:
        """The same work by one rank in the job's own process, which is cheaper."""
        if not self.gang:
            return self
        argv = [*self.argv, "--launcher=inline", "--ranks-per-node=1"]
        if self.rule == "train":
            argv += ["--workers=0"]
        return Job(self.rule, argv, self.inputs, self.outputs)


def contents(folder: Path, places: list[str], *, whole: bool = False) -> dict[str, str]:
    """Return path → hash of all files at `places` that must be equal.

    That is for equal inputs; `whole` runs have times of their own in their inputs.
    """
    found = {}
    for place in places:
        path = folder / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = str(file.relative_to(folder))
            if not file.is_file() or VOLATILE.search(name):
                continue
            if not (whole and TIMES.search(name)):
                found[name] = _content(file)
    return found


def _content(path: Path) -> str:
    """Hash a file; leave out what may differ: times, and how often a download was tried."""
    data = path.read_bytes()
    try:
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            kept = [{k: v for k, v in line.items() if k not in TIMING} for line in lines]
            data = json.dumps(kept).encode()
        elif path.name == "manifest.json":
            values = json.loads(data)
            values.pop("table")  # with the column `passes`
            values.pop("checksum", None)
            data = json.dumps(values).encode()
        elif path.name == "rows.parquet":
            frame = pd.read_parquet(path).drop(columns="passes")
            data = frame.to_csv().encode()
    except Exception as error:
        # Damaged: as it is, which is unlike any that is whole.
        data += str(error).encode()
    return hashlib.sha256(data).hexdigest()


class Reference:
    """A small run in `folder`: the checkout, its images on a loopback server, and all its jobs."""

    def __init__(self, folder: Path, rules: tuple[str, ...] = ()) -> None:
        """`rules` picks some of the jobs, those of all rules by default."""
        self.scratch = folder
        self.checkout = Checkout(folder / "reference")
        self.folder = self.checkout.folder
        self.checkout.configure(**CHANGES)
        (folder / "site").mkdir()
        port = self._serve(folder / "site")
        self.checkout.write_images(f"http://127.0.0.1:{port}", folder / "site", MOST)
        #: As Snakemake starts them, and the same with one rank in the job's own process.
        self.planned = [job for job in self._plan() if not rules or job.rule in rules]
        self.jobs = [job.inline() for job in self.planned]
        self._first: list[Job] = []

    def _serve(self, site: Path) -> int:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1",
                   "--directory", str(site)]  # fmt: skip
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            time.sleep(0.05)
        raise SystemExit("the loopback server does not answer")

    def _plan(self) -> list[Job]:
        """Ask Snakemake for all jobs; the shell fills in what their commands compute."""
        done = self.checkout.snakemake(
            "--dry-run", "--forceall", "--printshellcmds", "--cores", "2", "--quiet", "host"
        )
        if done.returncode != 0:
            raise SystemExit(done.stdout[-3000:])
        block = re.compile(
            r"^(?:local)?rule (?P<rule>\w+):\n(?P<files>.*?)^Shell command: (?P<command>.*?)\n\n",
            re.MULTILINE | re.DOTALL,
        )
        text = re.sub(r"\n[ \t]+\n", "\n\n", done.stdout)
        jobs = []
        for found in block.finditer(text + "\n\n"):
            files = dict(re.findall(r"^    (input|output): (.*)$", found["files"], re.MULTILINE))
            names = {k: [one.split(" (")[0] for one in v.split(", ")] for k, v in files.items()}
            argv = self._words(found["command"])
            job = Job(found["rule"], argv, names.get("input", []), names.get("output", []))
            if job.argv[:1] == ["mlcd"] and job.rule not in UNLIKE:
                jobs.append(job)
        return jobs

    def _words(self, command: str) -> list[str]:
        if not command.strip().startswith("mlcd"):
            return []
        script = 'mlcd() { printf "%s\\0" mlcd "$@"; }\n' + command
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.split("\0")[:-1]

    def make(self, workers: int) -> None:
        """Run all jobs; note how long each takes and what it makes."""
        waiting = list(self.jobs)
        while waiting:
            ready = [
                job for job in waiting if all((self.folder / one).exists() for one in job.inputs)
            ]
            if not ready:
                raise SystemExit(f"no job can start: {[job.rule for job in waiting]}")
            for first in range(0, len(ready), workers):
                self._make_some(ready[first : first + workers])
            waiting = [job for job in waiting if job not in ready]

    def _make_some(self, jobs: list[Job]) -> None:
        started = []
        for index, job in enumerate(jobs):
            said = self.scratch / f"said-{index}"
            said.unlink(missing_ok=True)
            started.append((job, begin(partial(job.work, self.folder), said), said))
        start = time.monotonic()
        for job, pid, said in started:
            ended = finish(pid, said, start, START_LIMIT)
            job.made, job.seconds = contents(self.folder, job.places), ended.seconds
            if ended.status != 0 or not all((self.folder / one).exists() for one in job.outputs):
                raise SystemExit(f"{job.argv}: status {ended.status}\n{ended.said[-3000:]}")

    def one_of_each(self) -> Iterator[Job]:
        """Yield one job of each rule, gangs as gangs and last: what they make is found out then."""
        if not self._first:
            chosen: dict[str, Job] = {}
            for job in sorted(self.planned, key=lambda job: job.gang):
                chosen.setdefault(job.rule, job)
            self._first = list(chosen.values())
        for job in self._first:
            if not job.seconds:
                self.known(job)
            yield job

    def known(self, job: Job) -> Job:
        """Let a job make its results in a copy; note them."""
        folder = self.copy(self.scratch / "alone")
        job.clear(folder)
        ended = run(partial(job.work, folder), folder / "said", START_LIMIT)
        if ended.status != 0:
            raise SystemExit(f"{job.argv}: status {ended.status}\n{ended.said[-3000:]}")
        job.made, job.seconds = contents(folder, job.places), ended.seconds
        shutil.rmtree(folder)
        return job

    def copy_project(self, target: Path) -> Path:
        """Copy the project as it was before its run."""
        shutil.copytree(
            self.folder, target, symlinks=True,
            ignore=shutil.ignore_patterns("results", ".snakemake", "__pycache__"),
        )  # fmt: skip
        return target

    def copy(self, target: Path) -> Path:
        """Copy the results and what the jobs read beside them."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for part in ("lists", "few.tar"):
            source = self.folder / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / part)
        shutil.copytree(
            self.folder / "results", target / "results",
            ignore=shutil.ignore_patterns("logs", "benchmarks"),
        )  # fmt: skip
        return target
