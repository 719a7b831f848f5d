"""A folder of results with a training of known numbers, as `mlcd train` leaves it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.utils.files import write_text
from mlcd.utils.records import line_of, write_csv, write_record

IDENTITY = "0123456789abcdef"
SECTION = {"lr": 0.5, "loss": "mlcd", "initial": None}


def record(step: int) -> dict[str, Any]:
    """The line of a step."""
    return {"step": step, "epoch": 0, "loss": 100.0 - step, "lr": 0.5 / step, "none": None}


class Results:
    """Results below `root`; `name` tells trainings of one stage apart."""

    def __init__(self, root: Path, identity: str = IDENTITY, stage: str = "train") -> None:
        self.path = root / "results"
        self.folder = self.path / stage
        stem = {"train": "encoder", "text": "text"}[stage]
        self.stem = stem
        self.state = self.folder / "state" / f"{stem}-{identity}"
        checkpoint = self.state / "checkpoints" / "step_00000005" / "complete.json"
        write_record(checkpoint, {"section": SECTION, "step": 5})

    def log(self, *steps: int) -> None:
        """Append lines, as a training does."""
        with (self.state / "metrics.jsonl").open("a") as file:
            file.writelines(line_of(record(step)) for step in steps)

    def resume(self, step: int) -> None:
        """Cut the lines after `step` away, as a training does that resumes from there."""
        lines = (self.state / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if int(line.split(",")[0].split()[1]) <= step]
        write_text(self.state / "metrics.jsonl", "".join(kept))

    def score(self, *steps: int) -> None:
        """Append live scores."""
        with (self.state / "live.jsonl").open("a") as file:
            for step in steps:
                line = {
                    "step": step,
                    "set": "s",
                    "dataset": "few",
                    "chance": 0.1,
                    "knn_5": 1 / step,
                }
                file.write(line_of(line))

    def score_late(self, *steps: int) -> None:
        """Write scores of steps before others, as the scorer does, which keeps lines in order."""
        self.score(*steps)
        lines = (self.state / "live.jsonl").read_text().splitlines(keepends=True)
        lines.sort(key=lambda line: int(line.split(",")[0].split()[1]))
        write_text(self.state / "live.jsonl", "".join(lines))

    def finish(self, steps: int) -> None:
        """Write the final files, with the scores of stage evaluate."""
        said = {"section": SECTION, "steps": steps, "sha256": "ab" * 32, "model": "m"}
        write_record(self.folder / f"{self.stem}.json", said)
        columns = ("model", "dataset", "metric", "value", "encoder_sha256")
        rows = [("pixels", "few", "knn_5", 0.25, ""), ("trained", "few", "knn_5", 0.5, "ab" * 32)]
        write_csv(self.path / "evaluate" / "summary.csv", columns, rows)


def wandb_steps(folder: Path, stream: str = "train", name: str = "loss") -> list[int]:
    """Return the steps of a number, by default the loss, in the file of an offline run of wandb."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in _records(next(folder.glob("*.wandb")).read_bytes()):
        message = Record()
        message.ParseFromString(data)
        items = {
            ".".join(item.nested_key) or item.key: item.value_json for item in message.history.item
        }
        if f"{stream}/{name}" in items:
            found.append(int(json.loads(items[f"{stream}/step"])))
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """Iterate over the records of LevelDB's log format, behind a header of seven bytes."""
    block, head = 32768, 7
    place, parts = 7, b""
    while place + head <= len(data):
        if block - place % block < head:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
