"""What a tool for tracking must offer, and how one is chosen by its name."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlcd.commands.track.runs import Run
from mlcd.utils.errors import UserError

#: The tools that may be named; each is the name of its library.
TOOLS = ("tensorboard", "mlflow", "wandb", "trackio")
#: The stream of live scores.
LIVE = "live"


class Target(ABC):
    """A tool that has been told of one training.

    `folder`: where it keeps what stays here. `shipped`: last step that is surely there, by stream.
    `scores`: all steps of the stream ``live`` that are: a lower one may come later, since a
    training that resumes writes checkpoints again which were gone before they had a score.
    `memory`: what the tool notes for its next start; JSON values, kept beside `shipped`.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        shipped: dict[str, int],
        scores: set[int],
        memory: dict[str, Any],
    ) -> None:
        self.run, self.folder = run, folder
        self.shipped, self.scores, self.memory = shipped, scores, memory

    def has(self, stream: str, step: int, values: dict[str, float]) -> bool:
        """Return True if the numbers of a step have been shipped."""
        return step in self.scores if stream == LIVE else step <= self.shipped.get(stream, 0)

    def note(self, stream: str, step: int) -> None:
        """Remember that they have."""
        self.shipped[stream] = max(step, self.shipped.get(stream, 0))
        if stream == LIVE:
            self.scores.add(step)

    @abstractmethod
    def begin(self) -> None:
        """Open the tool's run: the one of this identity, if there is one.

        Where the tool itself knows more than `shipped` and `scores` do (a kill came between the
        two), it says so there.
        """

    @abstractmethod
    def ship(self, stream: str, step: int, values: dict[str, float]) -> None:
        """Add the numbers of a step; steps of a stream rise, but for those of ``live``."""

    @abstractmethod
    def flush(self) -> bool:
        """Return True if all that was shipped survives a kill of this process from now on."""

    @abstractmethod
    def close(self, *, done: bool) -> None:
        """Close the tool's run. `done`: the training has reached its end."""

    @abstractmethod
    def where(self) -> str:
        """Say how to look at it."""


def names(stream: str, values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the numbers of a stream under the names that tools show: `train/loss`."""
    return {f"{stream}/{name}": value for name, value in values}


def target_of(tool: str) -> type[Target]:
    """Return the target of a tool. Raises :class:`UserError` if its library is not installed."""
    if importlib.util.find_spec(tool) is None:
        raise UserError(f"--to {tool}: its library is not installed; pip install 'mlcd[{tool}]'")
    found: type[Target] = importlib.import_module(f"mlcd.commands.track.to_{tool}").TARGET
    return found
