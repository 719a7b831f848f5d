"""`mlcd accept`: let changed code resume an unfinished run, or discard what the run has saved.

A stage whose code has changed since its newest checkpoint refuses to resume and names the modules
that differ. After a review one of these continues:

    mlcd accept results/train --reason "faster data loading, same numbers"
    mlcd accept --discard results/train

An acceptance stands in the state folder, in accepted.jsonl of the output folder, and in the final
description (encoder.json, text.json, or the centroids' attributes) as `accepted_code`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlcd.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to accept, and why."""
    parser.add_argument(
        "output",
        metavar="PATH",
        help="output folder (train, text) or file (centroids.h5) whose run stopped, or one of the "
        "folders in state/ beside it",
    )
    parser.add_argument(
        "--discard", action="store_true", help="remove what the run has saved: it starts afresh"
    )
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="why the change is harmless, for the record"
    )


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Accept or discard. Raises :class:`UserError`."""
    from mlcd.launch import resume

    path = Path(arguments.output)
    found = resume.waiting(path)
    if not found:
        raise UserError(f"{path}: no unfinished run of other code; nothing to accept or discard")
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UserError(f"{path}: several unfinished runs of other code; name one of {names}")
    (state,) = found
    if arguments.discard:
        resume.discard(state)
        print(f"discarded {state}; the run starts afresh")
        return
    entry = resume.accept(state, arguments.reason)
    for module, definitions in entry["modules"].items():
        print(f"{module}: {', '.join(definitions)}")
    print(f"accepted; the run resumes from step {entry['step']}")
