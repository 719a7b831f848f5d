"""Which keys of a section the results of its stage depend on: others make nothing stale."""

from __future__ import annotations

import json

import pytest
import yaml

from mlcd.config import Cell, Cluster, Config, Download, Embed, Evaluate, Label, Text, Train

DATASET = {"name": "few", "path": "few.tar", "label_field": "top"}


def keys(line: str) -> set[str]:
    return set(json.loads(line))


def test_embed_refusals_decide_no_features():
    assert Embed(max_failed=0.5).for_features() == Embed().for_features()
    assert Embed(batch_size=1).for_features() != Embed().for_features()
    assert keys(Embed().for_features()) == set(Embed.model_fields) - {
        "max_failed",
        "embeddings",
        "key",
    }


def test_the_trained_encoder_embeds_images_whatever_the_frozen_one_does():
    section = Embed(model="ViT-L-14", features="image_text_mean", image_size=336)
    assert section.for_trained_encoder() == Embed().for_trained_encoder()
    values = json.loads(section.for_trained_encoder())
    assert values["features"] == "image"
    # What the stage embed would be given: a valid section.
    assert Embed(**values).max_pixels == section.max_pixels


def test_the_place_of_initial_centers_decides_no_centroids():
    assert Cluster(initial="a.h5").for_centroids() == Cluster(initial="b.h5").for_centroids()
    assert keys(Cluster().for_centroids()) == set(Cluster.model_fields) - {"initial", "centers"}
    assert json.loads(Cluster().changed(k=7).for_centroids())["k"] == 7


def test_label_keys_of_the_other_mode_are_left_out():
    exact = Label(groups=3, probes=2, min_agreement=0.5)
    assert exact.for_labels() == Label().for_labels()
    two_level = Label(mode="two_level", probes=2)
    assert json.loads(two_level.for_labels())["probes"] == 2
    assert json.loads(Label().changed(top=2).for_labels())["top"] == 2


def test_the_retry_policy_of_download_decides_no_images():
    section, other = Download(), Download(deadline=60, passes=1, min_success=0, backoff=9)
    assert section.for_images() == other.for_images()
    assert section.retry_policy() != other.retry_policy()
    kept = keys(section.for_images())
    assert kept == set(section.fetched()) | {"rows_per_tar"}
    # Every key decides either the images or how long is tried, and none is forgotten.
    assert kept | set(section.retry_policy()) == set(Download.model_fields)
    assert not kept & set(section.retry_policy())


def test_captions_depend_on_their_length_alone():
    assert keys(Text().for_captions()) == {"context_length"}


def test_random_weights_depend_on_the_architecture_alone():
    assert Train(lr=1, epochs=3).for_architecture() == Train().for_architecture()
    assert Train(embedding_dim=7).for_architecture() != Train().for_architecture()


def test_features_of_one_data_set_know_no_other():
    both = Evaluate(datasets=[DATASET, {**DATASET, "name": "other"}])
    one = Evaluate(datasets=[DATASET], pixel_side=8)
    assert both.for_features_of("few", "trained") == one.for_features_of("few", "trained")
    assert both.for_features_of("few", "pixels") != one.for_features_of("few", "pixels")
    assert both.for_features_of("few", "random") != both.for_features_of("other", "random")
    with pytest.raises(ValueError):
        both.for_features_of("unknown", "random")


def test_a_cell_of_the_ablation_changes_its_own_keys_alone():
    train = Cell("mlc", 2, 0.25, 9).train(Train(lr=0.5), seed=4)
    assert (train.loss, train.positives, train.negative_ratio, train.seed) == ("mlc", 2, 0.25, 4)
    assert train.lr == 0.5


def test_a_changed_section_is_validated():
    with pytest.raises(ValueError, match="groups"):
        Cluster(groups=8).changed(k=4)
    with pytest.raises(ValueError):
        Label().changed(tops=4)


def test_the_resolved_config_reads_back_as_itself():
    config = Config(train={"lr": 0.5}, evaluate={"datasets": [DATASET]})
    assert Config(**yaml.safe_load(config.to_yaml())) == config


def test_a_smaller_k_than_cluster_groups_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"ablate\.grids: K = 4 .* cluster\.groups"):
        Config(
            cluster={"k": 64, "mode": "two_level", "groups": 8},
            label={"top": 2},
            ablate={"grids": [{"k": [4]}]},
            evaluate={"datasets": [DATASET]},
        )
