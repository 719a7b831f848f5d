"""Section `regions`: boxes in images that are embedded, clustered and labeled beside the images."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlcd.config.base import MOST_SIDE, Section, as_json

#: Keys that only one source reads.
_OF_SOURCE = {
    "felzenszwalb": {"segment_side", "segment_scales", "segment_pixels"},
    "column": {"column", "tables", "key", "unit"},
}


class Regions(Section):
    """Find boxes in every image and embed each by the frozen encoder, so that cluster and label
    take regions as they take images (optional; after RICE).
    """

    source: Literal["felzenszwalb", "column"] | None = Field(
        None,
        description="Where boxes come from: felzenszwalb (segments of the image at several scales, "
        "without a network; needs pip install 'mlcd[regions]'), column (your own boxes, such as "
        "SAM's), or null for no regions.",
    )
    column: str | None = Field(
        None,
        min_length=1,
        description="With source column: the column of the lists of `metadata`, or of `tables`, "
        "that holds an image's boxes: a list of [x0, y0, x1, y1], or such a list as JSON text.",
    )
    tables: list[str] | None = Field(
        None,
        min_length=1,
        description="Tables that hold the `column`: parquet, csv or tsv files, or patterns, joined "
        "by `key`. null: the lists of `metadata` hold it.",
    )
    key: str = Field(
        "url",
        min_length=1,
        description="Column of `tables` that says which image a row is of: its URL, path, SHA-256, "
        "or key in a webdataset tar, as embed.key.",
    )
    unit: Literal["pixels", "shares"] = Field(
        "pixels",
        description="What boxes of the `column` count: pixels of the upright image as it was "
        "served, or shares of its width and height, 0 to 1.",
    )
    most: int = Field(
        10,
        gt=0,
        le=1000,
        description="Regions kept of an image at most: the first of the `column`; of felzenszwalb "
        "those that touch fewest edges of the image, of these the ones found at most scales, then "
        "the largest.",
    )
    least_side: float = Field(
        0.2,
        gt=0,
        le=MOST_SIDE,
        description="Regions with a shorter side are left out. Below 1 it is a share of the "
        "image's shorter side, from 1 on pixels of the stored image. RICE: 128 pixels.",
    )
    max_overlap: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Two boxes whose intersection is at least this share of their union are one "
        "region, and such a box of the whole image is none.",
    )
    segment_side: int = Field(
        224,
        ge=16,
        le=MOST_SIDE,
        description="Images are scaled to this longer side before felzenszwalb segments them.",
    )
    segment_scales: list[float] = Field(
        [100.0, 300.0, 900.0],
        min_length=1,
        max_length=16,
        description="Scales of felzenszwalb: larger ones give larger segments.",
    )
    segment_pixels: int = Field(
        100,
        gt=0,
        description="Segments of felzenszwalb with fewer pixels of the scaled image are merged "
        "with a neighbor.",
    )
    max_failed: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share, 0 to 1, of embedded images that may fail here (a process that "
        "dies on one, or takes minutes); above it the stage stops.",
    )

    def for_regions(self) -> str:
        """Return the keys that decide regions, as one line of JSON: `max_failed` only refuses.

        What the `tables` hold decides, not where they lie, and their key only where there are any.
        """
        others = {name for name in _OF_SOURCE if name != self.source}
        idle = {"max_failed", "tables"}.union(*(_OF_SOURCE[name] for name in others))
        idle |= set() if self.tables else {"key"}
        return as_json(self.model_dump(mode="json", exclude=idle))

    def sealed(self) -> dict[str, Any] | None:
        """As :meth:`Section.sealed`: none where there are none, as in releases that lack it."""
        return super().sealed() if self.source is not None else None

    @field_validator("segment_scales")
    @classmethod
    def _scales_are_positive(cls, value: list[float]) -> list[float]:
        if min(value) <= 0:
            raise ValueError(f"expected positive numbers, got {min(value):g}")
        return value

    @model_validator(mode="after")
    def _source_has_its_keys(self) -> Regions:
        if self.source == "column" and self.column is None:
            raise ValueError("column: source column needs its name; give regions.column")
        if self.source != "column" and (self.column or self.tables):
            name = "column" if self.column else "tables"
            raise ValueError(f"{name}: nothing reads it; set regions.source to column")
        return self
