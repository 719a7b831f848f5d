"""Section `evaluate`: how the trained encoder is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section


class Dataset(Section):
    """One labelled data set: a webdataset tar of pictures, each beside a JSON of fields."""

    name: str = Field(description="Name in tables and file names.", pattern=r"^[A-Za-z0-9_-]+$")
    path: str = Field(description="A webdataset tar: KEY.jpg (or png, webp) with KEY.json.")
    label_field: str | None = Field(
        None, description="JSON field with the class: k-NN and linear probe accuracy."
    )
    tags_field: str | None = Field(
        None, description="JSON field with a list of tags: mean average precision."
    )
    split_field: str = Field("split", description="JSON field that says train or test.")
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
            )
        ],
        description="Labelled data sets, none of whose test pictures may be in the URL lists.",
    )
    models: list[Literal["pixels", "random", "trained", "frozen"]] = Field(
        ["pixels", "random", "trained", "frozen"],
        min_length=1,
        description="Whose features are judged: raw pixels, the encoder at random weights, the "
        "trained encoder, the frozen encoder of the stage embed.",
    )
    knn_k: list[int] = Field(
        [10, 20], min_length=1, description="Neighbours of the weighted k-NN vote."
    )
    knn_temperature: float = Field(
        0.07, gt=0, description="Temperature of the vote: weight exp(cosine / temperature)."
    )
    probe_max_iterations: int = Field(
        1000, gt=0, description="L-BFGS iterations of the logistic regression at most."
    )
    probe_regularisation: list[float] = Field(
        [0.01, 0.1, 1.0, 10.0],
        min_length=1,
        description="Candidate values of C (inverse of the L2 strength), chosen on a validation "
        "split cut from train.",
    )
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="Share of train that chooses the probe's C."
    )
    seed: int = Field(0, ge=0, description="Seed of random weights and of the validation split.")
