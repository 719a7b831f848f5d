"""The configuration: one model per stage, from which config.yaml, schema and docs are generated.

Only science stands here. Where and how wide a stage runs (nodes, ranks, threads, memory) belongs
to the Snakemake profile, so that moving a run to another machine makes nothing stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from mlcd.config import files
from mlcd.config.ablate import Ablate, Cell
from mlcd.config.base import Section, validate
from mlcd.config.cluster import Cluster
from mlcd.config.curate import Curate
from mlcd.config.download import Download
from mlcd.config.embed import Embed
from mlcd.config.encoders import PACKAGED
from mlcd.config.evaluate import Evaluate
from mlcd.config.export import Export
from mlcd.config.label import Label
from mlcd.config.labeled import TOWER_TASKS
from mlcd.config.ocr import Ocr
from mlcd.config.prepare import Prepare
from mlcd.config.regions import Regions
from mlcd.config.report import Report
from mlcd.config.text import Text
from mlcd.config.train import Train
from mlcd.utils.errors import UserError

__all__ = [
    "SECTIONS", "Ablate", "Cell", "Cluster", "Config", "Curate", "Download", "Embed", "Evaluate",
    "Export", "Label", "Ocr", "Prepare", "Regions", "Report", "Section", "Text", "Train",
    "check_shape", "load", "parse_section", "validate",
]  # fmt: skip


#: How names of train.model begin → the formats that such encoders may have; the last is any other.
_FORMATS = {
    "open_clip:": ("open_clip", "transformers"),
    "mlcd_vit_": ("transformers",),
    "": ("timm",),
}


class Config(Section):
    """A whole run: the images or lists of URLs, the results folder, and one section per stage."""

    metadata: list[str] = Field(
        ["demo/metadata/openclipart-a.parquet", "demo/metadata/openclipart-b.parquet"],
        min_length=1,
        description="Images on disk: folders (loose images at any depth, tars, zips, parquets with "
        "a column of images), or such files themselves. Or URL lists: parquet, csv or tsv with a "
        "column of URLs (and captions), or txt with one URL per line. Or both. Paths are relative "
        "to the working directory; patterns such as lists/*.parquet are expanded. More entries add "
        "chunks and leave those of the others alone.",
    )
    results: str = Field(
        "results", min_length=1, description="Folder that all stages write to, created if missing."
    )
    prepare: Prepare = Prepare()
    download: Download = Download()
    embed: Embed = Embed()
    curate: Curate = Curate()
    regions: Regions = Regions()
    cluster: Cluster = Cluster()
    label: Label = Label()
    ocr: Ocr = Ocr()
    train: Train = Train()
    text: Text = Text()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    ablate: Ablate = Ablate()
    report: Report = Report()

    @field_validator("results")
    @classmethod
    def _results_is_a_plain_path(cls, path: str) -> str:
        # Rules put it into patterns, whose braces name wildcards.
        if not path.isprintable() or set(path) & set("{}"):
            raise ValueError("expected a path without braces and line breaks")
        if path.startswith("~"):
            raise ValueError(f"{files.shown(path)}: ~ is not expanded here; write the path in full")
        return path

    @property
    def own_cell(self) -> Cell:
        """What the run itself trains, as a cell of the ablation."""
        l = 1 if self.train.loss == "single" else self.train.positives or self.label.top
        return Cell(self.train.loss, l, self.train.negative_ratio, self.cluster.k)

    def to_yaml(self) -> str:
        """Return the resolved config, defaults included, as YAML in the order of the models.

        Without the sections curate, regions and ocr where they are off: so a run has the config of
        releases without them.
        """
        values = self.model_dump(mode="json", exclude=self.idle_sections())
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def idle_sections(self) -> set[str]:
        """Return the optional stages before the training that are off: nothing is of them."""
        optional = ("curate", "regions", "ocr")
        return {name for name in optional if getattr(self, name).sealed() is None}

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        """Find what would fail only after hours: stages that do not fit one another."""
        if self.label.top > self.cluster.k:
            raise ValueError(
                f"label.top: {self.label.top} labels of {self.cluster.k} clusters; "
                "lower it or raise cluster.k"
            )
        if (self.train.positives or 0) > self.label.top:
            raise ValueError(
                f"train.positives: {self.train.positives} of {self.label.top} labels per image; "
                "lower it or raise label.top"
            )
        if self.train.ocr_weight and not self.ocr.enabled:
            raise ValueError(
                "train.ocr_weight: no words are read without ocr.enabled; set that to true, or "
                "this to 0"
            )
        self._own_fits()
        self._regions_fit()
        if self.ablate.grids and not self.evaluate.datasets:
            raise ValueError("ablate.grids: nothing to compare by; give evaluate.datasets")
        for cell, _ in self.ablate.runs(self.own_cell):
            if cell.l > cell.k:
                raise ValueError(
                    f"ablate.grids: l = {cell.l} labels of {cell.k} clusters; lower l or raise k"
                )
            if cell.k < self.cluster.groups:
                raise ValueError(
                    f"ablate.grids: K = {cell.k} is less than cluster.groups, "
                    f"{self.cluster.groups}; set cluster.groups to 0 or raise K"
                )
        for dataset in self.evaluate.datasets:
            task = next((task for task in dataset.tasks if task in TOWER_TASKS), None)
            if task and not self.text.enabled:
                raise ValueError(
                    f"evaluate.datasets: {task} on {dataset.name} needs the text tower; "
                    "set text.enabled, or take the task out"
                )
            if task and "trained" not in self.evaluate.models:
                raise ValueError(
                    f"evaluate.models: {task} on {dataset.name} is of the trained encoder; "
                    "add trained, or take the task out"
                )
        fitting = next(
            formats for prefix, formats in _FORMATS.items() if self.train.model.startswith(prefix)
        )
        for name in self.export.formats:
            if name not in fitting:
                raise ValueError(
                    f"export.formats: {name} does not fit train.model {self.train.model}; "
                    f"set it to [{' or '.join(fitting)}]"
                )
        return self

    def _regions_fit(self) -> None:
        """Find what does not go with regions: they are embedded as images are."""
        if self.regions.source is None:
            if self.train.regions == "boxes":
                raise ValueError(
                    "train.regions: boxes are those of the stage regions, which is off; name a "
                    "regions.source, or set it to mosaic or null"
                )
            return
        if self.label.labels is not None or self.embed.embeddings is not None:
            own = "label.labels" if self.label.labels is not None else "embed.embeddings"
            raise ValueError(
                f"regions.source: the frozen encoder embeds regions as it does images, and with "
                f"{own} it embeds none; leave {own} out, or set it to null"
            )
        if self.embed.features != "image":
            raise ValueError(
                "embed.features: a region has no caption, so its feature would not be comparable "
                "with the images'; set it to image, or regions.source to null"
            )
        if self.regions.source == "column" and self.download.image_size is not None:
            if self.regions.unit == "pixels":
                raise ValueError(
                    "regions.unit: pixels are of images as served, and download.image_size stores "
                    "them at another size; give shares, or set it to null"
                )
            if self.download.resize_mode != "keep_ratio":
                raise ValueError(
                    f"download.resize_mode: {self.download.resize_mode} moves what boxes are "
                    "around; set it to keep_ratio, or regions.source to null"
                )

    def _own_fits(self) -> None:
        """Find what does not go with own embeddings, centers or labels."""
        if self.label.labels is not None:
            if self.curate.enabled:
                raise ValueError(
                    "curate.enabled: own labels need no embeddings, and these are what is curated; "
                    "leave label.labels out, or set it to false"
                )
            if self.embed.embeddings is not None:
                raise ValueError(
                    "embed.embeddings: nothing reads them with label.labels; give one of the two"
                )
            if self.train.center_init == "centroids" and self.cluster.centers is None:
                raise ValueError(
                    "train.center_init: own labels come without centers; set it to random, or give "
                    "them as cluster.centers"
                )
        frozen = bool(self.evaluate.datasets) and "frozen" in self.evaluate.models
        frozen = frozen or (bool(self.ablate.grids) and "frozen" in self.ablate.baselines)
        if frozen and self.embed.embeddings and self.embed.model == PACKAGED:
            raise ValueError(
                f"embed.model: {PACKAGED} is not what made your embeddings; name the encoder that "
                "did, or take frozen out of evaluate.models and ablate.baselines"
            )
        fixed = "cluster.centers" if self.cluster.centers else "label.labels"
        if self.cluster.centers is None and self.label.labels is None:
            return
        for cell, _ in self.ablate.runs(self.own_cell):
            if cell.k != self.cluster.k:
                raise ValueError(
                    f"ablate.grids: K = {cell.k}, but {fixed} are of {self.cluster.k}; leave k out"
                )
            if self.label.labels is not None and cell.l > self.label.top:
                raise ValueError(
                    f"ablate.grids: l = {cell.l}, but label.top takes {self.label.top} of your "
                    "labels; raise it"
                )


#: Section name → model, in the order of the data.
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def check_shape(path: str | Path) -> None:
    """Read a config file that Snakemake is going to merge with others, which it cannot do with any.

    Raises :class:`UserError` as :func:`mlcd.config.files.read`, and for keys in a value's place or
    a value in a section's.
    """
    for name, value in files.read(path).items():
        inner = {name: value}
        if name in SECTIONS and isinstance(value, dict):
            inner = {f"{name}.{files.shown(key)}": item for key, item in value.items()}
        for key, item in inner.items():
            if isinstance(item, dict):
                keys = files.shown(", ".join(map(files.shown, item)))
                raise UserError(
                    f"{path}: {files.shown(key)}: expected one value, got keys ({keys})"
                )
            if key in SECTIONS:
                raise UserError(
                    f"{path}: {key}: expected keys, each with its value, got {files.quoted(item)}"
                )


def load(path: str | Path) -> Config:
    """Read and validate a config file. Raises :class:`UserError`, one line per mistake."""
    return validate(Config, files.read(path), str(path))


def parse_section(stage: str, text: str, overrides: dict[str, Any]) -> Section:
    """Build the section of `stage` from `text` and the overrides of the command line.

    `text` is empty, a line of JSON with the section's keys, or the path of a config file whose
    section is taken. Overrides win. Raises :class:`UserError`.
    """
    values: dict[str, Any] = {}
    source = "command line"
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"--config: not readable as JSON ({error})") from None
    elif text:
        source = text
        values = getattr(load(text), stage).model_dump(mode="json")
    return validate(SECTIONS[stage], {**values, **overrides}, source, stage)
