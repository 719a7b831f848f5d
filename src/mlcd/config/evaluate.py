"""Section `evaluate`: how the trained encoder is judged."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, field_validator

from mlcd.config.base import Section


class Dataset(Section):
    """One labelled data set: a webdataset tar of pictures, each beside a JSON of fields."""

    name: str = Field(description="Name in tables and file names.", pattern=r"^[A-Za-z0-9_-]+$")
    path: str = Field(
        min_length=1, description="A webdataset tar: KEY.jpg (or png, webp) with KEY.json."
    )
    label_field: str | None = Field(
        None, description="JSON field with the class: k-NN and linear probe accuracy."
    )
    tags_field: str | None = Field(
        None, description="JSON field with a list of tags: mean average precision."
    )
    split_field: str = Field("split", description="JSON field that says train or test.")
    group_field: str | None = Field(
        None,
        description="JSON field that near-duplicates share (a title, say): pictures with equal "
        "values stay on one side when a validation split is cut from train. null: each by itself.",
    )
    min_tag_count: int = Field(
        20, gt=0, description="Tags on fewer pictures than this are left out of the mAP."
    )


class Evaluate(Section):
    """Judge features of the trained encoder beside pixels, random weights and the frozen one."""

    datasets: list[Dataset] = Field(
        [
            Dataset(
                name="openclipart",
                path="demo/openclipart.tar",
                label_field="folder",
                tags_field="tags",
                group_field="title",
            )
        ],
        description="Labelled data sets, none of whose test pictures may be in the URL lists; an "
        "empty list leaves evaluation out.",
    )
    models: list[Literal["pixels", "random", "trained", "frozen"]] = Field(
        ["pixels", "random", "trained", "frozen"],
        min_length=1,
        description="Whose features are judged: raw pixels, the encoder at random weights, the "
        "trained encoder, the frozen encoder of the stage embed.",
    )
    pixel_side: int = Field(
        16,
        gt=0,
        description="Side in pixels of the RGB picture that is the feature of `pixels`. On the "
        "demo's pictures 32 gives no better k-NN, and a probe on four times the columns.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Pictures with more pixels in their header are counted as failed, not decoded.",
    )
    max_failed: float = Field(
        0.01, ge=0, le=1, description="Largest share of a data set that may fail to decode."
    )
    knn_k: list[int] = Field(
        [10, 20],
        min_length=1,
        description="Neighbours of the weighted k-NN vote, each a row of the results. "
        "The usual: 10, 20, 100, 200.",
    )
    knn_temperature: float = Field(
        0.07, gt=0, description="Temperature of the vote: weight exp(cosine / temperature)."
    )
    probe_max_iterations: int = Field(
        1000, gt=0, description="L-BFGS iterations of the logistic regression at most."
    )
    probe_regularisation: list[float] = Field(
        [0.001, 0.01, 0.1, 1.0, 10.0],
        min_length=1,
        description="Candidate values of C (inverse of the L2 strength, on features of unit "
        "variance), chosen on a validation split cut from train.",
    )
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="Share of train that chooses the probe's C."
    )
    seed: int = Field(0, ge=0, description="Seed of random weights and of the validation split.")

    @field_validator("datasets")
    @classmethod
    def _names_are_unique(cls, datasets: list[Dataset]) -> list[Dataset]:
        names = [dataset.name for dataset in datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two data sets are called {name!r}; rename one")
        return datasets

    @field_validator("models", "knn_k", "probe_regularisation")
    @classmethod
    def _distinct(cls, values: list) -> list:
        if len(set(values)) < len(values):
            raise ValueError(f"a value stands twice in {values}; expected each once")
        return values

    @field_validator("knn_k", "probe_regularisation")
    @classmethod
    def _positive(cls, values: list) -> list:
        if min(values) <= 0:
            raise ValueError(f"expected values of more than 0, got {min(values)}")
        return values

    def for_features(self) -> str:
        """Return what features depend on as one line of JSON, for `--part features --config`.

        A changed probe or k-NN key makes metrics stale, not features.
        """
        values = self.model_dump(mode="json", include={"datasets", "pixel_side", "seed"})
        values |= {"max_pixels": self.max_pixels, "max_failed": self.max_failed}
        for dataset in values["datasets"]:
            del dataset["min_tag_count"]
        return json.dumps(values, sort_keys=True)
