"""Section `evaluate`: how the trained encoder is judged."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mlcd.config import published
from mlcd.config.base import MOST_SEED, Section, as_json
from mlcd.config.dense import DENSE, DENSE_TASKS, DenseKeys
from mlcd.config.finetune import FINETUNE, Finetune, FinetuneKeys
from mlcd.config.labeled import Dataset
from mlcd.utils.errors import UserError

#: Parts that write the files of tasks of their own.
OWN_PARTS = (FINETUNE, DENSE)
#: Keys of a data set that its features do not depend on.
_OF_SCORES = {"tasks", "metric", "class_names", "templates", "min_tag_count", "caption_field"}


class ScoreKeys(Section):
    """What is judged and how; the tasks with parts of their own have keys of their own."""

    datasets: list[Dataset] = Field(
        [
            Dataset(
                name="openclipart",
                path="demo/openclipart.tar",
                tasks=["knn", "linear_probe", "retrieval"],
                label_field="folder",
                tags_field="tags",
                group_field="title",
            )
        ],
        description="Labeled data sets, none of whose test images may be in the URL lists; an "
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
        le=256,
        description="Side in pixels of the RGB image that is the feature of `pixels`: 768 "
        "numbers at 16, and 3,072 for the probe to fit at 32.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Images with more pixels in their header are counted as failed, not decoded.",
    )
    max_failed: float = Field(
        0.01, ge=0, le=1, description="Largest share of a data set that may fail to decode."
    )
    knn_k: list[int] = Field(
        [10, 20, 100, 200],
        min_length=1,
        description="Neighbors of the weighted k-NN vote, each a row of the results. The usual: "
        "10, 20, 100, 200. Those of more than a set's train images are left out there.",
    )
    knn_temperature: float = Field(
        0.07, gt=0, description="Temperature of the vote: weight exp(cosine / temperature)."
    )
    probe_features: Literal["trunk", "embedding"] = Field(
        "trunk",
        description="What the probes of classes and tags are fitted on: trunk is the encoder's "
        "features before the projection into the embedding space, as in CLIP (A.3); embedding, or "
        "an encoder without a projection: its output. All other scores are of the embedding.",
    )
    probe_max_iterations: int = Field(
        1000, gt=0, description="L-BFGS iterations of the logistic regression at most."
    )
    probe_c_min: float = Field(
        1e-6,
        gt=0,
        description="Least C (inverse of the L2 strength, on features of unit variance) of CLIP's "
        "binary search for the best on the validation split.",
    )
    probe_c_max: float = Field(1e6, gt=0, description="Largest C of that search.")
    validation_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of train that is cut off to choose the probe's C, where a data set has "
        "no validation split. The last fit is on all of train and validation.",
    )
    retrieval_k: list[int] = Field(
        [1, 10],
        min_length=1,
        description="Ranks k of image retrieval's R@k: is one of the k nearest of the same class? "
        "And of tag_retrieval: how many tags do the k nearest share?",
    )
    templates: str = Field(
        "general",
        description="Prompts of zero_shot: a set of src/mlcd/data/labeled/templates.yaml (general: "
        "80 prompts, clipart, name), or the path of a YAML of that form.",
    )
    published: str | None = Field(
        None,
        description="Run of the paper that this one repeats, by its name in "
        "src/mlcd/config/published.yaml: its figures stand beside ours where data set, metric and "
        "the keys that it names are the same (K, l, r, epochs, loss, encoder). null: none.",
    )
    live_every: int = Field(
        0,
        ge=0,
        description="Steps of the training between live scores: a process beside rank 0 judges the "
        "encoder of that step by k-NN on a small data set. Best a multiple of the steps between "
        "checkpoints, since a checkpoint is written at each. The weights are the same with it and "
        "without. 0: none.",
    )
    live_dataset: str | None = Field(
        None,
        description="Data set of the live scores, one of `datasets` with the task knn; null: the "
        "first of them.",
    )
    live_images: int = Field(
        2000,
        ge=10,
        le=20_000,
        description="Labeled images of it that are looked at, drawn by `seed`, all if it has "
        "fewer. The set is read once per start of a training, the drawn images stay in memory.",
    )
    seed: int = Field(
        0, ge=0, le=MOST_SEED, description="Seed of random weights and of the validation split."
    )

    @field_validator("datasets")
    @classmethod
    def _names_are_unique(cls, datasets: list[Dataset]) -> list[Dataset]:
        names = [dataset.name for dataset in datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two data sets are called {name!r}; rename one")
        return datasets

    @field_validator("models", "knn_k", "retrieval_k")
    @classmethod
    def _distinct(cls, values: list[object]) -> list[object]:
        if len(set(values)) < len(values):
            raise ValueError(f"a value stands twice in {values}; expected each once")
        return values

    @field_validator("knn_k", "retrieval_k")
    @classmethod
    def _positive(cls, values: list[int]) -> list[int]:
        if min(values) <= 0:
            raise ValueError(f"expected values of more than 0, got {min(values)}")
        return values

    @field_validator("published")
    @classmethod
    def _published_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in published.runs():
            known = ", ".join(published.runs())
            raise ValueError(f"no published run is called {name!r}; known: {known}")
        return name

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.probe_c_min >= self.probe_c_max:
            raise ValueError(
                f"probe_c_min: {self.probe_c_min:g} is not below probe_c_max, "
                f"{self.probe_c_max:g}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _live_set_is_known(self) -> Self:
        if not self.live_every and self.live_dataset is None:
            return self
        able = [dataset.name for dataset in self.datasets if "knn" in dataset.tasks]
        if not able:
            raise ValueError("live_every: no data set of evaluate.datasets has the task knn")
        if self.live_dataset is not None and self.live_dataset not in able:
            raise ValueError(
                f"live_dataset: {self.live_dataset!r} is none of evaluate.datasets with the task "
                f"knn; known: {', '.join(able)}"
            )
        return self

    def sealed(self) -> dict[str, Any]:
        """Return the keys that results depend on: live scores change none."""
        other = {name for name in type(self).model_fields if name.startswith("live_")}
        return self.model_dump(mode="json", exclude=other)

    def for_live(self) -> str:
        """Return what live scores need as one line of JSON: a section with their data set alone.

        Raises :class:`UserError` if no data set has the task knn.
        """
        keys = {name for name in type(self).model_fields if name.startswith("live_")}
        keys |= {"max_pixels", "max_failed", "knn_k", "knn_temperature", "seed"}
        values = self.model_dump(mode="json", include=keys)
        able = [dataset for dataset in self.datasets if "knn" in dataset.tasks]
        if not able:
            raise UserError(
                "evaluate.live_dataset: no data set of evaluate.datasets has the task knn; add it "
                "to one of them"
            )
        (chosen,) = [one for one in able if one.name == (self.live_dataset or able[0].name)]
        kept = {**chosen.model_dump(mode="json"), "tasks": ["knn"]}
        return as_json({**values, "datasets": [kept], "live_dataset": chosen.name})

    def templates_of(self, dataset: Dataset) -> str:
        """Return which prompts name the classes of a data set: its own, or else the section's."""
        return self.templates if dataset.templates is None else dataset.templates

    def for_features(self) -> str:
        """Return what features depend on as one line of JSON, for `--part features --config`.

        A changed probe or k-NN key makes metrics stale, not features.
        """
        values = self.model_dump(mode="json", include={"datasets", "pixel_side", "seed"})
        values |= {"max_pixels": self.max_pixels, "max_failed": self.max_failed}
        for dataset in values["datasets"]:
            for key in _OF_SCORES:
                del dataset[key]
        return as_json(values)

    def for_features_of(self, dataset: str, model: str) -> str:
        """Return what the features of one model on one data set depend on, as one line of JSON.

        Raises ValueError if no data set is called `dataset`.
        """
        values = json.loads(self.for_features())
        (kept,) = (item for item in values["datasets"] if item["name"] == dataset)
        if model != "pixels":
            del values["pixel_side"]
        return as_json({**values, "datasets": [kept]})

    def for_texts(self, name: str) -> str:
        """Return what the captions of data set `name` depend on as one line of JSON."""
        values = json.loads(self.for_features())["datasets"]
        (kept,) = (item for item in values if item["name"] == name)
        (field,) = (item.caption_field for item in self.datasets if item.name == name)
        return as_json({"datasets": [{**kept, "caption_field": field}]})


