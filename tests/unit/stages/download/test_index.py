"""Images on disk indexed where they are: every kind of place, hostile input, changes, a kill."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.builders import add_member, jpeg, png_header
from helpers.local_images import (
    archive,
    chunk,
    class_folders,
    hugging_face,
    in_memory,
    indexed,
    webdataset,
)
from mlcd.config import Embed
from mlcd.data import pointers
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import MANIFEST, TABLE, ImageStore
from mlcd.data.pointers import Pointer
from mlcd.stages.download import index as index_module
from mlcd.stages.embed.chunk import embed
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file

ODD = os.fsdecode(b"new\nline \xff.jpg")


def bytes_of(store: ImageStore, row: Any) -> bytes:
    """Return the bytes of an image by its row of the table."""
    digest = int(row["sha256"][:16], 16)
    return store.read(int(row["tar"]), int(row["offset"]), int(row["size"]), digest)


def thin() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 400)).save(buffer, "PNG")
    return buffer.getvalue()


def sparse(tar: tarfile.TarFile) -> None:
    """Append a member of GNU's old sparse kind, whose bytes do not lie in one piece."""
    info = tarfile.TarInfo("holes.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    tar.addfile(info)


def lying_zip(path: Path) -> None:
    """Write members that lead out of a folder, are encrypted or rare, or say a false size."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("../../../tmp/out.jpg", jpeg(7))
        made.writestr("secret.jpg", jpeg(8))
        made.writestr("packed.jpg", jpeg(9), zipfile.ZIP_BZIP2)
        made.writestr("bomb.png", bytes(90_000), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    places = [place for place in range(start, len(data)) if data.startswith(b"PK\1\2", place)]
    data[places[1] + 8] |= 1  # encrypted
    data[places[3] + 24 : places[3] + 28] = (500).to_bytes(4, "little")  # unpacked it has 90,000
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageStore]:
    """A folder with everything good and bad in it, indexed."""
    base = tmp_path_factory.mktemp("mixed")
    folder = base / "images"
    class_folders(folder / "a", {f"l{i}": jpeg(i) for i in range(3)})
    (folder / "a" / "class 0" / "l0.txt").write_text(" beside it \n")
    (folder / "a" / "class 1" / "l1.json").write_text('{"caption": ["first", "second"]}')
    (folder / "a" / "class 0" / "l2.json").write_text("[" * 100_000)
    tarred = {str(i): jpeg(10 + i) for i in range(3)}
    webdataset(folder / "b" / "00000.tar", tarred, {name: f"tar {name}" for name in tarred})
    archive(folder / "c.zip", {f"z/{i}": jpeg(20 + i) for i in range(4)})
    values = [{"bytes": jpeg(30), "path": "x.jpg"}, {"bytes": None, "path": "../e/bad/good.jpg"}]
    values += [{"bytes": None, "path": None}, {"bytes": None, "path": "below.jpg"}]
    values += [{"bytes": b"", "path": None}, {"bytes": png_header(60_000, 60_000), "path": ""}]
    hugging_face(folder / "d" / "p.parquet", [*values, None])
    (folder / "d" / "below.jpg").write_bytes(jpeg(31))
    bad = folder / "e" / "bad"
    bad.mkdir(parents=True)
    (bad / "good.jpg").write_bytes(jpeg(40))
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.jpg").write_text("root:x:0:0")
    (bad / "cut.jpg").write_bytes(jpeg(41)[:-200])
    (bad / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (bad / "large.jpg").write_bytes(jpeg(42) + bytes(100_000))
    (bad / "thin.png").write_bytes(thin())
    (bad / ODD).write_bytes(jpeg(43))
    (bad / "out.jpg").symlink_to("/etc/passwd")
    lying_zip(folder / "f.zip")
    with tarfile.open(folder / "g.tar", "w") as tar:
        add_member(tar, "../../up.jpg", jpeg(50))
        add_member(tar, "/etc/abs.jpg", jpeg(51))
        sparse(tar)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    store = indexed(chunk(folder, base), base / "images-of" / "c-00000", max_bytes=100_000)
    return folder, store


EXPECTED = {
    "c.zip#z/0.jpg": 20, "c.zip#z/1.jpg": 21, "c.zip#z/2.jpg": 22, "c.zip#z/3.jpg": 23,
    "f.zip#../../../tmp/out.jpg": 7, "f.zip#secret.jpg": "encrypted",
    "f.zip#packed.jpg": "unreadable", "f.zip#bomb.png": "damaged",
    "g.tar#../../up.jpg": 50, "g.tar#/etc/abs.jpg": 51, "g.tar#holes.jpg": "unreadable",
    "a/class 0/l0.JPEG": 0, "a/class 0/l2.JPEG": 2, "a/class 1/l1.JPEG": 1,
    "b/00000.tar#0.jpg": 10, "b/00000.tar#1.jpg": 11, "b/00000.tar#2.jpg": 12,
    "d/below.jpg": 31, "d/p.parquet#0": 30, "d/p.parquet#1": "link_outside",
    "d/p.parquet#2": "empty", "d/p.parquet#3": 31, "d/p.parquet#4": "empty",
    "d/p.parquet#5": "too_large", "d/p.parquet#6": "empty",
    "e/bad/bomb.png": "too_large", "e/bad/cut.jpg": "damaged", "e/bad/empty.jpg": "empty",
    "e/bad/good.jpg": 40, "e/bad/large.jpg": "too_large",
    "e/bad/new\nline \\xff.jpg": 43, "e/bad/out.jpg": "link_outside",
    "e/bad/text.jpg": "not_an_image", "e/bad/thin.png": "thin",
}  # fmt: skip


def test_every_image_is_a_row_with_its_bytes_or_a_reason(mixed):
    _, store = mixed
    table = store.table()
    assert list(table.url) == list(EXPECTED)
    assert list(table.key) == [f"{row:09d}" for row in range(len(table))]
    for row, wanted in zip(table.to_dict("records"), EXPECTED.values(), strict=True):
        if isinstance(wanted, str) and wanted != "thin":
            assert (row["status"], row["reason"], row["tar"]) == ("failed", wanted, -1), row
            continue
        data = thin() if wanted == "thin" else jpeg(wanted)
        assert row["status"] == "success" and row["reason"] == "", row
        assert bytes_of(store, row) == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert (row["width"], row["height"]) == ((2, 400) if wanted == "thin" else (48, 48))
    counts = dict(store.manifest["counts"])
    assert counts.pop("success") == (table.status == "success").sum()
    assert counts == table.reason[table.reason != ""].value_counts().to_dict()
    assert not Path("/tmp/out.jpg").exists()


def test_captions_and_class_folders_are_kept(mixed):
    table = mixed[1].table().set_index("url")
    assert dict(table.caption[table.caption != ""]) == {
        "a/class 0/l0.JPEG": "beside it", "a/class 1/l1.JPEG": "first",
        **{f"b/00000.tar#{i}.jpg": f"tar {i}" for i in range(3)},
        **{f"d/p.parquet#{i}": f"row {i}" for i in range(7)},
    }  # fmt: skip
    assert table["class"]["a/class 0/l0.JPEG"] == "class 0"
    assert table["class"]["c.zip#z/0.jpg"] == "z" and table["class"]["b/00000.tar#0.jpg"] == ""


def test_bytes_are_copied_only_where_no_place_can_be_read(mixed):
    _, store = mixed
    kinds = [path.suffix for path in store.tars]
    table = store.table()
    with_parquet = set(table[table.url.str.contains("parquet")].index // 4)
    assert kinds == [".tar" if block in with_parquet else ".index" for block in range(len(kinds))]
    folder = sorted(path.name for path in store.folder.iterdir())
    assert folder == sorted([MANIFEST, TABLE, *(path.name for path in store.tars)])


def test_embeddings_of_an_index_are_those_of_a_tar(mixed, tmp_path):
    """One reader for both: the same images, copied, give the same bytes."""
    _, store = mixed
    section = Embed(image_size=32, batch_size=4, max_failed=0)
    embed(store.folder, tmp_path / "index.h5", section)
    found = Embeddings(tmp_path / "index.h5")
    assert found.n == store.manifest["counts"]["success"]
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "00000.tar").write_bytes(in_memory({f"{i}.jpg": jpeg(20 + i) for i in range(4)}))
    embed(packed, tmp_path / "tar.h5", section)
    assert (found.read(0, 4) == Embeddings(tmp_path / "tar.h5").read()).all()


def test_a_changed_file_is_noticed_when_it_is_read(tmp_path):
    folder = tmp_path / "images"
    class_folders(folder, {str(i): jpeg(i) for i in range(3)}, classes=1)
    (folder / "t.tar").write_bytes(in_memory({"a.jpg": jpeg(5)}))
    store = indexed(chunk(folder, tmp_path), tmp_path / "c-00000")
    rows = store.table().set_index("url")

    def read(name: str) -> bytes:
        return bytes_of(store, rows.loc[name])

    first, second, third = (f"class 0/{i}.JPEG" for i in range(3))
    assert read(first) == jpeg(0)
    (folder / first).write_bytes(jpeg(0)[:-1] + b"\0")
    (folder / second).unlink()
    (folder / third).unlink()
    os.mkfifo(folder / third)
    data = bytearray((folder / "t.tar").read_bytes())
    data[600] ^= 1
    (folder / "t.tar").write_bytes(data)
    for name, problem in (
        (first, "changed since it was indexed"), (second, r"No such file"),
        (third, "no regular file"), ("t.tar#a.jpg", "changed since it was indexed"),
    ):  # fmt: skip
        path = name.partition("#")[0]
        with pytest.raises(UserError, match=rf"{path}: .*{problem}.*c-00000/manifest\.json"):
            read(name)
    with pytest.raises(UserError, match=r"t\.tar: changed since it was indexed"):
        embed(store.folder, tmp_path / "e.h5", Embed(image_size=32))


def test_a_size_asked_for_stores_smaller_copies(tmp_path):
    folder = tmp_path / "images"
    class_folders(folder, {str(i): jpeg(i, 96) for i in range(5)})
    (folder / "thin.png").write_bytes(thin())
    table = chunk(folder, tmp_path)
    store = indexed(table, tmp_path / "c-00000", image_size=32)
    assert [path.name for path in store.tars] == ["00000.tar", "00001.tar"]
    rows = store.table()
    assert rows.reason.value_counts().to_dict() == {"": 5, "too_thin": 1}
    row = rows[rows.url == "class 0/0.JPEG"].iloc[0]
    with Image.open(io.BytesIO(bytes_of(store, row))) as image:
        assert image.size == (32, 32) and image.format == "JPEG"
    # As Snakemake does before another attempt, and with another section.
    for name in (MANIFEST, TABLE):
        (store.folder / name).unlink()
    assert [path.suffix for path in indexed(table, store.folder).tars] == [".index"] * 2


def test_a_killed_run_continues_and_gives_the_same_bytes(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    class_folders(folder, {f"{i:02d}": jpeg(i) for i in range(10)})
    hugging_face(folder / "p.parquet", [{"bytes": jpeg(i), "path": ""} for i in range(10, 15)])
    table = chunk(folder, tmp_path)

    def contents(store: ImageStore) -> dict[str, str]:
        return {path.name: sha256_file(path) for path in sorted(store.folder.iterdir())}

    whole = contents(indexed(table, tmp_path / "whole" / "c-00000"))
    write, blocks = index_module._write_block, []

    def killed(target, state, block, *rest):
        blocks.append(block)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        write(target, state, block, *rest)

    monkeypatch.setattr(index_module, "_write_block", killed)
    output = tmp_path / "killed" / "c-00000"
    with pytest.raises(KeyboardInterrupt):
        indexed(table, output)
    assert not (output / MANIFEST).exists()
    assert contents(indexed(table, output)) == whole
    assert blocks == [0, 1, 2, 2, 3]
    assert not (output.parent / "state").exists()
    # Again: nothing to do.
    assert contents(indexed(table, output)) == whole and len(blocks) == 5


def test_too_many_bad_images_stop_the_chunk(tmp_path):
    folder = tmp_path / "images"
    class_folders(folder, {"a": jpeg(0), "b": b"none", "c": b"none"})
    table = chunk(folder, tmp_path)
    with pytest.raises(UserError, match=r"1 of 3 images are good .* not_an_image 2; check the im"):
        indexed(table, tmp_path / "c-00000", min_success=0.5)


def test_a_damaged_index_is_named(tmp_path):
    path = tmp_path / "00000.index"
    record = pointers.record(Pointer("a.jpg", 0, 3), "0" * 64)
    path.write_bytes(pointers.header("/nowhere") + record)
    place = len(pointers.header("/nowhere"))
    assert pointers.located(path, place)[0] == Pointer("/nowhere/a.jpg", 0, 3)
    for offset in (place + 1, 10_000):
        with pytest.raises(UserError, match=rf"00000\.index: damaged at byte {offset}"):
            pointers.read_indexed(path, offset)
    long = pointers.record(Pointer("é" * 4000, 0, 3), "0" * 64)
    path.write_bytes(pointers.header("/nowhere") + long)
    assert pointers.located(path, place)[0].path == "/nowhere/" + "é" * 4000
