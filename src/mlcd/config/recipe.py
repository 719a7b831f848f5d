"""What a trainer's engine asks of a section, whichever stage it is of."""

from __future__ import annotations

from typing import Literal, Protocol


class Recipe(Protocol):
    """Batch, precision and AdamW's numbers; sections have them as keys or as properties."""

    @property
    def batch_size(self) -> int:
        """Samples per step over all ranks."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of matrices."""

    @property
    def beta1(self) -> float:
        """AdamW's β₁."""

    @property
    def beta2(self) -> float:
        """AdamW's β₂."""

    @property
    def clip_norm(self) -> float:
        """Largest gradient norm, 0 for none."""

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Precision of the forward and backward pass."""

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage."""
