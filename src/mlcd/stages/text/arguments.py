"""What the driver of stage `text` tells every rank."""

from __future__ import annotations

from typing import ClassVar

from mlcd.config.text import Text
from mlcd.training.arguments import RankArguments


class TextArguments(RankArguments):
    """One rank's arguments.

    `embeddings` and `captions`: files of the same chunks, in the same order. `encoder_sha256`: of
    the frozen encoder's weights. `embedding_dim`: d.
    """

    stage: ClassVar[str] = "text"

    section: Text
    embeddings: list[str]
    captions: list[str]
    encoder_sha256: str
    embedding_dim: int

    def inputs(self) -> list[str]:
        """Return the files that every rank reads: embeddings and captions."""
        return [*self.embeddings, *self.captions]