class Evaluate(DenseKeys, FinetuneKeys, ScoreKeys):
    """Judge features of the trained encoder beside pixels, random weights and the frozen one."""

    def finetuning(self, model: str) -> Finetune:
        """Return the section of one fine-tuning of `model`."""
        keys = self.model_dump(mode="json", include=set(FinetuneKeys.model_fields))
        del keys["finetune_models"]
        return Finetune(**keys, seed=self.seed, layered=model != "random")

    def finetuned(self) -> list[str]:
        """Return the models that the task finetune is of."""
        return [model for model in self.models if model in self.finetune_models]

    def parts_of(self, model: str) -> list[tuple[str, str]]:
        """Return (part, data set) of the tasks that have parts of their own, for a model."""
        found = []
        for part, tasks, models in (
            (FINETUNE, (FINETUNE,), self.finetuned()),
            (DENSE, DENSE_TASKS, self.densely()),
        ):
            asked = [item.name for item in self.datasets if set(tasks) & set(item.tasks)]
            found += [(part, name) for name in asked if model in models]
        return found

    def for_finetune(self, name: str, model: str) -> str:
        """Return what fine-tuning `model` on data set `name` depends on as one line of JSON."""
        values = json.loads(self.for_features_of(name, model))
        values.pop("pixel_side", None)
        (metric,) = (item.metric for item in self.datasets if item.name == name)
        values["datasets"] = [{**item, "metric": metric} for item in values["datasets"]]
        keys = self.model_dump(mode="json", include=set(FinetuneKeys.model_fields))
        del keys["finetune_models"]
        return as_json({**values, **keys})

    def densely(self) -> list[str]:
        """Return the models that the dense tasks are of."""
        return [model for model in self.models if model in self.dense_models]

    def for_dense(self, name: str, model: str) -> str:
        """Return what the dense scores of `model` on data set `name` depend on, as JSON."""
        values = json.loads(self.for_features_of(name, model))
        (tasks,) = (item.tasks for item in self.datasets if item.name == name)
        dense = [task for task in tasks if task in DENSE_TASKS]
        values["datasets"] = [{**item, "tasks": dense} for item in values["datasets"]]
        shared = {"knn_temperature", "probe_max_iterations", "probe_c_min", "probe_c_max"}
        shared |= {"validation_share"}
        keys = self.model_dump(mode="json", include=shared | set(DenseKeys.model_fields))
        del keys["dense_models"]
        return as_json({**values, **keys})

    def for_scores(self) -> str:
        """Return what the final scores of cached features depend on as one line of JSON.

        No key of live scores, and none of tasks with parts of their own.
        """
        other = {*FinetuneKeys.model_fields, *DenseKeys.model_fields}
        other |= {name for name in type(self).model_fields if name.startswith("live_")}
        return as_json(self.model_dump(mode="json", exclude=other))
