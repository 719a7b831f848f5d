"""Images on disk as entries of metadata: what counts, what is listed once, what makes it anew."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.builders import jpeg
from helpers.local_images import archive, hugging_face, in_memory, listed, webdataset
from helpers.url_lists import parquet, urls
from mlcd.config import Prepare
from mlcd.data import listing, listing_table
from mlcd.data.sources import plan, split
from mlcd.utils.errors import UserError

IMAGE = jpeg(0)


def write(folder: Path, *names: str) -> Path:
    """Write small files called so; some time ago, so that the folders' times are settled."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    past = time.time() - 60
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            os.utime(path, (past, past))


def names(kept: listing.Kept) -> list[str]:
    return [os.fsdecode(row.path) for row in listing_table.rows(kept.path)]


def test_images_count_at_any_depth_by_their_endings_in_one_order(tmp_path, caplog):
    photos = write(
        tmp_path / "photos", "b/2.jpg", "b/10.PNG", "a/x/y.webp", "a.tif", "z.jpeg", "notes.md",
        "._a.jpg", "__MACOSX/a.jpg", ".thumbnails/b.jpg", "b/mask.npy",
    )  # fmt: skip
    os.mkfifo(photos / "pipe.jpg")
    kept = listed(photos, tmp_path)
    assert names(kept) == ["a.tif", "z.jpeg", "a/x/y.webp", "b/10.PNG", "b/2.jpg"]
    assert kept.images == 5 and kept.path.stem == "photos"
    assert "3 hidden files and folders" in caplog.text and "1 pipes" in caplog.text


def test_a_folder_holds_tars_zips_and_parquets_beside_loose_images(tmp_path):
    folder = tmp_path / "mix"
    webdataset(folder / "00000.tar", {"1": IMAGE, "2": IMAGE}, {"1": "", "2": ""})
    archive(folder / "b.zip", {"x/1": IMAGE, "__MACOSX/x": IMAGE, "x/.2": IMAGE, "x/2": IMAGE})
    hugging_face(folder / "c.parquet", [{"bytes": IMAGE, "path": None}] * 3)
    parquet(folder / "list.parquet", {"url": urls(4)})
    write(folder, "d.jpg")
    kept = listed(folder, tmp_path)
    found = [(os.fsdecode(row.path), row.kind, row.first, row.images) for row in
             listing_table.rows(kept.path)]  # fmt: skip
    assert found == [
        ("00000.tar", "tar", 0, 2), ("b.zip", "zip", 2, 2), ("c.parquet", "parquet", 4, 3),
        ("d.jpg", "image", 7, 1),
    ]  # fmt: skip
    # What holds several images is there for each run of places that it reaches into.
    assert [row.kind for row in listing_table.rows(kept.path, 1, 5)] == ["tar", "zip", "parquet"]
    assert [row.kind for row in listing_table.rows(kept.path, 7, 9)] == ["image"]


def test_chunks_are_cut_by_rows_beside_those_of_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "My scans [2024]", *(f"{i}.jpg" for i in range(5)))
    (tmp_path / "old").mkdir()
    for name in ("t0.tar", "t1.tar"):
        (tmp_path / "old" / name).write_bytes(in_memory({"a.jpg": IMAGE, "b.png": IMAGE}))
        # A pattern is named after the folder, also while one file matches it.
        assert [source.name for source in split(["old/*.tar"], Prepare())[1]] == ["old"]
    parquet(tmp_path / "list.parquet", {"url": urls(3)})
    section = Prepare(chunk_rows=2, caption_column=None, hash_column=None)
    chunks = plan(["My scans [2024]", "list.parquet", "old/*.tar"], section, "results/listings")
    assert {name: chunk.rows for name, chunk in chunks.items()} == {
        "list-00000": 2, "list-00001": 1, "My_scans_2024_-00000": 2, "My_scans_2024_-00001": 2,
        "My_scans_2024_-00002": 1, "old-00000": 2, "old-00001": 2,
    }  # fmt: skip
    assert len({chunk.identity for chunk in chunks.values()}) == 6  # lists have none here


