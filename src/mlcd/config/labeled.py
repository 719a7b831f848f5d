"""Labeled data sets, the items of `evaluate.datasets`: where they lie, how they are judged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mlcd.config import registry
from mlcd.config.base import Section
from mlcd.config.dense import DENSE_TASKS
from mlcd.config.finetune import FINETUNE

#: Measures of one class per image, and of several tags per image.
CLASS_METRICS = ("accuracy", "mean_per_class", "roc_auc", "mean_top1_top5")
TAG_METRICS = ("map", "map_11_point")
#: The task that judges captions, and all that rest on the text tower, of model trained alone.
IMAGE_TEXT = "image_text_retrieval"
#: The task that asks for tags in common.
TAG_RETRIEVAL = "tag_retrieval"
TOWER_TASKS = ("zero_shot", IMAGE_TEXT)
#: Tasks that do not look at the cached features of images.
OWN_TASKS = (FINETUNE, *DENSE_TASKS)


def lower_is_better(metric: str) -> bool:
    """Return whether smaller values of a score are better; `better` in summary.csv says so."""
    return metric.endswith("median_rank")


def only_describes(metric: str) -> bool:
    """Return whether a score judges no model: random weights can have spread tokens, too.

    Neither higher nor lower is better then, and no value is the best.
    """
    return metric == "token_cosine"


class Dataset(Section):
    """One labeled data set. What is left out is taken from the registry if it knows the name."""

    name: str = Field(
        description="Name in tables and file names. A name of src/mlcd/config/datasets.yaml "
        "(food101, imagenet, …) brings its metric along.",
        pattern=r"^[A-Za-z0-9_-]+$",
    )
    path: str = Field(
        min_length=1,
        description="A webdataset tar, a parquet, a folder of either, a folder of class folders "
        "(train/CLASS/…, test/CLASS/…), a folder of MNIST's idx files, or sklearn:digits. See "
        "docs/how-to/evaluate.md.",
    )
    tasks: list[
        Literal[
            "knn",
            "linear_probe",
            "retrieval",
            "tag_retrieval",
            "zero_shot",
            "image_text_retrieval",
            "finetune",
            "segmentation",
            "regions",
            "pointing",
            "token_spread",
        ]
    ] = Field(
        ["knn", "linear_probe"],
        min_length=1,
        description="How classes are judged: k-NN, linear probe, retrieval among the test images "
        "(which needs no train images), tag_retrieval (how many tags do near test images share?), "
        "zero_shot by the text tower (section text; of tags where "
        "the metric is theirs). Tags always by the probe. image_text_retrieval: do test images "
        "and their captions (caption_field) find one another by the encoder and the text tower? It "
        "needs no classes. finetune: the whole encoder trained on the classes (finetune_*). "
        "Of patches: segmentation (from masks), regions and pointing (from boxes), token_spread.",
    )
    metric: (
        Literal["accuracy", "mean_per_class", "roc_auc", "mean_top1_top5", "map", "map_11_point"]
        | None
    ) = Field(
        None,
        description="Measure of the probe. Of classes: accuracy, mean_per_class (recall), roc_auc "
        "(two classes), mean_top1_top5. Of tags: map, map_11_point (as VOC 2007). null: the "
        "registry's, else accuracy and map.",
    )
    label_field: str | None = Field(
        None,
        description="JSON field or parquet column with the class. Folders, idx files and digits "
        "have their own.",
    )
    tags_field: str | None = Field(
        None, description="JSON field or parquet column with a list of tags."
    )
    split_field: str = Field(
        "split",
        description="JSON field or parquet column that says train, validation or test (for "
        "retrieval also query or gallery). Without test images, validation is test.",
    )
    group_field: str | None = Field(
        None,
        description="JSON field or parquet column that near-duplicates share (a title, say): "
        "images with equal values stay on one side when a validation split is cut from train, "
        "and do not find one another in retrieval. null: each by itself.",
    )
    caption_field: str | None = Field(
        None,
        description="JSON field or parquet column with what an image shows, in words: a text or a "
        "list of texts, for image_text_retrieval. null: none.",
    )
    image_field: str = Field(
        "image",
        description="Parquet column with the image: its bytes, or its path below the parquet's "
        "folder.",
    )
    class_names: str | None = Field(
        None,
        description="YAML of class → its name, or list of names, for zero_shot. null: the classes "
        "as the data set writes them.",
    )
    templates: str | None = Field(
        None,
        description="Prompts of zero_shot on this set, as evaluate.templates, since CLIP's differ "
        "from set to set. null: those of evaluate.templates.",
    )
    min_tag_count: int = Field(
        20, gt=0, description="Tags on fewer images than this are left out of the mAP."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_registry(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name: Any = values.get("name")
        filled = {**registry.defaults(name), **values}
        if "path" not in filled and filled.keys() != values.keys():
            source = registry.registry()[name]["source"]
            raise ValueError(f"path: this key is required; get {name} from {source}")
        return filled

    @model_validator(mode="after")
    def _metric_fits(self) -> Dataset:
        if self.metric in TAG_METRICS and self.tags_field is None:
            raise ValueError(f"metric {self.metric} is of tags; set tags_field too")
        return self

    @model_validator(mode="after")
    def _tags_are_named(self) -> Dataset:
        if TAG_RETRIEVAL in self.tasks and self.tags_field is None:
            raise ValueError(
                f"{TAG_RETRIEVAL} on {self.name} needs tags; set tags_field, or take the task out"
            )
        return self

    @model_validator(mode="after")
    def _captions_are_named(self) -> Dataset:
        if IMAGE_TEXT in self.tasks and self.caption_field is None:
            raise ValueError(
                f"{IMAGE_TEXT} on {self.name} needs captions; set caption_field, or take the task "
                "out"
            )
        return self

    @property
    def asks_features(self) -> bool:
        """True if a task looks at the cached features of its images."""
        return self.tags_field is not None or bool(set(self.tasks) - set(OWN_TASKS))

    @property
    def class_metric(self) -> str:
        """The measure of the probe on classes."""
        return self.metric if self.metric in CLASS_METRICS else "accuracy"

    @property
    def tag_metric(self) -> str:
        """The measure of the probe on tags."""
        return self.metric if self.metric in TAG_METRICS else "map"
