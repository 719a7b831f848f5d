"""What Slurm's controller says of the names and limits that a run will meet. Submits nothing."""

from __future__ import annotations

import dataclasses
import getpass
import re
from collections.abc import Iterator
from typing import Any

from mlcd.commands.doctor.checks import FAIL, Check, fail, ok, warn
from mlcd.commands.doctor.demands import Demand
from mlcd.slurm import client
from mlcd.utils.units import decimal_size

#: Seconds before the Slurm executor first asks about a job; it wants three times that of MinJobAge.
_FIRST_LOOK = 40


def call(*command: str) -> tuple[int, str, str]:
    """Run one of Slurm's programs; return exit code, stdout and stderr (1 if it does not end)."""
    done = client.call(*command)
    if done is None:
        return 1, "", f"{command[0]} is not there, or does not answer within a minute"
    return done.returncode, done.stdout, done.stderr


def checks(asked: list[Demand], keys: dict[str, Any]) -> Iterator[Check]:
    """Check controller, status commands, accounts, partitions and every rule's demand."""
    code, told, error = call("scontrol", "show", "config")
    if code:
        yield fail(
            "controller", _last(error) or "scontrol has no answer",
            "run this on a login node; if it is one, ask whether slurmctld is up",
        )  # fmt: skip
        return
    config = dict(re.findall(r"^(\w+) *= (.*?) *$", told, re.M))
    yield ok("controller", f"{config.get('ClusterName')}, Slurm {config.get('SLURM_VERSION')}")
    accounting = "slurmdbd" in config.get("AccountingStorageType", "")
    yield _squeue()
    yield _status_command(config, keys, accounting)
    yield _sacct(accounting)
    yield _account(asked, config, accounting)
    partitions = {demand.partition for demand in asked if demand.partition}
    for name in sorted(partitions):
        yield from _partition(name, [demand for demand in asked if demand.partition == name], keys)


def placed(asked: list[Demand]) -> list[Demand]:
    """Return the demands that go to Slurm, the default partition named where none is."""
    _, told, _ = call("sinfo", "--noheader", "--format=%P")
    default = next((name.rstrip("*") for name in told.split() if name.endswith("*")), "")
    return [
        dataclasses.replace(demand, partition=demand.partition or default)
        for demand in asked
        if not demand.local
    ]


def partitions_to_try(asked: list[Demand], told: list[Check]) -> list[Demand]:
    """Return a demand for each partition that takes jobs, with a GPU where one is asked.

    Its memory is the largest that a job asks for there: the smallest job (a copy of the config)
    could not import what the others need, and which job comes first is Snakemake's to choose.
    """
    bad = {check.name for check in told if check.result == FAIL}
    if "account" in bad:
        return []
    found: dict[str, Demand] = {}
    for demand in asked:
        if not demand.partition or f"partition {demand.partition}" in bad:
            continue
        if demand.partition not in found or (demand.gpu and not found[demand.partition].gpu):
            found[demand.partition] = demand
    return [
        dataclasses.replace(
            demand, memory=max(other.memory for other in asked if other.partition == name)
        )
        for name, demand in found.items()
    ]


def _squeue() -> Check:
    code, _, error = call("squeue", "--me", "--noheader")
    if code:
        return fail("squeue", _last(error), "without it no job's end is noticed: ask the cluster")
    return ok("squeue", "answers")


def _status_command(config: dict[str, str], keys: dict[str, Any], accounting: bool) -> Check:
    """Check the way in which the executor learns that a job has ended."""
    found = re.match(r"\d+", config.get("MinJobAge", "0"))
    age = int(found.group()) if found else 0
    first = int(keys.get("slurm-init-seconds-before-status-checks", _FIRST_LOOK))
    if keys.get("slurm-status-command") == "sacct":
        if accounting:
            return ok("status command", "sacct")
        return fail("status command", "sacct, but this cluster keeps no accounts",
                    "slurm-status-command: squeue")  # fmt: skip
    seen = f"squeue, which forgets a job {age} s after its end (MinJobAge)"
    if age >= 3 * first:
        return ok("status command", seen)
    fix = f"slurm-init-seconds-before-status-checks: {max(1, age // 3)}"
    if accounting:
        fix += ", or slurm-status-command: sacct"
    return (fail if age < first else warn)("status command", seen, fix)


def _sacct(accounting: bool) -> Check:
    if not accounting:
        return ok("sacct", "no database here: the table of cost comes from our own records")
    code, _, error = call("sacct", "--allocations", "--noheader", "--starttime", "now-1hours")
    if code:
        return warn("sacct", _last(error), "the table of cost will come from our own records")
    return ok("sacct", "answers")


def _account(asked: list[Demand], config: dict[str, str], accounting: bool) -> Check:
    wanted = sorted({demand.account for demand in asked if demand.account})
    if not accounting:
        if wanted:
            return fail("account", f"{', '.join(wanted)}, but this cluster keeps no accounts",
                        'account: "" in the profile')  # fmt: skip
        return ok("account", "none asked, none kept")
    user = getpass.getuser()
    code, told, error = call("sacctmgr", "--noheader", "--parsable2", "show", "associations",
                             f"user={user}", "format=account")  # fmt: skip
    if code:
        return warn("account", f"sacctmgr: {_last(error)}", "see that the account is spelt right")
    have = sorted({line.strip() for line in told.splitlines() if line.strip()})
    shown = ", ".join(have) or "none"
    if missing := [name for name in wanted if name.lower() not in have]:
        return fail("account", f"{', '.join(missing)} is not yours; {user} has: {shown}",
                    "account: one of these, in the profile")  # fmt: skip
    enforced = config.get("AccountingStorageEnforce", "none") not in ("none", "")
    if not wanted and not have and enforced:
        return fail("account", f"{user} has none here", "ask the cluster for an account")
    return ok("account", ", ".join(wanted) or f"the default one of {shown}")


