"""What the encoder's engine chooses by the device: compiling, and the order of channels."""

from __future__ import annotations

import shutil

import pytest
import torch

from mlcd.config.train import Train
from mlcd.models import trainable
from mlcd.stages.train import engine

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def complete(monkeypatch):
    """A machine with Triton and a C compiler."""
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with torch._dynamo.config.patch(suppress_errors=False):
        yield


@pytest.mark.parametrize(
    ("section", "device", "expected"),
    [({}, CUDA, True), ({}, CPU, False), ({"zero_stage": 3}, CUDA, False),
     ({"compile": True}, CPU, True), ({"compile": False}, CUDA, False)],
)  # fmt: skip
def test_gpus_compile_by_themselves(complete, section, device, expected) -> None:
    assert engine.compiles(Train(**section), device) == expected
    # What fails runs eagerly, unless compiling was asked for.
    assert torch._dynamo.config.suppress_errors == (expected and not section)


def test_what_is_missing_is_told_and_the_run_is_eager(complete, monkeypatch, caplog) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(engine.LOGGER, "propagate", True)
    assert not engine.compiles(Train(), CUDA)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert not engine.compiles(Train(), CUDA)
    # A line comes twice where an earlier test of the process has set up logging.
    told = dict.fromkeys(r.getMessage().split(" is missing")[0] for r in caplog.records)
    assert list(told) == ["train.compile: a C compiler (gcc)", "train.compile: Triton"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [("test_resnet", True), ("test_vit", False), ("mlcd_vit_tiny_patch8", False)],
)
def test_convolutional_encoders_are_known(model, expected) -> None:
    assert engine.is_convolutional(trainable.build(model, 16, 32)) == expected
