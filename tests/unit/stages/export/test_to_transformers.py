"""Exports that transformers loads by `from_pretrained`: equal outputs, equal preprocessing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.exports import export
from mlcd.data.preprocess import Preprocess
from mlcd.models import trainable
from mlcd.stages.export import module_of, to_transformers

transformers = pytest.importorskip("transformers", reason="pip install mlcd[transformers]")


def trained(folder, model: str, dim: int, side: int) -> trainable.Encoder:
    """Save an encoder whose every tensor differs from its initial values: none may be lost."""
    encoder = trainable.build(model, dim, side, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    trainable.save(encoder, folder, {})
    return encoder.eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(9))


def equal(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    """1e-5 of the largest, as check.json."""
    return float((theirs - ours).abs().max()) <= 1e-5 * float(ours.abs().max())


@torch.inference_mode()
def test_mlcd_vision_model_gives_equal_outputs_and_tokens(tmp_path):
    encoder = trained(tmp_path / "train", "mlcd_vit_tiny_patch8", 192, 48)
    export(tmp_path / "train", tmp_path / "export", "transformers")
    folder = tmp_path / "export" / "transformers"
    assert json.loads((folder / "check.json").read_text())["largest_difference"] <= 1e-5
    model, loading = transformers.MLCDVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    # Rows and columns differ, so that swapped positions would show.
    for shape in ((48, 48), (32, 64)):
        output = model(images(*shape))
        assert equal(output.pooler_output, encoder(images(*shape)))
        assert equal(output.last_hidden_state, encoder.trunk.tokens(images(*shape)))
    turned = images(32, 64).transpose(2, 3)
    assert not equal(encoder(turned), encoder(images(32, 64)))


@torch.inference_mode()
def test_a_projection_lies_beside_mlcd_vision_model(tmp_path):
    encoder = trained(tmp_path / "train", "mlcd_vit_tiny_patch8", 16, 32)
    export(tmp_path / "train", tmp_path / "export", "transformers")
    folder = tmp_path / "export" / "transformers"
    model = transformers.AutoModel.from_pretrained(folder)
    assert type(model) is transformers.MLCDVisionModel
    assert equal(model(images(32, 32)).pooler_output, encoder.trunk(images(32, 32)))
    assert equal(to_transformers.load(folder)(images(32, 32)), encoder(images(32, 32)))
    again = trained(tmp_path / "train", "mlcd_vit_tiny_patch8", 192, 32)
    export(tmp_path / "train", tmp_path / "export", "transformers")
    assert equal(to_transformers.load(folder)(images(32, 32)), again(images(32, 32)))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["tiny-for-tests", "tiny-quickgelu"])
def test_clip_vision_models_give_equal_outputs(tmp_path, name):
    encoder = trained(tmp_path / "train", f"open_clip:{name}", 8, 32)
    export(tmp_path / "train", tmp_path / "export", "open_clip", "transformers")
    folder = tmp_path / "export" / "transformers"
    assert json.loads((folder / "check.json").read_text())["largest_difference"] <= 1e-5
    model, loading = transformers.CLIPVisionModelWithProjection.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading.values())
    output = model(images(32, 32))
    assert equal(output.image_embeds, encoder(images(32, 32)))
    # Without the projection, as LLaVA loads its tower.
    plain = transformers.CLIPVisionModel.from_pretrained(folder)
    assert torch.equal(plain(images(32, 32)).last_hidden_state, output.last_hidden_state)


def test_the_image_processor_is_the_evaluation_s_transform(tmp_path):
    encoder = trained(tmp_path / "train", "open_clip:tiny-for-tests", 8, 32)
    export(tmp_path / "train", tmp_path / "export", "open_clip", "transformers")
    ours = Preprocess((32, 32), encoder.mean, encoder.std)
    for name in ("open_clip", "transformers"):
        assert module_of(name).pixels(tmp_path / "export" / name) == ours
    folder = tmp_path / "export" / "transformers"
    exact = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    default = transformers.AutoImageProcessor.from_pretrained(folder)
    mean, std = (np.array(values)[:, None, None] for values in (encoder.mean, encoder.std))

    def levels(processor, image):
        found = processor(image, return_tensors="np")["pixel_values"][0]
        return (found * std + mean) * 255

    for width, height in [(32, 32), (48, 48), (90, 50), (33, 71), (17, 100)]:
        image = noise(width, height)
        expected = ours(image).transpose(2, 0, 1)
        assert np.abs(levels(exact, image) - expected).max() < 1e-3
        assert np.abs(levels(default, image) - expected).mean() < 0.5
    # 35 columns are cut to 32: transformers rounds half of 3 down, torchvision and we up.
    image = noise(70, 64)
    expected = ours(image).transpose(2, 0, 1)
    assert np.abs(levels(exact, image)[:, :, 1:] - expected[:, :, :-1]).max() < 1e-3


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_rerun_gives_the_same_bytes(tmp_path):
    trained(tmp_path / "train", "mlcd_vit_tiny_patch8", 8, 32)
    for name in ("a", "b"):
        export(tmp_path / "train", tmp_path / name, "transformers")
    files = sorted(path.name for path in (tmp_path / "a" / "transformers").iterdir())
    assert files == [
        ".mlcd", "README.md", "check.json", "config.json", "model.safetensors",
        "preprocessor_config.json", "projection.safetensors",
    ]  # fmt: skip
    for name in files:
        first, second = (tmp_path / run / "transformers" / name for run in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), name
