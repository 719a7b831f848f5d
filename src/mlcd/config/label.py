"""Section `label`: the nearest centres of every picture become its labels."""

from __future__ import annotations

import json
from typing import Literal

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
    mode: Literal["exact", "two_level"] = Field(
        "exact",
        description="Compare each picture to all K centres (exact), or to the centres of its "
        "nearest groups of centres (two_level), which is many times faster from K = 65,536 on.",
    )
    groups: int = Field(
        0, ge=0, description="Groups of centres in mode two_level; 0 takes the square root of K."
    )
    probes: int = Field(
        8,
        gt=0,
        description="Nearest groups searched for a picture in mode two_level. More find more of "
        "the exact labels and take longer.",
    )
    min_agreement: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Share of the exact labels that mode two_level must find on up to 1,024 "
        "pictures of each chunk, or the chunk is refused.",
    )

    def for_labels(self) -> str:
        """Return the keys that decide labels, as one line of JSON: the others make none stale.

        `min_agreement` only refuses; groups and probes do nothing in mode exact.
        """
        idle = {"min_agreement"} | ({"groups", "probes"} if self.mode == "exact" else set())
        return json.dumps(self.model_dump(mode="json", exclude=idle), sort_keys=True)
