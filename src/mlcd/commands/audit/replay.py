"""Run a stage again in a scratch folder, from the inputs and the section that were recorded.

Equal bytes are proof that this code, on this machine, makes the file of these inputs. Other
machines may round otherwise (training, encoders): the largest difference is then said.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcd.commands.audit import cards, nearness
from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.making import Making, command, making_of
from mlcd.commands.audit.nodes import ORDER, Node, collect
from mlcd.commands.audit.recorded import Cannot, Recorded
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import code_hash, code_record, differing
from mlcd.utils.records import read_record

__all__ = ["Cannot", "Outcome", "Recorded", "chosen", "machines", "replay", "run_again"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a file that was made again compares: `verdict` is equal, close, different or unknown.

    `path` is of a file, or of a folder whose files are all equal.
    """

    path: str
    verdict: str
    what: str


def chosen(lock: dict[str, Any], stages: Sequence[str], *, every: bool) -> list[Making]:
    """Return the makings of a run: one of each kind, or `every` one; of `stages` if any is named.

    In the order of the chain.
    """
    found: dict[Making, str] = {}
    for path, node in lock["files"].items():
        making = making_of(path)
        if making is not None and (not stages or node["stage"] in stages):
            found.setdefault(making, node["stage"])
    order = sorted(found, key=lambda one: (ORDER.index(found[one]), one.kind, one.name))
    if every:
        return order
    # Scores and exports of each model and format are files of a kind of their own.
    kinds = {
        (one.kind, one.name if one.kind in ("scores", "export") else ""): one
        for one in reversed(order)
    }
    return [one for one in order if one in kinds.values()]


def replay(run: Recorded, lock: dict[str, Any], making: Making, scratch: Path) -> list[Outcome]:
    """Make the files of a making again below `scratch`, and compare each with the recorded one."""
    paths = [path for path in lock["files"] if making_of(path) == making]
    try:
        run_again(run, making, scratch)
    except Cannot as why:
        return [Outcome(_together(paths), nearness.UNKNOWN, str(why))]
    # The seal has let the run's cards name it.
    made: dict[str, dict[str, Any]] = {path: {} for path in paths if (scratch / path).is_file()}
    cards.name_run(scratch, {"root": lock["root"], "files": made})
    nodes, problems, _ = collect(scratch)
    said = problems[0].what if problems else "its stage wrote no such file"
    outcomes = []
    for path in paths:
        node = nodes.get(path)
        if node is None:
            outcomes.append(Outcome(path, nearness.UNKNOWN, said))
        elif node.hash == lock["files"][path]["hash"]:
            outcomes.append(Outcome(path, nearness.EQUAL, f"{node.of}: {node.hash[:16]}…"))
        else:
            outcomes.append(_unequal(run, path, scratch, node))
    if making.kind == "images" and any(one.verdict != nearness.EQUAL for one in outcomes):
        folder = f"images/{making.name}"
        verdict, what = nearness.images(run.results / folder, scratch / folder)
        return [Outcome(folder, verdict, what)]
    return outcomes


def folded(outcomes: list[Outcome]) -> list[Outcome]:
    """Return one outcome where all are equal, else those that are not."""
    if len(outcomes) > 1 and all(one.verdict == nearness.EQUAL for one in outcomes):
        paths = [one.path for one in outcomes]
        return [Outcome(_together(paths), nearness.EQUAL, f"{len(paths)} files")]
    return [one for one in outcomes if one.verdict != nearness.EQUAL] or outcomes


def _together(paths: list[str]) -> str:
    """Return what many files are called in one line."""
    if len(paths) == 1:
        return paths[0]
    stems = {path.rpartition(".")[0] for path in paths}
    if len(stems) == 1:
        return f"{stems.pop()}.*"
    return paths[0].rpartition("/")[0]


def _unequal(run: Recorded, path: str, scratch: Path, node: Node) -> Outcome:
    verdict, what = nearness.compared(run.results / path, scratch / path)
    if verdict == nearness.EQUAL:
        return Outcome(path, verdict, what)
    sealed = run.stages.get(node.stage, {}).get("code")
    if sealed and sealed != code_hash(node.stage):
        what += f"; {_other_code(run, node.stage)}"
    return Outcome(path, verdict, what)


def _other_code(run: Recorded, stage: str) -> str:
    """Return in words how the code of a stage differs from that which the run was sealed with."""
    sealed = read_record(run.results / locks.CODE, "audit")["stages"].get(stage)
    found = differing(sealed, code_record(stage)) if sealed else {}
    told = ", ".join(list(found)[:3])
    return f"the code of {stage} here is not the sealed one ({told or 'unknown'})"


def run_again(run: Recorded, making: Making, scratch: Path) -> None:
    """Run the stage of a making; its files lie at the same places below `scratch`.

    Raises :class:`Cannot`.
    """
    one = command(run, making, scratch)
    output = scratch / one.output
    output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        # Nothing that lies in the folder of a stranger's run is imported.
        [sys.executable, "-P", "-m", "mlcd", one.stage, *one.words, "--output", str(output),
         "--config", one.section],
        capture_output=True, text=True, check=False, cwd=run.project, env=_environment(run.results),
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Cannot(said[-1] if said else f"mlcd {one.stage} ended with {done.returncode}")


def _environment(results: Path) -> dict[str, str]:
    """Return this environment with the settings of threads and sums that the run was sealed in."""
    from mlcd.commands.audit import system

    path = results / locks.SYSTEM
    sealed = read_record(path, "audit").get("environment", {}) if path.is_file() else {}
    known = {name: str(sealed[name]) for name in system.VARIABLES if name in sealed}
    return {**os.environ, **known}


def each(
    run: Recorded, lock: dict[str, Any], makings: Sequence[Making], scratch: Path
) -> Iterator[list[Outcome]]:
    """Iterate over the outcomes of makings; each has a scratch folder of its own, for a time."""
    for number, making in enumerate(makings):
        folder = scratch / str(number)
        folder.mkdir()
        yield replay(run, lock, making, folder)
        shutil.rmtree(folder, ignore_errors=True)


def makings_of(results: Path, lock: dict[str, Any], paths: Sequence[str]) -> list[Making]:
    """Return the makings of some files, each once. Raises :class:`UserError`."""
    found: dict[Making, None] = {}
    for path in paths:
        if path not in lock["files"]:
            raise UserError(f"{results / path}: no file of this run's lock")
        making = making_of(path)
        if making is None:
            raise UserError(f"{results / path}: shows what other files say, and is not made again")
        found[making] = None
    return list(found)


def machines(results: Path) -> list[str]:
    """Return lines that name the machine of the run, and this one."""
    from mlcd.commands.audit import system

    sealed = read_record(results / locks.SYSTEM, "audit")
    here = system.describe()
    lines = [f"sealed on: {_machine(sealed)}", f"this machine: {_machine(here)}"]
    old, new = sealed.get("packages", {}), here["packages"]
    other = [f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}"
             for name in sorted({*old, *new}) if old.get(name) != new.get(name)]  # fmt: skip
    if other:
        lines.append(f"packages: {len(other)} differ: {', '.join(other[:5])}")
    return lines


def _machine(about: dict[str, Any]) -> str:
    processor, torch = about["processor"], about["torch"]
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver_version']})" for gpu in about["gpus"])
    words = [processor["model"], f"{processor['cores']} cores", " ".join(processor["flags"]),
             f"torch {torch['version']} {torch['capability']}", gpus or "no GPU",
             about["libc"], f"Python {about['python']}"]  # fmt: skip
    settings = [f"{name}={value}" for name, value in about["environment"].items()]
    return "; ".join([*words, *settings])
