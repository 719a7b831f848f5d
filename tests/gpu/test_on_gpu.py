"""What a GPU computes, held to this machine's CPU: `pytest -m gpu`.

MLCD_TESTS_ON=cpu runs the same on a CPU, to try the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu import compute, files
from gpu.measuring import Setting, alone
from helpers import builders
from helpers.label_runs import pair
from helpers.label_runs import run as label
from helpers.train_runs import VIT, kill_when, lines
from helpers.train_stores import mlcd_train, stores
from mlcd import cli
from mlcd.data.embeddings import Embeddings

DEVICE = os.environ.get("MLCD_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
SMALL = Setting(tiny=True, device=DEVICE, ceilings={})


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    before = os.environ.copy()
    with alone(SMALL):
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    "step",
    [compute.classifier_exact, compute.zero, compute.training_step, compute.search,
     compute.linear_probe, files.checkpoint],
    ids=lambda step: step.__name__,
)  # fmt: skip
def test_a_step_of_the_acceptance_is_right(group, step) -> None:
    outcome = step(SMALL)
    assert outcome.met, outcome.figures


@pytest.mark.parametrize("products", ["float16", "bfloat16"])
def test_labels_are_the_bytes_of_the_cpu(tmp_path: Path, products: str) -> None:
    embeddings, centroids = pair(tmp_path, n=3000, k=700, d=96)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--top", 8, "--output"]
    assert label(*words, tmp_path / "cpu.h5", "--device", "cpu") == 0
    assert label(*words, tmp_path / "gpu.h5", "--device", DEVICE, "--products", products) == 0
    assert (tmp_path / "cpu.h5").read_bytes() == (tmp_path / "gpu.h5").read_bytes()


def test_embeddings_are_those_of_the_cpu(tmp_path: Path) -> None:
    manifest = builders.image_store(tmp_path / "images" / "c-00000", 24)
    found = {}
    for device in ("cpu", DEVICE):
        output = tmp_path / device / "e.h5"
        output.parent.mkdir(exist_ok=True)
        words = ["embed", "--images", manifest, "--output", output, "--device", device]
        assert cli.main([*map(str, words), "--image-size", "64", "--batch-size", "8"]) == 0
        found[device] = Embeddings(output).read()
    cosines = (found["cpu"] * found[DEVICE]).sum(axis=1)
    assert len(cosines) == 24
    np.testing.assert_allclose(cosines, 1, atol=2e-3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, list[str]]:
    """Files, the output and the options of a training that nothing has cut off."""
    folder = tmp_path_factory.mktemp("whole")
    paths = stores(folder / "stores")
    section = {**VIT, "epochs": 4, "checkpoint_every": 2}
    options = [word for key, value in section.items() if key != "checkpoint_every"
               for word in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
    options += ["--ranks-per-node", "1", "--threads", "1", "--checkpoint-every", "2"]
    process = mlcd_train(paths, folder / "out", *options, "--device", DEVICE, log=folder / "log")
    assert process.wait(300) == 0, (folder / "log").read_text()
    return paths, folder / "out", options


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in lines(output / "metrics.jsonl")]


def test_losses_are_those_of_the_cpu(tmp_path: Path, whole) -> None:
    paths, output, options = whole
    process = mlcd_train(paths, tmp_path / "out", *options, "--device", "cpu", log=tmp_path / "log")
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    np.testing.assert_allclose(losses(output), losses(tmp_path / "out"), rtol=2e-3)


def test_a_killed_training_resumes_to_the_same_losses(tmp_path: Path, whole) -> None:
    paths, output, options = whole
    words = [*options, "--device", DEVICE]
    process = mlcd_train(paths, tmp_path / "out", *words, log=tmp_path / "log")
    kill_when(process, tmp_path / "out", 7)
    again = mlcd_train(paths, tmp_path / "out", *words, log=tmp_path / "log")
    assert again.wait(300) == 0, (tmp_path / "log").read_text()
    assert "resum" in (tmp_path / "log").read_text()
    np.testing.assert_allclose(losses(tmp_path / "out"), losses(output), rtol=1e-3)