def test_a_listing_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    photos = write(tmp_path / "photos", *(f"{k}/{i}.jpg" for k in "ab" for i in range(4)))
    first = listed(photos, tmp_path, chunk_rows=4)
    written = first.path.read_bytes()

    def no_walk(*_: object, **__: object) -> None:
        raise AssertionError("listed again")

    with monkeypatch.context() as patch:
        patch.setattr(listing, "Walk", no_walk)
        assert listed(photos, tmp_path, chunk_rows=4) == first
        halves = listed(photos, tmp_path, chunk_rows=2)
        assert len(halves.identities) == 4 and halves.images == 8
        assert listed(photos, tmp_path, chunk_rows=4) == first
        with pytest.raises(AssertionError, match="listed again"):
            listed(photos, tmp_path, chunk_rows=4, check="files")
        (photos / "b" / "9.jpg").write_bytes(IMAGE)
        assert listed(photos, tmp_path, chunk_rows=4, check="never") == first
        with pytest.raises(AssertionError, match="listed again"):
            listed(photos, tmp_path, chunk_rows=4)
    more = listed(photos, tmp_path, chunk_rows=4)
    assert more.images == 9 and more.identities[:2] == first.identities
    # The same content in another place and at another time: the same chunks.
    (photos / "b" / "9.jpg").unlink()
    assert listed(photos, tmp_path, chunk_rows=4).identities == first.identities
    assert first.path.read_bytes() == written


def test_another_size_or_content_of_a_tar_is_another_chunk(tmp_path):
    photos = write(tmp_path / "photos", "a.jpg", "b.jpg")
    (photos / "c.tar").write_bytes(in_memory({"a.jpg": IMAGE}))
    before = listed(photos, tmp_path, chunk_rows=1)
    (photos / "b.jpg").write_bytes(IMAGE + b"\0")
    # Only its time tells that a file was written where it was: it is asked for.
    after = listed(photos, tmp_path, chunk_rows=1, check="files")
    assert [a == b for a, b in zip(before.identities, after.identities, strict=True)] == [
        True, False, True,
    ]  # fmt: skip
    other = jpeg(1)
    assert len(in_memory({"a.jpg": other})) == (photos / "c.tar").stat().st_size
    (photos / "c.tar").write_bytes(in_memory({"a.jpg": other}))
    last = listed(photos, tmp_path, chunk_rows=1)
    assert last.identities[:2] == after.identities[:2] and last.identities[2] != after.identities[2]


def test_links_count_inside_and_wherever_they_lead_if_asked(tmp_path, caplog):
    elsewhere = write(tmp_path / "elsewhere", "secret.jpg", "deep/other.jpg")
    photos = write(tmp_path / "photos", "real.jpg")
    (photos / "a.jpg").symlink_to("real.jpg")
    (photos / "b.jpg").symlink_to(elsewhere / "secret.jpg")
    (photos / "c.jpg").symlink_to("nothing.jpg")
    (photos / "real.txt").symlink_to(elsewhere / "secret.jpg")
    (photos / "folder").symlink_to(elsewhere)
    (photos / "ring").symlink_to(photos)
    (photos / "loop").symlink_to(photos / "loop")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    found = {
        os.fsdecode(row.path): row for row in listing_table.rows(listed(photos, tmp_path).path)
    }
    assert {name: row.reason for name, row in found.items()} == {
        "a.jpg": "", "b.jpg": "link_outside", "c.jpg": "missing", "loop.jpg": "missing",
        "real.jpg": "",
    }  # fmt: skip
    assert found["real.jpg"].texts == ""  # no caption from elsewhere either
    assert "2 links to folders (prepare.links)" in caplog.text
    # What is named itself is meant.
    (tmp_path / "t.tar").write_bytes(in_memory({"a.jpg": IMAGE}))
    (photos / "t.tar").symlink_to(tmp_path / "t.tar")
    assert listed(photos / "t.tar", tmp_path).images == 1
    (photos / "t.tar").unlink()
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "a").symlink_to(elsewhere)
    assert "1 links to folders, which are not" in refusal([str(tmp_path / "classes")], tmp_path)
    followed = {os.fsdecode(row.path): row for row in
                listing_table.rows(listed(photos, tmp_path, links="follow").path)}  # fmt: skip
    assert followed["b.jpg"].reason == "" and followed["real.jpg"].texts == "txt"
    assert set(followed) - set(found) == {"folder/deep/other.jpg", "folder/secret.jpg"}


