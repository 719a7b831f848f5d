"""Where and how wide a gang of ranks runs: the options of a command line, and what they mean."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from mlcd.utils.device import has_gpu
from mlcd.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where and how wide a gang runs.

    `launcher`: ``local`` (this machine), ``slurm``, or ``inline`` (one rank in this process).
    `threads` per rank; `gpus`: one per rank. Of a Slurm job: `timeout_min`, its time limit, at
    which it is requeued; `requeues`, how often it may start again; `mem_mb` per node (0: the
    partition's default); `partition`, `account` (empty: the user's default); `options`: further
    ones of sbatch.
    `end_other`: end a gang of other work that still writes the same output, instead of refusing.
    `max_failures`: give up after so many failures in a row without a new checkpoint between them.
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
    end_other: bool = False
    max_failures: int = 1
    record: Path | None = None

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "slurm", "inline"):
            raise UserError(f"--launcher: expected local, slurm or inline, got {self.launcher!r}")
        if min(self.nodes, self.ranks_per_node, self.threads, self.timeout_min) < 1:
            raise UserError("--nodes, --ranks-per-node, --threads, --timeout-min: expected ≥ 1")
        if self.max_failures < 1:
            raise UserError("--max-failures: expected ≥ 1")
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
        help="processes per machine, one per GPU where there are GPUs "
        f"[{ranks_per_node}]")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N",
        help="threads (and Slurm's CPUs) per rank; 0: this machine's cores divided by "
        "--ranks-per-node, and 1 with Slurm [0]")  # fmt: skip
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="auto: cuda if this machine has one, else cpu [auto]")  # fmt: skip
    add("--timeout-min", type=int, default=24 * 60, metavar="N",
        help="time limit of the Slurm job in minutes; at its end it is requeued and resumes from "
        "its checkpoint [a day]")  # fmt: skip
    add("--requeues", type=int, default=50, metavar="N",
        help="how often the Slurm job may start again, after its time limit, preemption or a lost "
        "node [50]")  # fmt: skip
    add("--mem-mb", type=int, default=0, metavar="N",
        help="memory of the Slurm job on each node in MB; 0: the partition's default "
        "[0]")  # fmt: skip
    add("--partition", default="", metavar="NAME", help="Slurm partition [the user's default]")
    add("--account", default="", metavar="NAME", help="Slurm account [the user's default]")
    add("--end-other", action="store_true",
        help="end ranks of another config or code that still write this output; otherwise they are "
        "named and nothing is started")  # fmt: skip
    add("--max-failures", type=int, default=1, metavar="N",
        help="failures in a row, without a new checkpoint between them, after which the ranks are "
        "not started again; one with a new checkpoint costs nothing [1]")  # fmt: skip
    add("--slurm-option", action="append", default=[], metavar="KEY=VALUE",
        help="further option of sbatch, such as constraint=a100; may be repeated")  # fmt: skip


def add_products(parser: Any) -> None:
    """Add the option that says what the products of a search are."""
    parser.add_argument(
        "--products", default="auto", choices=("auto", "float32", "float16", "bfloat16"),
        help="what chooses the candidates of a search; results are the same bytes. float16 and "
        "bfloat16: a GPU's tensor cores, by torch; float32: faiss. auto is float16 on a GPU that "
        "torch can use, else float32 [auto]",
    )  # fmt: skip


def search_place(arguments: Any) -> str:
    """Return where a search runs, as :mod:`mlcd.neighbors.engine` reads it."""
    if arguments.products == "auto":
        return str(arguments.device)
    return f"{arguments.device}/{arguments.products}"


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
        gpus=wants_gpus(arguments.device),
        timeout_min=arguments.timeout_min,
        requeues=arguments.requeues,
        mem_mb=arguments.mem_mb,
        partition=arguments.partition,
        account=arguments.account,
        options=options,
        end_other=arguments.end_other,
        max_failures=arguments.max_failures,
        record=_record(arguments),
    )


def _record(arguments: Any) -> Path | None:
    """Return where jobs are recorded: beside the log."""
    if not getattr(arguments, "log", None):
        return None
    return Path(arguments.log).parent / "gang" / f"{arguments.command}.jsonl"


def wants_gpus(device: str) -> bool:
    """True if the ranks are to have GPUs. `auto` is judged by this machine, other words are not:
    a login node may have no GPU.
    """
    return device == "cuda" or (device == "auto" and has_gpu())
