"""`mlcd status [RESULTS]`: one screen about a run, here or on a cluster, from its files alone.

    mlcd status                     the run of this folder
    mlcd status /disk/run/results   of any folder, from any machine that sees the disk
    mlcd status --watch             again every few seconds, until the run has ended
    mlcd status --json              for programs

It ends with 0 if the run is complete, 3 if it runs, 4 if it has stopped before its end, and 1 if
a job failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from mlcd.utils.errors import UserError

#: State of a run → exit status.
_STATUS = {"complete": 0, "failed": 1, "running": 3, "stopped": 4, "empty": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder and how to look."""
    parser.add_argument(
        "results", nargs="?", metavar="RESULTS",
        help="folder of a run's results [that of the run in this folder, or results]",
    )  # fmt: skip
    parser.add_argument(
        "--directory", metavar="DIR",
        help="where Snakemake was started [this folder, or one above RESULTS]",
    )  # fmt: skip
    parser.add_argument(
        "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS",
        help="look again and again until the run has ended [every 5 s]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a screen")


def run(arguments: argparse.Namespace, section: None) -> None:
    """Print it. Raises :class:`UserError` without results, SystemExit with the run's state."""
    from mlcd.commands.status.look import look, project_of
    from mlcd.commands.status.screen import screen

    if arguments.watch is not None and not 1 <= arguments.watch <= 3600:
        raise UserError("--watch: expected 1 to 3600 seconds")
    given = Path(arguments.directory) if arguments.directory else None
    results = _results(arguments.results, given)
    while True:
        found = look(results, project_of(results, given))
        if arguments.json:
            print(json.dumps(dataclasses.asdict(found), indent=1), flush=True)
        else:
            clear = "\033[H\033[2J" if arguments.watch is not None and sys.stdout.isatty() else ""
            print(f"{clear}{screen(found)}", flush=True)
        if arguments.watch is None or found.state != "running":
            break
        time.sleep(arguments.watch)
    if _STATUS[found.state]:
        raise SystemExit(_STATUS[found.state])


def _results(given: str | None, directory: Path | None) -> Path:
    """Return the folder of the results. Raises :class:`UserError` if it is not there."""
    from mlcd.launch.snakemake import announced

    if given is None:
        folder = directory or Path.cwd()
        process = announced(folder) or {}
        config = process.get("config")
        name = config.get("results") if isinstance(config, dict) else None
        results = folder / (name if isinstance(name, str) else "results")
    else:
        results = Path(given)
    if not results.is_dir():
        raise UserError(
            f"{results}: no such folder; give that of a run's results, or start a run: mlcd run"
        )
    return results
