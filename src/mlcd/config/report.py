"""Section `report`: the images of the HTML report."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mlcd.config.base import MOST_SEED, Section


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
