"""What the driver of a training tells every rank; it travels to other machines as plain JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from mlcd.config.finetune import Finetune
from mlcd.config.text import Text
from mlcd.config.train import Train


class RankArguments(BaseModel, ABC):
    """One rank's arguments, typed; a stage adds its inputs and narrows the type of `section`.

    `stage`: the stage's name, which is also its key in the config. `section`: its section of the
    config. `identity`: hash of all that the run depends on. `state`: folder of checkpoints and
    metrics; `output`: of the final files; both absolute. `device`: ``cpu`` or ``cuda``.
    `checkpoint_every`: steps between checkpoints; `keep`: how many of them stay.
    `made_from`: kind of input → fingerprints, for the final description.

    ``model_dump(mode="json")`` gives the JSON values and ``model_validate`` takes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: ClassVar[str]

    section: Train | Text | Finetune
    identity: str
    state: Path
    output: Path
    device: str
    checkpoint_every: int
    keep: int
    made_from: dict[str, list[str]] = {}

    @abstractmethod
    def inputs(self) -> list[str]:
        """Return the files that every rank reads."""

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is written after so many steps."""
        return step % self.checkpoint_every == 0

    def wants(self, step: int) -> bool:
        """Return whether somebody still reads the checkpoint after so many steps."""
        return False

    def provenance(self) -> dict[str, Any]:
        """Return what checkpoints and the final description say of where the run began."""
        return {}

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.state / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File of the run's metrics."""
        return self.state / "metrics.jsonl"
