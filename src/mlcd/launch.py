"""Run one function on N ranks at once: on this machine, or as one Slurm job (submitit).

    result = run_gang(function, kwargs, state_dir, Resources(launcher="local", ranks_per_node=2))

Here are the options and the entry. :mod:`mlcd.driver` submits a gang and watches over it,
:mod:`mlcd.gang` is each rank's side, :mod:`mlcd.jobs` and :mod:`mlcd.slurm` ask how a job is.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcd.errors import UserError


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where and how wide a gang runs.

    `launcher`: ``local`` (this machine), ``slurm``, or ``inline`` (one rank in this process).
    `threads` a rank; `gpus`: one GPU a rank. Of a Slurm job: `timeout_min`, its time limit, at
    which it is requeued; `requeues`, how often it may start again; `mem_mb` a node (0: the
    partition's default); `partition`, `account` (empty: the user's default); `options`: further
    ones of sbatch.
    `record`: a file to which one line is appended for each job, with what it took.
    """

    launcher: str = "local"
    nodes: int = 1
    ranks_per_node: int = 1
    threads: int = 1
    gpus: bool = False
    timeout_min: int = 24 * 60
    requeues: int = 50
    mem_mb: int = 0
    partition: str = ""
    account: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    record: Path | None = None

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "slurm", "inline"):
            raise UserError(f"--launcher: expected local, slurm or inline, got {self.launcher!r}")
        if min(self.nodes, self.ranks_per_node, self.threads, self.timeout_min) < 1:
            raise UserError("--nodes, --ranks-per-node, --threads, --timeout-min: expected ≥ 1")
        if min(self.requeues, self.mem_mb) < 0:
            raise UserError("--requeues, --mem-mb: expected ≥ 0")
        if self.launcher == "local" and self.nodes > 1:
            raise UserError("--nodes: the local launcher has one machine; use --launcher slurm")
        if self.launcher == "inline" and self.ranks > 1:
            raise UserError("--launcher inline runs one rank; use --launcher local for more")
        if self.launcher == "slurm" and self.timeout_min < 2:
            # Its warning may come a minute early.
            raise UserError("--timeout-min: Slurm needs at least 2 to warn a job of its end")

    @property
    def ranks(self) -> int:
        """World size."""
        return self.nodes * self.ranks_per_node

    @property
    def warning_s(self) -> int:
        """Seconds before its time limit at which a job is told to save (Slurm may be early)."""
        return min(120, self.timeout_min * 15)


def add_arguments(parser: Any, *, ranks_per_node: int = 1) -> None:
    """Add the options from which :func:`resources` builds a :class:`Resources`."""
    add = parser.add_argument
    add("--launcher", default="local", choices=("local", "slurm", "inline"),
        help="local: ranks on this machine; slurm: one Slurm job; inline: one rank in this process "
        "[local]")  # fmt: skip
    add("--nodes", type=int, default=1, metavar="N", help="machines [1]")
    add("--ranks-per-node", type=int, default=ranks_per_node, metavar="N",
        help=f"processes a machine, one a GPU where there are GPUs [{ranks_per_node}]")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N",
        help="threads (and Slurm's CPUs) a rank; 0: this machine's cores divided by "
        "--ranks-per-node, and 1 with Slurm [0]")  # fmt: skip
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="auto: cuda if this machine has one, else cpu [auto]")  # fmt: skip
    add("--timeout-min", type=int, default=24 * 60, metavar="N",
        help="time limit of the Slurm job in minutes; at its end it is requeued and goes on from "
        "its checkpoint [a day]")  # fmt: skip
    add("--requeues", type=int, default=50, metavar="N",
        help="how often the Slurm job may start again, after its time limit, preemption or a lost "
        "node [50]")  # fmt: skip
    add("--mem-mb", type=int, default=0, metavar="N",
        help="memory of the Slurm job on each node in MB; 0: the partition's default "
        "[0]")  # fmt: skip
    add("--partition", default="", metavar="NAME", help="Slurm partition [the user's default]")
    add("--account", default="", metavar="NAME", help="Slurm account [the user's default]")
    add("--slurm-option", action="append", default=[], metavar="KEY=VALUE",
        help="further option of sbatch, such as constraint=a100; may be repeated")  # fmt: skip


def resources(arguments: Any) -> Resources:
    """Build :class:`Resources` from parsed options. Raises :class:`UserError`."""
    options = {}
    for item in arguments.slurm_option:
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm-option: expected KEY=VALUE, got {item!r}")
        options[key.replace("-", "_")] = int(value) if value.isdigit() else value
    cores = len(os.sched_getaffinity(0)) if arguments.launcher != "slurm" else 1
    return Resources(
        launcher=arguments.launcher,
        nodes=arguments.nodes,
        ranks_per_node=arguments.ranks_per_node,
        threads=arguments.threads or max(1, cores // max(1, arguments.ranks_per_node)),
        gpus=pick_device(arguments.device) == "cuda",
        timeout_min=arguments.timeout_min,
        requeues=arguments.requeues,
        mem_mb=arguments.mem_mb,
        partition=arguments.partition,
        account=arguments.account,
        options=options,
        record=_record(arguments),
    )


def _record(arguments: Any) -> Path | None:
    """Return where jobs are recorded: beside the log."""
    if not getattr(arguments, "log", None):
        return None
    return Path(arguments.log).parent / "gang" / f"{arguments.command}.jsonl"


def pick_device(device: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto``, judged by this machine; others unchanged."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run_gang(
    function: Callable[..., Any], kwargs: dict[str, Any], state_dir: Path, resources: Resources
) -> Any:
    """Call `function(**kwargs)` on every rank; return rank 0's result (plain JSON values).

    `function` must be importable by name. Each rank finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT in its environment. A job that an earlier driver started from the same
    `state_dir` is waited for if it is alive, and its result is taken if it has finished this very
    call; nothing is started then. Two calls on one `state_dir` at a time are the caller's to
    prevent (:mod:`mlcd.lease`). Raises :class:`UserError` if this machine has fewer GPUs than ranks
    that need one, and with the last lines of the rank that
    failed first (or with that rank's own UserError).
    """
    from mlcd.driver import Driver
    from mlcd.gang import run_inline

    if resources.gpus and resources.launcher != "slurm":
        _check_gpus(resources.ranks)
    if resources.launcher == "inline":
        return run_inline(function, kwargs, resources.threads)
    return Driver(function, kwargs, state_dir / "gang", resources).run()


def _check_gpus(ranks: int) -> None:
    """Raise :class:`UserError` if this machine has fewer GPUs than `ranks`."""
    import torch

    if (found := torch.cuda.device_count()) < ranks:
        mend = f"give --ranks-per-node {found}" if found else "give --device cpu"
        raise UserError(
            f"--ranks-per-node: {ranks} needs as many GPUs, and this machine has {found}; {mend} "
            "(with Snakemake: the rule's resource of that name)"
        )
