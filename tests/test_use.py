"""docs/use.md: each example is taken from the page and run, on tiny encoders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from builders import jpeg, seen_through
from open_clip_tiny import register
from test_export import export

from mlcd.cli import main
from mlcd.config import Config, validate
from mlcd.encoders import trainable
from mlcd.encoders.frozen.preprocess import Preprocess
from mlcd.images import decode

pytest.importorskip("transformers", reason="pip install mlcd[transformers]")

PAGE = (Path(__file__).parent.parent / "docs" / "use.md").read_text(encoding="utf-8")
#: (language, text) of every example, in order.
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
MODELS = {
    "timm": "resnet10t",
    "open_clip": "open_clip:tiny-for-tests",
    "transformers": "mlcd_vit_tiny_patch8",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with results/ as after three runs, pictures, and picture.jpg."""
    torch.set_num_threads(1)
    register()
    place = tmp_path_factory.mktemp("use")
    for name, model in MODELS.items():
        dim = 192 if name == "transformers" else 16
        encoder = trainable.build(model, dim, 32, seed=3)
        trainable.save(encoder, place / name, {})
        export(place / name, place / "results" / "export", name)
    trainable.save(trainable.load(place / "timm"), place / "results" / "train", {})
    (place / "pictures").mkdir()
    for number in range(3):
        (place / "pictures" / f"{number}.jpg").write_bytes(jpeg(number, 50))
    (place / "picture.jpg").write_bytes(seen_through())
    return place


def expected(place: Path, name: str) -> torch.Tensor:
    """Return the embedding of picture.jpg by the encoder itself."""
    encoder = trainable.load(place / name)
    picture = decode((place / "picture.jpg").read_bytes(), max_pixels=10_000)
    pixels = Preprocess((32, 32), encoder.mean, encoder.std)(picture).copy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        return encoder(image[None])


def test_every_example_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    results = []
    for language, text in EXAMPLES:
        if language == "bash":
            for line in text.strip().splitlines():
                program, *words = shlex.split(line)
                assert program == "mlcd" and main(words) == 0, line
        elif language == "python":
            names: dict = {}
            exec(compile(text, "docs/use.md", "exec"), names)
            results.append(names)
        else:
            assert language == "yaml"
    own, by_timm, by_open_clip, by_transformers, llava = results
    assert own["similarity"].shape == (3, 3) and own["names"] == ["0.jpg", "1.jpg", "2.jpg"]
    assert (place / "nearest.html").read_text().count("<figure") == 3
    for names, name in [
        (by_timm, "timm"), (by_open_clip, "open_clip"), (by_transformers, "transformers"),
    ]:  # fmt: skip
        assert torch.allclose(names["embedding"], expected(place, name), rtol=0, atol=1e-4), name
    assert by_timm["features"].shape == (1, 512, 1, 1)
    assert llava["patches"].shape == (1, 16, 192)
    assert len(llava["output"].hidden_states) == 1 + 6  # what goes into the blocks, and six blocks


def test_the_config_of_the_page_is_one():
    import yaml

    (text,) = [text for language, text in EXAMPLES if language == "yaml"]
    config = validate(Config, yaml.safe_load(text), "docs/use.md")
    assert config.export.formats == ["transformers"]


def test_the_page_names_every_size_and_format():
    from mlcd.encoders.mlcd_vit import SIZES
    from mlcd.export import _MODULES

    table = PAGE.split("## Which format")[1].split("```")[0]
    for name in SIZES:
        assert f"`{name}`" in table or f"`_{name.removeprefix('mlcd_vit_')}`" in table
    for name in _MODULES:
        assert f"`{name}`" in table
