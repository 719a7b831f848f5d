"""What the probe is fitted on: the features before the projection, of each kind of encoder."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from helpers import open_clip_tiny
from helpers.evaluate_runs import config, evaluate, pack, rows
from mlcd.config import Evaluate
from mlcd.models import footprint, trainable, vit
from mlcd.stages.evaluate import cached, feature_models, features
from mlcd.stages.evaluate.parts import Resources
from mlcd.stages.evaluate.scores import score
from mlcd.training import forward
from mlcd.utils.errors import UserError


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    open_clip_tiny.register()


def test_the_probe_takes_them_and_k_nn_the_embedding(tmp_path):
    pack(tmp_path / "few.tar", rows())
    about = {"section": {"seed": 4}}
    trainable.save(trainable.build("resnet10t", 16, 32, seed=4), tmp_path / "train", about)
    out = tmp_path / "trained.h5"
    command = ("--part", "features", "--model", "trained", "--dataset", "few", "--output", out)
    assert evaluate(*command, "--encoder", tmp_path / "train", "--config", config(tmp_path)) == 0
    with h5py.File(out) as file:
        trunk, feature = file["trunk"][:], file["feature"][:]
    assert (trunk.shape, feature.shape) == ((60, 512), (60, 16))
    weight = trainable.load(tmp_path / "train").projection.weight.detach().numpy()
    np.testing.assert_allclose(trunk @ weight.T, feature, atol=1e-4)

    section = Evaluate.model_validate(json.loads(config(tmp_path)))
    data = cached.read(out, torch.device("cpu"))
    dataset = section.datasets[0]
    found = score(section, dataset, data)
    assert found["dim"] == 16
    assert found["linear_probe"]["dim"] == found["tags_probe"]["dim"] == 512
    # An embedding that says nothing leaves the probe alone, and k-NN with chance.
    data.feature = torch.ones_like(data.feature)
    blind = score(section, dataset, data)
    assert blind["scores"]["linear_probe"] == found["scores"]["linear_probe"] == 1.0
    assert blind["scores"]["knn_5"] < 0.7
    other = section.model_copy(update={"probe_features": "embedding"})
    assert score(other, dataset, data)["scores"]["linear_probe"] < 0.7
    assert cached.read(out, torch.device("cpu"), trunk=False).trunk is None


def test_k_beyond_the_train_images_is_left_out(tmp_path, capsys):
    pack(tmp_path / "few.tar", rows())
    out = tmp_path / "pixels.h5"
    command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
    values = config(tmp_path, knn_k=[5, 50], dataset={"tasks": ["knn"], "tags_field": None})
    assert evaluate(*command, "--config", values) == 0
    section = Evaluate.model_validate(json.loads(values))
    found = score(section, section.datasets[0], cached.read(out, torch.device("cpu")))
    assert set(found["scores"]) == {"knn_5"}
    assert "few has 40 labeled train images; left out there: 50" in capsys.readouterr().err


def test_the_side_of_pixels_is_of_no_other_models_features(tmp_path):
    pack(tmp_path / "few.tar", rows(6))
    trainable.save(trainable.build("resnet10t", 16, 32), tmp_path / "train", {})
    identities = []
    for side in (4, 8):
        section = Evaluate.model_validate(json.loads(config(tmp_path, pixel_side=side)))
        for name in ("pixels", "trained"):
            model = feature_models.load(
                name, section, str(tmp_path / "train"), "", torch.device("cpu")
            )
            identities.append(features.identity(section, section.datasets[0], model))
    assert identities[0] != identities[2]
    assert identities[1] == identities[3]


def test_a_job_that_is_cut_off_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    images = rows()
    images[20] = ("k020", b"no image", images[20][2])
    pack(tmp_path / "few.tar", images)
    monkeypatch.setattr(features, "PART", 16)
    section = Evaluate.model_validate(json.loads(config(tmp_path, max_failed=0.1)))
    pixels = feature_models.load("pixels", section, None, "", torch.device("cpu"))
    seen = []

    def extract(name, encode):
        model = replace(pixels, encode=encode)
        output = tmp_path / name / "pixels.h5"
        dataset = section.datasets[0]
        features.extract(section, dataset, "pixels", model, output, batch_size=8, workers=2)
        return output

    def counted(batch):
        seen.append(len(batch))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return pixels.encode(batch)

    whole = extract("whole", pixels.encode)
    with pytest.raises(KeyboardInterrupt):
        extract("cut", counted)
    assert len(list((tmp_path / "cut" / "state").glob("*/*.h5"))) == 2
    cut = extract("cut", counted)
    # 60 images, of which one does not decode, by batches of eight that end with a part.
    assert seen == [8, 8, 7, 8, 8, 8, 8, 8, 8, 4]
    assert cut.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "cut" / "state").iterdir())
    with h5py.File(cut) as file:
        assert list(file["failed_key"]) == [b"k020"] and len(file["feature"]) == 59


def test_an_encoder_in_bfloat16_runs_so_on_gpus_alone(tmp_path):
    about = {"section": {"precision": "bf16"}}
    assert feature_models._in_halves(about, torch.device("cuda"))
    assert not feature_models._in_halves(about, torch.device("cpu"))
    assert not feature_models._in_halves({"section": {}}, torch.device("cuda"))
    encoder = trainable.build("mlcd_vit_tiny_patch8", 16, 32)
    cpu = torch.device("cpu")
    exact, halves = (feature_models._of_encoder(encoder, {}, 0, cpu, on) for on in (False, True))
    assert (exact.identity, halves.identity) == ({}, {"precision": "bf16"})
    batch = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    found, expected = halves.encode(batch)[0], exact.encode(batch)[0]
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


class Deciding(torch.nn.Module):
    """Its result's shape follows from values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


