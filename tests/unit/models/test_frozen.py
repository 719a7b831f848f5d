"""Frozen encoders: features against plain references, identity, refusals in one line."""

import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from helpers import tiny_clip
from helpers.builders import jpeg
from mlcd.models import frozen
from mlcd.models.frozen import efficientnet
from mlcd.models.frozen.base import weights_sha256
from mlcd.utils.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip.register(tmp_path_factory.mktemp("open_clip"))


def random_image(seed: int, side: int = 48) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(seed, side))).convert("RGB")


def batch(encoder, count: int = 3) -> torch.Tensor:
    return torch.stack([encoder.preprocess(random_image(seed)) for seed in range(count)])


def test_efficientnet_equals_the_package_unfolded():
    encoder = frozen.load("efficientnet_lite0", image_size=64)
    reference, digest = efficientnet._model(64)
    pixels = batch(encoder)
    with torch.no_grad():
        features = reference.extract_features((pixels.float() - 127) / 128).mean((2, 3))
    expected = features / features.norm(dim=1, keepdim=True)
    got = encoder.encode_images(pixels)
    assert got.dtype == torch.float32
    assert got.shape == (3, encoder.dim) == (3, 1280)
    assert (got - expected).abs().max() < 1e-5
    assert encoder.identity["weights_sha256"] == digest


def test_other_image_size_is_another_identity_with_the_same_weights():
    small, large = (frozen.load("efficientnet_lite0", image_size=size) for size in (32, None))
    assert large.preprocess(random_image(0)).shape == (3, 160, 160)
    assert small.identity != large.identity
    assert small.identity["weights_sha256"] == large.identity["weights_sha256"]


def test_weights_hash_knows_values_and_names_not_order():
    one, two = torch.ones(2, 3), torch.zeros(4, dtype=torch.float16)
    digest = weights_sha256({"a": one, "b": two})
    assert digest == weights_sha256({"b": two, "a": one.clone()})
    assert digest != weights_sha256({"a": one + 1, "b": two})
    assert digest != weights_sha256({"a": one, "c": two})
    assert digest != weights_sha256({"a": one.view(3, 2), "b": two})


def test_random_open_clip_is_the_same_every_time(clip):
    torch.manual_seed(1)
    one = frozen.load(clip)
    torch.manual_seed(2)
    two = frozen.load(clip)
    pixels = batch(one)
    assert one.identity == two.identity
    assert one.identity["dim"] == one.dim == 16
    assert torch.equal(one.encode_images(pixels), two.encode_images(pixels))
    texts = one.encode_texts(["a cat", "a red house", ""])
    assert texts.shape == (3, 16)
    assert torch.allclose(texts.norm(dim=1), torch.ones(3))
    assert torch.equal(texts, two.encode_texts(["a cat", "a red house", ""]))


def test_open_clip_features_equal_its_own_pipeline(clip):
    import open_clip

    encoder = frozen.load(clip)
    model = encoder._model
    config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    images = [random_image(seed, 70) for seed in range(3)]
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
    got = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in images]))
    assert (got - expected).abs().max() < 1e-5


def test_local_checkpoint_is_loaded_and_its_path_is_not_in_the_identity(clip, tmp_path):
    random = frozen.load(clip)
    state = {name: tensor * 0.5 for name, tensor in random._model.state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    loaded = frozen.load(clip, tmp_path / "half.pt")
    assert loaded.identity["pretrained"] == "half.pt"
    assert loaded.identity["weights_sha256"] == weights_sha256(state)
    assert str(tmp_path) not in str(loaded.identity)


@pytest.fixture
def tags(clip, tmp_path, monkeypatch):
    """Pretrained tags of the tiny model, whose download is a local file, and its -quickgelu."""
    import open_clip
    from open_clip import factory, pretrained

    quick = tmp_path / "tiny-clip-quickgelu.json"
    quick.write_text(json.dumps({**tiny_clip.CONFIG, "quick_gelu": True}))
    open_clip.add_model_config(quick)
    found = {"with_quick": {"quick_gelu": True}, "without": {}}
    found = {tag: {"hf_hub": "nobody/nothing/", **values} for tag, values in found.items()}
    for name in ("tiny-clip", "tiny-clip-quickgelu"):
        monkeypatch.setitem(pretrained._PRETRAINED, name, found)
    weights = tmp_path / "weights.pt"
    torch.save(frozen.load(clip)._model.state_dict(), weights)
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(weights))
    yield weights
    del factory._MODEL_CONFIGS["tiny-clip-quickgelu"], factory._MODEL_CONFIG_PATHS[-1]


def test_a_tag_brings_its_activation(tags, recwarn):
    quick = frozen.load("tiny-clip", "with_quick")
    plain = frozen.load("tiny-clip", "without")
    assert not [w for w in recwarn if "QuickGELU" in str(w.message)]
    assert quick.identity["weights_sha256"] == plain.identity["weights_sha256"]
    activations = [encoder.identity["activation"] for encoder in (quick, plain)]
    assert activations == ["quick_gelu", "gelu"]
    pixels = batch(quick)
    named = frozen.load("tiny-clip-quickgelu", tags)
    assert torch.equal(quick.encode_images(pixels), named.encode_images(pixels))
    assert not torch.equal(quick.encode_images(pixels), plain.encode_images(pixels))


