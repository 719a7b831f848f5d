"""Section `label`: the nearest centres of every picture become its labels."""

from __future__ import annotations

from pydantic import Field

from mlcd.config.base import Section


class Label(Section):
    """Give every picture its l nearest centres as labels (paper: l = 8 of K = 1,000,000)."""

    top: int = Field(4, gt=0, description="Labels a picture, l. The paper: 8.")
    threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="If set, only centres with at least this cosine similarity are labels (the "
        "nearest always is; at most `top`). The paper tries 0.95 to 0.85 and finds it worse.",
    )
