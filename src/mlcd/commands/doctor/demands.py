"""What the jobs of a run will ask for, told by Snakemake's dry run with the profile and config."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mlcd.utils import project
from mlcd.utils.errors import UserError

_JOB = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", re.M)


@dataclass(frozen=True)
class Demand:
    """The largest job of a rule: `cpus` and `memory` (MB) per node, `minutes`, GPUs per node.

    `jobs`: how many such jobs the run has. `partition` and `account` are empty for Slurm's default.
    `local`: a gang that stays on the machine of the Snakemake process. `ranks`: of a gang.
    """

    rule: str
    jobs: int
    partition: str
    account: str
    nodes: int
    cpus: int
    memory: int
    minutes: int
    gres: str
    local: bool = False
    ranks: int = 1

    @property
    def gpu(self) -> bool:
        """True if the job asks for a GPU."""
        return self.gres.startswith("gpu")


def demands(profile: str, config: str) -> list[Demand]:
    """Return a demand per rule. Raises :class:`UserError` if Snakemake cannot plan."""
    snakefile = project.own_snakefile(Path.cwd()) or project.SNAKEFILE
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--forceall", "--profile", profile,
               "--snakefile", str(snakefile), "--configfile", config, "--nolock"]  # fmt: skip
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = next((i for i, line in enumerate(lines) if "Error" in line), len(lines) - 1)
        raise UserError(" ".join(lines[told : told + 2]))
    return read(done.stdout)


def read(text: str) -> list[Demand]:
    """Read what a dry run printed."""
    found: dict[str, list[Demand]] = {}
    for rule, body in _JOB.findall(text):
        threads = re.search(r"^    threads: (\d+)$", body, re.M)
        told = re.search(r"^    resources: (.*)$", body, re.M)
        asked = dict(
            item.split("=", 1)
            for item in re.split(r", (?=\w+=)", told.group(1) if told else "")
            if "=" in item
        )
        if rule == "all" or not asked.get("mem_mb", "").isdigit():
            continue
        found.setdefault(rule, []).append(_demand(rule, asked, int(threads[1]) if threads else 1))
    return [_largest(jobs) for jobs in found.values()]


def _demand(rule: str, asked: dict[str, str], threads: int) -> Demand:
    nodes, cpus, gres = 1, threads, asked.get("gres", "")
    ranks = int(asked.get("ranks_per_node", 1))
    if asked.get("launcher") == "slurm":
        nodes = int(asked.get("nodes", 1))
        cpus = ranks * int(asked.get("threads_per_rank", 1))
        if asked.get("device") == "cuda":
            named = re.search(r"gres=(\S+)", asked.get("launch_options", ""))
            gres = named[1] if named else f"gpu:{ranks}"
    partition, account = asked.get("slurm_partition", ""), asked.get("slurm_account", "")
    return Demand(
        rule, 1, partition, account, nodes, cpus, int(asked["mem_mb"]), int(asked["runtime"]), gres,
        local=asked.get("launcher") == "local", ranks=nodes * ranks,
    )  # fmt: skip


def _largest(jobs: list[Demand]) -> Demand:
    """Return the element-wise largest of a rule's jobs, which share all but memory and time."""
    first = jobs[0]
    return Demand(
        first.rule, len(jobs), first.partition, first.account, first.nodes,
        max(job.cpus for job in jobs), max(job.memory for job in jobs),
        max(job.minutes for job in jobs), first.gres, first.local, first.ranks,
    )  # fmt: skip
