"""Ships the numbers of trainings to a tool, each once, while they run or afterwards."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from mlcd.commands.status.alive import worker
from mlcd.commands.status.look import project_of
from mlcd.commands.track.runs import Run, Training, newest_training
from mlcd.commands.track.target import Target
from mlcd.launch.lease import Lease, describe
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json
from mlcd.utils.logging import LOGGER


class Cursor:
    """What of a training a tool has been told, in a file that outlives this process.

    `shipped`: stream → the last step that is surely there; `scores`: the steps of live scores that
    are; `memory`: the tool's own notes. Only one process ships a training to a tool: it holds a
    lease beside the file.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self._lease = Lease(path.parent / "state" / f"{path.name}.lease", run.identity, [path])
        self.shipped: dict[str, int] = {}
        self.scores: set[int] = set()
        self.memory: dict[str, Any] = {}

    def take(self) -> None:
        """Read it. Raises :class:`UserError` if another process ships, or if it is damaged."""
        if holder := self._lease.attempt():
            raise UserError(f"{self.path}: {describe(holder)} ships this training; wait, or end it")
        if not self.path.exists():
            return
        try:
            found = read_json(self.path)
            self.shipped = {str(name): int(step) for name, step in found["shipped"].items()}
            # An older cursor has none.
            self.scores = set(map(int, found.get("scores", [])))
            self.memory = dict(found["memory"])
        except (UserError, AttributeError, KeyError, TypeError, ValueError):
            self.release()
            raise UserError(
                f"{self.path}: damaged; remove it to ship the training again from its first step"
            ) from None

    def save(self) -> None:
        """Write what is surely shipped."""
        found = {"shipped": self.shipped, "scores": sorted(self.scores), "memory": self.memory}
        write_json(self.path, {"mlcd": "what has been shipped", **found})

    def release(self) -> None:
        """Let others ship."""
        self._lease.release()


class Shipping:
    """One training on its way to one tool."""

    def __init__(self, training: Training, run: Run, kind: type[Target], folder: Path) -> None:
        self.training, self.run = training, run
        self.cursor = Cursor(folder / "shipped" / f"{run.name}.json", run)
        self.cursor.take()
        try:
            known = dict(self.cursor.shipped), set(self.cursor.scores)
            self.target = kind(run, folder, *known, self.cursor.memory)
            self.target.begin()
            self.cursor.save()
        except BaseException:
            self.cursor.release()
            raise

    def ship(self) -> int:
        """Ship what is new; return how many steps were. Raises :class:`UserError`."""
        count = 0
        for stream, rows in self.training.new().items():
            for step in sorted(rows):
                # A training that was resumed wrote some steps again.
                if not self.target.has(stream, step, rows[step]):
                    self.target.ship(stream, step, rows[step])
                    self.target.note(stream, step)
                    count += 1
        if count and self.target.flush():
            self._note()
        return count

    def close(self) -> None:
        """End it; what is shipped is noted."""
        try:
            self.target.close(done=self.training.is_done())
            self._note()
        finally:
            self.cursor.release()

    def _note(self) -> None:
        self.cursor.shipped = dict(self.target.shipped)
        self.cursor.scores = set(self.target.scores)
        self.cursor.save()


class Follower:
    """Ships all trainings of `results` to a tool, which keeps its files in `folder`."""

    def __init__(self, results: Path, stages: list[str], kind: type[Target], folder: Path) -> None:
        self.results, self.stages, self.kind, self.folder = results, stages, kind, folder
        self._open: dict[str, Shipping] = {}
        self._seen: dict[str, Training] = {}

    def look(self) -> int:
        """Ship what is new in all trainings; return how many steps were."""
        return sum(self._look(stage) for stage in self.stages)

    def _look(self, stage: str) -> int:
        training = self._newest(stage)
        if training is None:
            return 0
        shipping = self._open.get(stage)
        if shipping is None or shipping.training is not training:
            if (run := training.run()) is None:
                return 0
            if shipping:
                del self._open[stage]
                shipping.close()
            shipping = self._open[stage] = Shipping(training, run, self.kind, self.folder)
            LOGGER.info("%s: %s", run.name, shipping.target.where())
        return shipping.ship()

    def _newest(self, stage: str) -> Training | None:
        """Return the newest training of a stage: the same object as long as it is the same."""
        found = newest_training(self.results, stage)
        if found is None:
            return None
        known = self._seen.get(stage)
        if known is None or known.state != found.state:
            self._seen[stage] = found
        return self._seen[stage]

    def shipped(self) -> dict[str, Shipping]:
        """Return what has been opened, by stage."""
        return self._open

    def close(self) -> None:
        """End all."""
        with contextlib.ExitStack() as stack:
            for shipping in self._open.values():
                stack.callback(shipping.close)


def follow(follower: Follower, *, once: bool, every: float) -> bool:
    """Ship until nobody works for the results any more, or `once`.

    Returns True if all trainings that were shipped have reached their end. Raises
    :class:`UserError` if there is nothing to ship.
    """
    while True:
        # Asked before the files are read: what writes, writes them before it ends.
        alive = not once and worker(follower.results, project_of(follower.results, None))
        if count := follower.look():
            LOGGER.info("%d steps shipped", count)
        if not alive:
            break
        time.sleep(every)
    found = follower.shipped()
    if not found:
        raise UserError(
            f"{follower.results}: no training has written numbers here; run the stage train first, "
            "or give the folder of its results"
        )
    for shipping in found.values():
        training = shipping.training
        LOGGER.info(
            "%s: all %d steps are shipped%s", shipping.run.name, training.last,
            "" if training.is_done() else "; it has not reached its end",
        )  # fmt: skip
    return all(shipping.training.is_done() for shipping in found.values())
