"""The second head: the words read in images, against the same embeddings, with its own centers.

The loss of a step is that of the clusters plus train.ocr_weight times that of the words (Eq. 5, up
to ocr.top positives). An image without a word adds nothing to the latter, whose mean is over all
images: so it depends neither on micro-batches nor on ranks.
"""

from __future__ import annotations

from typing import Any

import torch

from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.data.checkpoints import Checkpoint, HeadRows
from mlcd.launch.process_group import RankPlace
from mlcd.stages.train.arguments import TrainArguments
from mlcd.training.tensors import cpu_copy

#: Its name in checkpoints and in encoder.json.
NAME = "ocr"
#: No seed of the config is as large: negatives and first centers are none of the first head's.
_SEED = 1 << 33


class OcrHead:
    """A rank's part of the centers of words, and their optimizer.

    `positives`: words per image at most, the last columns of a batch's labels.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        positives: int,
        place: RankPlace,
        checkpoint: Checkpoint | None,
    ) -> None:
        section = arguments.section
        self.positives, self._weight = positives, section.ocr_weight
        self.classifier = ShardedClassifier(
            arguments.num_words,
            section.embedding_dim,
            kind="mlcd",
            scale=section.scale,
            margin=section.margin,
            margin_type=section.margin_type,
            negative_ratio=section.negative_ratio,
            seed=_SEED + section.seed,
            memory_limit=arguments.memory_limit,
            compute_dtype=torch.float32 if section.precision == "fp32" else None,
            skip_unlabeled=True,
            device=place.device,
        )
        self.optimizer = RowSparseAdamW(
            self.classifier,
            section.classifier_lr,
            (section.beta1, section.beta2),
            weight_decay=section.classifier_weight_decay,
        )
        self._clip = section.clip_norm
        self._loss, self._labeled = 0.0, torch.zeros((), dtype=torch.float64, device=place.device)
        if checkpoint:
            rows = checkpoint.rows(self.classifier.start, self.classifier.stop, NAME)
            with torch.no_grad():
                self.classifier.weight.copy_(rows.pop("weight"))
            self.optimizer.load_state_tensors(rows)

    def split(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the labels [B, l] of the first head and the words [B, M] of this one."""
        return labels[:, : -self.positives], labels[:, -self.positives :]

    def add(
        self,
        loss: torch.Tensor,
        embedding: torch.Tensor,
        words: torch.Tensor,
        step: int,
        share: float,
    ) -> torch.Tensor:
        """Return `loss` plus the weighed loss of the words, of which `share` goes to the record."""
        own: torch.Tensor = self.classifier(embedding, words, step)
        self._loss += share * own.item()
        self._labeled += share * self.classifier.statistics["labeled"]
        return loss + self._weight * own

    @property
    def loss(self) -> float:
        """Mean loss of the words, not weighed, over the micro-batches since the last step."""
        return self._loss

    def step(self, lr: float) -> dict[str, float]:
        """Update the centers at learning rate `lr`; return the numbers of the step, by name."""
        norm = self.optimizer.clip(self._clip) if self._clip else self.optimizer.grad_norm()
        self.optimizer.step(lr)
        self.optimizer.zero_grad()
        found = {
            "ocr_loss": self._loss,
            "ocr_share": float(self._labeled),
            "ocr_grad_norm": float(norm),
        }
        self._loss = 0.0
        self._labeled.zero_()
        return found

    def rows(self) -> HeadRows:
        """Copy this rank's centers and moments to main memory."""
        rows: dict[str, Any] = {"weight": self.classifier.weight.detach()}
        rows |= self.optimizer.state_tensors()
        copies = {name: cpu_copy(tensor) for name, tensor in rows.items()}
        return HeadRows(self.classifier.start, self.classifier.stop, copies)
