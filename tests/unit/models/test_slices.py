"""Features on CPUs do not depend on the number of threads, nor on what else is in the batch."""

from __future__ import annotations

import pytest
import torch

from helpers import tiny_clip
from mlcd.config import Text
from mlcd.models import frozen, slices, text_tower, trainable, unprojected


@pytest.fixture
def threads():
    """Set torch's threads, and put them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lite():
    return frozen.load("efficientnet_lite0", image_size=64)


def images(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


@pytest.mark.parametrize("n", [1, 8, 21])
def test_threads_change_no_byte(lite, threads, n):
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(lite.encode_images(images(n)))
        assert torch.get_num_threads() == number
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_rest_of_the_batch_changes_no_byte(lite, threads):
    threads(2)
    whole = lite.encode_images(images(21))
    for size in (8, 16):
        parts = torch.cat([lite.encode_images(part) for part in images(21).split(size)])
        assert torch.equal(whole, parts)


def test_features_before_the_projection_neither(lite, threads):
    encoder = trainable.build("open_clip:ViT-S-16", 384, 32).eval()
    floats = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for number in (1, 2):
        threads(number)
        found += [
            *unprojected.of_encoder(encoder, floats),
            *unprojected.of_frozen(lite, images(11)),
        ]
    for one, other in zip(found[:4], found[4:], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found[2], lite.encode_images(images(11)))


def test_texts_neither(threads, tmp_path):
    clip = frozen.load(tiny_clip.register(tmp_path))
    tower = text_tower.build(Text(width=32, layers=1, heads=2, context_length=16), 24).eval()
    texts = [f"{number} cats" for number in range(11)]
    found = []
    for number in (1, 2):
        threads(number)
        found.append((clip.encode_texts(texts), text_tower.encode(tower, texts)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][1].shape == (11, 24)
    alone = text_tower.encode(tower, texts[3:4])
    assert torch.equal(alone, found[0][1][3:4])


def test_a_slice_that_fails_fails_the_batch(threads):
    threads(2)

    def compute(batch: torch.Tensor) -> tuple[torch.Tensor]:
        if (batch == 20).any():
            raise ValueError("no")
        return (batch,)

    with pytest.raises(ValueError, match="no"):
        slices.forward(compute, torch.arange(24.0))
    assert torch.get_num_threads() == 2
    (same,) = slices.forward(lambda batch: (batch,), torch.arange(19.0))
    assert torch.equal(same, torch.arange(19.0))
