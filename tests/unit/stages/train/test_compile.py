"""torch.compile under DeepSpeed's stages 0 to 2: the same losses as eager, on two real ranks.

Compiling takes most of a minute on two cores, though the model has two layers only.
"""

from __future__ import annotations

import itertools

import pytest

from helpers.open_clip_tiny import register
from helpers.train_runs import SHORT, TWO, losses, norms, planned, train_many
from helpers.train_stores import stores
from mlcd.config import validate
from mlcd.config.train import Train
from mlcd.launch.api import run_gang
from mlcd.utils.errors import UserError

VARIANTS = {
    **{
        f"stage {stage}{', activations' * activations}": (
            {"zero_stage": stage, "activation_checkpointing": activations}, {},
        )
        for stage, activations in itertools.product((0, 1, 2), (False, True))
    },
    "micro": ({}, {"micro_batch": 5}),
    "bf16": ({"precision": "bf16"}, {}),
    "high-res": ({"high_res_image_size": 48}, {}),
    "eager": ({"compile": False}, {}),
    "eager, high-res": ({"compile": False, "high_res_image_size": 48}, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    register()
    root = tmp_path_factory.mktemp("compiled")
    paths = stores(root / "stores")
    made = {
        name: planned(paths, root / name.replace(", ", "-"), options=options,
                      **{**SHORT, "compile": True, **section})
        for name, (section, options) in VARIANTS.items()
    }  # fmt: skip
    run_gang(train_many, {"runs": list(made.values())}, root, TWO)
    return made


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in VARIANTS if "stage" in name or name == "micro"])
def test_compiled_losses_are_those_of_eager(runs, name):
    assert losses(runs[name]) == pytest.approx(losses(runs["eager"]), rel=1e-5)
    assert norms(runs[name]) == pytest.approx(norms(runs["eager"]), rel=1e-3)


def test_compile_with_stage_3_is_refused():
    with pytest.raises(UserError, match=r"compile does not work with zero_stage 3"):
        validate(Train, {"compile": True, "zero_stage": 3}, "config", "train")


@pytest.mark.long
def test_the_high_resolution_phase_is_compiled_anew(runs):
    found, expected = (losses(runs[name]) for name in ("high-res", "eager, high-res"))
    assert len(found) == 6 and found == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_bf16_compiled_is_near(runs):
    assert losses(runs["bf16"]) == pytest.approx(losses(runs["eager"]), rel=0.05)


@pytest.mark.long
def test_the_encoder_was_compiled(runs):
    """Fused kernels round differently; equal digits would mean that eager code ran."""
    assert any(losses(runs[f"stage {stage}"]) != losses(runs["eager"]) for stage in range(3))
