"""Images with masks and boxes: each kind as it lies on disk, and files of strangers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.scene_sets import png, scene, write_scenes
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import layout, samples, voc
from mlcd.data.labeled.scenes import IGNORED, scenes
from mlcd.utils.errors import UserError

PIXELS = 1 << 20


def dataset(path, tasks=("segmentation",), **keys) -> Dataset:
    return Dataset(name="x", path=str(path), tasks=list(tasks), **keys)


def read(path, **keys) -> list:
    chosen = dataset(path, **keys)
    layout.check(chosen)
    return list(scenes(chosen, samples.samples(chosen), PIXELS))


def test_composed_scenes(tmp_path):
    found = read(write_scenes(tmp_path / "s", 8), tasks=("segmentation", "regions", "knn"))
    assert [one.key for one in found] == [f"{n:05d}" for n in range(8)]
    _, mask, objects = scene(4)
    assert (found[4].mask == mask).all()
    assert found[4].split == "test"
    assert [one.name for one in found[4].objects] == [one["class"] for one in objects]
    assert found[4].objects[0].box == tuple(objects[0][k] for k in ("x0", "y0", "x1", "y1"))
    assert found[4].objects[1].number == objects[1]["class_id"]
    plain = list(samples.samples(dataset(tmp_path / "s")))
    assert plain[4].tags == sorted({one["class"] for one in objects})
    assert plain[4].label in plain[4].tags
    assert layout.identity(dataset(tmp_path / "s"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", "../../etc/passwd", "is no plain name of a file"),
        ("image", "00099", "'00099' is not in split.parquet"),
        ("x1", -5.0, "is empty; expected x0 < x1"),
        ("x1", float("nan"), "is empty; expected x0 < x1"),
    ],
)
def test_composed_scenes_of_strangers(tmp_path, column, value, message):
    folder = write_scenes(tmp_path / "s", 4)
    rows = pq.read_table(folder / "objects.parquet").to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows), folder / "objects.parquet")
    with pytest.raises(UserError, match=message):
        read(folder)


XML = """<annotation><filename>a.jpg</filename>
<object><name>dog</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
<bndbox><xmin>3</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object>
<object><name>zebra</name><bndbox><ymin>2</ymin><xmin>1</xmin><xmax>2</xmax><ymax>4</ymax></bndbox>
</object></annotation>"""


def write_voc(folder) -> None:
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for stem in ("a", "b"):
        Image.new("RGB", (9, 7)).save(folder / "JPEGImages" / f"{stem}.jpg")
        mask = Image.new("P", (9, 7), 12)
        mask.putpalette([7] * 768)
        mask.putpixel((0, 0), IGNORED)
        mask.save(folder / "SegmentationClass" / f"{stem}.png")
    (folder / "Annotations" / "a.xml").write_text(XML)
    (folder / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text("b\n")


def test_voc(tmp_path):
    write_voc(tmp_path)
    one, other = read(tmp_path, tasks=("segmentation", "regions"))
    assert (one.split, other.split) == ("train", "validation")
    assert [(o.name, o.box, o.number) for o in one.objects] == [
        ("dog", (2.0, 0.0, 8.0, 6.0), 12),
        ("zebra", (0.0, 1.0, 2.0, 4.0), -1),
    ]
    assert one.mask is not None
    assert one.mask[0, 0] == IGNORED
    assert one.mask[1, 1] == 12  # the index, not the color of the palette


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a [<!ENTITY e 'x'>]><annotation>&e;</annotation>",
        "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'><annotation/>",
        "<annotation><object><name>dog</name></object></annotation>",
        "<annotation>",
    ],
)
def test_annotations_of_strangers(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match="not an annotation of VOC"):
        voc.objects(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        voc.objects(tmp_path / "b.xml")


@pytest.mark.parametrize(
    ("kind", "folders", "expected"),
    [
        ("ade20k", ("training", "validation"), [IGNORED, 4]),
        ("coco_stuff", ("train2017", "val2017"), [0, 5]),
    ],
)
def test_pixel_maps(tmp_path, kind, folders, expected):
    for name in folders:
        for side in ("images", "annotations"):
            (tmp_path / side / name).mkdir(parents=True)
        Image.new("RGB", (2, 1)).save(tmp_path / "images" / name / "x.jpg")
        target = tmp_path / "annotations" / name / "x.png"
        target.write_bytes(png(np.array([[0, 5]], np.uint8)))
    assert layout.kind(dataset(tmp_path)) == kind
    found = read(tmp_path)
    assert [one.split for one in found] == ["train", "validation"]
    assert found[0].mask.tolist() == [expected]
    with pytest.raises(UserError, match=r"no boxes, which regions needs"):
        layout.check(dataset(tmp_path, tasks=["regions"]))
    with pytest.raises(UserError, match=r"have masks and no class"):
        layout.check(dataset(tmp_path, tasks=["segmentation", "knn"]))
    (tmp_path / "annotations" / folders[0] / "x.png").write_bytes(
        png(np.zeros((1, 2, 3), np.uint8))
    )
    with pytest.raises(UserError, match="of mode RGB; expected a PNG of 8 bits"):
        read(tmp_path)


def test_digits_have_the_ink_as_mask_and_box():
    found = next(iter(read("sklearn:digits", tasks=("segmentation", "regions"))))
    assert found.mask.shape == (8, 8)
    (only,) = found.objects
    assert set(np.unique(found.mask)) == {0, int(only.name) + 1}
    left, top, right, bottom = map(int, only.box)
    inside = np.zeros((8, 8), bool)
    inside[top:bottom, left:right] = True
    assert not found.mask[~inside].any()


def test_a_set_without_masks_is_refused_at_the_start(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no masks, which segmentation needs"):
        layout.check(dataset(tmp_path))
