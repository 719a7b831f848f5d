"""The registry of data sets is whole."""

from __future__ import annotations

from mlcd.config.labeled import Dataset
from mlcd.config.registry import registry


def test_the_registry_is_whole():
    metrics = [entry["metric"] for entry in registry().values() if entry.get("published")]
    assert len(metrics) == 27
    assert metrics.count("mean_per_class") == 4
    assert {"map_11_point", "roc_auc", "mean_top1_top5"} <= set(metrics)
    for name, entry in registry().items():
        Dataset(name=name, path="x")
        assert entry["title"] and entry["source"]
        if "metric" in entry:
            assert min(entry[key] for key in ("classes", "train", "test")) > 0
