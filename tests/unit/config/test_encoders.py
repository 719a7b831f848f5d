"""Names of encoders as read from the libraries' sources are those that the libraries know."""

from __future__ import annotations

import sys

import pytest

import mlcd.utils.compat  # noqa: F401  (before timm and open_clip)
from mlcd.config import encoders

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")


@pytest.fixture
def not_imported(monkeypatch):
    """As where the workflow is read: the libraries are installed, and nobody has imported them."""
    for name in ("timm", "open_clip"):
        monkeypatch.delitem(sys.modules, name)


def test_names_are_those_of_the_libraries(not_imported):
    assert encoders.timm_names() == sorted(timm.list_models())
    # Tests register models of their own.
    assert encoders.open_clip_names() >= {
        path.stem for path in open_clip.factory._MODEL_CONFIG_PATHS[0].glob("*.json")
    }


def test_tags_are_those_of_open_clip(not_imported):
    found = {(model, tag) for model, tags in encoders.open_clip_tags().items() for tag in tags}
    assert found == set(open_clip.list_pretrained())


@pytest.mark.parametrize(
    "model",
    ["resnet10t", "resnet50.a1_in1k", "vit_base_patch16_224", "vit_base_patch16_224_in21k",
     "qwen3_vit_88m_enc.qwen3_5_0_8b", "open_clip:ViT-B-32", "mlcd_vit_tiny_patch8"],
)  # fmt: skip
def test_names_that_can_be_built_pass(not_imported, model):
    assert encoders.trained_problem(model) is None


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("resnet10tt", "resnet10t"),
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("resnet50.no_such_tag", "resnet50"),
        ("open_clip:ViT-B-31", "open_clip:ViT-B-32"),
        ("mlcd_vit_base_patch15", "mlcd_vit_base_patch16"),
        ("../resnet10t", "resnet10t"),
        ("", "unknown model ''"),
        ("x" * 100_000, "unknown model 'xxx"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(not_imported, model, near):
    told = encoders.trained_problem(model)
    assert told.startswith("unknown model ") and near in told and len(told) < 400


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("efficientnet_lite0", None),
        ("ViT-L-14", None),
        ("local-dir:/somewhere", None),
        ("ViT-L14", "did you mean ViT-L-14"),
        ("efficientnet_lite1", "did you mean efficientnet_lite0"),
    ],
)
def test_names_of_frozen_encoders(not_imported, model, told):
    problem = encoders.frozen_problem(model)
    assert problem is None if told is None else told in problem


def test_the_sizes_that_open_clips_towers_take(not_imported):
    """Those of timm's that take one size say it in their names."""
    for name in open_clip.list_models():
        trunk = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
        known = timm.get_pretrained_cfg(trunk) if trunk else None
        if known is None:
            continue
        problem = encoders.size_problem(f"open_clip:{name}", 1000)
        assert (problem is not None) == known.fixed_input_size, name
        if problem:
            assert f"takes {known.input_size[-1]} pixels only" in problem


@pytest.mark.parametrize(
    ("model", "size", "told"),
    [
        ("mlcd_vit_base_patch16", 200, "200 is no multiple of the 16 pixels"),
        ("mlcd_vit_base_patch16", 208, None),
        ("open_clip:ViT-B-32", 31, "less than the 32 pixels of a patch"),
        ("open_clip:ViT-B-32", 33, None),
        ("open_clip:RN50", 32, None),
        ("vit_base_patch16_224", 8, "less than the 16 pixels of a patch"),
        ("resnet10t", 8, None),
    ],
)
def test_sizes_of_trained_encoders(not_imported, model, size, told):
    problem = encoders.size_problem(model, size)
    assert problem is None if told is None else told in problem


def test_which_towers_have_clips_blocks(not_imported):
    assert encoders.is_clip("ViT-B-32") and encoders.is_clip("none is called so")
    assert not encoders.is_clip("RN50") and not encoders.is_clip("ViT-B-16-SigLIP")
