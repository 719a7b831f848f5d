"""TensorBoard: event files, a folder for each stream of a training."""

from __future__ import annotations

import json
import shlex

from torch.utils.tensorboard import SummaryWriter

from mlcd.commands.track.target import LIVE, Target, names


class _TensorBoard(Target):
    """Event files in `folder/{training}/{stream}`.

    A stream has a folder, since a new start tells TensorBoard to forget later steps of a whole
    folder: scores come later than the losses of their step.
    """

    def begin(self) -> None:
        self._writers: dict[str, SummaryWriter] = {}
        # Live scores by step and name; steps that are in the files, perhaps cut off, and that are
        # to be written.
        self._scores = self._read_back()
        self._held = set(self._scores)
        self._new: set[int] = set()

    def has(self, stream: str, step: int, values: dict[str, float]) -> bool:
        if stream != LIVE:
            return super().has(stream, step, values)
        # A kill may have cut a step off, which the files tell better than any note.
        return set(names(LIVE, values.items())) <= set(self._scores.get(step, ()))

    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        found = names(stream, values.items())
        if stream == LIVE:
            self._scores.setdefault(step, {}).update(found)
            self._new.add(step)
            return
        shipped = self.shipped.get(stream, 0)
        if not (writer := self._writers.get(stream)):
            # What a killed start wrote after the last step that is noted is shown no more.
            writer = self._open(stream, shipped + 1)
            if not shipped and stream == self.run.stage:
                writer.add_text("config", f"```\n{json.dumps(self.run.config, indent=1)}\n```")
        for name, value in found.items():
            writer.add_scalar(name, value, step)

    def _open(self, stream: str, purge: int | None) -> SummaryWriter:
        writer = SummaryWriter(str(self.folder / self.run.name / stream), purge_step=purge)
        self._writers[stream] = writer
        return writer

    def _write_scores(self) -> None:
        """Write the new live scores, and again those after them.

        TensorBoard forgets later steps where a lower one comes.
        """
        if not self._new:
            return
        first = min(self._new)
        steps = sorted(step for step in self._scores if step >= first)
        writer = self._writers.get(LIVE)
        if first <= max(self._held, default=0):
            if writer:
                writer.close()
            writer = self._open(LIVE, first)
        writer = writer or self._open(LIVE, None)
        for step in steps:
            for name, value in self._scores[step].items():
                writer.add_scalar(name, value, step)
        self._held.update(steps)
        self._new.clear()

    def _read_back(self) -> dict[int, dict[str, float]]:
        folder = self.folder / self.run.name / LIVE
        found: dict[int, dict[str, float]] = {}
        if folder.is_dir():
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            files = EventAccumulator(str(folder), {"scalars": 0})
            files.Reload()
            for name in files.Tags()["scalars"]:
                for event in files.Scalars(name):
                    found.setdefault(event.step, {})[name] = event.value
        return found

    def flush(self) -> bool:
        self._write_scores()
        for writer in self._writers.values():
            writer.flush()
        return True

    def close(self, *, done: bool) -> None:
        self._write_scores()
        for writer in self._writers.values():
            writer.close()

    def where(self) -> str:
        return f"tensorboard --logdir {shlex.quote(str(self.folder))}"


TARGET = _TensorBoard