def _partition(name: str, asked: list[Demand], keys: dict[str, Any]) -> Iterator[Check]:
    title = f"partition {name}"
    code, told, error = call("scontrol", "--oneliner", "show", "partition", name)
    if code:
        _, known, _ = call("sinfo", "--noheader", "--format=%R")
        there = ", ".join(sorted(set(known.split()))) or "none"
        yield fail(title, _last(error) or "unknown",
                   f"partition: one of {there}, in the profile")  # fmt: skip
        return
    facts = dict(re.findall(r"(\w+)=(\S*)", told))
    nodes = _nodes(name)
    if facts.get("State") != "UP" or not nodes:
        yield fail(title, f"its state is {facts.get('State')}, {len(nodes)} nodes are up",
                   "take another partition, or wait")  # fmt: skip
        return
    limit = minutes(facts.get("MaxTime", "UNLIMITED"))
    memory = max(node[1] for node in nodes)
    shown = "without a time limit" if limit is None else f"{limit} min at most"
    yield ok(title, f"{len(nodes)} nodes up, {max(node[0] for node in nodes)} cores and "
             f"{decimal_size(memory * 1e6)} at most, {shown}")  # fmt: skip
    yield from _fits(title, asked, nodes, limit, keys.get("resources") or {})


def _fits(
    partition: str,
    asked: list[Demand],
    nodes: list[tuple[int, int, str]],
    limit: int | None,
    cap: dict[str, Any],
) -> Iterator[Check]:
    """Compare each rule's largest job with the partition; one line for what does not fit."""
    long = [job for job in asked if limit is not None and job.minutes > limit]
    if long:
        most = max(job.minutes for job in long)
        fix = f"time_limit: {limit}" if "runtime" in cap else f"runtime of them: {limit}"
        yield fail("time limit", f"{_rules(long)}: up to {most} min; {partition} allows {limit}",
                   f"{fix}, in the profile")  # fmt: skip
    memory = max(node[1] for node in nodes)
    large = [job for job in asked if job.memory > memory]
    if large:
        seen = ", ".join(f"{job.rule} {job.memory} MB" for job in large)
        fix = f"node_memory: {memory} in the profile, which" if "mem_mb" in cap else "set mem_mb:"
        yield fail("memory", f"{seen}; the largest node of {partition} has {memory} MB",
                   f"another partition; or {fix} gives them less than they ask for")  # fmt: skip
    cores = max(node[0] for node in nodes)
    wide = [job for job in asked if job.cpus > cores]
    if wide:
        seen = ", ".join(f"{job.rule} {job.cpus}" for job in wide)
        yield fail("cores", f"{seen}; a node of {partition} has {cores}",
                   "smaller widths in the profile")  # fmt: skip
    for job in asked:
        if job.nodes > len(nodes):
            yield fail("nodes", f"{job.rule} wants {job.nodes}; {partition} has {len(nodes)} up",
                       f"nodes: {len(nodes)} in the profile")  # fmt: skip
    blind = [job for job in asked if job.gpu and not any("gpu" in node[2] for node in nodes)]
    if blind:
        yield fail("gpu", f"{_rules(blind)}; no node of {partition} has one",
                   "gpu_partition in the profile; sinfo --format='%R %G' shows them")  # fmt: skip
    told = [*long, *large, *wide, *blind]
    for job in asked:
        if job not in told and job.nodes <= len(nodes):
            yield from _submittable(job)


def _rules(jobs: list[Demand]) -> str:
    return ", ".join(job.rule for job in jobs)


def _submittable(demand: Demand) -> Iterator[Check]:
    """Ask sbatch itself, which knows of limits by user, account and quality of service."""
    command = ["sbatch", "--test-only", f"--nodes={demand.nodes}", f"--mem={demand.memory}",
               f"--time={demand.minutes}", f"--cpus-per-task={demand.cpus}",
               f"--ntasks={demand.nodes}", *place(demand), "--wrap=true"]  # fmt: skip
    code, _, error = call(*command)
    if code:
        told = re.sub(r"^(sbatch: error: |allocation failure: )+", "", _last(error))
        yield fail(f"job of {demand.rule}", f"sbatch would refuse it: {told}",
                   "change what it asks for in the profile (set-resources)")  # fmt: skip


def place(demand: Demand) -> list[str]:
    """Return the options that say where a job goes."""
    options = [f"--partition={demand.partition}"] if demand.partition else []
    options += [f"--account={demand.account}"] if demand.account else []
    return options + ([f"--gres={demand.gres}"] if demand.gres else [])


def _nodes(partition: str) -> list[tuple[int, int, str]]:
    """Return cores, memory in MB and GPUs of each node of a partition that is up."""
    code, told, _ = call(
        "sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%c|%m|%G|%t"
    )
    found = []
    for line in told.splitlines() if code == 0 else []:
        cores, memory, gres, state = line.strip().split("|")
        if not re.match(r"(down|drain|drng|fail|unk|maint|inval|power_down)", state):
            found.append((int(cores.strip("+")), int(memory.strip("+")), gres))
    return found


def minutes(text: str) -> int | None:
    """Return Slurm's [days-]hours:minutes:seconds as minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return (24 * days + hours) * 60 + mins


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
