"""`mlcd encode`: loose images in, embeddings out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.builders import change_record, jpeg
from helpers.searches import GOOD, encode, search
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_folder import images
from mlcd.models import trainable
from mlcd.stages.export.loading import open_model


def test_a_folder_becomes_embeddings_and_what_fails_is_named(models, folder, tmp_path, capsys):
    output = tmp_path / "E.h5"
    assert encode(folder, "--model", models / "train", "--output", output, "--batch-size", 2) == 0
    file = Embeddings(output)
    assert sorted(file.keys().tolist()) == GOOD
    failed = dict(zip(*(column.tolist() for column in file.failed()), strict=True))
    assert failed == {
        b"b/cut.jpg": b"damaged", b"empty.png": b"empty", b"words.gif": b"not_an_image",
        b"large.png": b"too_large", b"huge.bmp": b"too_large",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "words.gif': not_an_image" in said and "5 images, 5 failed" in said
    model = open_model(models / "train", torch.device("cpu"))
    for key, row in zip(file.keys(), file.read(), strict=True):
        with Image.open(folder / key.decode()) as image:
            expected = model.encode(np.stack([model.pixels(image.convert("RGB"))]))[0]
        assert np.abs(row - expected).max() < 2e-3  # float16
    assert file.model["name"] == "mlcd_vit_tiny_patch8" and file.model["dim"] == 16


def test_the_export_gives_the_same_embeddings_whatever_the_workers(models, folder, tmp_path):
    encode(folder, "--model", models / "train", "--output", tmp_path / "a.h5")
    encode(folder, "--model", models / "train", "--output", tmp_path / "b.h5", "--workers", 2)
    # The folder of exports, which holds one format.
    encode(folder, "--model", models / "export", "--output", tmp_path / "c.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    first, second = Embeddings(tmp_path / "a.h5"), Embeddings(tmp_path / "c.h5")
    assert first.model == second.model
    np.testing.assert_allclose(first.read(), second.read(), atol=2e-3)


def test_what_cannot_be_opened_is_counted(models, folder, tmp_path, monkeypatch):
    """An image that goes away between the listing and its turn."""
    shutil.copy(folder / "a.jpg", tmp_path / "a.jpg")
    shutil.copy(folder / "z.jpg", tmp_path / "z.jpg")

    def vanishing(places, **options):
        for one in images(places):
            yield type(one)(one.path.replace("a.jpg", "away.jpg"), one.key, one.size)

    monkeypatch.setattr("mlcd.commands.encode.images", vanishing)
    assert encode(tmp_path, "--model", models / "train", "--output", tmp_path / "E.h5") == 0
    file = Embeddings(tmp_path / "E.h5")
    assert file.keys().tolist() == [b"z.jpg"]
    assert [column.tolist() for column in file.failed()] == [[b"a.jpg"], [b"unreadable"]]


def test_names_that_are_no_text_are_kept_as_bytes(models, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/\xff\xfe.jpg"))
    path.parent.mkdir()
    path.write_bytes(jpeg(1))
    assert encode(path.parent, "--model", models / "train", "--output", tmp_path / "E.h5") == 0
    assert Embeddings(tmp_path / "E.h5").keys().tolist() == [b"\xff\xfe.jpg"]
    page = tmp_path / "page.html"
    common = ["--model", models / "train", "--output", page, "--embeddings", tmp_path / "E.h5"]
    assert search(path, "--folder", path.parent, *common) == 0
    assert "\ufffd\ufffd.jpg" in page.read_text(encoding="utf-8")


def test_mistakes_are_one_line(models, folder, tmp_path, capsys):
    output = tmp_path / "E.h5"
    (tmp_path / "none").mkdir()
    trained = models / "train"
    for words, message in [
        ([tmp_path / "none", "--model", trained, "--output", output], "none: no images in it"),
        ([tmp_path / "nix", "--model", trained, "--output", output], "nix: no such file or folder"),
        ([folder / "pipe.jpg", "--model", trained, "--output", output], "neither a file nor"),
        ([folder / "empty.png", "--model", trained, "--output", output], "none of 1 images"),
        ([folder, "--model", tmp_path, "--output", output], "holds no encoder"),
        ([folder, "--model", trained, "--output", "E.txt"], "end it with .h5"),
        ([folder, "--model", trained, "--output", output, "--workers", 0], "--workers: expected"),
    ]:
        assert encode(*words) == 2
        assert message in capsys.readouterr().err
    assert not output.exists()


def test_an_export_that_was_changed_is_refused(models, folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(models / "export" / "transformers", copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert encode(folder, "--model", copy, "--output", tmp_path / "E.h5") == 2
    assert "config.json is not the file that was exported" in capsys.readouterr().err


def test_embeddings_without_a_direction_are_counted(models, folder, tmp_path, capsys):
    encoder = trainable.load(models / "train")
    with torch.no_grad():
        for weight in encoder.projection.parameters():
            weight.zero_()
    trainable.save(encoder, tmp_path / "zero", {})
    arguments = [folder / "b", "--model", tmp_path / "zero", "--output", tmp_path / "E.h5"]
    assert encode(*arguments) == 2
    assert "zero_embedding 2" in capsys.readouterr().err
    assert not (tmp_path / "E.h5").exists()
    encode(folder, "--model", models / "train", "--output", tmp_path / "E.h5")


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1, None, "0.5"])
def test_an_encoder_that_cannot_normalize_is_refused_by_name(
    key, value, models, folder, tmp_path, capsys
):
    shutil.copytree(models / "train", tmp_path / "train")
    path = tmp_path / "train" / "encoder.json"
    change_record(path, **{key: [0.5, value, 0.5]})
    arguments = [folder, "--model", tmp_path / "train", "--output", tmp_path / "E.h5"]
    fine = key == "mean" and value in (0, -1)
    assert encode(*arguments) == (0 if fine else 2)
    said = capsys.readouterr().err
    assert fine or ("encoder.json" in said and f"{key} is" in said and "Traceback" not in said)
