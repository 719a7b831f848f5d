"""Section `report`: the pictures of the HTML report."""

from __future__ import annotations

from pydantic import Field

from mlcd.config.base import Section


class Report(Section):
    """Draw what happened, for people who would rather look than read."""

    montage_clusters: int = Field(
        12,
        gt=0,
        le=24,
        description="Clusters shown as a montage: the largest, the smallest, the rest by chance. "
        "At most 24: browsers refuse an embedded page over 2 MB.",
    )
    montage_pictures: int = Field(
        8, gt=0, le=12, description="Pictures shown of each cluster, nearest to its centre first."
    )
    label_examples: int = Field(
        6, gt=0, le=12, description="Pictures shown beside the clusters that are their labels."
    )
    scan_chunks: int = Field(
        8,
        gt=0,
        description="Chunks in which pictures for montages and examples are looked for, evenly "
        "spread over all. A few hold enough to judge by; hundreds would be read for minutes.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Pictures with more pixels in their header are shown as a grey tile, not "
        "decoded.",
    )
    seed: int = Field(0, ge=0, description="Seed that chooses clusters and pictures.")
