"""Which figures of the paper a config may be compared with."""

from __future__ import annotations

from typing import Any

from mlcd.config import Config
from mlcd.config.published import runs


def figures(config: Config) -> list[dict[str, Any]]:
    """Return the figures beside which the run of `config` may stand.

    Each is {dataset, metric, value (a share of 1), source}: of the run that `evaluate.published`
    names, those whose keys have the values of `config`.
    """
    if config.evaluate.published is None:
        return []
    run = runs()[config.evaluate.published]
    return [
        {
            "dataset": figure["dataset"],
            "metric": figure["metric"],
            "value": round(figure["value"] / 100, 6),
            "source": f"{run['title']} ({figure['source']})",
        }
        for figure in run["figures"]
        if not differences(config, {**run.get("config", {}), **figure.get("config", {})})
    ]


def differences(config: Config, wanted: dict[str, Any]) -> list[str]:
    """Return the keys ('section.key') of `wanted` whose value in `config` is another.

    `label.top` stands for l, the labels that training takes (train.positives, 1 of single).
    """
    found = []
    for key, value in wanted.items():
        section, _, name = key.partition(".")
        ours = config.own_cell.l if key == "label.top" else getattr(getattr(config, section), name)
        if ours != value:
            found.append(key)
    return found
