"""`mlcd encode` and `mlcd search`: loose pictures in, embeddings and a page of the nearest out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from builders import embeddings_file, jpeg, unit_vectors
from PIL import Image
from test_export import export

from mlcd.cli import main
from mlcd.encoders import trainable
from mlcd.export.loading import open_model
from mlcd.search import nearest
from mlcd.stores.embeddings import Embeddings
from mlcd.stores.folder import pictures

HOSTILE = '<img src=x onerror=alert(1)>&".jpg'
GOOD = sorted([b"a.jpg", b"b/c.JPG", "b/deep/ü.jpeg".encode(), b"z.jpg", HOSTILE.encode()])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A trained encoder with its export, and another encoder."""
    folder = tmp_path_factory.mktemp("models")
    encoder = trainable.build("mlcd_vit_tiny_patch8", 16, 32, seed=2)
    trainable.save(encoder, folder / "train", {})
    export(folder / "train", folder / "export", "transformers")
    trainable.save(trainable.build("test_vit", 16, 32, seed=2), folder / "other", {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in three folders, some of which are none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b" / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b/c.JPG", "b/deep/ü.jpeg", "z.jpg", HOSTILE]):
        (folder / name).write_bytes(jpeg(number, 40 + number))
    (folder / "b" / "cut.jpg").write_bytes(jpeg(1)[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.gif").write_text("not a picture")
    Image.new("RGB", (300, 300)).save(folder / "large.png")
    (folder / "huge.bmp").write_bytes(b"")
    os.truncate(folder / "huge.bmp", 1 << 40)  # takes no room on the disk
    (folder / "notes.txt").write_text("no picture, by its ending")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    return folder


def encode(*words) -> int:
    return main(["encode", *map(str, words), "--max-pixels", "50000"])


def search(*words) -> int:
    return main(["search", *map(str, words), "--max-pixels", "50000"])


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
    assert "words.gif': not_an_image" in said and "5 pictures, 5 failed" in said
    model = open_model(models / "train", torch.device("cpu"))
    for key, row in zip(file.keys(), file.read(), strict=True):
        with Image.open(folder / key.decode()) as picture:
            expected = model.encode(np.stack([model.pixels(picture.convert("RGB"))]))[0]
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
    """A picture that goes away between the listing and its turn."""
    shutil.copy(folder / "a.jpg", tmp_path / "a.jpg")
    shutil.copy(folder / "z.jpg", tmp_path / "z.jpg")

    def vanishing(places):
        for one in pictures(places):
            yield type(one)(one.path.replace("a.jpg", "away.jpg"), one.key, one.size)

    monkeypatch.setattr("mlcd.encode.pictures", vanishing)
    assert encode(tmp_path, "--model", models / "train", "--output", tmp_path / "E.h5") == 0
    file = Embeddings(tmp_path / "E.h5")
    assert file.keys().tolist() == [b"z.jpg"]
    assert [column.tolist() for column in file.failed()] == [[b"a.jpg"], [b"unreadable"]]


def test_files_and_folders_are_listed_once_relative_to_what_they_share(folder):
    named = [folder / "b", folder / "b" / "c.JPG", folder / "z.jpg"]
    keys = [one.key for one in pictures(named)]
    assert keys == [b"b/c.JPG", b"b/cut.jpg", "b/deep/ü.jpeg".encode(), b"z.jpg"]
    assert [one.key for one in pictures([folder / "b" / "c.JPG"])] == [b"c.JPG"]


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
        ([tmp_path / "none", "--model", trained, "--output", output], "none: no pictures in it"),
        ([tmp_path / "nix", "--model", trained, "--output", output], "nix: no such file or folder"),
        ([folder / "pipe.jpg", "--model", trained, "--output", output], "neither a file nor"),
        ([folder / "empty.png", "--model", trained, "--output", output], "none of 1 pictures"),
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


def test_nearest_is_exact_over_blocks(tmp_path, monkeypatch):
    rows = unit_vectors(50, 8)
    rows[31] = rows[7]  # a tie goes to the lower row
    file = Embeddings(embeddings_file(tmp_path / "E.h5", rows))
    monkeypatch.setattr("mlcd.search._BLOCK", 9)
    queries = rows[[7, 20]]
    found, cosines = nearest(file, queries, 6)
    whole = queries @ file.read().T
    expected = np.argsort(-whole, axis=1, kind="stable")[:, :6]
    assert found.tolist() == expected.tolist() and found[0, :2].tolist() == [7, 31]
    np.testing.assert_allclose(cosines, np.take_along_axis(whole, expected, axis=1), atol=1e-6)


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_the_page_of_nearest_pictures_shows(models, folder, tmp_path):
    page, kept = tmp_path / "page.html", tmp_path / "E.h5"
    queries = [folder / "z.jpg", folder / HOSTILE]
    common = ["--folder", folder, "--model", models / "train", "--output", page, "--count", 4]
    assert search(*queries, *common, "--embeddings", kept) == 0
    first = page.read_bytes()
    assert search(*queries, *common, "--embeddings", kept) == 0
    assert page.read_bytes() == first
    with browser.Browser() as window:
        window.open(page)
        assert window.wait("return [...document.images].every(image => image.complete)")
        lost = "return [...document.images].filter(image => !image.naturalWidth).length"
        assert window.run(lost) == 0
        assert window.run("return document.images.length") == 2 * (1 + 4)
        said = "return [...document.querySelectorAll('figcaption')].map(item => item.innerText)"
        captions = window.run(said)
        names = [caption.split("\n")[0] for caption in captions]
        # Each query lies in the folder: it is its own nearest. The name is text, not markup.
        assert names[0] == "z.jpg" and names[4] == HOSTILE
        assert captions[0].endswith("cosine 1.000")
        assert set(names) <= {key.decode() for key in GOOD}
        assert window.errors() == [] and window.requests() == []


def test_a_folder_that_changed_since_is_told(models, folder, tmp_path, capsys):
    place, kept, page = tmp_path / "place", tmp_path / "E.h5", tmp_path / "page.html"
    (place / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/c.JPG", "z.jpg", "empty.png"):
        shutil.copy(folder / name, place / name)
    words = [place / "a.jpg", "--folder", place, "--model", models / "train",
             "--embeddings", kept, "--output", page]  # fmt: skip
    assert search(*words) == 0 and search(*words) == 0
    assert "changed since" not in capsys.readouterr().err
    (place / "z.jpg").write_bytes(jpeg(9, 90))
    (place / "new 1.jpg").write_bytes(jpeg(5))
    (place / "new 2.jpg").write_bytes(jpeg(6))
    (place / "b" / "c.JPG").unlink()
    assert search(*words) == 0
    said = capsys.readouterr().err
    assert f"{kept}: the folder changed since: 2 new pictures are not searched, 1 of" in said
    assert "1 are gone; remove the file" in said
    kept.unlink()
    assert search(*words) == 0
    assert "changed since" not in capsys.readouterr().err


def test_searches_that_cannot_be_are_refused(models, folder, tmp_path, capsys):
    page, kept = tmp_path / "page.html", tmp_path / "E.h5"
    encode(folder, "--model", models / "train", "--output", kept)
    capsys.readouterr()
    other, away = tmp_path / "nowhere", folder / "b" / "deep"
    common = ["--output", page, "--embeddings", kept]
    for query, model, place, message in [
        ("words.gif", "train", folder, "cannot be searched for (not_an_image"),
        ("missing.jpg", "train", folder, "no such file"),
        ("a.jpg", "other", folder, "made by another encoder"),
        ("a.jpg", "train", other, "no such folder"),
        ("a.jpg", "train", away, "none of the nearest pictures lies in"),
    ]:
        words = [folder / query, "--folder", place, "--model", models / model, *common]
        assert search(*words) == 2
        assert message in capsys.readouterr().err
    assert not page.exists()
