"""Section `export`: formats that other programs load."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mlcd.config.base import Section


class Export(Section):
    """Write the trained encoder for other libraries, each checked by equal outputs."""

    formats: list[Literal["timm", "open_clip", "transformers"]] = Field(
        ["timm"],
        min_length=1,
        description="timm (encoders with a timm name), open_clip (encoders named open_clip:…; the "
        "image tower; a text tower of the run is not part of it), transformers (mlcd_vit_* as "
        "MLCDVisionModel, CLIP-like open_clip:ViT-… as CLIPVisionModelWithProjection).",
    )
    license: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
        description="License under which the weights are given on, as model hubs spell it "
        "(apache-2.0, cc-by-4.0, other). null: the model card says that none was chosen.",
    )
    tolerance: float = Field(
        1e-5,
        gt=0,
        description="Largest difference allowed between outputs before and after, as a share of "
        "the largest output.",
    )

    @field_validator("formats")
    @classmethod
    def _distinct(cls, values: list[str]) -> list[str]:
        if len(set(values)) < len(values):
            raise ValueError(f"a format stands twice in {values}; expected each once")
        return values
