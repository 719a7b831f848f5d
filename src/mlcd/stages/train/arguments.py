"""What the driver of stage `train` tells every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from mlcd.config.train import Train
from mlcd.launch.live import Live, is_awaited
from mlcd.training.arguments import RankArguments
from mlcd.utils.records import read_record


class TrainArguments(RankArguments):
    """One rank's arguments.

    `centroids`: file of the centers behind the labels, None where own labels came without.
    `num_classes`: K; `num_words`: classes of the second head, 0 where there is none.
    `micro_batch`: images that a rank takes at once, 0 for its whole share of the batch, ``auto``
    for what fits; `high_res_micro_batch`: the same in the high-resolution phase. `memory_limit`:
    bytes that a block of the classifier's logits may take, None for its default. `workers`:
    processes that read images, 0 for the rank itself. `live`: how scores are taken meanwhile, None
    where none are.
    """

    stage: ClassVar[str] = "train"

    section: Train
    centroids: Path | None
    num_classes: int
    num_words: int = 0
    micro_batch: int | Literal["auto"]
    high_res_micro_batch: int | Literal["auto"]
    memory_limit: int | None
    workers: int
    live: Live | None = None

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is written after so many steps: also where it is scored."""
        scored = self.live is not None and step % self.live.every == 0
        return scored or super().saves_after(step)

    def wants(self, step: int) -> bool:
        """Return whether the live score of the checkpoint after so many steps is still to come."""
        return self.live is not None and is_awaited(step, self.live.every, self.state)

    @property
    def index(self) -> Path:
        """Folder of the join of labels and images."""
        return self.state / "index"

    def provenance(self) -> dict[str, Any]:
        """Return what is known of the first weights, {} where they are random."""
        if not self.section.initial:
            return {}
        from mlcd.models import initial

        return {"initial": initial.record(self.state)}

    def inputs(self) -> list[str]:
        """Return the files that every rank reads: centroids, index, first weights and tars."""
        own = [*([self.centroids] if self.centroids else []), *sorted(self.index.iterdir())]
        if self.section.initial:
            from mlcd.models import initial

            own += [self.state / initial.WEIGHTS, self.state / initial.RECORD]
        return [*map(str, own), *read_record(self.index / "tars.json", "train")["tars"]]
