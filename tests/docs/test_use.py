"""Examples of the docs and of model cards, each as it is written, in a process of its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import fresh_process
from helpers.builders import embeddings_file, jpeg, seen_through
from helpers.exports import export
from helpers.open_clip_tiny import register
from helpers.paths import ROOT
from mlcd.cli import main
from mlcd.config import Config, validate
from mlcd.data.decode import decode
from mlcd.data.preprocess import Preprocess
from mlcd.models import trainable

pytest.importorskip("transformers", reason="pip install mlcd[transformers]")

PAGE = (ROOT / "docs/how-to/use-the-encoder.md").read_text(encoding="utf-8")
#: (language, text) of every example, in order.
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)

MODELS = {
    "timm": "resnet10t",
    "open_clip": "open_clip:tiny-for-tests",
    "transformers": "mlcd_vit_tiny_patch8",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with results/ as after three runs, images, and image.jpg."""
    torch.set_num_threads(1)
    register()
    place = tmp_path_factory.mktemp("use")
    for name, model in MODELS.items():
        dim = 192 if name == "transformers" else 16
        encoder = trainable.build(model, dim, 32, seed=3)
        trainable.save(encoder, place / name, {})
        export(place / name, place / "results" / "export", name)
    trainable.save(trainable.load(place / "timm"), place / "results" / "train", {})
    (place / "images").mkdir()
    for number in range(3):
        (place / "images" / f"{number}.jpg").write_bytes(jpeg(number, 50))
    (place / "image.jpg").write_bytes(seen_through())
    return place


def expected(place: Path, name: str) -> torch.Tensor:
    """Return the embedding of image.jpg by the encoder itself."""
    encoder = trainable.load(place / name)
    image = decode((place / "image.jpg").read_bytes(), max_pixels=10_000)
    pixels = Preprocess((32, 32), encoder.mean, encoder.std)(image).copy()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        return encoder(image[None])


#: What is looked at after each Python example of the page.
VALUES = [
    {"shape": "list(similarity.shape)", "names": "names"},
    {"embedding": "embedding", "features": "list(features.shape)"},
    {"embedding": "embedding"},
    {"embedding": "embedding"},
    {"patches": "list(patches.shape)", "states": "len(output.hidden_states)"},
]


def job(folder: Path, name: str, code: str, values: dict[str, str]) -> dict:
    return {"folder": str(folder), "name": name, "code": code, "values": values}


def card_job(place: Path, name: str) -> dict:
    """Return the example of a model card, which is for people without mlcd.

    Its libraries may not import beside the torch of the machine that tests; the card says so.
    """
    folder = place / "results" / "export" / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("image.jpg", "../../../image.jpg")
    assert "install both from one index" in card
    return job(folder, f"card {name}", f"import mlcd.utils.compat\n{code}", VALUES[2])


def test_every_example_runs(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    for language, text in EXAMPLES:
        if language == "bash":
            for line in text.strip().splitlines():
                program, *words = shlex.split(line)
                assert program == "mlcd" and main(words) == 0, line
        else:
            assert language in ("python", "yaml")
    examples = [text for language, text in EXAMPLES if language == "python"]
    jobs = [
        job(place, f"use-the-encoder.md {number}", text, values)
        for number, (text, values) in enumerate(zip(examples, VALUES, strict=True))
    ]
    # A card's example begins with the import that repairs torchvision: nothing before it can hide
    # a fault, so it shares the process of the page's example.
    for one, name in zip(jobs[1:4], MODELS, strict=True):
        one["then"] = [card_job(place, name)]
    found = fresh_process.run(jobs, tmp_path / "values")
    (own,), (by_timm, *cards), (by_open_clip, *more), (by_transformers, *last), (llava,) = found
    cards += more + last
    assert own == {"shape": [3, 3], "names": ["0.jpg", "1.jpg", "2.jpg"]}
    assert (place / "nearest.html").read_text().count("<figure") == 3
    loaded = [*zip((by_timm, by_open_clip, by_transformers), MODELS, strict=True),
              *zip(cards, MODELS, strict=True)]  # fmt: skip
    for values, name in loaded:
        embedding = torch.tensor(values["embedding"])
        assert torch.allclose(embedding, expected(place, name), rtol=0, atol=1e-4), name
    assert by_timm["features"] == [1, 512, 1, 1]
    # What goes into the blocks, and six blocks.
    assert llava == {"patches": [1, 16, 192], "states": 1 + 6}


#: Other pages with Python: what their examples take as given, what is made smaller, and what is
#: looked at.
PAGES = {
    "tutorial/demo.md": ("", {}, {"model": "type(file).__name__"}),
    "how-to/cluster-embeddings.md": ("", {"100_000": "100"}, {"shape": "list(rows.shape)"}),
    "explanation/launch.md": (
        "from helpers.examples import function\n", {}, {"result": "result"},
    ),
    "explanation/learning-core.md": (
        "import torch\n"
        "torch.distributed.init_process_group('gloo', init_method='file://' + __import__('os')"
        ".path.abspath('store'), rank=0, world_size=1)\n"
        "centroids = torch.nn.functional.normalize(torch.randn(1000, 768))\n"
        "encoder, pixels = torch.nn.Linear(12, 768), torch.randn(4, 12)\n"
        "labels, step = torch.arange(32).reshape(4, 8), 0\n",
        {"1_000_000": "1_000"},
        {"loss": "float(loss)"},
    ),
    "how-to/what-you-have.md": ("", {"/data/photos": "photos"}, {"labels": "labels"}),
}  # fmt: skip


def test_examples_of_the_other_pages(tmp_path):
    docs = sorted((ROOT / "docs").rglob("*.md"))
    with_python = {str(page.relative_to(ROOT / "docs")) for page in docs
                   if "```python" in page.read_text(encoding="utf-8")}  # fmt: skip
    assert with_python == {*PAGES, "how-to/use-the-encoder.md"}
    (tmp_path / "results" / "embeddings").mkdir(parents=True)
    embeddings_file(
        tmp_path / "results" / "embeddings" / "openclipart-a-00000.h5", np.eye(4, dtype="f4")
    )
    for folder in ("cats", "dogs"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        (tmp_path / "photos" / folder / "0.jpg").touch()
    jobs = []
    for page, (given, smaller, values) in PAGES.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            for figure, small in smaller.items():
                code = code.replace(figure, small)
            jobs.append(job(tmp_path, page, given + code, values))
    found = fresh_process.run(jobs, tmp_path / "values")
    (file,), (rows,), (result,), (loss,), (classes,) = found
    assert file == {"model": "File"} and rows == {"shape": [100, 256]}
    assert result == {"result": [3, 2]}
    assert 0 < loss["loss"] < 200
    assert classes == {"labels": [0, 1]}
    assert (tmp_path / "labels.parquet").is_file()


def test_the_config_of_the_page_is_one():
    import yaml

    (text,) = [text for language, text in EXAMPLES if language == "yaml"]
    config = validate(Config, yaml.safe_load(text), "docs/how-to/use-the-encoder.md")
    assert config.export.formats == ["transformers"]


def test_the_page_names_every_size_and_format():
    from mlcd.config.encoders import SIZES
    from mlcd.stages.export import _MODULES

    table = PAGE.split("## Which format")[1].split("```")[0]
    for name in SIZES:
        assert f"`{name}`" in table or f"`_{name.removeprefix('mlcd_vit_')}`" in table
    for name in _MODULES:
        assert f"`{name}`" in table
