"""Section `export`: formats that other programs load."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section


class Export(Section):
    """Write the trained encoder for other libraries, each checked by equal outputs."""

    formats: list[Literal["timm", "open_clip"]] = Field(
        ["timm"],
        min_length=1,
        description="timm (any timm encoder) and open_clip (encoders named open_clip:…).",
    )
    tolerance: float = Field(
        1e-5, gt=0, description="Largest difference allowed between outputs before and after."
    )
