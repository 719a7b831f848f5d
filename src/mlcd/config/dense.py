"""Keys of the dense tasks of `evaluate`: what patches and regions of an image say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import MOST_RATE, Section

#: The part that runs them, and the tasks.
DENSE = "dense"
SEGMENTATION, REGIONS, POINTING, SPREAD = "segmentation", "regions", "pointing", "token_spread"
DENSE_TASKS = (SEGMENTATION, REGIONS, POINTING, SPREAD)


class DenseKeys(Section):
    """Linear segmentation as DINOv2 (2304.07193, 7.4) has it, on cached patch tokens; regions."""

    dense_models: list[Literal["random", "trained", "frozen"]] = Field(
        ["random", "trained", "frozen"],
        min_length=1,
        description="Whose patch tokens the dense tasks are of, of those in evaluate.models.",
    )
    segmentation_steps: int = Field(
        2000, gt=0, description="Steps of fitting the linear segmentation. DINOv2: 40,000."
    )
    segmentation_batch_size: int = Field(
        16, gt=1, description="Images per step of that fit. DINOv2: 16."
    )
    segmentation_lr: float = Field(
        1e-3,
        gt=0,
        le=MOST_RATE,
        description="Peak learning rate of that fit (AdamW, linear decay to zero). DINOv2: 1e-3.",
    )
    segmentation_weight_decay: float = Field(
        1e-4, ge=0, description="Weight decay of that fit. DINOv2: 1e-4."
    )
    region_k: int = Field(
        20, gt=0, description="Neighbors of the k-NN vote on regions; the temperature is k-NN's."
    )
    region_min_visible: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Objects of which a smaller share is to be seen are left out of regions and "
        "pointing.",
    )
