"""Section `report`: the pictures of the HTML report."""

from __future__ import annotations

from pydantic import Field

from mlcd.config.base import Section


class Report(Section):
    """Draw what happened, for people who would rather look than read."""

    montage_clusters: int = Field(12, gt=0, description="Clusters shown as a montage.")
    montage_pictures: int = Field(8, gt=0, description="Pictures nearest to each centre shown.")
    label_examples: int = Field(6, gt=0, description="Pictures shown with their l clusters.")
    seed: int = Field(0, ge=0, description="Seed that chooses clusters and pictures.")
