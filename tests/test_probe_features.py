"""What the probe is fitted on: the features before the projection, of each kind of encoder."""

from __future__ import annotations

import json

import h5py
import numpy as np
import open_clip_tiny
import pytest
import torch
from test_evaluate import config, evaluate, pack, rows

from mlcd.config import Evaluate
from mlcd.encoders import frozen, trainable, unprojected
from mlcd.evaluate import cached, features, models
from mlcd.evaluate.scores import score


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    open_clip_tiny.register()


@pytest.mark.parametrize(
    ("model", "dim", "width"),
    [
        ("resnet10t", 16, 512),
        ("test_vit", 8, 64),
        ("mlcd_vit_tiny_patch8", 16, 192),
        (f"open_clip:{open_clip_tiny.NAME}", 24, 32),
    ],
)
def test_a_trained_encoder_gives_its_width(model, dim, width):
    encoder = trainable.build(model, dim, 32, seed=1).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        embedding, pooled = unprojected.of_encoder(encoder, images)
        assert torch.equal(embedding, encoder(images))
    assert (embedding.shape, pooled.shape) == ((3, dim), (3, width))


def test_an_encoder_without_a_projection_has_one_kind_of_features():
    encoder = trainable.build("mlcd_vit_tiny_patch8", 192, 32).eval()
    assert unprojected.of_encoder(encoder, torch.randn(2, 3, 32, 32))[1] is None


def test_a_frozen_encoder_gives_rows_before_projection_or_normalisation():
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    clip = frozen.load(open_clip_tiny.NAME)
    projection = clip._model.visual.proj
    unit, pooled = unprojected.of_frozen(clip, pixels)
    assert torch.equal(unit, clip.encode_images(pixels))
    assert clip._model.visual.proj is projection
    expected = torch.nn.functional.normalize(pooled @ projection, dim=1)
    torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-6)
    assert pooled.shape == (3, 32)
    lite = frozen.load("efficientnet_lite0", image_size=32)
    unit, raw = unprojected.of_frozen(lite, pixels)
    assert torch.equal(unit, lite.encode_images(pixels))
    torch.testing.assert_close(unit, torch.nn.functional.normalize(raw, dim=1))
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1


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


def test_k_beyond_the_train_pictures_is_left_out(tmp_path, capsys):
    pack(tmp_path / "few.tar", rows())
    out = tmp_path / "pixels.h5"
    command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
    values = config(tmp_path, knn_k=[5, 50], dataset={"tasks": ["knn"], "tags_field": None})
    assert evaluate(*command, "--config", values) == 0
    section = Evaluate.model_validate(json.loads(values))
    found = score(section, section.datasets[0], cached.read(out, torch.device("cpu")))
    assert set(found["scores"]) == {"knn_5"}
    assert "few has 40 labelled train pictures; left out there: 50" in capsys.readouterr().err


def test_the_side_of_pixels_is_of_no_other_models_features(tmp_path):
    pack(tmp_path / "few.tar", rows(6))
    trainable.save(trainable.build("resnet10t", 16, 32), tmp_path / "train", {})
    identities = []
    for side in (4, 8):
        section = Evaluate.model_validate(json.loads(config(tmp_path, pixel_side=side)))
        for name in ("pixels", "trained"):
            model = models.load(name, section, str(tmp_path / "train"), "", torch.device("cpu"))
            identities.append(features.identity(section, section.datasets[0], model))
    assert identities[0] != identities[2]
    assert identities[1] == identities[3]
