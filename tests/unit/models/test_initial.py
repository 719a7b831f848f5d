"""First weights: what other libraries save becomes ours, by name and at another image size."""

from __future__ import annotations

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from helpers.open_clip_tiny import NAME, QUICK
from mlcd.config.train import Train
from mlcd.models import initial, trainable
from mlcd.models.frozen import efficientnet
from mlcd.models.initial import sources
from mlcd.stages.export import module_of
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json

CLIP = f"open_clip:{NAME}"
ROTARY = "mlcd_vit_tiny_patch8"


def first(model: str, start: object, *, dim: int = 16, side: int = 32):
    """Return an encoder that begins at `start`, and what is said of its weights."""
    section = Train(model=model, embedding_dim=dim, image_size=side, initial=str(start), seed=7)
    found = initial.read(sources.find(model, str(start)), section)
    encoder = trainable.build(model, dim, side, seed=7)
    for name, value in encoder.state_dict().items():
        if name in found.state:
            value.copy_(found.state[name])
    initial.normalize(encoder, found.about)
    return encoder.eval(), found.about


def told(model: str, start: object, **options) -> str:
    with pytest.raises(UserError) as caught:
        first(model, start, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache with weights of one timm tag, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    path = snapshot / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@torch.no_grad()
def test_a_tag_of_timm_is_what_timm_loads_at_that_size(hub):
    encoder, about = first("test_vit", "r160_in1k", side=48)
    overlay = {"state_dict": load_file(hub)}
    theirs = timm.create_model(
        "test_vit", pretrained=True, num_classes=0, img_size=48, pretrained_cfg_overlay=overlay
    ).eval()
    assert torch.equal(encoder.trunk(images(48)), theirs(images(48)))
    assert encoder.mean == (0.5,) * 3 and about["source"] == "r160_in1k"
    assert about["random"] == ["projection.weight"]
    assert about["unused"] == ["trunk.head.bias", "trunk.head.weight"]
    assert about["loaded"] == len(theirs.state_dict()) and len(about["sha256"]) == 64


def test_a_tag_that_cannot_be_fetched_says_what_to_do(hub):
    assert "a1_in1k of resnet50 could not be fetched" in told("resnet50", "a1_in1k")


@torch.no_grad()
@pytest.mark.parametrize("tag", [True, False], ids=["tag", "file"])
def test_open_clips_weights_are_what_open_clip_loads_at_that_size(tmp_path, monkeypatch, tag):
    path = tmp_path / "mine.safetensors"
    save_file(open_clip.create_model(NAME).state_dict(), path)
    if tag:
        cards = {"mine": {"file": str(path), "mean": (0.4,) * 3, "std": (0.3,) * 3}}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, cards)
        monkeypatch.setattr("mlcd.config.encoders.open_clip_tags", lambda: {NAME: {"mine"}})
    encoder, about = first(CLIP, "mine" if tag else path, side=48)
    theirs = open_clip.create_model(
        NAME, pretrained=str(path), force_image_size=48, weights_only=True
    )
    torch.testing.assert_close(encoder(images(48)), theirs.eval().encode_image(images(48)))
    assert about["interpolated"] == ["trunk.positional_embedding"] and about["random"] == []
    assert encoder.mean == ((0.4,) * 3 if tag else trainable._CLIP_MEAN)


@torch.no_grad()
def test_another_embedding_dim_leaves_the_projection_random(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(open_clip.create_model(NAME).state_dict(), path)
    encoder, about = first(CLIP, path, dim=8)
    assert about["random"] == ["trunk.proj"] and "trunk.proj" in about["unused"]
    assert torch.equal(encoder.trunk.proj, trainable.build(CLIP, 8, 32, seed=7).trunk.proj)


@torch.no_grad()
@pytest.mark.parametrize(("model", "dim"), [(CLIP, 16), (ROTARY, 16), (ROTARY, 192)])
def test_a_folder_of_transformers_gives_the_same_outputs(tmp_path, model, dim):
    ours = trainable.build(model, dim, 32, seed=1).eval()
    ours.mean = (0.1, 0.2, 0.3)
    module_of("transformers").write(ours, tmp_path)
    encoder, about = first(model, tmp_path, dim=dim)
    assert torch.equal(encoder(images()), ours(images()))
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert about["names"] == "transformers" and about["random"] == []
    # Heads show in no shape.
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "num_attention_heads": 8})
    assert "has 8 heads of attention" in told(model, tmp_path, dim=dim)


