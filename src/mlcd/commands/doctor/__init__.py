"""`mlcd doctor`: look before a run for what usually goes wrong, each finding with its fix.

Without --profile this machine is looked at; with a Slurm profile also the cluster: names, limits
and Slurm's tools from here, then one short job per partition that looks at a node from inside.
With --nodes also a gang on several nodes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlcd.commands.doctor.checks import FAIL, Check, fail, show
from mlcd.utils import project
from mlcd.utils.errors import UserError

#: Without these the rest cannot be asked.
_TOOLS = ("sinfo", "squeue", "scontrol", "sbatch", "srun")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add profile, config and how long to wait for a node."""
    parser.add_argument(
        "--profile", default="", metavar="NAME",
        help="Snakemake profile: a folder, or its name below profiles/ [this machine alone]",
    )  # fmt: skip
    parser.add_argument(
        "--config", default="config.yaml", metavar="FILE", help="config of the run [config.yaml]"
    )
    parser.add_argument(
        "--wait", type=int, default=120, metavar="SECONDS",
        help="how long to wait for a free node in each partition; 0: no job is submitted [120]",
    )  # fmt: skip
    parser.add_argument(
        "--nodes", type=int, default=0, metavar="N",
        help="with a Slurm profile, also a job on N nodes, with the GPUs of rule train: all ranks "
        "add up 1 GB (32 MB on CPUs) and train 20 small steps [0: none]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: None) -> None:
    """Print the table. Raises :class:`UserError` if a check failed."""
    if arguments.nodes < 0:
        raise UserError("--nodes: expected at least 0")
    found = list(show(_checks(arguments)))
    failed = [check.name for check in found if check.result == FAIL]
    if failed:
        many = f"{len(failed)} of {len(found)} checks failed"
        raise UserError(f"{', '.join(failed)}: {many}; their fixes stand above")


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from mlcd.commands.doctor import here

    profile = _profile(arguments.profile) if arguments.profile else None
    yield from here.environment()
    if not Path(arguments.config).exists() and profile is None:
        yield fail(
            "project", f"{Path.cwd()}: no {arguments.config} here, so this is no project's folder",
            "go to the folder of your config and profiles, or name them: --config, --profile",
        )  # fmt: skip
        return
    profile = profile or _profile("local")
    settings = list(here.config_and_disk(arguments.config))
    yield from settings
    if settings[0].result == FAIL:
        return
    from mlcd.commands.doctor.profile import read

    keys = read(profile)
    on_slurm = keys.get("executor") == "slurm"
    if on_slurm and (missing := [tool for tool in _TOOLS if not shutil.which(tool)]):
        yield fail(
            "slurm", f"no {', '.join(missing)} on this machine: no Slurm is installed here, or not "
            "on the PATH",
            "run it on a login node of the cluster (perhaps: module load slurm)",
        )  # fmt: skip
        return
    from mlcd.commands.doctor.demands import demands

    try:
        asked = demands(str(profile), arguments.config)
    except UserError as error:
        yield fail("plan", str(error), "fix it, then ask again")
        return
    from mlcd.commands.doctor import training
    from mlcd.config import load

    config = load(arguments.config)
    if not on_slurm:
        yield from here.memory_and_cores(asked)
        yield from training.checks(config, asked, here.gpu_memory())
        return
    from mlcd.commands.doctor import node, slurm_cluster

    asked = slurm_cluster.placed(asked)
    names = list(slurm_cluster.checks(asked, keys))
    yield from names
    if arguments.wait and not any(check.result == FAIL for check in names[:1]):
        sound = slurm_cluster.partitions_to_try(asked, names)
        results = Path(config.results)
        seen: list[int] = []
        yield from node.checks(sound, results, arguments.wait, seen)
        yield from training.checks(config, asked, min(seen, default=None))
        if arguments.nodes:
            from mlcd.commands.doctor import gang

            there = {demand.partition for demand in sound}
            able = [demand for demand in asked if demand.partition in there]
            yield from gang.checks(able, arguments.nodes, results, arguments.wait)
    else:
        yield from training.checks(config, asked, None)


def _profile(name: str) -> Path:
    for folder in (Path(name), Path("profiles") / name, project.PROFILES / name):
        if (folder / "config.yaml").exists():
            return folder
    here = (path.parent.name for path in Path("profiles").glob("*/config.yaml"))
    known = ", ".join(sorted({*here, *project.profiles()}))
    raise UserError(f"--profile {name}: no such profile; there are {known}")
