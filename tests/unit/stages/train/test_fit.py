"""The micro-batch that fits: chosen, kept for a resumed run, refused with what would fit."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from helpers.footprints import FOOTPRINTS, RN50, VIT_L, recorded
from mlcd.config.train import Train
from mlcd.models import footprint, trainable
from mlcd.stages.train import fit
from mlcd.training.memory import largest, need, usable
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json

GB = 10**9
LAION = Train(
    model=VIT_L, embedding_dim=768, image_size=224, batch_size=32768, negative_ratio=0.1,
    precision="bf16", scale=64,
)  # fmt: skip


def job(section=LAION, ranks=16, classes=10**6):
    return fit.job(
        section, ranks=ranks, side=224, classes=classes, labels=8, memory_limit=None
    )  # fmt: skip


@pytest.fixture
def presets(monkeypatch):
    """The presets' footprints without seconds of tracing."""
    monkeypatch.setattr(fit, "footprint", recorded)


@pytest.mark.parametrize("key", [(VIT_L, 224, False), (VIT_L, 224, True)], ids=["full", "tight"])
def test_recorded_footprints_are_those_of_the_code(key) -> None:
    model, side, checkpointing = key
    with torch.device("meta"):
        encoder = trainable.build(model, 768, side)
    encoder.trunk.set_grad_checkpointing(checkpointing)
    assert footprint.peak(encoder, 16, bf16=True) == pytest.approx(
        FOOTPRINTS[key].peak(16), rel=0.02
    )


def test_a_choice_is_kept_while_it_fits(presets, tmp_path) -> None:
    path = tmp_path / "state" / "micro_batch.json"
    first = fit.settled(path, LAION, job(), 40 * GB)
    assert first == largest(job(), FOOTPRINTS[VIT_L, 224, False], 40 * GB)
    assert read_json(path) == {"224": first}
    # Larger cards, or another number of ranks: the same arithmetic.
    assert fit.settled(path, LAION, job(), 80 * GB) == first
    assert fit.settled(path, LAION, job(ranks=32), 40 * GB) == first
    # Smaller cards cannot, and the next choice is kept in turn.
    smaller = fit.settled(path, LAION, job(), 24 * GB)
    assert smaller < first and read_json(path) == {"224": smaller}
    assert fit.settled(path, LAION, job(), 80 * GB) == smaller


def test_what_does_not_divide_any_more_is_chosen_anew(presets, tmp_path) -> None:
    path = tmp_path / "micro_batch.json"
    path.write_text('{"224": 96, "336": 8}')
    chosen = fit.settled(path, LAION, job(), 80 * GB)
    assert 2048 % chosen == 0 and read_json(path) == {"224": chosen, "336": 8}


@pytest.mark.parametrize(
    ("section", "ranks", "memory", "words"),
    [
        ({}, 16, 6 * GB, r"set train\.zero_stage: 3"),
        ({}, 1, 16 * GB, r"set 2 GPUs"),
        ({}, 16, GB, "take GPUs with more memory"),
    ],
)
def test_refusals_name_the_nearest_that_fits(presets, section, ranks, memory, words) -> None:
    asked = LAION.model_copy(update=section)
    with pytest.raises(UserError, match=rf"^train: 1 image of 224 pixels at once take .*{words}"):
        fit.chosen(asked, job(asked, ranks), memory)


def test_checkpointing_comes_first(presets) -> None:
    found = FOOTPRINTS[VIT_L, 224, False]
    wide = job(ranks=32768)  # one image per rank
    between = (need(wide, found, 1).total - 10**8) / (1 - 0.05)
    with pytest.raises(UserError, match=r"set train\.activation_checkpointing: true"):
        fit.chosen(LAION, wide, int(between))


def test_a_given_number_is_taken_and_cpus_take_the_whole_share(tmp_path) -> None:
    place = SimpleNamespace(device=torch.device("cpu"), world_size=4, is_main=True)
    section = Train(batch_size=64)
    for wanted, expected in (("auto", 16), (0, 16), (4, 4)):
        assert fit.on_ranks(wanted, section, place, tmp_path, job) == expected
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_shapes_needs_a_number(monkeypatch) -> None:
    def deciding(encoder, *, bf16):
        raise RuntimeError("data decide\nhere")

    monkeypatch.setattr(fit, "measure", deciding)
    words = r"^train\.model: the memory of resnet10t .* \(data decide\); set --micro-batch"
    with pytest.raises(UserError, match=words):
        fit.footprint("resnet10t", 8, 32, 0.0, False, True)


def test_a_resnet_takes_its_share_at_once_where_that_fits(presets) -> None:
    section = LAION.model_copy(update={"model": RN50, "batch_size": 1024, "embedding_dim": 512})
    one = fit.job(section, ranks=1, side=224, classes=8000, labels=8, memory_limit=None)
    assert fit.chosen(section, one, 80 * GB) == 1024
    size = fit.chosen(section, one, 24 * GB)
    assert size == 256
    assert need(one, FOOTPRINTS[RN50, 224, False], size).total <= usable(24 * GB)
    eight = dataclasses.replace(one, ranks=8)
    assert fit.chosen(section, eight, 24 * GB) == 128
