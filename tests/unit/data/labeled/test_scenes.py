"""Images with masks and boxes: each kind as it lies on disk, and files of strangers."""

from __future__ import annotations

import zlib

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
        ("x0", None, "x0 is None; expected a number"),
        ("visible", None, "visible is None; expected a number"),
        ("visible", float("nan"), "visible is nan; expected a share from 0 to 1"),
        ("class", None, "class is None; expected a word"),
        ("class_id", None, "class_id is None; expected a number"),
        ("class_id", 0, "class_id is 0; expected the class's value in masks"),
        ("class_id", 255, "a whole number from 1 to 254"),
        ("class_id", 9, "class 'red' has class_id 9 and 1; give it one"),
    ],
)
def test_composed_scenes_of_strangers(tmp_path, column, value, message):
    folder = write_scenes(tmp_path / "s", 4)
    rows = pq.read_table(folder / "objects.parquet").to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows), folder / "objects.parquet")
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize("tasks", [("segmentation",), ("knn",)])
def test_an_image_of_two_splits_is_refused(tmp_path, tasks):
    folder = write_scenes(tmp_path / "s", 4)
    rows = pq.read_table(folder / "split.parquet").to_pylist()
    rows.append({"image": "00002", "split": "test"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "split.parquet")
    with pytest.raises(UserError, match=r"split.parquet: image '00002' is there 2 times"):
        list(samples.samples(dataset(folder, tasks)))
    with pytest.raises(UserError, match=r"split.parquet: image '00002' is there 2 times"):
        read(folder, tasks=tasks)


@pytest.mark.parametrize(("bits", "most"), [(1, 2), (2, 4), (4, 16), (8, 256)])
@pytest.mark.parametrize("color", [0, 3])
def test_masks_of_fewer_bits_have_the_same_classes(tmp_path, bits, most, color):
    """As programs that make PNGs smaller write them: gray (0) and palettes (3), by hand."""
    width = min(most, 16)
    row = (np.arange(width) * (most // width)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]).tobytes()

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + checksum

    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([bits, color, 0, 0, 0])
    palette = chunk(b"PLTE", bytes(range(255, -1, -1))[:most] * 3) if color else b""
    (tmp_path / "mask.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
        + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    )  # fmt: skip
    assert voc.mask(tmp_path / "mask.png", PIXELS).tolist() == [row.tolist()]


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


def test_voc_without_masks_has_all_its_images_and_difficult_objects_do_not_count(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "ImageSets/Main").mkdir()
    for name, stems in (("train", "a\nc\n"), ("val", "b\n"), ("test", "d\n")):
        (tmp_path / f"ImageSets/Main/{name}.txt").write_text(stems)
    for stem in ("c", "d"):
        Image.new("RGB", (9, 7)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
    hard = XML.replace("<name>zebra</name>", "<name>zebra</name><difficult>1</difficult>")
    (tmp_path / "Annotations/a.xml").write_text(hard)
    for tasks in (("regions",), ("knn",)):
        found = read(tmp_path, tasks=tasks)
        assert [(one.key, one.split) for one in found] == [
            ("a", "train"), ("c", "train"), ("b", "validation"), ("d", "test"),
        ]  # fmt: skip
        assert [one.visible for one in found[0].objects] == [1.0, 0.0]
        assert next(samples.samples(dataset(tmp_path, tasks))).tags == ["dog"]
    assert [one.key for one in read(tmp_path, tasks=("regions", "segmentation"))] == ["a", "b"]
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"ImageSets: image 'a' is there 2 times"):
        read(tmp_path, tasks=("regions",))


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


def test_pixel_maps_take_every_ending_and_no_hidden_file(tmp_path):
    for name in ("training", "validation"):
        for side in ("images", "annotations"):
            (tmp_path / side / name).mkdir(parents=True)
        for number, ending in enumerate(("jpg", "JPG", "JPEG", "png")):
            path = tmp_path / "images" / name / f"{number}.{ending}"
            Image.new("RGB", (2, 1)).save(path)
            Image.new("L", (2, 1)).save(tmp_path / "annotations" / name / f"{number}.png")
        (tmp_path / "images" / name / "._0.jpg").write_bytes(b"a Mac's")
    assert len(read(tmp_path)) == 8
    Image.new("RGB", (2, 1)).save(tmp_path / "images/training/0.png")
    with pytest.raises(UserError, match=r"images/training: image '0' is there 2 times"):
        read(tmp_path)


def test_links_to_nothing_and_rings_of_links_end(tmp_path):
    (tmp_path / "set/train/a").mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(tmp_path / "set/train/a/x.png")
    (tmp_path / "set/test").symlink_to("train")
    before = layout.identity(dataset(tmp_path / "set", ["knn"]))
    (tmp_path / "set/train/a/z.jpg").symlink_to("/nonexistent")
    for name in ("self", "again"):
        (tmp_path / "set/train/a" / name).symlink_to("..")
    assert layout.identity(dataset(tmp_path / "set", ["knn"])) == before
    Image.new("RGB", (2, 1)).save(tmp_path / "set/train/a/y.png")
    assert layout.identity(dataset(tmp_path / "set", ["knn"])) != before
    read(tmp_path / "set", tasks=["knn"])


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