def test_a_quickgelu_model_refuses_weights_trained_with_gelu(tags):
    with pytest.raises(UserError, match=r"embed.model: .*'without'.* set it to tiny-clip$"):
        frozen.load("tiny-clip-quickgelu", "without")
    assert frozen.load("tiny-clip-quickgelu", "with_quick").identity["activation"] == "quick_gelu"


def test_openai_weights_are_asked_for_with_quick_gelu(monkeypatch):
    import open_clip

    asked = {}

    def create_model(name, **options):
        asked[name, options["pretrained"]] = options["force_quick_gelu"]
        raise UserError("no weights here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for pair in [("ViT-L-14", "openai"), ("ViT-L/14", "openai"), ("ViT-L-14", "laion2b_s32b_b82k")]:
        with pytest.raises(UserError, match="no weights here"):
            frozen.load(*pair)
    assert list(asked.values()) == [True, True, False]


def test_checkpoint_of_another_model_is_refused(clip, tmp_path):
    torch.save({"visual.proj": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"embed.model: tiny-clip with .*other.pt"):
        frozen.load(clip, tmp_path / "other.pt")


def test_not_finite_features_name_model_and_precision(clip, tmp_path):
    state = frozen.load(clip)._model.state_dict()
    state["visual.proj"] = torch.full_like(state["visual.proj"], float("inf"))
    torch.save(state, tmp_path / "inf.pt")
    encoder = frozen.load(clip, tmp_path / "inf.pt")
    with pytest.raises(UserError, match=r"embed.precision: tiny-clip gives .* in fp32"):
        encoder.encode_images(batch(encoder))


@pytest.mark.parametrize("last", [False, True])
def test_pixels_are_normalized_as_by_the_plain_formula(clip, last):
    """To the last bit and with the same strides, on which the choice of a convolution depends."""
    encoder = frozen.load(clip)
    pixels = batch(encoder)
    if last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    expected = pixels.float() * encoder._scale + encoder._shift
    found = encoder.normalized(pixels)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_the_pixels_of_a_batch_may_be_written_over_once_it_has_begun(clip):
    encoder = frozen.load(clip)
    pixels, other = batch(encoder), batch(encoder, 2)
    expected = encoder.encode_images(pixels.clone())
    features = encoder.start_images(pixels)
    pixels.zero_()
    second = encoder.start_images(other)
    assert torch.equal(features(), expected)
    assert torch.equal(second(), encoder.encode_images(other))


def test_weights_in_half_precision_give_the_features_of_autocast(clip):
    """What is done on GPUs, on a CPU; images and texts."""
    full = frozen.load(clip)
    half = frozen.load(clip, precision="bf16")
    half.halve()
    assert {weight.dtype for weight in half._model.parameters()} == {torch.bfloat16}
    pixels, texts = batch(full), ["a dog", "the sea at night"]
    for found, expected in (
        (half.encode_images(pixels), full.encode_images(pixels)),
        (half.encode_texts(texts), full.encode_texts(texts)),
    ):
        assert found.dtype == torch.float32
        assert (found * expected).sum(1).min() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_batch_after_batch_and_gives_the_features_of_the_cpu(clip):
    """Each batch is given, and its pixels are written over, before any feature is waited for."""
    plain = frozen.load(clip)
    batches = [batch(plain, count) for count in (3, 5, 2)]
    for precision, least in (("fp32", 0.9999), ("bf16", 0.99)):
        encoder = frozen.load(clip, device="cuda", precision=precision)
        coming = []
        for pixels in batches:
            given = pixels.clone()
            coming.append(encoder.start_images(given))
            given.zero_()
        for features, pixels in zip(coming, batches, strict=True):
            assert features().device.type == "cpu"
            assert (features() * plain.encode_images(pixels)).sum(1).min() > least


def test_bf16_is_near_fp32(clip):
    full, half = (frozen.load(clip, precision=precision) for precision in ("fp32", "bf16"))
    pixels = batch(full)
    cosine = (full.encode_images(pixels) * half.encode_images(pixels)).sum(1)
    assert half.encode_images(pixels).dtype == torch.float32
    assert 0.99 < cosine.min() < 1 - 1e-7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit-l14",), r"embed.model: open_clip knows no model 'vit-l14'; did you mean ViT-L-14\?"),
        (("efficientnet-lite0",), r"did you mean efficientnet_lite0\?"),
        (("ViT-B-32", "opnai"), r"embed.pretrained: ViT-B-32 .*'opnai'.*did you mean openai\?"),
        (("efficientnet_lite0", "openai"), "embed.pretrained: efficientnet_lite0 .*null"),
        (("efficientnet_lite0", None, 64, "gpu"), "--device gpu: cannot be used"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        frozen.load(*arguments)
    assert "\n" not in str(caught.value)


def test_hub_out_of_reach_says_how_to_bring_the_weights(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"ViT-B-32 with openai could not be fetched.*path"):
        frozen.load("ViT-B-32", "openai")


def test_no_text_tower_is_refused():
    with pytest.raises(UserError, match=r"embed.features: efficientnet_lite0 has no text tower"):
        frozen.load("efficientnet_lite0", image_size=32).encode_texts(["a cat"])


def test_workers_do_not_import_torch():
    code = "import sys, mlcd.data.decode_pool; assert 'torch' not in sys.modules, 'torch'"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
