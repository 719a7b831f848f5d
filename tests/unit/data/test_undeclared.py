"""Files that only a record of ours names: removed, edited, or merely copied."""

from __future__ import annotations

import os

import pytest

from helpers.builders import image_store
from mlcd.data import undeclared
from mlcd.utils.files import sha256_file
from mlcd.utils.records import write_record


@pytest.fixture
def records(tmp_path):
    """The records of a chunk and of an export, as their stages leave them."""
    manifest = image_store(tmp_path / "c-00000", 6, rows_per_tar=4)
    folder = tmp_path / "timm"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("card")
    files = {"model.safetensors": sha256_file(folder / "model.safetensors")}
    sizes = {"model.safetensors": 7}
    write_record(folder / "check.json", {"format": "timm", "files": files, "bytes": sizes})
    for path in (manifest, folder / "check.json"):
        later(path, -10)
        for other in path.parent.iterdir():
            if other != path:
                later(other, -20)
    return {"manifest": manifest, "check": folder / "check.json"}


def later(path, seconds):
    """Move a file's time of change."""
    time = path.stat().st_mtime_ns + int(seconds * 1e9)
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize(
    ("record", "name"),
    [("manifest", "00001.tar"), ("manifest", "rows.parquet"), ("check", "model.safetensors")],
)
def test_what_is_missing_edited_or_copied(records, tmp_path, record, name, monkeypatch):
    path, file = records[record], records[record].with_name(name)

    def ask():
        return undeclared.changed(str(path), undeclared.Seen(tmp_path / "seen.json"))

    hashed = []
    real = sha256_file
    monkeypatch.setattr(undeclared, "sha256_file", lambda path: hashed.append(path) or real(path))
    assert ask() == "" and not hashed
    whole = file.read_bytes()
    later(file, 100)
    # A copy has a new time: it is read once.
    assert ask() == "" and ask() == ""
    assert hashed == [file]
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    later(file, 200)
    assert ask() == f"{file}: edited"
    file.write_bytes(whole + b"x")
    assert ask() != ""
    file.unlink()
    assert ask() == f"{file}: missing"


def test_a_record_that_is_damaged_is_such_a_file_and_a_missing_one_is_not(records, tmp_path):
    seen = undeclared.Seen(tmp_path / "seen.json")
    for path in records.values():
        path.write_text(path.read_text().replace(":", ";", 1))
        assert undeclared.changed(str(path), seen) == f"{path}: damaged"
        path.unlink()
        assert undeclared.changed(str(path), seen) == ""
