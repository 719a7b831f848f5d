"""Labeled data sets of every kind: what is read, what identifies them, what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.builders import add_member, jpeg
from mlcd.cli import main
from mlcd.config import Config
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import layout
from mlcd.data.labeled.sample import judged
from mlcd.data.labeled.samples import samples
from mlcd.utils.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def idx_files(folder: str, train: int = 7, test: int = 3, ending: str = "") -> None:
    rng = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        packed = {
            f"{stem}-images-idx3-ubyte": struct.pack(">4I", 0x803, count, 5, 4) + images.tobytes(),
            f"{stem}-labels-idx1-ubyte": struct.pack(">2I", 0x801, count) + labels.tobytes(),
        }
        for name, data in packed.items():
            write(f"{folder}/{name}{ending}", gzip.compress(data) if ending else data)


def tar_of(path: str, members: dict[str, bytes]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            add_member(tar, name, data)


def found(**keys) -> list[tuple]:
    listed = samples(Dataset(name="set", **keys))
    return [(sample.key, sample.split, sample.label, sample.data) for sample in listed]


def test_class_folders():
    for path, seed in (("train/cat/1.jpg", 1), ("train/cat/deep/2.JPEG", 2), ("train/dog/3.png", 3),
                       ("val/dog/4.jpg", 4), ("test/cat/5.jpg", 5)):  # fmt: skip
        write(f"f/{path}", jpeg(seed))
    write("f/train/cat/notes.txt", b"no image")
    write("f/readme.md", b"no split")
    assert found(path="f") == [
        ("train/cat/1.jpg", "train", "cat", jpeg(1)),
        ("train/cat/deep/2.JPEG", "train", "cat", jpeg(2)),
        ("train/dog/3.png", "train", "dog", jpeg(3)),
        ("val/dog/4.jpg", "validation", "dog", jpeg(4)),
        ("test/cat/5.jpg", "test", "cat", jpeg(5)),
    ]


def test_linked_folders_of_a_class_are_read():
    write("f/train/cat/1.jpg", jpeg(1))
    write("more/2.jpg", jpeg(2))
    Path("f/train/cat/linked").symlink_to(Path("more").resolve())
    Path("f/train/cat/round").symlink_to(Path("f/train").resolve())
    keys = [key for key, *_ in found(path="f")]
    assert keys == ["train/cat/1.jpg", "train/cat/linked/2.jpg"]


def test_a_folder_of_tars_and_one_of_split_folders_with_tars():
    about = {"split": "valid", "kind": 7}
    tar_of("a/1.tar", {"x.jpg": jpeg(1), "x.json": json.dumps(about).encode()})
    tar_of("a/0.tar", {"y.jpg": jpeg(2), "y.json": json.dumps({**about, "split": "test"}).encode()})
    assert found(path="a", label_field="kind") == [
        ("0/y", "test", "7", jpeg(2)),
        ("1/x", "validation", "7", jpeg(1)),
    ]
    tar_of(
        "b/train/0.tar", {"s0.cls": b"12\n", "s0.jpg": jpeg(3), "s1.jpg": jpeg(4), "s1.cls": b"3"}
    )
    tar_of("b/test/0.tar", {"s0.jpg": jpeg(5), "s0.json": b'{"label": "cat"}'})
    assert found(path="b", label_field="label") == [
        ("train/0/s0", "train", "12", jpeg(3)),
        ("train/0/s1", "train", "3", jpeg(4)),
        ("test/0/s0", "test", "cat", jpeg(5)),
    ]


def test_parquets_with_bytes_paths_and_structs():
    write("p/images/1.jpg", jpeg(1))
    frame = pd.DataFrame(
        {
            "image": ["images/1.jpg", "images/1.jpg"],
            "kind": [3, 4],
            "words": [["b", "a"], []],
            "side": ["train", "query"],
        }
    )
    frame.to_parquet("p/all.parquet")
    keys = {"image_field": "image", "label_field": "kind", "tags_field": "words",
            "split_field": "side"}  # fmt: skip
    first, second = samples(Dataset(name="set", path="p/all.parquet", **keys))
    assert (first.split, first.label, first.tags, first.data) == ("train", "3", ["a", "b"], jpeg(1))
    assert (second.split, second.label, second.tags) == ("query", "4", [])
    # As data set hubs store them: a file per split, the image a struct.
    for name, seed in (("train-00000-of-00001", 5), ("validation-00000-of-00001", 6)):
        structs = [{"bytes": jpeg(seed), "path": "x.jpg"}]
        pd.DataFrame({"image": structs, "label": [seed]}).to_parquet(f"{name}.parquet")
    Path("hub").mkdir()
    for path in Path().glob("*-00000-of-00001.parquet"):
        shutil.move(path, "hub")
    assert found(path="hub", label_field="label") == [
        ("train-00000-of-00001/00000000", "train", "5", jpeg(5)),
        ("validation-00000-of-00001/00000000", "validation", "6", jpeg(6)),
    ]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files(ending):
    idx_files("m", ending=ending)
    listed = found(path="m")
    assert [row[1] for row in listed] == ["train"] * 7 + ["test"] * 3
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    labels = rng.integers(0, 10, 7, dtype=np.uint8)
    assert listed[2][2] == str(labels[2])
    assert np.array_equal(np.array(Image.open(io.BytesIO(listed[2][3]))), images[2])


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    listed = samples(Dataset(name="fashion_mnist"))
    first = next(listed)
    assert (first.split, first.label) == ("train", "9")  # an ankle boot
    assert Image.open(io.BytesIO(first.data)).size == (28, 28)


def test_digits_are_judged_from_pixels_to_summary(place):
    config = {"datasets": [{"name": "digits"}], "models": ["pixels"], "pixel_side": 8}
    config |= {"knn_k": [10], "probe_c_min": 1e-4, "probe_c_max": 1}
    command = ["--threads", "1", "--output", "out", "--config", json.dumps(config)]
    assert main(["evaluate", *command]) == 0
    scores = json.loads(Path("out/pixels.json").read_text())["datasets"]["digits"]
    assert scores["images"] == {"train": 1297, "validation": 0, "test": 500, "failed": {}}
    assert scores["scores"]["knn_10"] > 0.93
    assert scores["scores"]["linear_probe"] > 0.88
    assert set(scores["scores"]) == {"knn_10", "linear_probe"}


def test_identity_is_of_content_and_not_of_times_or_place():
    for number in range(3):
        write(f"f/train/a/{number}.jpg", jpeg(number))
    tar_of("t.tar", {"x.jpg": jpeg(1), "x.json": b"{}"})
    sets = [Dataset(name="set", path=path) for path in ("f", "t.tar", "sklearn:digits")]
    before = [layout.identity(one) for one in sets]
    assert len(set(before)) == 3
    shutil.copytree("f", "g")
    for path in Path("g").rglob("*"):
        os.utime(path, (1, 1))
    assert layout.identity(Dataset(name="set", path="g")) == before[0]
    seen = {before[0]}
    changed = bytearray(jpeg(2))
    changed[-9] ^= 1
    for change in (lambda: write("g/train/a/2.jpg", bytes(changed)),
                   lambda: Path("g/train/a/2.jpg").rename("g/train/a/3.jpg"),
                   lambda: write("g/train/b/1.jpg", jpeg(1))):  # fmt: skip
        change()
        seen.add(layout.identity(Dataset(name="set", path="g")))
    assert len(seen) == 4


def test_the_registry_fills_in_what_is_left_out():
    values = [{"name": "fgvc_aircraft", "path": "a"}, {"name": "voc2007", "path": "b"},
              {"name": "digits"}, {"name": "mine", "path": "c"}]  # fmt: skip
    values.append({"name": "food101", "path": "d", "metric": "mean_top1_top5", "label_field": "k"})
    aircraft, voc, digits, mine, food = Config(evaluate={"datasets": values}).evaluate.datasets
    assert (aircraft.metric, aircraft.class_metric, aircraft.label_field) == (
        *("mean_per_class", "mean_per_class", "label"),
    )
    assert (voc.tag_metric, voc.tags_field, voc.label_field) == ("map_11_point", "tags", None)
    assert digits.path == layout.DIGITS
    assert (mine.metric, mine.class_metric, mine.label_field) == (None, "accuracy", None)
    assert (food.metric, food.label_field) == ("mean_top1_top5", "k")


def damaged(folder: str) -> None:
    idx_files(folder)
    path = Path(folder, "train-images-idx3-ubyte")
    path.write_bytes(path.read_bytes()[:-1])


def unequal(folder: str) -> None:
    idx_files(folder)
    shutil.copy(f"{folder}/t10k-labels-idx1-ubyte", f"{folder}/train-labels-idx1-ubyte")


def lying(folder: str) -> None:
    idx_files(folder)
    head = struct.pack(">4I", 0x803, 1 << 30, 1 << 30, 1 << 30)
    Path(folder, "train-images-idx3-ubyte").write_bytes(head)


def parquet(**columns) -> None:
    pd.DataFrame(columns).to_parquet("x.parquet")


def damaged_page() -> None:
    parquet(split=["test"] * 99, image=[jpeg(seed) for seed in range(99)])
    data = bytearray(Path("x.parquet").read_bytes())
    data[4:300] = bytes(296)
    Path("x.parquet").write_bytes(data)


@pytest.mark.parametrize(
    ("prepare", "keys", "message"),
    [
        (lambda: None, {"name": "food101"}, "food101: x: no such file or folder; get it from"),
        (lambda: None, {}, "set: x: no such file or folder; give a path that exists"),
        (lambda: None, {"path": "sklearn:iris"}, "scikit-learn's only set here is sklearn:digits"),
        (lambda: write("x/a.txt", b""), {}, "x: holds neither split folders"),
        (lambda: write("x/train/a.jpg", b""), {}, "x/train: holds no class folders"),
        (lambda: [write(f"x/{side}/c/a.jpg", b"") for side in ("val", "dev")], {}, "of the two"),
        (lambda: [write("x/train/c/a.jpg", b""), tar_of("x/test/0.tar", {})], {}, "give one kind"),
        (lambda: write("x/train-images-idx3-ubyte", b""), {}, "not a whole idx3 file"),
        (lambda: damaged("x"), {}, "train-images-idx3-ubyte: not a whole idx3 file"),
        (lambda: lying("x"), {}, "train-images-idx3-ubyte: not a whole idx3 file"),
        (lambda: unequal("x"), {}, "7 images and 3 labels in train-labels-idx1-ubyte"),
        (lambda: write("x.parquet", b"PAR1"), {"path": "x.parquet"}, "not a whole parquet"),
        (lambda: parquet(image=[b""]), {"path": "x.parquet"}, "has no column 'split'"),
        (lambda: parquet(split=["test"]), {"path": "x.parquet"}, "image_field names it, of split"),
        (lambda: parquet(split=["test"], image=["../y"]), {"path": "x.parquet"}, "is not below"),
        (lambda: parquet(split=["test"], image=["y"]), {"path": "x.parquet"}, "'y': No such file"),
        (lambda: parquet(split=["test"], image=[3]), {"path": "x.parquet"}, "its image is int"),
        (lambda: parquet(split=["test"], image=["a\0b"]), {"path": "x.parquet"}, "is no path"),
        (lambda: damaged_page(), {"path": "x.parquet"}, "x.parquet: damaged ("),
        (lambda: parquet(split=["out"], image=[b""]), {"path": "x.parquet"}, "'split' is 'out'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(prepare, keys, message):
    prepare()
    dataset = Dataset(**{"name": "set", "path": "x"} | keys)
    with pytest.raises(UserError) as refused:
        list(samples(dataset))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_negative_labels_are_none():
    parquet(split=["train", "test"], image=[jpeg(1)] * 2, kind=[3, -1])
    assert [row[2] for row in found(path="x.parquet", label_field="kind")] == ["3", None]


def test_validation_is_test_where_no_test_image_has_a_label():
    splits = np.array(["train", "validation", "test", "test"])
    known = np.array([True, True, False, False])
    assert judged(splits, known).tolist() == ["train", "test", "none", "none"]
    assert judged(splits[:2], known[:2]).tolist() == ["train", "test"]
    # One label is enough, and where nothing is labeled (captions) the test images stay.
    for other in (np.array([True, True, False, True]), np.zeros(4, bool)):
        assert judged(splits, other).tolist() == splits.tolist()
