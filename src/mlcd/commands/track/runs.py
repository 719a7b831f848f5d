"""The trainings of a folder of results, from their own files: what is new, and who still writes.

A training is a folder `{stage}/state/{name}-{identity}` with metrics.jsonl, and `live.jsonl` where
scores are taken while it runs; its final metrics.jsonl lies beside the weights.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcd import __version__
from mlcd.data.trainings import STAGES, newest
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.records import parse_line, read_csv, read_record

#: A number, or a word of the config.
Value = float | int | str | bool
#: Step → numbers by name.
Rows = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """One training of a stage.

    `identity`: 16 hex digits, of its section and inputs; another config is another training.
    `project`: the name of the folder around the results. `config`: the stage's section, flat.
    """

    stage: str
    identity: str
    project: str
    config: dict[str, Value] = field(hash=False)

    @property
    def name(self) -> str:
        """What people see it called."""
        return f"{self.stage}-{self.identity[:8]}"


class Lines:
    """The lines of a JSON-lines file that have come since the last look.

    A training that resumes rewrites its file: it is then read from its start, and whoever asks
    leaves out what they have seen, by its step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Iterate over new whole lines. Raises :class:`UserError` for a damaged one."""
        try:
            handle = self.path.open("rb")
        except FileNotFoundError:
            return
        with handle:
            # Asked of the open file: the name may be another's a moment later.
            found = os.fstat(handle.fileno())
            if found.st_ino != self._file or found.st_size < self._read:
                self._file, self._read = found.st_ino, 0
            handle.seek(self._read)
            for line in handle:
                if not line.endswith(b"\n"):  # being written, or cut off by a kill
                    return
                self._read += len(line)
                try:
                    yield parse_line(line)
                except ValueError:
                    raise UserError(
                        f"{self.path}: damaged in the line before byte {self._read}; what came "
                        "before it is shipped. Remove the line, or the file"
                    ) from None


class Training:
    """A training's files in `folder` (results/train): `state` is None where only the end is left.

    `new` gives what has come, by stream: ``STAGE`` (metrics), ``live``, ``evaluate``.
    """

    def __init__(self, stage: str, folder: Path, state: Path | None) -> None:
        self.stage, self.folder, self.state = stage, folder, state
        place = folder if state is None else state
        self._metrics = Lines(place / "metrics.jsonl")
        self._live = Lines(place / "live.jsonl")
        self.last = 0

    def run(self) -> Run | None:
        """Describe the training; None while its config is not known yet."""
        section = self._section()
        if section is None:
            return None
        if self.state is not None:
            identity = self.state.name.rpartition("-")[2]
        else:
            identity = sha256_json(self._final())[:16]
        config: dict[str, Value] = {**flat(section), "mlcd_version": __version__}
        results = self.folder.parent.resolve()
        return Run(self.stage, identity, results.parent.name or results.name, config)

    def new(self) -> dict[str, Rows]:
        """Return the numbers that have come since the last call, by stream and step."""
        found: dict[str, Rows] = {self.stage: {}, "live": {}, "evaluate": {}}
        for line in self._metrics.new():
            self.last = max(self.last, int(line["step"]))
            found[self.stage][int(line["step"])] = _numbers(line)
        for line in self._live.new():
            numbers = _numbers(line)
            found["live"][int(line["step"])] = {
                f"{line.get('dataset')}/{name}": value for name, value in numbers.items()
            }
        if scores := self._scores():
            found["evaluate"][int(self._final()["steps"])] = scores
        return found

    def is_done(self) -> bool:
        """True if the training's last step has been taken and its weights are there."""
        return self._is_of_this() and self._final().get("steps") == self.last

    def _section(self) -> dict[str, Any] | None:
        """Return the section of the config: of a checkpoint, of the call of a gang, of the end."""
        if self.state is None:
            found = self._final().get("section")
            return found if isinstance(found, dict) else {}
        for path in sorted(self.state.glob("checkpoints/step_*/complete.json"), reverse=True):
            with contextlib.suppress(UserError):
                if isinstance(section := read_record(path, self.stage).get("section"), dict):
                    return section
        for path in self.folder.glob("state/*.gang/job-*/call.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                given = json.loads(path.read_text())["kwargs"]["arguments"]
                if Path(given["state"]).name == self.state.name:
                    return dict(given["section"])
        return None

    def _final(self) -> dict[str, Any]:
        """Return the description of the final weights, {} while there is none."""
        with contextlib.suppress(UserError):
            return read_record(self.folder / f"{STAGES[self.stage]}.json", self.stage)
        return {}

    def _is_of_this(self) -> bool:
        """True if the final weights are those of this training."""
        final = self._final()
        return bool(final) and (self.state is None or final.get("section") == self._section())

    def _scores(self) -> dict[str, float]:
        """Return the final scores of all models on all data sets; {} if they are not there yet."""
        table = self.folder.parent / "evaluate" / "summary.csv"
        if self.stage != "train" or not table.exists() or not self.is_done():
            return {}
        with contextlib.suppress(UserError):
            rows = read_csv(table, "evaluate")
            judged = {row["encoder_sha256"] for row in rows if row["model"] == "trained"}
            if judged == {self._final().get("sha256")}:
                return {
                    f"{row['model']}/{row['dataset']}/{row['metric']}": float(row["value"])
                    for row in rows
                }
        return {}


def newest_training(results: Path, stage: str) -> Training | None:
    """Return the training of `stage` that was written last; None if there is none.

    Without its state folder (cleaned, or copied without it) it has its final files.
    """
    folder = results / stage
    place = newest(folder, stage)
    return Training(stage, folder, place if place != folder else None) if place else None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Value]:
    """Return nested keys as `outer.inner`; lists and null as JSON."""
    found: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            found[f"{prefix}{key}"] = value
        else:
            found[f"{prefix}{key}"] = json.dumps(value)
    return found


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