def test_results_among_the_images_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.jpg", "results/report/b.png")
    kept = listed(".", tmp_path / "results")
    assert names(kept) == ["a.jpg"] and kept.path.parent == tmp_path / "results" / "listings"


def refusal(metadata: list[str], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        plan(metadata, Prepare(), folder / "listings")
    return str(caught.value)


def test_what_cannot_be_used_is_named_before_any_work(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty: no images in it" in refusal([str(empty)], tmp_path)
    assert "lists/*.parquet" in refusal([str(empty)], tmp_path)
    assert "no such file" in refusal([str(tmp_path / "none.tar")], tmp_path)
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(in_memory({"a.jpg": IMAGE})))
    assert "unpack it to a plain .tar" in refusal([str(packed)], tmp_path)
    packed.rename(tmp_path / "b.tar")
    assert "it is compressed" in refusal([str(tmp_path / "b.tar")], tmp_path)
    (tmp_path / "c.tar").write_bytes(in_memory({"a.jpg": IMAGE})[:900])
    assert "c.tar: not a whole tar" in refusal([str(tmp_path / "c.tar")], tmp_path)
    (tmp_path / "d.zip").write_bytes(b"PK\3\4 no zip")
    assert "d.zip: not a whole zip" in refusal([str(tmp_path / "d.zip")], tmp_path)
    with tarfile.open(tmp_path / "e.tar", "w"):
        pass
    assert "e.tar: no images in it" in refusal([str(tmp_path / "e.tar")], tmp_path)
    for name in ("x/train", "y/train"):
        write(tmp_path / name, "a.jpg")
    told = refusal([str(tmp_path / "x/train"), str(tmp_path / "y/train")], tmp_path)
    assert "train too; rename one" in told
    (tmp_path / "listings" / "train.parquet").parent.mkdir(exist_ok=True)
    (tmp_path / "listings" / "train.parquet").write_bytes(b"mine")
    assert "was not written by mlcd" in refusal([str(tmp_path / "x/train")], tmp_path)


def test_the_column_of_images_is_found(tmp_path):
    values = [{"bytes": IMAGE, "path": None}]
    hugging_face(tmp_path / "a.parquet", values, "img")
    parquet(tmp_path / "b.parquet", {"jpg": [IMAGE], "text": ["a"]})
    parquet(tmp_path / "c.parquet", {"url": urls(1), "image": [IMAGE]})
    parquet(tmp_path / "d.parquet", {"url": urls(1), "image": ["a name"]})
    paths = [str(tmp_path / f"{name}.parquet") for name in "abcd"]
    lists, sources = split(paths, Prepare())
    assert lists == [paths[1], paths[3]] and [source.name for source in sources] == ["a", "c"]
    assert split(paths, Prepare(image_column="jpg"))[0] == paths[2:]


def test_tables_are_light_to_ask_for_a_part(tmp_path, monkeypatch):
    """Of a long listing, jobs read the row groups that they need."""
    monkeypatch.setattr(listing_table, "_GROUP_ROWS", 10)
    kept = listed(write(tmp_path / "many", *(f"{i:03d}.jpg" for i in range(35))), tmp_path)
    assert pq.read_metadata(kept.path).num_row_groups == 4
    read = []
    original = pq.ParquetFile.read_row_group

    def counted(self, index, *rest, **options):
        read.append(index)
        return original(self, index, *rest, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert [row.first for row in listing_table.rows(kept.path, 12, 20)] == list(range(12, 20))
    assert read == [1]
    read.clear()
    assert [row.first for row in listing_table.rows(kept.path, 19, 21)] == [19, 20]
    assert read == [1, 2]


def test_a_count_that_img2dataset_did_not_keep_is_found(tmp_path):
    from helpers.local_images import chunk

    tar = tmp_path / "t" / "00000.tar"
    webdataset(tar, {"1": IMAGE, "2": IMAGE}, {"1": "", "2": ""})
    tar.with_name("00000_stats.json").write_text(json.dumps({"successes": 5}))
    with pytest.raises(UserError, match=r"holds 2 images, .* 5 \(as 00000_stats.json says"):
        chunk(tar.parent, tmp_path)
