"""The configuration: one model a stage, from which config.yaml, schema and docs are generated.

Only science stands here. Where and how wide a stage runs (nodes, ranks, threads, memory) belongs
to the Snakemake profile, so that moving a run to another machine makes nothing stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from mlcd.config.ablate import Ablate, Cell
from mlcd.config.base import Section, validate
from mlcd.config.cluster import Cluster
from mlcd.config.download import Download
from mlcd.config.embed import Embed
from mlcd.config.evaluate import TOWER_TASKS, Evaluate
from mlcd.config.export import Export
from mlcd.config.label import Label
from mlcd.config.prepare import Prepare
from mlcd.config.report import Report
from mlcd.config.text import Text
from mlcd.config.train import Train
from mlcd.errors import UserError

__all__ = [
    "SECTIONS", "Ablate", "Cell", "Cluster", "Config", "Download", "Embed", "Evaluate", "Export",
    "Label", "Prepare", "Report", "Section", "Text", "Train", "load", "parse_section",
    "validate",
]  # fmt: skip


#: How names of train.model begin → the formats that such encoders may have; the last is any other.
_FORMATS = {
    "open_clip:": ("open_clip", "transformers"),
    "mlcd_vit_": ("transformers",),
    "": ("timm",),
}


class Config(Section):
    """A whole run: the lists of URLs, the results folder, and one section a stage."""

    metadata: list[str] = Field(
        ["demo/metadata/openclipart-a.parquet", "demo/metadata/openclipart-b.parquet"],
        min_length=1,
        description="URL lists: parquet, csv or tsv with a column of URLs (and captions), or txt "
        "with one URL a line. Paths are relative to the working directory; patterns such as "
        "lists/*.parquet are expanded. More lists add chunks and leave those of the others alone.",
    )
    results: str = Field(
        "results", min_length=1, description="Folder that all stages write to, created if missing."
    )
    prepare: Prepare = Prepare()
    download: Download = Download()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    label: Label = Label()
    train: Train = Train()
    text: Text = Text()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    ablate: Ablate = Ablate()
    report: Report = Report()

    @property
    def own_cell(self) -> Cell:
        """What the run itself trains, as a cell of the ablation."""
        l = 1 if self.train.loss == "single" else self.train.positives or self.label.top
        return Cell(self.train.loss, l, self.train.negative_ratio, self.cluster.k)

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
                f"train.positives: {self.train.positives} of {self.label.top} labels a picture; "
                "lower it or raise label.top"
            )
        if self.ablate.grids and not self.evaluate.datasets:
            raise ValueError("ablate.grids: nothing to compare by; give evaluate.datasets")
        for cell, _ in self.ablate.runs(self.own_cell):
            if cell.l > cell.k:
                raise ValueError(
                    f"ablate.grids: l = {cell.l} labels of {cell.k} clusters; lower l or raise k"
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


#: Section name → model, in the order of the data.
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def load(path: str | Path) -> Config:
    """Read and validate a config file. Raises :class:`UserError`, one line a mistake."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys such as 'cluster:', got {type(values).__name__}")
    return validate(Config, values, str(path))


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
