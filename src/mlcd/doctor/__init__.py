"""`mlcd doctor`: look before a run for what usually goes wrong, each finding with its mend.

Without --profile this machine is looked at; with a Slurm profile also the cluster: names, limits
and Slurm's tools from here, then one short job a partition that looks at a node from inside.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlcd.doctor.checks import FAIL, Check, fail, show
from mlcd.errors import UserError

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


def run(arguments: argparse.Namespace, section: None) -> None:
    """Print the table. Raises :class:`UserError` if a check failed."""
    found = list(show(_checks(arguments)))
    failed = [check.name for check in found if check.result == FAIL]
    if failed:
        many = f"{len(failed)} of {len(found)} checks failed"
        raise UserError(f"{', '.join(failed)}: {many}; their mends stand above")


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from mlcd.doctor import here

    profile = _profile(arguments.profile or "local")
    yield from here.environment()
    settings = list(here.config_and_disk(arguments.config))
    yield from settings
    if settings[0].result == FAIL:
        return
    from mlcd.doctor.profile import read

    keys = read(profile)
    on_slurm = keys.get("executor") == "slurm"
    if on_slurm and (missing := [tool for tool in _TOOLS if not shutil.which(tool)]):
        yield fail(
            "slurm", f"no {', '.join(missing)} on this machine: no Slurm is installed here, or not "
            "on the PATH",
            "run it on a login node of the cluster (perhaps: module load slurm)",
        )  # fmt: skip
        return
    from mlcd.doctor.demands import demands

    try:
        asked = demands(str(profile), arguments.config)
    except UserError as error:
        yield fail("plan", str(error), "mend it, then ask again")
        return
    if not on_slurm:
        yield from here.memory_and_cores(asked)
        return
    from mlcd.config import load
    from mlcd.doctor import cluster, node

    asked = cluster.placed(asked)
    names = list(cluster.checks(asked, keys))
    yield from names
    if arguments.wait and not any(check.result == FAIL for check in names[:1]):
        sound = cluster.partitions_to_try(asked, names)
        yield from node.checks(sound, Path(load(arguments.config).results), arguments.wait)


def _profile(name: str) -> Path:
    for folder in (Path(name), Path("profiles") / name):
        if (folder / "config.yaml").exists():
            return folder
    known = ", ".join(sorted(path.parent.name for path in Path("profiles").glob("*/config.yaml")))
    raise UserError(f"--profile {name}: no such profile; here are {known or 'none'}")
