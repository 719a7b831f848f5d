"""Whose code made the saved state in a folder, and whether other code may resume from it.

A stage's state folder is named after its section and inputs. The code that works in it is recorded
in `code.json` there: `stage`, `hash` and `modules` as in
:func:`mlcd.utils.fingerprint.code_record`, `output` (what the lease is held on) and `gang` (where
the gang is recorded), both relative to the folder, `finished`, and `accepted`: each change of code
that was let through in between, which `mlcd accept` also appends to `accepted.jsonl` in the output
folder.

    different code and …        what happens
    nothing saved, or finished  the folder is emptied, the work starts afresh
    a checkpoint, unfinished    refused, with the modules that differ, until `mlcd accept`
    a job that is still alive   refused, or ended first by --end-other where nothing is saved
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from mlcd.launch import lease
from mlcd.launch.api import live_job
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json, write_text
from mlcd.utils.fingerprint import code_hash, code_record, differing
from mlcd.utils.logging import LOGGER

CODE = "code.json"
ACCEPTED = "accepted.jsonl"


def claim(state: Path, stage: str, output: Path, gang: Path, *, end_other: bool = False) -> None:
    """Record that the code of `stage`, as it is now, works in the folder `state` from here on.

    The caller holds the lease on `output`, whose gang is recorded in `gang`. Saved state of other
    code is removed if nothing of it is needed any more. Raises :class:`UserError` if it is worth
    keeping, or if a job of other code is alive and is not to be ended (`end_other`).
    """
    record, now = _read(state), code_record(stage)
    if record is not None and record["hash"] == now["hash"]:
        _publish(state, record)
        if record.get("finished") is not False:
            write_json(state / CODE, {**record, "finished": False})
        return
    if record is None:
        # Whatever lies here without a record is of unknown code.
        unknown = {"stage": stage, "hash": "", "modules": {}}
        record = _take(state, now if newest_step(state) is None else unknown, output, gang)
        if record["hash"]:
            return
    if not _is_over(state, record):
        raise UserError(_refusal(state, record, now, output))
    _refuse_if_alive(state, record, end_other=end_other)
    empty(state)
    _take(state, now, output, gang)


def check(state: Path) -> None:
    """Raise :class:`UserError` if this process runs other code than was recorded in `state`.

    For ranks: a batch system may start them again after the code on disk has changed.
    """
    record = _read(state)
    if record is not None and record["hash"] != code_hash(record["stage"]):
        now = code_record(record["stage"])
        raise UserError(_refusal(state, record, now, _place(state, record, "output")))


def finish(state: Path) -> None:
    """Record that the results of the work in `state` are written."""
    record = _read(state)
    if record is not None:
        write_json(state / CODE, {**record, "finished": True})


def accepted(state: Path) -> list[dict[str, Any]]:
    """Return the changes of code that were accepted for the state in a folder, oldest first."""
    changes: list[dict[str, Any]] = (_read(state) or {}).get("accepted", [])
    return changes


def newest_step(state: Path) -> int | None:
    """Return the step (or iteration) of the newest checkpoint in a state folder, None without."""
    steps = [
        *(path.name.removeprefix("step_") for path in state.glob("checkpoints/step_*")),
        *(path.stem.removeprefix("iteration-") for path in state.rglob("iteration-*.h5")),
    ]
    return max((int(step) for step in steps if step.isdigit()), default=None)


def empty(state: Path) -> None:
    """Remove all that the folder `state` holds, the record of the code last.

    Cut off at any moment, what is left says that it is over: no other code resumes from a part.
    """
    record = _read(state)
    if record is not None:
        write_json(state / CODE, {**record, "finished": True})
    for path in sorted(state.iterdir(), key=lambda path: path.name == CODE):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove(state: Path) -> None:
    """Remove the folder `state` as :func:`empty` does, and the folder itself."""
    empty(state)
    state.rmdir()


def waiting(path: Path) -> list[Path]:
    """Return the state folders of an output (a folder or a file) that other code left unfinished.

    `path` may be a state folder itself.
    """
    if (path / CODE).exists():
        found = [path]
    elif path.is_dir():
        found = [file.parent for file in sorted(path.glob(f"state/*/{CODE}"))]
    else:
        name = re.compile(re.escape(path.stem) + "-[0-9a-f]+")
        files = sorted(path.parent.glob(f"state/*/{CODE}"))
        found = [file.parent for file in files if name.fullmatch(file.parent.name)]
    return [state for state in found if _is_waiting(state)]


def accept(state: Path, reason: str) -> dict[str, Any]:
    """Let the code as it is now resume from the state in a folder; return what is recorded of it.

    Raises :class:`UserError` if a job of other code is alive. Waits for a process that works there.
    """
    with _held(state) as record:
        now = code_record(record["stage"])
        _refuse_if_alive(state, record)
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stage": record["stage"],
            "step": newest_step(state),
            "old": record["hash"],
            "new": now["hash"],
            "modules": differing(record, now),
            "reason": reason,
        }
        record = {**record, **now, "accepted": [*record.get("accepted", []), entry]}
        # The truth first; `claim` completes the copy for readers if this process dies in between.
        write_json(state / CODE, record)
        _publish(state, record)
    return entry


def discard(state: Path) -> None:
    """Remove the state in a folder, so that the work starts afresh. Raises as :func:`accept`."""
    with _held(state) as record:
        _refuse_if_alive(state, record)
        empty(state)


class _held:
    """Holds the lease on the output of a state folder; gives its record."""

    def __init__(self, state: Path) -> None:
        self._state = state
        record = _read(state)
        assert record is not None
        self._lease = lease.writing(_place(state, record, "output"), ["accept", str(state)])

    def __enter__(self) -> dict[str, Any]:
        if not self._lease.__enter__():
            raise UserError(f"{self._state}: another `mlcd accept` has just decided the same")
        record = _read(self._state)
        if record is None:
            self._lease.__exit__(None, None, None)
            raise UserError(f"{self._state}: removed by another process meanwhile")
        return record

    def __exit__(self, *error: Any) -> None:
        self._lease.__exit__(*error)


def _read(state: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((state / CODE).read_text(encoding="utf-8"))
        return record if isinstance(record["hash"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take(state: Path, code: dict[str, Any], output: Path, gang: Path) -> dict[str, Any]:
    places = {"output": output, "gang": gang}
    # Relative: results may be moved.
    found = {key: os.path.relpath(path.resolve(), state.resolve()) for key, path in places.items()}
    record = {**code, **found, "finished": False, "accepted": []}
    write_json(state / CODE, record)
    return record


def _place(state: Path, record: dict[str, Any], key: str) -> Path:
    return state.resolve().joinpath(str(record[key])).resolve()


def _is_over(state: Path, record: dict[str, Any]) -> bool:
    return bool(record.get("finished")) or newest_step(state) is None


def _is_waiting(state: Path) -> bool:
    record = _read(state)
    return (
        record is not None
        and record["hash"] != code_hash(record["stage"])
        and not _is_over(state, record)
    )


def _publish(state: Path, record: dict[str, Any]) -> None:
    """Append the acceptances that `accepted.jsonl` in the output folder lacks."""
    path = state.parents[1] / ACCEPTED
    try:
        there = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        there = []
    lines = [json.dumps(entry) for entry in record.get("accepted", [])]
    if missing := [line for line in lines if line not in there]:
        write_text(path, "".join(f"{line}\n" for line in [*there, *missing]))


def _refuse_if_alive(state: Path, record: dict[str, Any], *, end_other: bool = False) -> None:
    if (job := live_job(_place(state, record, "gang"))) is None:
        return
    who = f"{state}: {job.describe()}, of other code, still works there"
    if end_other and job.can_be_ended():
        LOGGER.warning("%s; ending it", who)
        job.end()
        if not job.alive():
            return
    raise UserError(f"{who}; wait for it, or end it by `{job.how_to_end()}`")


def _refusal(state: Path, record: dict[str, Any], now: dict[str, Any], output: Path) -> str:
    modules = ", ".join(differing(record, now))
    about = f"by other code ({modules or 'of an unknown version'})"
    if (step := newest_step(state)) is None:
        return f"{state}: begun {about}, and nothing is saved yet; run the same command again"
    # The output's name serves unless it has several such folders.
    name = output if len(waiting(output)) == 1 else state
    return (
        f"{state}: step {step} was saved {about}; to keep it and resume, mlcd accept {name}; to "
        f"start afresh, mlcd accept --discard {name}"
    )
