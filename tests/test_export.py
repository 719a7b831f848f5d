"""Exports load in the other library alone, and give the encoder's outputs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from builders import (
    centroids_file,
    embeddings_file,
    labels_file,
    seen_through,
    unit_vectors,
)
from open_clip_tiny import register
from safetensors.torch import load_file, save_file

import mlcd.export
from mlcd.cli import main
from mlcd.config import parse_section
from mlcd.encoders import trainable
from mlcd.encoders.frozen.preprocess import Preprocess
from mlcd.errors import UserError
from mlcd.export import to_open_clip, to_timm
from mlcd.files import sha256_file
from mlcd.images import decode
from mlcd.stores.centroids import Centroids


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    register()


def trained(folder, model: str, dim: int, side: int) -> trainable.Encoder:
    """Save an encoder with moved running statistics; return it in evaluation mode."""
    encoder = trainable.build(model, dim, side, seed=2)
    with torch.no_grad():
        encoder(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1)))
    trainable.save(encoder, folder, {"steps": 3})
    return encoder.eval()


def export(
    train, output, *formats: str, centroids=None, labels=None, summary=None, lists=(), **keys
) -> None:
    section = parse_section("export", json.dumps({"formats": list(formats), **keys}), {})
    arguments = argparse.Namespace(
        encoder=str(train), output=str(output), centroids=centroids, labels=labels,
        summary=summary, lists=list(lists),
    )  # fmt: skip
    mlcd.export.run(arguments, section)


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ("resnet10t", 32),
        ("test_vit", 48),
        ("convnext_atto", 32),
        ("deit_tiny_distilled_patch16_224", 32),
    ],
)
def test_timm_gives_equal_outputs(tmp_path, model, side):
    encoder = trained(tmp_path / "train", model, 12, side)
    export(tmp_path / "train", tmp_path / "export", "timm")
    check = json.loads((tmp_path / "export" / "timm" / "check.json").read_text())
    assert check["largest_difference"] <= 1e-5
    assert check["largest_output"] > 0
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        theirs = to_timm.load(tmp_path / "export" / "timm")(images)
        assert torch.allclose(theirs, encoder(images), atol=1e-5)


def test_open_clip_gives_equal_outputs(tmp_path):
    encoder = trained(tmp_path / "train", "open_clip:tiny-for-tests", 8, 32)
    export(tmp_path / "train", tmp_path / "export", "open_clip")
    folder = tmp_path / "export" / "open_clip"
    assert json.loads((folder / "check.json").read_text())["largest_difference"] <= 1e-5
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert torch.allclose(to_open_clip.load(folder)(images), encoder(images), atol=1e-6)


def test_the_card_s_example_runs_outside_the_project(tmp_path):
    encoder = trained(tmp_path / "train", "resnet10t", 12, 32)
    export(tmp_path / "train", tmp_path / "export", "timm")
    folder = tmp_path / "export" / "timm"
    card = (folder / "README.md").read_text()
    example = card.split("```python\n")[1].split("```")[0]
    (tmp_path / "picture.jpg").write_bytes(seen_through())
    # torchvision beside a foreign build of torch needs mlcd.compat; nothing else of mlcd is used.
    script = "import mlcd.compat\n" + example.replace("picture.jpg", "../../picture.jpg")
    script += "\nprint(embedding.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.tensor(json.loads(done.stdout))

    picture = decode(seen_through(), max_pixels=10_000)
    pixels = Preprocess((32, 32), encoder.mean, encoder.std)(picture)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    image = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        assert torch.allclose(found, encoder(image[None]), atol=1e-4)


def test_changed_weights_are_found_out(tmp_path, monkeypatch):
    trained(tmp_path / "train", "test_vit", 8, 32)
    write = to_timm.write

    def spoiled(encoder, folder):
        usage = write(encoder, folder)
        state = load_file(folder / "model.safetensors")
        state["head.bias"] += 0.1
        save_file(state, folder / "model.safetensors")
        return usage

    export(tmp_path / "train", tmp_path / "export", "timm")
    monkeypatch.setattr(to_timm, "write", spoiled)
    with pytest.raises(UserError, match="other outputs"):
        export(tmp_path / "train", tmp_path / "export", "timm")
    assert not (tmp_path / "export" / "timm" / "check.json").exists()


def test_a_rerun_gives_the_same_bytes(tmp_path):
    trained(tmp_path / "train", "test_vit", 8, 32)
    for name in ("a", "b"):
        export(tmp_path / "train", tmp_path / name, "timm")
    files = sorted(path.name for path in (tmp_path / "a" / "timm").iterdir())
    assert files == ["README.md", "check.json", "config.json", "model.safetensors"]
    for name in files:
        first, second = (tmp_path / run / "timm" / name for run in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.parametrize(
    ("model", "side", "format", "mend"),
    [
        ("test_vit", 32, "open_clip", "set export.formats to [timm]"),
        ("open_clip:tiny-for-tests", 32, "timm", "set export.formats to [open_clip]"),
        ("mlcd_vit_tiny_patch8", 32, "timm", "set export.formats to [transformers]"),
        ("mlcd_vit_tiny_patch8", 32, "open_clip", "set export.formats to [transformers]"),
        ("test_vit", 32, "transformers", "set export.formats to [timm]"),
        ("open_clip:RN50", 32, "transformers", "set export.formats to [open_clip]"),
    ],
)
def test_formats_that_do_not_fit_are_refused(tmp_path, capsys, model, side, format, mend):
    trainable.save(trainable.build(model, 8, side), tmp_path / "train", {})
    status = main(
        ["export", "--encoder", str(tmp_path / "train"), "--output", str(tmp_path / "export"),
         "--formats", format]
    )  # fmt: skip
    assert status == 2
    said = capsys.readouterr().err
    assert f"export.formats: {format} cannot load {model}" in said and mend in said


def test_the_card_tells_where_the_weights_come_from(tmp_path):
    encoder = trainable.build("test_vit", 8, 32)
    extra = {"steps": 1234, "num_classes": 20, "section": {"model": "test_vit", "scale": 16.0}}
    trainable.save(encoder, tmp_path / "train", extra)
    centroids = centroids_file(tmp_path / "centroids.h5", unit_vectors(20, 8), model="clip|x")
    embeddings = embeddings_file(tmp_path / "e.h5", unit_vectors(5, 8))
    labels = labels_file(tmp_path / "l.h5", np.zeros((5, 1)), 20, embeddings)
    with h5py.File(labels, "r+") as file:
        file.attrs["centroids"] = Centroids(centroids).fingerprint
        file.attrs["section"] = json.dumps({"top": 8, "threshold": 0.93})
    summary = tmp_path / "summary.csv"
    head = "model,dataset,metric,value,encoder_sha256\n"
    sha256 = trainable.read_description(tmp_path / "train")["sha256"]
    summary.write_text(f"{head}chance,few,knn,0.1,\ntrained,few,knn,0.625,{sha256}\n")
    export(
        tmp_path / "train", tmp_path / "export", "timm",
        centroids=str(centroids), labels=str(labels), summary=str(summary),
        lists=["/a/b/laion-*.parquet"], license="cc-by-4.0",
    )  # fmt: skip
    folder = tmp_path / "export" / "timm"
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "timm")
    for expected in [
        "| Training steps | 1,234 |",
        "| URL lists | `laion-*.parquet` |",
        "| Clusters | 20 |",
        r"| Clustered features | `clip\|x` |",
        "| few | knn | 0.6250 | 0.1000 |",
        "  scale: 16.0",
        "embed:\n  name: clip|x\n",
        "label:\n  top: 8\n  threshold: 0.93\n",
        f"| Fingerprint of the centres | `{Centroids(centroids).fingerprint}` |",
        f"| model.safetensors | `{sha256_file(folder / 'model.safetensors')}` |",
        trainable.read_description(tmp_path / "train")["sha256"],
    ]:
        assert expected in card, expected
    assert "/a/b" not in card and "text tower" not in card
    summary.write_text(f"{head}trained,few,zero_shot,0.5,{sha256}\n")
    export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    assert (
        "run's text tower, which is not part of this export" in (folder / "README.md").read_text()
    )
    summary.write_text("model,dataset\nx,y\n")
    with pytest.raises(UserError, match=r"not the summary\.csv"):
        export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    for whose in ("", "0" * 64):
        summary.write_text(f"{head}trained,few,knn,0.5,{whose}\n")
        with pytest.raises(UserError, match="scores of another encoder"):
            export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    summary.write_text(head)
    export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    assert "## Results" not in (folder / "README.md").read_text()
    others = centroids_file(tmp_path / "others.h5", unit_vectors(9, 8))
    with pytest.raises(UserError, match="9 clusters, but the encoder was trained on 20"):
        export(tmp_path / "train", tmp_path / "export", "timm", centroids=str(others))
    more = centroids_file(tmp_path / "more.h5", unit_vectors(20, 8, seed=1))
    with pytest.raises(UserError, match="labels by other centres"):
        export(
            tmp_path / "train", tmp_path / "export", "timm",
            centroids=str(more), labels=str(labels),
        )  # fmt: skip
