"""metrics.jsonl and TensorBoard, written by rank 0; a resumed run's file has no seam."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from mlcd.launch.process_group import RankPlace
from mlcd.training.collectives import all_sum
from mlcd.utils import disk, fencing
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import CHECKSUM, line_of, parse_line

#: Fields that depend on the machine; a line ends with its stage's speed and the last two.
TIMING = ("images_per_s", "pairs_per_s", "data_wait_share", CHECKSUM)
#: Share of time waiting for data that is warned about, and for how many lines in a row it lasts.
_STARVED, _LINES = 0.1, 5
#: The numbers of one step by name, equal on every rank.
Record = dict[str, float]
Batch = TypeVar("Batch")


class Metrics:
    """Lines for metrics.jsonl and TensorBoard with the speed since the line before.

    Every rank has one; rank 0's writes. `stage` prefixes TensorBoard's scalars; `unit` is what a
    batch of `batch_size` over all ranks holds, in the plural; `resume_step`: see
    :class:`MetricsFile`.
    """

    def __init__(
        self,
        path: Path,
        tensorboard: Path,
        place: RankPlace,
        *,
        stage: str,
        unit: str,
        batch_size: int,
        steps_per_epoch: int,
        resume_step: int,
    ) -> None:
        self._file = None
        if place.is_main:
            self._file = MetricsFile(path, tensorboard, resume_step, stage)
        self._place = place
        self._unit = unit
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._shares: deque[float] = deque(maxlen=_LINES)
        self._newest: Record = {}
        self._restart()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Iterate over `batches`, counting the time that the caller waits for each."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - before
            yield batch

    def count_step(self) -> None:
        """Count a finished step, whether or not a line is written about it."""
        self._steps += 1

    def write(self, step: int, record: Record) -> None:
        """Write the numbers of step `step` (from 0) and the speed since the line before.

        A collective call: the wait for data is the mean over ranks.
        """
        self._newest = record
        elapsed = time.monotonic() - self._since
        # Each rank's share of its own time: ranks do not begin at the same moment.
        (shares,) = all_sum([self._waited / elapsed], self._place.device)
        if self._file:
            self._warn_of_waiting(shares / self._place.world_size)
            speed = self._steps * self._batch_size / elapsed
            self._file.write(
                {
                    "step": step + 1,
                    "epoch": step // self._steps_per_epoch,
                    **{name: plain(number) for name, number in record.items()},
                    f"{self._unit}_per_s": round(speed, 2),
                    "data_wait_share": round(shares / self._place.world_size, 4),
                }
            )
        self._restart()

    def words(self) -> str:
        """Return the newest loss in words, for lines of progress; '' before the first."""
        return f"loss {self._newest['loss']:.4g}" if "loss" in self._newest else ""

    def _warn_of_waiting(self, share: float) -> None:
        """Say once that the ranks starve, when so many lines in a row are about it."""
        self._shares.append(share)
        if len(self._shares) == _LINES and min(self._shares) > _STARVED:
            LOGGER.warning(
                "waiting for data takes %.0f %% of the time: give each rank more cores for reading "
                "images (threads_per_rank in the profile, --threads-per-rank, --workers), or put "
                "the tars on a faster disk", 100 * sum(self._shares) / _LINES,
            )  # fmt: skip
            self._shares = deque(maxlen=0)

    def close(self) -> None:
        """Close the files."""
        if self._file:
            self._file.close()

    def _restart(self) -> None:
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0


class MetricsFile:
    """Appends lines to `path` and scalars to a TensorBoard folder.

    Lines of steps after `resume_step` (number of finished steps) are cut away: they are about to be
    written again. TensorBoard is told to forget them too; a new run clears its folder. `stage` is
    the prefix of its scalars.
    """

    def __init__(self, path: Path, tensorboard: Path, resume_step: int, stage: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = path
        self._folder = tensorboard
        self._stage = stage
        write_text(path, "".join(lines_until(path, resume_step)))
        if resume_step == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        with disk.writing(path):
            self._file = path.open("a", encoding="utf-8")
        with disk.writing(tensorboard):
            self._board = SummaryWriter(str(tensorboard), purge_step=resume_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line. `record` holds ``step`` (finished steps), floats, and None for what no
        number says (a mean over nothing). Raises :class:`UserError` if this process has lost its
        right to write, and for a disk that is full.
        """
        fencing.check()
        with disk.writing(self.path):
            self._file.write(line_of(record))
            self._file.flush()
        with disk.writing(self._folder):
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(f"{self._stage}/{name}", value, record["step"])

    def close(self) -> None:
        """Close both files. Raises :class:`UserError` for a disk that is full."""
        with disk.writing(self.path):
            self._file.close()
        with disk.writing(self._folder):
            self._board.close()


def lines_until(path: Path, last_step: int) -> Iterator[str]:
    """Yield the lines up to `last_step`, none of a file that is not there.

    Raises :class:`UserError` naming a damaged one.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for index, line in enumerate(lines):
        # A kill may have cut the last line short.
        if index == len(lines) - 1 and not line.endswith(b"}\n"):
            return
        try:
            record = parse_line(line)
            if record.get("step", 0) > last_step:
                return
            # As it was written, byte by byte: a checksum whose name was hit would be none.
            if line != line_of(record).encode():
                raise ValueError("not as it was written")
        except (ValueError, TypeError):
            raise UserError(
                f"{path}: line {index + 1} is damaged; remove the file to resume without the "
                "numbers of earlier steps"
            ) from None
        yield line.decode("utf-8")


def all_lines(path: Path, steps: int) -> str:
    """Return the text of a finished run of `steps` steps, '' if the file is not there.

    Raises :class:`UserError` for one that is damaged or ends before the last step.
    """
    lines = list(lines_until(path, steps))
    if path.exists() and (not lines or parse_line(lines[-1])["step"] != steps):
        raise UserError(
            f"{path}: ends before step {steps}, so it is damaged; remove the file to publish the "
            "result without the numbers of its steps"
        )
    return "".join(lines)


def plain(number: float) -> float | None:
    """Return a JSON number: floats with the 9 digits that tell any two float32 values apart.

    None for what is not finite (a mean over nothing).
    """
    if isinstance(number, int):
        return number
    return float(f"{number:.9g}") if math.isfinite(number) else None