def test_the_batch_of_a_forward_pass_is_what_fits():
    encoder = trainable.build("mlcd_vit_tiny_patch8", 16, 32).eval()
    taken = forward.bytes_of(encoder, (32, 32), halves=False)
    assert taken(64) < footprint.peak(encoder, 64, bf16=False)  # nothing is kept for later
    live = footprint.LiveBytes([*encoder.parameters(), *encoder.buffers()])
    with live, torch.no_grad(), vit.lean():
        encoder(torch.zeros(64, 3, 32, 32))
    assert live.peak == pytest.approx(taken(64) - 64 * 3 * 32 * 32 * 9, rel=0.05)
    assert forward.largest(taken, taken(64), 512) == 64
    assert forward.largest(taken, taken(64) - 1, 512) == 32
    assert forward.largest(taken, taken(600), 512) == 512
    assert forward.largest(taken, 1, 512) == 0
    # Weights in half precision, as those of CLIP on GPUs; a network that data decide.
    halved = trainable.build(f"open_clip:{open_clip_tiny.NAME}", 16, 32).eval()
    whole = forward.bytes_of(halved, (32, 32), halves=False)(64)
    assert forward.bytes_of(halved.half(), (32, 32), halves=True)(64) < whole
    deciding = torch.nn.Sequential(torch.nn.Linear(32, 2), Deciding())
    assert forward.bytes_of(deciding, (32, 32), halves=False)(64) == 0
    forward.require("embed.batch_size", 64, taken, taken(64))
    with pytest.raises(UserError, match=r"^embed\.batch_size: 100 images .* set it to 64$"):
        forward.require("embed.batch_size", 100, taken, taken(64))
    with pytest.raises(UserError, match="take a GPU with more memory"):
        forward.require("embed.batch_size", 1, taken, 1)
    cpu = Resources(torch.device("cpu"), 1, None)
    assert cpu.batch(feature_models._of_encoder(encoder, {}, 0, cpu.device, False)) == 64
