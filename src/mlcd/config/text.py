"""Section `text`: the text tower that gives a trained encoder zero-shot classes and retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mlcd.config.base import MOST_RATE, MOST_SEED, Section, as_json


class Text(Section):
    """Train a text tower against the frozen encoder on the captions (LiT; paper: section 4)."""

    enabled: bool = Field(
        False,
        description="Make the text tower part of the run, for zero-shot classes and image–text "
        "retrieval. Off here: it adds minutes to the demo, whose captions teach few words.",
    )
    width: int = Field(
        128,
        gt=0,
        le=16384,
        description="Width of the tower's layers. The paper: 512 (ViT-B), 768 (ViT-L).",
    )
    layers: int = Field(3, gt=0, le=256, description="Layers of the tower. The paper: 12.")
    heads: int = Field(
        2, gt=0, description="Attention heads per layer; they divide width. CLIP: width / 64."
    )
    context_length: int = Field(
        32, ge=3, le=512, description="Tokens of a caption; longer ones are cut. CLIP: 77."
    )
    epochs: int = Field(30, gt=0, description="Passes over the captions. The paper: 32.")
    batch_size: int = Field(
        256,
        gt=1,
        description="Pairs per step over all ranks. Each pair is told apart from all others of the "
        "step, so the loss depends on it. LiT: 16,384 and more.",
    )
    lr: float = Field(1e-3, gt=0, le=MOST_RATE, description="Peak learning rate (AdamW).")
    weight_decay: float = Field(
        0.2, ge=0, description="Weight decay of matrices; biases, norms and the scale have none."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's β₁.")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW's β₂, as CLIP's.")
    warmup_steps: int = Field(20, ge=0, description="Steps of linear warm-up. CLIP: 2,000.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Decay of the learning rate to zero after warm-up."
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the tower's passes; the loss is computed in fp32."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage of the tower.")
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass, to save memory."
    )
    shuffle_block: int = Field(
        512,
        gt=0,
        description="Captions that are neighbors in a file and are shuffled as one block, so that "
        "reading is sequential.",
    )
    shuffle_window: int = Field(
        65536, gt=0, description="Captions shuffled singly; held in memory over all ranks together."
    )
    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.jsonl.")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="Seed of weights and data order.")

    def for_captions(self) -> str:
        """Return the one key that tokens of captions depend on, as one line of JSON."""
        return as_json({"context_length": self.context_length})

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Text:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self
