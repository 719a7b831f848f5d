"""What of each section is sealed with a run, and what the scores of dense tasks depend on."""

from __future__ import annotations

import json

import pytest

from mlcd.config import SECTIONS, Ablate, Config, Curate, Evaluate, Ocr, Regions

SCENES = {"name": "scenes", "path": "scenes", "tasks": ["regions"]}


def test_a_section_is_sealed_as_a_whole_but_for_what_decides_nothing():
    config = Config()
    for name in SECTIONS:
        section = getattr(config, name)
        whole = section.model_dump(mode="json")
        kept = {key: value for key, value in whole.items() if not key.startswith("live_")}
        kept.pop("figures", None)
        expected = None if name in ("ablate", "curate", "ocr", "regions") else kept
        assert section.sealed() == expected, name


def test_a_stage_that_is_no_part_of_the_run_is_not_sealed():
    asked = Curate(enabled=True, cluster_cap=3)
    assert asked.sealed() == asked.model_dump(mode="json")
    assert Curate(cluster_cap=3).sealed() is None
    assert Ocr(enabled=True).sealed() == Ocr(enabled=True).model_dump(mode="json")
    assert Ocr(top=3).sealed() is None
    found = Regions(source="felzenszwalb")
    assert found.sealed() == found.model_dump(mode="json")
    assert Regions(max_failed=0).sealed() is None
    assert Ablate(grids=[{"loss": ["mlc"]}]).sealed() is None


@pytest.mark.parametrize(
    ("key", "value", "counts"),
    [
        # Regions are pooled before the projection, whatever the probes of classes look at.
        ("probe_features", "embedding", False),
        ("knn_k", [3], False),
        ("finetune_epochs", 3, False),
        ("dense_models", ["random"], False),
        ("probe_c_max", 10.0, True),
        ("validation_share", 0.5, True),
        ("knn_temperature", 0.1, True),
        ("region_k", 3, True),
        ("seed", 3, True),
    ],
)
def test_keys_that_dense_scores_do_not_look_at_make_none_of_them_stale(key, value, counts):
    before = Evaluate(datasets=[SCENES])
    after = before.changed(**{key: value})
    assert (before.for_dense("scenes", "random") != after.for_dense("scenes", "random")) is counts
    # What is left is enough to run the part.
    kept = Evaluate(**json.loads(before.for_dense("scenes", "random")))
    assert kept.for_dense("scenes", "random") == before.for_dense("scenes", "random")