@torch.no_grad()
@pytest.mark.parametrize("model", ["test_vit", CLIP])
def test_exports_of_timm_and_open_clip_begin_a_training(tmp_path, model):
    ours = trainable.build(model, 16, 32, seed=1).eval()
    ours.std = (0.1, 0.2, 0.3)
    module_of("open_clip" if model == CLIP else "timm").write(ours, tmp_path)
    encoder, about = first(model, tmp_path)
    assert torch.equal(encoder.trunk(images()), ours.trunk(images()))
    assert encoder.std == (0.1, 0.2, 0.3) and about["loaded"] == len(ours.trunk.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("model", ["test_resnet", ROTARY])
def test_an_earlier_run_begins_a_training(tmp_path, model):
    ours = trainable.build(model, 16, 32, seed=1).eval()
    ours.mean = (0.1, 0.2, 0.3)
    trainable.save(ours, tmp_path, {})
    encoder, about = first(model, tmp_path)
    assert torch.equal(encoder(images()), ours(images())) and encoder.mean == (0.1, 0.2, 0.3)
    assert (about["random"], about["unused"], about["interpolated"]) == ([], [], [])
    assert about["sha256"] == read_json(tmp_path / "encoder.json")["sha256"]
    assert first(model, tmp_path / "encoder.safetensors")[1] == about
    other = "test_resnet" if model == ROTARY else "test_vit"
    assert f"holds '{model}', and train.model is {other}" in told(other, tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    assert "not the weights that encoder.json beside it describes" in told(model, tmp_path)


@torch.no_grad()
def test_the_packaged_weights_compute_the_packaged_features():
    encoder, about = first("tf_efficientnet_lite0", "efficientnet_lite0", side=64)
    theirs = efficientnet._model(64)[0].extract_features(images(64)).mean((2, 3))
    assert torch.equal(encoder.trunk(images(64)), theirs)
    assert about["unused"] == ["_fc.bias", "_fc.weight"] and encoder.mean == (127 / 255,) * 3


def test_the_other_activation_is_refused(tmp_path):
    quick = trainable.build(f"open_clip:{QUICK}", 16, 32)
    module_of("open_clip").write(quick, tmp_path)
    assert f"trained with QuickGELU, which {CLIP} has not" in told(CLIP, tmp_path)


def test_files_of_torch_are_read_without_their_code(tmp_path):
    ours = trainable.build("test_vit", 16, 32, seed=1)
    state = {f"module.{name}": value for name, value in ours.trunk.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    encoder, _ = first("test_vit", tmp_path / "a.pt")
    assert torch.equal(encoder.trunk.pos_embed, ours.trunk.pos_embed)
    torch.save(ours, tmp_path / "b.pt")
    assert "not readable as weights alone" in told("test_vit", tmp_path / "b.pt")


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(state, path)
    assert "holds no weights of test_resnet" in told("test_resnet", path)
    save_file({**state, "norm.weight": torch.ones(3)}, path)
    assert "trunk.norm.weight is [3], expected [64]; set train.model" in told("test_vit", path)
    save_file({k: v for k, v in state.items() if "norm1" not in k}, path)
    assert "trunk.blocks.0.norm1.weight is missing, expected [64], and " in told("test_vit", path)
    save_file({**state, "norm.weight": torch.full((64,), torch.nan)}, path)
    assert "trunk.norm.weight is not finite" in told("test_vit", path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is no file of safetensors (it is cut off)" in told("test_vit", path)
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "its header would be longer than the file" in told("test_vit", path)
    assert "is neither a tag of test_vit nor weights on disk" in told("test_vit", "nope")
    (tmp_path / "empty").mkdir()
    assert "holds none of encoder.safetensors" in told("test_vit", tmp_path / "empty")
