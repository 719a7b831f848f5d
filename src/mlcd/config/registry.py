"""The registry of labeled data sets (datasets.yaml): what a name alone says about a set."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.cache
def registry() -> dict[str, dict[str, Any]]:
    """Return name → entry: title, source, and where known metric, classes, train, test, path."""
    text = Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return entries


def defaults(name: Any) -> dict[str, Any]:
    """Return the keys of `evaluate.datasets` that the registry knows for a data set's name."""
    entry = registry().get(name, {}) if isinstance(name, str) else {}
    found: dict[str, Any] = {key: entry[key] for key in ("metric", "path", "tasks") if key in entry}
    if entry and entry.get("metric") == "map_11_point":
        found["tags_field"] = "tags"
    elif entry:
        found["label_field"] = "label"
    return found


def published_sets() -> list[str]:
    """Return the names of the 27 sets that the means of probes are over, ImageNet among them."""
    return [name for name, entry in registry().items() if entry.get("published")]


def zero_shot_sets() -> list[str]:
    """Return the names of the 25 sets that the mean of zero-shot scores is over."""
    return [name for name in published_sets() if name not in ("imagenet", "fer2013")]
