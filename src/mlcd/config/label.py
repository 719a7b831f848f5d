"""Section `label`: the nearest centers of every image become its labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mlcd.config.base import Section, as_json


class Label(Section):
    """Give every image its l nearest centers as labels (paper: l = 8 of K = 1,000,000)."""

    labels: list[str] | None = Field(
        None,
        min_length=1,
        description="Your own labels, which are taken in place of those of embed, cluster and "
        "label: .npy, .parquet or HDF5 files, or patterns; null for none. Rows are [n, l] of whole "
        "numbers 0 … cluster.k − 1, −1 for none, in HDF5 the dataset `label`; the first `top` "
        "of each are taken.",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column or dataset by which own labels belong to images, as embed.key. null: "
        "by order, a row for each row of `metadata`.",
    )
    top: int = Field(4, gt=0, description="Labels per image, l. The paper: 8.")
    threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="If set, only centers with at least this cosine similarity are labels (the "
        "nearest always is; at most `top`). The paper tries 0.95 to 0.85 and finds it worse.",
    )
    mode: Literal["exact", "two_level"] = Field(
        "exact",
        description="Compare each image to all K centers (exact), or to the centers of its "
        "nearest groups of centers (two_level), which is many times faster from K = 65,536 on.",
    )
    groups: int = Field(
        0, ge=0, description="Groups of centers in mode two_level; 0 takes the square root of K."
    )
    probes: int = Field(
        8,
        gt=0,
        description="Nearest groups searched for an image in mode two_level. More find more of "
        "the exact labels and take longer.",
    )
    min_agreement: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Share of the exact labels that mode two_level must find on up to 1,024 "
        "images of each chunk, or the chunk is refused.",
    )

    def for_labels(self) -> str:
        """Return the keys that decide labels, as one line of JSON: the others make none stale.

        `min_agreement` only refuses; groups and probes do nothing in mode exact. Of own labels
        what their files hold decides, not where they lie.
        """
        if self.labels is not None:
            return as_json(self.model_dump(mode="json", include={"key", "top"}))
        idle = {"labels", "key", "min_agreement"}
        idle |= {"groups", "probes"} if self.mode == "exact" else set()
        return as_json(self.model_dump(mode="json", exclude=idle))

    @model_validator(mode="after")
    def _key_has_rows(self) -> Label:
        if self.key is not None and self.labels is None:
            raise ValueError("key: of own labels, and none are given; give label.labels")
        return self
