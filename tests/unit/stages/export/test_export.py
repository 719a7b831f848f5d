"""Exports load in the other library alone, and give the encoder's outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.builders import (
    centroids_file,
    csv_table,
    embeddings_file,
    labels_file,
    set_attributes,
    unit_vectors,
)
from helpers.exports import export
from mlcd.cli import main
from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels
from mlcd.models import trainable
from mlcd.stages.export import to_open_clip, to_timm
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file


def trained(folder, model: str, dim: int, side: int) -> trainable.Encoder:
    """Save an encoder with moved running statistics; return it in evaluation mode."""
    encoder = trainable.build(model, dim, side, seed=2)
    with torch.no_grad():
        encoder(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1)))
    trainable.save(encoder, folder, {"steps": 3})
    return encoder.eval()


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
    assert files == [".mlcd", "README.md", "check.json", "config.json", "model.safetensors"]
    for name in files:
        first, second = (tmp_path / run / "timm" / name for run in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), name
    # A user removes the card, and Snakemake its output; the folder is ours all the same.
    for name in ("README.md", "check.json"):
        (tmp_path / "a" / "timm" / name).unlink()
    export(tmp_path / "train", tmp_path / "a", "timm")
    for name in files:
        first, second = (tmp_path / run / "timm" / name for run in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.parametrize(
    ("model", "side", "format", "fix"),
    [
        ("test_vit", 32, "open_clip", "set export.formats to [timm]"),
        ("open_clip:tiny-for-tests", 32, "timm", "set export.formats to [open_clip]"),
        ("mlcd_vit_tiny_patch8", 32, "timm", "set export.formats to [transformers]"),
        ("mlcd_vit_tiny_patch8", 32, "open_clip", "set export.formats to [transformers]"),
        ("test_vit", 32, "transformers", "set export.formats to [timm]"),
        ("open_clip:RN50", 32, "transformers", "set export.formats to [open_clip]"),
    ],
)
def test_formats_that_do_not_fit_are_refused(tmp_path, capsys, model, side, format, fix):
    trainable.save(trainable.build(model, 8, side), tmp_path / "train", {})
    status = main(
        ["export", "--encoder", str(tmp_path / "train"), "--output", str(tmp_path / "export"),
         "--formats", format]
    )  # fmt: skip
    assert status == 2
    said = capsys.readouterr().err
    assert f"export.formats: {format} cannot load {model}" in said and fix in said


def test_the_card_tells_where_the_weights_come_from(tmp_path):
    encoder = trainable.build("test_vit", 8, 32)
    extra = {"steps": 1234, "num_classes": 20, "section": {"model": "test_vit", "scale": 16.0}}
    trainable.save(encoder, tmp_path / "train", extra)
    centroids = centroids_file(tmp_path / "centroids.h5", unit_vectors(20, 8), model="clip|x")
    embeddings = embeddings_file(tmp_path / "e.h5", unit_vectors(5, 8))
    labels = labels_file(tmp_path / "l.h5", np.zeros((5, 1)), 20, embeddings)
    set_attributes(
        labels,
        centroids=Centroids(centroids).fingerprint,
        section=json.dumps({"top": 8, "threshold": 0.93}),
    )
    summary = tmp_path / "summary.csv"
    head = "model,dataset,metric,value,encoder_sha256\n"
    sha256 = trainable.read_description(tmp_path / "train")["sha256"]
    csv_table(summary, f"{head}chance,few,knn,0.1,\ntrained,few,knn,0.625,{sha256}\n")
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
        "| Lists and folders of images | `laion-*.parquet` |",
        "| Clusters | 20 |",
        r"| Embeddings that were clustered | `clip\|x` |",
        "| few | knn | 0.6250 | 0.1000 |",
        "  scale: 16.0",
        "embed:\n  name: clip|x\n",
        "label:\n  top: 8\n  threshold: 0.93\n",
        f"| Fingerprint of the centers | `{Centroids(centroids).fingerprint}` |",
        f"| model.safetensors | `{sha256_file(folder / 'model.safetensors')}` |",
        trainable.read_description(tmp_path / "train")["sha256"],
    ]:
        assert expected in card, expected
    assert "/a/b" not in card and "text tower" not in card
    csv_table(summary, f"{head}trained,few,zero_shot,0.5,{sha256}\n")
    export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    assert (
        "run's text tower, which is not part of this export" in (folder / "README.md").read_text()
    )
    csv_table(summary, "model,dataset\nx,y\n")
    with pytest.raises(UserError, match=r"not the summary\.csv"):
        export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    for whose in ("", "0" * 64):
        csv_table(summary, f"{head}trained,few,knn,0.5,{whose}\n")
        with pytest.raises(UserError, match="scores of another encoder"):
            export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    csv_table(summary, head)
    export(tmp_path / "train", tmp_path / "export", "timm", summary=str(summary))
    assert "## Results" not in (folder / "README.md").read_text()
    others = centroids_file(tmp_path / "others.h5", unit_vectors(9, 8))
    with pytest.raises(UserError, match="9 clusters, but the encoder was trained on 20"):
        export(tmp_path / "train", tmp_path / "export", "timm", centroids=str(others))
    more = centroids_file(tmp_path / "more.h5", unit_vectors(20, 8, seed=1))
    with pytest.raises(UserError, match="labels by other centers"):
        export(
            tmp_path / "train", tmp_path / "export", "timm",
            centroids=str(more), labels=str(labels),
        )  # fmt: skip
    # An encoder that notes what it was made from refuses files of another run with the same K.
    own = {"centroids": [Centroids(centroids).fingerprint], "labels": [Labels(labels).fingerprint]}
    trainable.save(encoder, tmp_path / "train", {**extra, "made_from": own})
    export(tmp_path / "train", tmp_path / "export", "timm", centroids=str(centroids),
           labels=str(labels))  # fmt: skip
    with pytest.raises(UserError, match=r"more.h5: centroids of another run than the encoder's"):
        export(tmp_path / "train", tmp_path / "export", "timm", centroids=str(more))
    others = labels_file(tmp_path / "o.h5", np.ones((5, 1)), 20, embeddings)
    with pytest.raises(UserError, match=r"o.h5: labels of another run than the encoder's"):
        export(tmp_path / "train", tmp_path / "export", "timm", labels=str(others))
