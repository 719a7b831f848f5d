"""The demo's pack: whole, public domain, its split honest; and the script that builds it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.builders import jpeg
from helpers.paths import ROOT
from mlcd.config import Config
from mlcd.data.decode import BadImage, decode
from mlcd.data.members import labeled_members
from mlcd.data.url_lists import plan
from mlcd.utils.files import sha256_file

DEMO = ROOT / "demo"
sys.path.insert(0, str(DEMO))

import build_pack  # noqa: E402
import split  # noqa: E402

TAR = DEMO / "openclipart.tar"


@pytest.fixture(scope="module")
def pack() -> list[tuple[str, bytes, dict]]:
    """All images of the pack: key, JPEG, fields."""
    return list(labeled_members(TAR))


@pytest.fixture(scope="module")
def lists() -> list[dict]:
    """All rows of both URL lists."""
    paths = sorted((DEMO / "metadata").glob("*.parquet"))
    assert len(paths) == 2
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


# The pack
def test_summary_equals_the_pack(pack):
    summary = json.loads((DEMO / "pack.json").read_text())
    assert summary["sha256"] == sha256_file(TAR)
    assert summary["images"] == len(pack) > 2800
    splits = Counter(fields["split"] for _, _, fields in pack)
    assert splits == {"train": summary["train"], "test": summary["test"]}
    found = Counter((fields["folder"], fields["split"]) for _, _, fields in pack)
    for folder, counts in summary["classes"].items():
        assert all(found[folder, part] == n for part, n in counts.items())
    assert sum(summary["left_out"].values()) + len(pack) == 6900
    assert 0.15 < splits["test"] / len(pack) < 0.2
    readme = (DEMO / "README.md").read_text()
    for number in (summary["images"], summary["train"], summary["test"], summary["groups"]):
        assert f"{number:,}" in readme


def test_tar_is_plain_sorted_and_the_same_for_everyone():
    with tarfile.open(TAR) as tar:
        members = tar.getmembers()
    keys = [member.name.split(".")[0] for member in members]
    assert keys == sorted(keys)
    assert keys[::2] == keys[1::2] and len(set(keys)) == len(keys) // 2
    assert all(key.isalnum() and key.isascii() for key in keys)
    for member in members:
        assert (member.uid, member.gid, member.mtime, member.uname) == (0, 0, 0, "")
        assert member.isfile() and not member.pax_headers


def test_every_image_decodes_and_every_field_is_there(pack):
    folders = {"train": Counter(), "test": Counter()}
    for key, data, fields in pack:
        image = decode(data, max_pixels=128 * 128)
        assert data[:2] == b"\xff\xd8" and build_pack._MIN_SIDE <= max(image.size) <= 128
        assert list(fields) == [
            "title", "description", "tags", "folder", "top", "split", "source",
        ]  # fmt: skip
        assert fields["title"] and fields["title"] == " ".join(fields["title"].split())
        assert fields["source"].startswith(f"{fields['folder']}/")
        assert fields["folder"].split("/")[0] == fields["top"]
        assert not fields["source"].startswith(build_pack.LEFT_OUT)
        assert key == hashlib.sha256(fields["source"].encode()).hexdigest()[:12]
        assert fields["tags"] == sorted(set(fields["tags"]))
        for tag in fields["tags"]:
            assert tag == tag.lower().strip() != "" and tag not in ("hash", "unsorted")
            assert not tag.startswith("hash(") and not tag.isdigit() and "_" not in tag
        folders[fields["split"]][fields["folder"]] += 1
    for folder, count in folders["test"].items():
        assert folders["train"][folder] >= max(8, 3 * count)
    assert len(folders["test"]) >= 50
    for folder, count in folders["train"].items():
        assert folders["test"][folder] > 0 or count < 60


def test_no_test_image_has_its_like_in_train(pack):
    """Titles and thumbnails are compared here without the code that made the groups."""
    parts = [fields["split"] for _, _, fields in pack]
    by_title: dict[str, set[str]] = {}
    by_pixels: dict[bytes, set[str]] = {}
    for (_, data, fields), part in zip(pack, parts, strict=True):
        letters = "".join(c if c.isalpha() else " " for c in fields["title"].lower())
        name = " ".join(letters.split())
        if name:
            by_title.setdefault(name, set()).add(part)
        pixels = hashlib.sha256(decode(data, max_pixels=1 << 20).tobytes()).digest()
        by_pixels.setdefault(pixels, set()).add(part)
    assert not [name for name, found in by_title.items() if len(found) > 1]
    assert not [pixels for pixels, found in by_pixels.items() if len(found) > 1]
    ink = np.stack(
        [
            255.0 - np.asarray(Image.open(io.BytesIO(data)).resize((16, 16), Image.Resampling.BOX))
            for _, data, _ in pack
        ]
    ).reshape(len(pack), -1)
    norms = np.sqrt((ink**2).sum(axis=1))
    test = np.array([part == "test" for part in parts])
    nearest = min(
        float(
            (np.sqrt(((ink[~test] - row) ** 2).sum(axis=1)) / np.minimum(norms[~test], norm)).min()
        )
        for row, norm in zip(ink[test], norms[test], strict=True)
    )
    assert nearest >= split.NEAR - 1e-6


def test_lists_hold_the_train_images_once_with_their_true_hashes(pack, lists):
    train = {key: data for key, data, fields in pack if fields["split"] == "train"}
    found = {}
    for row in lists:
        assert row["url"].startswith("http://127.0.0.1:18765/openclipart/")
        found[row["url"].rpartition("/")[2].removesuffix(".jpg")] = row
    assert len(found) == len(lists)
    assert found.keys() == train.keys()
    for key, data in train.items():
        assert found[key]["sha256"] == hashlib.sha256(data).hexdigest()
        assert found[key]["caption"].endswith(".")


def test_laptop_default_cuts_them_into_four_full_chunks(monkeypatch):
    monkeypatch.chdir(DEMO.parent)
    config = Config()
    assert config.prepare.hash_column == "sha256"
    chunks = plan(config.metadata, config.prepare.chunk_rows)
    assert len(chunks) == 4
    for path in config.metadata:
        assert pq.read_metadata(path).num_rows > 1.9 * config.prepare.chunk_rows


# The builder


def test_builder_on_a_small_tree_leaves_out_what_it_should(tmp_path, capsys):
    """A tree like the packages', with one case each; built twice to equal bytes."""

    def clip(name: str, image: Image.Image | bytes, license: str, title: str, tags: str) -> None:
        png = tmp_path / "root" / "png" / f"{name}.png"
        svg = tmp_path / "root" / "svg" / f"{name}.svg"
        for path in (png, svg):
            path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            png.write_bytes(image)
        else:
            image.save(png)
        items = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags.split(","))
        svg.write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" '
            'xmlns:dc="http://purl.org/dc/elements/1.1/" '
            'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>'
            f"<dc:title>{title}</dc:title><dc:description>a &amp; b</dc:description>"
            f"<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject><dc:creator><cc:Agent>"
            "<dc:title>Ann Author</dc:title></cc:Agent></dc:creator>"
            f'<cc:license rdf:resource="{license}"/></cc:Work></rdf:RDF></metadata></svg>'
        )

    def drawing(seed: int, page: int = 200) -> Image.Image:
        image = Image.new("RGBA", (page, page), (0, 0, 0, 0))
        image.paste(Image.open(io.BytesIO(jpeg(seed, side=64))), (10, 20))
        return image

    public = build_pack.PUBLIC_DOMAIN[0]
    for i in range(20):
        clip(
            f"animals/a{i}", drawing(i), public, f"Beast {'abcdefghijklmnopqrst'[i]}", "Animal,hash"
        )
    clip("animals/again", drawing(3), public, "Another title", "animal")
    clip(
        "animals/birds/owl_01", drawing(30), public, "Clipart by Ann - hen", "Ann Author,hash(0x8),"
    )
    clip("animals/empty", drawing(31), "", "No license", "x")
    clip("animals/gpl", drawing(32), "http://creativecommons.org/licenses/GPL/2.0/", "GPL", "x")
    clip("animals/blank", Image.new("RGB", (99, 99), "white"), public, "Blank", "x")
    clip("animals/tiny", Image.new("RGB", (9, 9), "black"), public, "Tiny", "x")
    clip("animals/huge", bomb(30_000, 30_000), public, "Bomb", "x")
    clip("animals/text", b"<html>", public, "Text", "x")
    clip("computer/icons/i", drawing(33), public, "Icon", "x")
    (tmp_path / "root/png/animals/link.png").symlink_to("a1.png")
    for name in ("one", "two"):
        build_pack.build(tmp_path / "root", tmp_path / name)
    summary = json.loads((tmp_path / "one" / "pack.json").read_text())
    assert summary["left_out"] == {
        "blank": 1, "duplicate": 1, "folder": 1, "license_empty": 1, "license_other": 1,
        "not_an_image": 1, "tiny": 1, "too_large": 1,
    }  # fmt: skip
    images = {f["source"]: (d, f) for _, d, f in labeled_members(tmp_path / "one/openclipart.tar")}
    assert len(images) == 21 and "animals/again" not in images
    data, owl = images["animals/birds/owl_01"]
    assert (owl["title"], owl["description"], owl["tags"]) == ("owl", "a & b", [])
    assert owl["split"] == "train"  # a folder of one
    assert Image.open(io.BytesIO(data)).size == (64, 64)  # the empty page is cut off
    assert images["animals/a0"][1]["tags"] == ["animal"]
    assert summary["classes"]["animals"] == {"train": 16, "test": 4}
    for name in ("openclipart.tar", "pack.json", "metadata/openclipart-a.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    capsys.readouterr()


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises width × height pixels and that has none."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_bomb_is_refused_by_its_header():
    with pytest.raises(BadImage, match="too_large"):
        build_pack.shrink(bomb(30_000, 30_000))


def test_groups_follow_titles_and_looks_over_several_steps():
    """a ~ b by title, b ~ c by looks: one group; the plain definition over all pairs agrees."""
    images = [jpeg(0), jpeg(1), jpeg(1), jpeg(2), jpeg(3)]
    names = [{"x"}, {"x"}, {"y"}, {"z"}, set()]
    entries = [{"jpeg": i, "names": n} for i, n in zip(images, names, strict=True)]
    assert split.group_near(entries) == [0, 0, 0, 3, 4]
    thumbs = np.stack([split.thumbnail(jpeg(seed)) for seed in (0, 1, 2)])
    thumbs = np.concatenate([thumbs, thumbs * 0.9, thumbs * 0.7])
    plain = [
        (i, j)
        for i in range(9)
        for j in range(i + 1, 9)
        if np.linalg.norm(thumbs[i] - thumbs[j])
        < split.NEAR * min(np.linalg.norm(thumbs[i]), np.linalg.norm(thumbs[j]))
    ]
    assert len(plain) >= 3
    assert split.near_pairs(thumbs) == plain


def test_captions_read_as_sentences():
    fields = {"title": "Pear.", "description": "", "tags": ["food", "fruit", "pear"]}
    assert build_pack.caption(fields) == "Pear. Clip art of food, fruit and pear."
    fields = {"title": "Pear", "description": "pear", "tags": []}
    assert build_pack.caption(fields) == "Pear. Clip art."
    fields = {"title": "Pear", "description": "A green one.", "tags": ["food"]}
    assert build_pack.caption(fields) == "Pear. A green one. Clip art of food."
