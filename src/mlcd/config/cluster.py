"""Section `cluster`: spherical k-means over all embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section


class Cluster(Section):
    """Cluster all embeddings once, offline, by spherical k-means (paper: K = 1,000,000)."""

    k: int = Field(256, gt=0, description="Number of clusters K. The paper: 1,000,000.")
    iterations: int = Field(
        20,
        gt=0,
        description="Lloyd iterations at most; a run that no longer moves a centre ends earlier. "
        "The paper does not state its number.",
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stop early when an iteration gains less than this share of the objective "
        "(mean cosine similarity of a row to its centre); 0 never stops.",
    )
    init: Literal["random", "kmeans++"] = Field(
        "random",
        description="Initial centres: K distinct random rows, or kmeans++ on a sample of rows, "
        "whose work grows with the square of K.",
    )
    init_sample: int = Field(
        20,
        gt=0,
        description="Rows a cluster in the sample for kmeans++. The sample must fit in memory.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the initial centres and of the repair of empty clusters."
    )
