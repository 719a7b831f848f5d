"""metrics.jsonl and TensorBoard, written by rank 0; a resumed run's file has no seam."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mlcd.files import write_text

#: Fields that depend on the machine; they come last in every line.
TIMING = ("images_per_s", "data_wait_share")


class Metrics:
    """Appends lines to `path` and scalars to a TensorBoard folder.

    Lines of steps after `resume_step` (number of finished steps) are cut away: they are about to be
    written again. TensorBoard is told to forget them too; a new run clears its folder. `stage` is
    the prefix of its scalars.
    """

    def __init__(self, path: Path, tensorboard: Path, resume_step: int, stage: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = path
        self._stage = stage
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # A kill may have cut the last line short.
                if not line.endswith("}") or json.loads(line)["step"] > resume_step:
                    break
                kept.append(line + "\n")
        write_text(path, "".join(kept))
        if resume_step == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(tensorboard), purge_step=resume_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line. `record` holds ``step`` (finished steps), floats, and None for what no
        number says (a mean over nothing).
        """
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step" and value is not None:
                self._board.add_scalar(f"{self._stage}/{name}", value, record["step"])

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()
