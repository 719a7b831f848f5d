"""Which training of a folder is the newest: one answer for all who look at it from outside.

A training is a folder `state/{stem}-{identity}` below that of its stage, with `metrics.jsonl` and
`checkpoints`; when it has ended, copies of its numbers lie beside the weights.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Stage → the stem of its weights and of their description.
STAGES = {"train": "encoder", "text": "text"}
_METRICS = "metrics.jsonl"
#: Bytes at the end of a file that hold its last line.
_TAIL = 1 << 14


def newest(folder: Path, stage: str) -> Path | None:
    """Return where the files of the training of `stage` lie that was written last.

    `folder` is that of the stage, such as results/train. The place is the training's state folder,
    or `folder` itself where the state is gone (cleaned, or copied without it); None if there is no
    training.
    """
    found = [(_written(path), path) for path in folder.glob(f"state/{STAGES[stage]}-*")]
    state = max((one for one in found if one[0]), default=(0, None))[1]
    last = _last_line(folder / _METRICS)
    if state is None:
        return folder if last else None
    # Beside the weights lie copies of a training's numbers, made when it had ended.
    if not last or last == _last_line(state / _METRICS) or _written(folder) <= _written(state):
        return state
    return folder


def _written(place: Path) -> int:
    """Return when numbers or checkpoints were last written in a folder, in ns; 0 for never."""
    return max(_time(place / _METRICS), _time(place / "checkpoints"))


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _last_line(path: Path) -> bytes:
    """Return the last line of a file, b"" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return next(iter(file.read().splitlines()[::-1]), b"")
    except OSError:
        return b""
