"""Section `cluster`: spherical k-means over all embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mlcd.config.base import MOST_SEED, Section, as_json


class Cluster(Section):
    """Cluster all embeddings once, offline, by spherical k-means (paper: K = 1,000,000)."""

    k: int = Field(256, gt=0, description="Number of clusters K. The paper: 1,000,000.")
    iterations: int = Field(
        20,
        gt=0,
        description="Lloyd iterations at most; a run that no longer moves a center ends earlier. "
        "The paper does not state its number.",
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stop early when an iteration gains less than this share of the objective "
        "(mean cosine similarity of a row to its center); 0 never stops.",
    )
    init: Literal["random", "kmeans++", "afkmc2"] = Field(
        "random",
        description="Initial centers: K distinct random rows, or kmeans++ on a sample of rows, "
        "whose work grows with K times the sample, or afkmc2, which approximates it by Markov "
        "chains with work that grows with the square of K times `init_chain`.",
    )
    init_sample: int = Field(
        20,
        gt=0,
        description="Rows per cluster in the sample for kmeans++ and afkmc2. The sample must fit "
        "in memory.",
    )
    init_chain: int = Field(
        50, gt=0, description="Steps of the Markov chain of each center of afkmc2."
    )
    initial: str | None = Field(
        None,
        description="HDF5 file with a dataset `centroid` [K, d] of initial centers, such as the "
        "centroids of an earlier run, which come before `init`; null for none.",
    )
    centers: str | None = Field(
        None,
        description="File of K centers that are kept as they are, and nothing is clustered: .npy "
        "[K, d], or HDF5 with a dataset `centroid` [K, d]; null for none. With the run's own "
        "RESULTS/clusters/centroids.h5, new images cost their own chunks, not the clustering.",
    )
    mode: Literal["exact", "two_level"] = Field(
        "exact",
        description="Compare each row to all K centers (exact), or find coarse groups first, then "
        "centers within each, then refine (two_level): about √K / 2 times less work at a slightly "
        "lower objective. See docs/explanation/clustering.md.",
    )
    groups: int = Field(
        0,
        ge=0,
        description="Coarse groups of mode two_level; 0 takes the square root of K. Coarse groups "
        "and centers within them take `iterations` each.",
    )
    refinements: int = Field(
        5,
        ge=0,
        description="Iterations of mode two_level at the end, in which a row may change its group.",
    )
    probes: int = Field(
        4,
        ge=0,
        description="Nearest groups whose centers a row is compared to in a refinement; 0 "
        "compares it to all K, which is exact.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=MOST_SEED,
        description="Seed of the initial centers and of the repair of empty clusters.",
    )

    def for_centroids(self) -> str:
        """Return the keys that decide centroids, as one line of JSON.

        `initial` and `centers` are not among them: what these files hold decides, not where they
        lie. With `centers` nothing else counts but K.
        """
        if self.centers is not None:
            return as_json({"k": self.k})
        return as_json(self.model_dump(mode="json", exclude={"initial", "centers"}))

    @model_validator(mode="after")
    def _groups_fit(self) -> Cluster:
        if self.groups > self.k:
            raise ValueError(f"groups: {self.groups} groups of {self.k} centers; lower it")
        if self.initial and self.centers:
            raise ValueError("initial: nothing is clustered with cluster.centers; give one of them")
        if self.initial and self.mode == "two_level":
            raise ValueError("initial: mode two_level makes its own first centers; use mode exact")
        if self.init != "random" and self.mode == "two_level":
            raise ValueError(
                f"init: mode two_level starts from random rows, not {self.init}; use mode exact"
            )
        return self
