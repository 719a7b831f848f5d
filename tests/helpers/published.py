"""Presets, and metrics of one model, beside the paper's figures."""

from __future__ import annotations

import yaml

from helpers.paths import ROOT
from mlcd.config import Config, registry
from mlcd.stages.evaluate.measures import score_name

PRESETS = ROOT / "workflow" / "presets"


def preset(name: str, **changes) -> Config:
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    for section, keys in changes.items():
        values[section] |= keys
    return Config.model_validate(values)


def model(name: str, value: float, sets: list[str]) -> dict:
    """Metrics of one model with the same score on all sets."""
    found = {}
    for dataset in sets:
        score = score_name(registry.registry()[dataset]["metric"])
        found[dataset] = {
            "images": {"train": 5, "validation": 0, "test": 5, "failed": {}},
            "scores": {score: value},
            "chance": {score: 0.1 if dataset == "voc2007" else 0.01},
        }
    return {"model": name, "seed": 0, "datasets": found}
