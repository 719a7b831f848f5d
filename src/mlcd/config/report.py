"""Section `report`: the images of the HTML report, and figures from outside of the run."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from mlcd.config.base import MOST_SEED, Section, as_json
from mlcd.config.files import quoted


class Report(Section):
    """Draw what happened, for people who would rather look than read."""

    renamed: ClassVar[dict[str, str]] = {"montage_pictures": "report.montage_images"}

    montage_clusters: int = Field(
        12,
        gt=0,
        le=24,
        description="Clusters shown as a montage: the largest, the smallest, the rest by chance. "
        "At most 24: browsers refuse an embedded page over 2 MB.",
    )
    montage_images: int = Field(
        8, gt=0, le=12, description="Images shown of each cluster, nearest to its center first."
    )
    label_examples: int = Field(
        6, gt=0, le=12, description="Images shown beside the clusters that are their labels."
    )
    scan_chunks: int = Field(
        8,
        gt=0,
        description="Chunks in which images for montages and examples are looked for, evenly "
        "spread over all. A few hold enough to judge by; hundreds would be read for minutes.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Images with more pixels in their header are shown as a gray tile, not "
        "decoded.",
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description="Seed that chooses clusters and images.")
    figures: list[str] = Field(
        [],
        max_length=12,
        description="Figures from outside of the run that its report shows on a page of their own, "
        "such as that of a study that several runs are part of: paths of SVG, PNG, JPEG or WebP.",
    )

    @field_validator("figures")
    @classmethod
    def _figures_are_plain_paths(cls, value: list[str]) -> list[str]:
        # Their names stand on a page, which is UTF-8.
        for path in value:
            if not path.isprintable():
                raise ValueError(f"{quoted(path)}: expected a path of characters that can be shown")
        return value

    def to_json(self) -> str:
        """As :meth:`Section.to_json`, without `figures`, which are those of one page alone."""
        return as_json(self.model_dump(mode="json", exclude={"figures"}))

    def for_figures(self) -> str:
        """Return the keys of the page of `figures`, as one line of JSON."""
        return as_json(self.model_dump(mode="json", include={"figures", "max_pixels"}))

    def sealed(self) -> dict[str, Any]:
        """As :meth:`Section.sealed`, without `figures`, on which no result of the run rests."""
        return self.model_dump(mode="json", exclude={"figures"})
