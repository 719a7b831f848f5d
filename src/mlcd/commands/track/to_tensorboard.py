"""TensorBoard: event files, a folder for each stream of a training."""

from __future__ import annotations

import json
import shlex

from torch.utils.tensorboard import SummaryWriter

from mlcd.commands.track.target import Target, names


class _TensorBoard(Target):
    """Event files in `folder/{training}/{stream}`.

    A stream has a folder, since a new start tells TensorBoard to forget later steps of a whole
    folder: scores come later than the losses of their step.
    """

    def begin(self) -> None:
        self._writers: dict[str, SummaryWriter] = {}

    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        writer = self._writers.get(stream) or self._open(stream)
        for name, value in names(stream, values.items()).items():
            writer.add_scalar(name, value, step)

    def _open(self, stream: str) -> SummaryWriter:
        shipped = self.shipped.get(stream, 0)
        folder = self.folder / self.run.name / stream
        # What a killed start wrote after the last step that is noted is shown no more.
        writer = SummaryWriter(str(folder), purge_step=shipped + 1)
        self._writers[stream] = writer
        if not shipped and stream == self.run.stage:
            writer.add_text("config", f"```\n{json.dumps(self.run.config, indent=1)}\n```")
        return writer

    def flush(self) -> bool:
        for writer in self._writers.values():
            writer.flush()
        return True

    def close(self, *, done: bool) -> None:
        for writer in self._writers.values():
            writer.close()

    def where(self) -> str:
        return f"tensorboard --logdir {shlex.quote(str(self.folder))}"


TARGET = _TensorBoard
