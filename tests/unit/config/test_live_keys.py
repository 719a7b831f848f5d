"""Keys of live scores: they decide no final score, and name a data set that has what they need."""

from __future__ import annotations

import json

import pytest

from mlcd.config import Evaluate
from mlcd.config.dense import DenseKeys
from mlcd.config.finetune import FinetuneKeys

DATASET = {"name": "few", "path": "few.tar", "label_field": "top"}
OTHER = {"name": "other", "path": "other.tar", "label_field": "top", "tasks": ["retrieval"]}


def test_live_keys_decide_neither_features_nor_final_scores():
    section = Evaluate(datasets=[DATASET])
    live = Evaluate(datasets=[DATASET], live_every=5, live_dataset="few", live_images=50)
    assert live.for_scores() == section.for_scores()
    assert live.for_features() == section.for_features()
    assert live.sealed() == section.sealed()
    # What was recorded before there were such keys.
    later = {*FinetuneKeys.model_fields, *DenseKeys.model_fields}
    assert (
        set(json.loads(section.for_scores()))
        == {name for name in Evaluate.model_fields if not name.startswith("live_")} - later
    )


def test_live_scores_know_their_set_alone_and_no_key_of_the_probe():
    section = Evaluate(datasets=[OTHER, DATASET], live_every=5, probe_c_max=9.0)
    found = json.loads(section.for_live())
    assert [one["name"] for one in found["datasets"]] == ["few"]
    assert found["live_dataset"] == "few" and found["live_every"] == 5
    assert "probe_c_max" not in found
    assert Evaluate(**found).for_live() == section.for_live()


def test_a_set_without_knn_is_refused():
    with pytest.raises(ValueError, match=r"live_every: no data set .* has the task knn"):
        Evaluate(datasets=[OTHER], live_every=5)
    with pytest.raises(ValueError, match=r"live_dataset: 'other' is none .*; known: few"):
        Evaluate(datasets=[OTHER, DATASET], live_every=5, live_dataset="other")
    assert Evaluate(datasets=[]).live_every == 0
