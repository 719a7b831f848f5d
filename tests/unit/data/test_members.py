"""What is an image of the set and what only lies beside one: in tars, class folders and encode."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from helpers.builders import jpeg
from helpers.images import pack
from mlcd.config.labeled import Dataset
from mlcd.data import image_folder
from mlcd.data.labeled import layout
from mlcd.data.labeled.samples import samples
from mlcd.data.members import TarNames, is_hidden, labeled_members, sample_name
from mlcd.stages.embed.sources import TarSource
from mlcd.utils.errors import UserError


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="mlcd")
    return caplog


@pytest.mark.parametrize(
    "name",
    [
        "._x.jpg", ".hidden/a.jpg", "a/.thumbnails/b.jpg", "__MACOSX/a/._b.jpg", "a/Thumbs.db",
        "a/.DS_Store", "x/.ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "./.a.jpg",
    ],
)  # fmt: skip
def test_hidden_names(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["./a.jpg", "../a.jpg", "a/b.c/d.jpg", "_a.jpg", "/a.jpg"])
def test_other_names_are_not_hidden(name: str) -> None:
    assert not is_hidden(name)


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a.jpg", "a", "jpg"), ("d.e/a.seg.PNG", "d.e/a", "seg.png"), ("./a.JPG", "./a", "jpg"),
        ("a", "a", ""), ("d.e/a", "d.e/a", ""),
    ],
)  # fmt: skip
def test_webdataset_splits_at_the_first_dot(name: str, key: str, field: str) -> None:
    assert sample_name(name) == (key, field)


def keys(*names: str) -> dict[str, str]:
    return TarNames("a.tar", names).images


def test_a_mask_beside_an_image_is_another_field(said: pytest.LogCaptureFixture) -> None:
    names = [f"{i}.{end}" for i in range(120) for end in ("jpg", "seg.png", "mask.png", "json")]
    found = TarNames("a.tar", names)
    assert found.images == {f"{i}.jpg": str(i) for i in range(120)}
    found.report()
    assert "240 images are left out as further fields" in said.text
    assert "'seg.png' 120" in said.text


def test_names_with_dots_are_images_where_nothing_is_doubtful() -> None:
    assert keys("photo.2021.jpg", "b.jpg") == {"photo.2021.jpg": "photo", "b.jpg": "b"}
    assert keys("1.input.jpg", "2.input.jpg") == {"1.input.jpg": "1", "2.input.jpg": "2"}
    cats = [f"{kind}.{i}.jpg" for kind in ("cat", "dog") for i in range(9)]
    assert keys(*cats) == {name: name[:-4] for name in cats}
    found = TarNames("a.tar", [*cats, "cat.0.json", "cat.json", "cat.0.npy"])
    assert found.text("cat.0.json") == ("cat.0", "json")


def test_several_images_and_none_is_the_one_is_asked_with_counts() -> None:
    names = [f"{i}.{end}" for i in range(30) for end in ("input.jpg", "seg.png", "json")]
    with pytest.raises(UserError, match=r"a.tar: .*'input.jpg' 30, 'seg.png' 30.*which one"):
        keys(*names)
    with pytest.raises(UserError, match=r"two images are called 0, so of 30 keys .*jpg and png"):
        keys(*[f"{i}.{end}" for i in range(30) for end in ("jpg", "png")])
    with pytest.raises(UserError, match="two images are called a"):
        keys("a.jpg", "a.jpg")


def tar(path: Path) -> Path:
    fields = json.dumps({"split": "train", "label": "x"}).encode()
    return pack(
        path, ("0.jpg", jpeg(0)), ("0.seg.png", jpeg(1)), ("0.json", fields), ("0.txt", b"zero"),
        ("__MACOSX/._0.jpg", b"\0"), ("._1.jpg", b"\0"), (".ipynb_checkpoints/1.jpg", jpeg(2)),
        ("._0.json", b"\0"),
    )  # fmt: skip


def test_embed_and_evaluate_take_the_same_members(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    tar(tmp_path / "00000.tar")
    (tmp_path / "._00000.tar").write_bytes(b"\0\5\x16\7")
    source = TarSource(tmp_path, captions=True)
    assert [path.name for path in source.tars] == ["00000.tar"]
    members = source.members(0)
    assert members.key.tolist() == [b"0"] and members.caption == ["zero"]
    assert "4 hidden members" in said.text and "1 images are left out as further" in said.text
    assert [key for key, *_ in labeled_members(tmp_path / "00000.tar")] == ["0"]
    dataset = Dataset(name="a", path=str(tmp_path), tasks=["knn"], label_field="label")
    assert [sample.label for sample in samples(dataset)] == ["x"]


def clutter(folder: Path) -> None:
    """One image, and what programs put beside it."""
    for name in (
        "a.jpg", ".ipynb_checkpoints/b.jpg", "._a.jpg", "__MACOSX/._cat.jpg", ".thumbnails/a.png",
        "@eaDir/a.jpg",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(0))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (folder / ".DS_Store").write_bytes(b"\0")


def test_class_folders_have_no_hidden_classes_or_images(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        clutter(tmp_path / split / "cat")
        (tmp_path / split / ".ipynb_checkpoints").mkdir()
        (tmp_path / split / ".ipynb_checkpoints/a.jpg").write_bytes(jpeg(0))
    dataset = Dataset(name="a", path=str(tmp_path), tasks=["knn"])
    before = layout.identity(dataset)
    found = [(sample.key, sample.label) for sample in samples(dataset)]
    assert found == [("train/cat/a.jpg", "cat"), ("test/cat/a.jpg", "cat")]
    assert "12 hidden class folders and images left out" in said.text
    # What a file browser leaves there makes nothing stale.
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"changed")
    assert layout.identity(dataset) == before


def test_encode_leaves_hidden_images_out(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    clutter(tmp_path / "set")
    found = list(image_folder.images([tmp_path / "set"], report=True))
    assert [one.key for one in found] == [b"a.jpg"]
    assert "5 hidden folders and images left out" in said.text
    # What is named is taken, and a hidden folder above says nothing.
    named = tmp_path / "set/.thumbnails"
    assert [one.key for one in image_folder.images([named])] == [b"a.png"]
