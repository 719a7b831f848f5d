"""Keys `evaluate.finetune_*`: how an encoder is fine-tuned on a labeled data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import MOST_RATE, MOST_SEED, Section

#: The task that these keys are of.
FINETUNE = "finetune"


class FinetuneKeys(Section):
    """The recipe of the task finetune. The field's: BEiT (2106.08254), MAE (2111.06377)."""

    finetune_models: list[Literal["random", "trained", "frozen"]] = Field(
        ["random", "trained"],
        min_length=1,
        description="Whose weights the task finetune starts from, of those in evaluate.models. "
        "frozen is often the largest network by far.",
    )
    finetune_epochs: int = Field(
        20, gt=0, description="Passes over train and validation. The field: 50 to 100."
    )
    finetune_batch_size: int = Field(
        64, gt=1, description="Images per step of fine-tuning. The field: 1,024."
    )
    finetune_lr: float = Field(
        2e-3,
        gt=0,
        le=MOST_RATE,
        description="Peak learning rate of the last layers (AdamW, cosine decay to zero), for "
        "small networks, as train.lr. The field: 5e-4 for each 256 images of a step.",
    )
    finetune_layer_decay: float | None = Field(
        0.75,
        gt=0,
        le=1,
        description="Factor on the learning rate per layer before the last. The field: 0.65 to "
        "0.75. Random weights have one rate. null: one rate for all.",
    )
    finetune_weight_decay: float = Field(
        0.05, ge=0, description="Weight decay of matrices; biases and norms have none."
    )
    finetune_warmup_epochs: float = Field(
        1.0, ge=0, description="Epochs of linear warm-up. The field: 5."
    )
    finetune_crop_min_area: float = Field(
        0.35,
        gt=0,
        le=1,
        description="Least share of the image that a random crop keeps. The field: 0.08, for "
        "ImageNet. 1: the square in the middle, always.",
    )
    finetune_flip: bool = Field(
        True, description="Mirror images at random. Not for digits and letters."
    )
    finetune_mixup: float = Field(
        0.0,
        ge=0,
        description="α of mixup (1710.09412): batches are blended with themselves. The field: "
        "0.8. 0: none.",
    )
    finetune_cutmix: float = Field(
        0.0,
        ge=0,
        description="α of CutMix (1905.04899): a box of each image comes from another. The field: "
        "1. With mixup too, each step draws one of the two. 0: none.",
    )
    finetune_label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of each target that goes to all classes alike."
    )
    finetune_drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stochastic depth rate, where the encoder offers it (not of frozen). The "
        "field: 0.1 to 0.2.",
    )
    finetune_clip_norm: float = Field(
        0.0, ge=0, description="Largest gradient norm; 0: no clipping."
    )
    finetune_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of fine-tuning. bf16 on GPUs; fp32 on CPUs."
    )


class Finetune(FinetuneKeys):
    """One fine-tuning: its keys, seed, and what the trainer asks of a section.

    `layered`: the first weights are trained ones, so that layers have rates of their own.
    """

    seed: int = Field(0, ge=0, le=MOST_SEED)
    layered: bool = True

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.finetune_batch_size

    @property
    def lr(self) -> float:
        """Peak learning rate of AdamW."""
        return self.finetune_lr

    @property
    def weight_decay(self) -> float:
        """Weight decay of matrices."""
        return self.finetune_weight_decay

    @property
    def beta1(self) -> float:
        """AdamW's β₁."""
        return 0.9

    @property
    def beta2(self) -> float:
        """AdamW's β₂."""
        return 0.999

    @property
    def clip_norm(self) -> float:
        """Largest gradient norm, 0 for none."""
        return self.finetune_clip_norm

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Precision of the forward and backward pass."""
        return self.finetune_precision

    @property
    def zero_stage(self) -> int:
        """One process holds all."""
        return 0

    @property
    def log_every(self) -> int:
        """Steps between lines of metrics."""
        return 10

    @property
    def layer_decay(self) -> float | None:
        """Factor on the rate per layer, None for one rate."""
        return self.finetune_layer_decay if self.layered else None
