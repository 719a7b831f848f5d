"""The newest numbers of the training: of its last step, and of the scores taken meanwhile."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mlcd.data import trainings
from mlcd.utils.records import CHECKSUM


def newest(results: Path, last_lines: Any) -> dict[str, Any]:
    """Return the last line of metrics.jsonl, the last score as `live`; {} if there is none yet.

    `live_failed` says why scores are taken no more. `last_lines` reads the end of a file.
    """
    place = trainings.newest(results / "train", "train")
    if place is None:
        return {}
    values = _last(last_lines(place / "metrics.jsonl"))
    if live := _last(last_lines(place / "live.jsonl")):
        values["live"] = live
    if why := last_lines(place / "live.failed"):
        values["live_failed"] = why[-1]
    return values


def _last(lines: list[str]) -> dict[str, Any]:
    """Return the last whole line of JSON lines, {} without any."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                value.pop(CHECKSUM, None)
                return value
    return {}
